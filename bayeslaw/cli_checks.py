"""Commands that check: what was left out, plans looked up, calibration by simulation, how many runs suffice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslaw.cli_options import (
    CorrelatedOption,
    CurvatureOption,
    LawOption,
    Seed,
    SubsetsOption,
    read_floats,
    read_numbers,
    table_of,
    write_csv,
)
from bayeslaw.errors import BayeslawError


def evaluate(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="Recorded sweep, or a run table.")],
    law: LawOption = "sharpness",
    correlated: CorrelatedOption = True,
    subsets: SubsetsOption = None,
    curvature: CurvatureOption = True,
    leave_out: Annotated[str, typer.Option(help="configurations, trajectories, or largest.")] = "configurations",
    folds: Annotated[int, typer.Option(help="Groups left out in turn.")] = 5,
    later: Annotated[
        str | None, typer.Option(metavar="RUNS", help="Runs measured later; then nothing is left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Predicted rows to write (.csv).", dir_okay=False)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compare posterior and least squares: deviation, seed spread, coverage of what was left out."""
    from bayeslaw.calibration import evaluate as run

    new = None if later is None else table_of(later)
    parts: dict[str, Any] = {"law": law, "correlated": correlated, "subsets": subsets, "curvature": curvature}
    result = run(table_of(runs), **parts, leave_out=leave_out, folds=folds, later=new, seed=seed)
    if output is not None:
        write_csv(result.rows, output)
    typer.echo(str(result))


def evaluate_plans(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="Recorded sweep, or a run table with replicates.")],
    law: LawOption = "sharpness",
    correlated: CorrelatedOption = True,
    factors: Annotated[
        str, typer.Option(help="Target errors, as multiples of the least unpruned one.")
    ] = "1.25,1.5,2,3",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the tables and the figure.")] = None,
    seed: Seed = 0,
) -> None:
    """Hide the networks around measured optima, plan from the rest, and look up what was measured."""
    from bayeslaw.plan_evaluation import evaluate_plans as run

    asked = read_floats(factors, "--factors")
    result = run(table_of(runs), factors=asked, law=law, correlated=correlated, seed=seed)
    if output is not None:
        result.save(output)
    typer.echo(str(result))


def check(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; a run that was stopped is continued.")],
    model: Annotated[str, typer.Option(help="single, few, hierarchical, all of these, or plan.")] = "all",
    repetitions: Annotated[
        int | None,
        typer.Option(help="Data sets; default 1000 for small models, 200 hierarchical, 500 for plans.", min=1),
    ] = None,
    fault: Annotated[str, typer.Option(help="Wrong on purpose: none, noise, gamma or double.")] = "none",
    processes: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    seed: Seed = 0,
) -> None:
    """Check by simulation that posteriors are those of the model; exit code 1 where one is rejected."""
    # Numerical libraries are loaded below. The matrices are small: threads of linear algebra only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from bayeslaw.check_models import models
    from bayeslaw.checking import check as run
    from bayeslaw.plots import plot_ranks

    if model == "plan":
        if fault != "none":
            raise BayeslawError(f"fault = {fault!r} goes with models of runs; plans are checked as they are.")
        _check_plans(output / "plan", repetitions or 500, seed, processes)
        return
    rejected = False
    for name in list(models()) if model == "all" else [model]:
        folder = output / (name if fault == "none" else f"{name}_{fault}")
        result = run(
            name, repetitions=repetitions, fault=fault, seed=seed, output=folder, processes=processes, progress=True
        )
        plot_ranks(result).savefig(folder / "ranks.png", dpi=110)
        typer.echo(f"{result}\nwritten to {folder}\n")
        rejected |= result.rejected
    if rejected:
        raise typer.Exit(1)


def _check_plans(folder: Path, worlds: int, seed: int, processes: int) -> None:
    from bayeslaw.plan_checking import check_plans
    from bayeslaw.promise_plots import plot_reliability

    result = check_plans(worlds=worlds, seed=seed, output=folder, processes=processes)
    plot_reliability(result.reliability).savefig(folder / "reliability.png", dpi=110)
    typer.echo(f"{result}\nwritten to {folder}")
    if result.rejected:
        raise typer.Exit(1)


def learning_curve(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="Recorded sweep, or a run table.")],
    counts: Annotated[str, typer.Option(help="Numbers of configurations to fit, comma-separated.")] = "6,10,15,25,40",
    repetitions: Annotated[int, typer.Option(help="Random draws of configurations for each number.")] = 5,
    law: LawOption = "sharpness",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table to write and go on with (.csv).", dir_okay=False),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to write (.png, .pdf, .svg).", dir_okay=False)] = None,
    seed: Seed = 0,
) -> None:
    """See how many runs suffice: fit random configurations, predict all others."""
    from bayeslaw.sufficiency import learning_curve as run

    asked = read_numbers(counts, "--counts")
    result = run(table_of(runs), counts=asked, repetitions=repetitions, law=law, seed=seed, path=output)
    if figure is not None:
        from bayeslaw.plots import plot_learning_curve

        plot_learning_curve(result).savefig(figure, dpi=150)
    shown = result.groupby("configurations")[["deviation", "log_width", "coverage", "passed"]].mean()
    typer.echo(shown.to_string(float_format=lambda v: f"{v:.3f}"))
