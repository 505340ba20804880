"""Commands that plan: where to start, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayeslaw.cli_options import (
    FamilyOption,
    FitArgument,
    Seed,
    TableOption,
    read_floats,
    read_numbers,
    read_widths,
    table_of,
    write_csv,
)
from bayeslaw.errors import BayeslawError

if TYPE_CHECKING:
    from bayeslaw.plan import Plan
    from bayeslaw.posterior import Fit


def plan(
    fit: FitArgument,
    target_error: Annotated[float | None, typer.Option(help="Wanted test error, a fraction.")] = None,
    objective: Annotated[
        str, typer.Option(help="size, inference (multiply-adds), or error (within --max-size).")
    ] = "size",
    max_size: Annotated[float | None, typer.Option(help="Most non-zero parameters, for --objective error.")] = None,
    max_training_flops: Annotated[float | None, typer.Option(help="Most operations for all trainings.")] = None,
    policy: Annotated[
        str, typer.Option(help="fixed (density chosen in advance), or adaptive (until the error crosses).")
    ] = "fixed",
    validation: Annotated[
        int | None, typer.Option(help="Training examples held out for --policy adaptive to stop on.")
    ] = None,
    dataset_size: Annotated[str, typer.Option(help="Training examples, comma-separated; default the most.")] = "",
    depths: Annotated[str, typer.Option(help="Depths, comma-separated; default the fitted ones.")] = "",
    widths: Annotated[
        str, typer.Option(help="Widths, comma-separated, or a range 4-64; default the fitted ones.")
    ] = "",
    confidence: Annotated[float, typer.Option(help="Wanted probability of reaching the target.")] = 0.9,
    allow_failed: Annotated[bool, typer.Option("--allow-failed", help="Plan with a fit that failed its gate.")] = False,
    family: FamilyOption = None,
    output: TableOption = None,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of the frontier to write (.png, .pdf).", dir_okay=False)
    ] = None,
    regret_figure: Annotated[
        Path | None, typer.Option(help="Figure of the regret of every start.", dir_okay=False)
    ] = None,
    reach_figure: Annotated[Path | None, typer.Option(help="Figure of who reaches the target.", dir_okay=False)] = None,
    pareto_figure: Annotated[
        Path | None, typer.Option(help="Figure of size against training cost.", dir_okay=False)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Choose the network to start from and how far to prune it."""
    from bayeslaw import load

    posterior = load(fit, family=family)
    runs = posterior.runs
    decision = posterior.plan(
        target_error,
        depths=read_floats(depths, "--depths") if depths else sorted(runs["depth"].unique()),
        widths=read_widths(widths) if widths else sorted(runs["width"].unique()),
        dataset_size=read_floats(dataset_size, "--dataset-size") if dataset_size else int(runs["dataset_size"].max()),
        objective=objective,
        max_size=max_size,
        max_training_flops=max_training_flops,
        policy=policy,
        validation=validation,
        confidence=confidence,
        allow_failed=allow_failed,
        seed=seed,
    )
    if output is not None:
        write_csv(decision.starts, output)
    figures = {"frontier": figure, "regret": regret_figure, "reach": reach_figure, "pareto": pareto_figure}
    _draw_plan(posterior, decision, seed, {name: path for name, path in figures.items() if path is not None})
    typer.echo(str(decision))


def _draw_plan(posterior: Fit, decision: Plan, seed: int, figures: Mapping[str, Path]) -> None:
    if not figures:
        return
    from bayeslaw.plan_plots import plot_frontier, plot_pareto, plot_reach, plot_regret
    from bayeslaw.plots import save_figure

    draw = {
        "frontier": lambda: plot_frontier(posterior, decision, seed=seed),
        "regret": lambda: plot_regret(decision),
        "reach": lambda: plot_reach(decision),
        "pareto": lambda: plot_pareto(posterior, decision, seed=seed),
    }
    for name, path in figures.items():
        save_figure(draw[name](), path)


def suggest(
    fit: FitArgument,
    target_error: Annotated[float, typer.Option(help="Wanted test error of the decision, a fraction.")],
    template: Annotated[Path, typer.Option(help="TOML file of the sweep whose protocol is taken.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Sweep to write (.toml).", dir_okay=False)] = Path(
        "next.toml"
    ),
    batch: Annotated[int, typer.Option(help="Runs to choose: as many as there are workers.")] = 1,
    budget: Annotated[float | None, typer.Option(help="Most operations for the batch.")] = None,
    dataset_size: Annotated[int | None, typer.Option(help="Training examples; default the largest fitted.")] = None,
    depths: Annotated[str, typer.Option(help="Depths, comma-separated; default the fitted ones.")] = "",
    widths: Annotated[str, typer.Option(help="Widths, comma-separated; default the fitted ones.")] = "",
    allow_failed: Annotated[bool, typer.Option("--allow-failed", help="Use a fit that failed its gate.")] = False,
    family: FamilyOption = None,
    seed: Seed = 0,
) -> None:
    """Rank the next runs by how far they bring the decision's regret down, and write them as a sweep."""
    from bayeslaw import load
    from bayeslaw import suggest as rank
    from bayeslaw.sweep_file import check_origin

    posterior = load(fit, family=family)
    check_origin(template, posterior.frame.family.name, posterior.frame.dataset)
    runs = posterior.runs
    decision = posterior.plan(
        target_error,
        depths=read_floats(depths, "--depths") if depths else sorted(runs["depth"].unique()),
        widths=read_floats(widths, "--widths") if widths else sorted(runs["width"].unique()),
        dataset_size=dataset_size or int(runs["dataset_size"].max()),
        allow_failed=allow_failed,
        seed=seed,
    )
    found = rank(posterior, objective=decision, batch=batch, budget=budget, seed=seed)
    written = found.to_sweep(output, template=template, runs=runs)
    typer.echo(f"{decision.advice}\n\n{found}\n\nwritten to {written}")


def autopilot(
    target_error: Annotated[float, typer.Option(help="Wanted test error of the decision, a fraction.")],
    depths: Annotated[str, typer.Option(help="Depths, comma-separated.")],
    widths: Annotated[str, typer.Option(help="Widths, comma-separated.")],
    dataset_size: Annotated[int, typer.Option(help="Training examples of the decision.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; a campaign that was stopped goes on.")],
    template: Annotated[Path | None, typer.Option(help="TOML file of a sweep: run its networks live.")] = None,
    replay: Annotated[str | None, typer.Option(help="Recorded sweep, or run table, to replay as if live.")] = None,
    dataset_sizes: Annotated[str, typer.Option(help="Training examples that may be run besides.")] = "",
    density: Annotated[
        float | None, typer.Option(help="Density down to which runs go at most; default the sweep's lowest.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Expected regret, in per cent, that is sure enough.")] = 10.0,
    budget: Annotated[float | None, typer.Option(help="Most operations for all trainings.")] = None,
    batch: Annotated[int, typer.Option(help="Runs a round.")] = 3,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of regret against cost (.png, .pdf).", dir_okay=False)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit, suggest, run, and fit again, until the decision is sure enough or the budget is spent."""
    from bayeslaw.campaign import Replay
    from bayeslaw.campaign import autopilot as fly
    from bayeslaw.live import Live

    if (template is None) == (replay is None):
        raise BayeslawError("give either --template, to run live, or --replay, a recorded sweep.")
    runner = (
        Replay(table_of(replay), order=seed) if replay else Live(str(template), output / "store", data_dir=data_dir)
    )
    campaign = fly(
        runner,
        output,
        target_error=target_error,
        depths=read_numbers(depths, "--depths"),
        widths=read_numbers(widths, "--widths"),
        dataset_size=dataset_size,
        dataset_sizes=read_numbers(dataset_sizes, "--dataset-sizes") if dataset_sizes else None,
        density=density,
        tolerance=tolerance,
        budget=budget,
        batch=batch,
        seed=seed,
        say=typer.echo,
    )
    if figure is not None:
        from bayeslaw.plan_plots import plot_campaign
        from bayeslaw.plots import save_figure

        save_figure(plot_campaign(campaign.history), figure)
    typer.echo(f"\n{campaign.plan or campaign.reason}\n\nwritten to {output}")
