"""The command `bayeslaw`: from runs to a fit, predictions, plans, the next runs, and the checks."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bayeslaw.errors import BayeslawError

if TYPE_CHECKING:
    import pandas as pd

    from bayeslaw.plan import Plan
    from bayeslaw.posterior import Fit

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Bayesian scaling laws for iterative magnitude pruning: fit runs, predict networks, plan where to start.",
)
FitArgument = Annotated[Path, typer.Argument(metavar="FIT", help="Fit written by `bayeslaw fit` (.nc).")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
FamilyOption = Annotated[
    str | None, typer.Option(help="Which family of a pooled fit, for instance cifar_resnet/digits.")
]
LawOption = Annotated[str, typer.Option(help="joint, parameter_count, sharpness, dip, anchored, sparse or single.")]
CorrelatedOption = Annotated[
    bool, typer.Option("--correlated/--independent", help="Noise is correlated from level to level.")
]


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("quickstart"),
    network: Annotated[str, typer.Option(help="Network left out: depth,width,dataset_size.")] = "8,4,500",
    target_error: Annotated[float, typer.Option(help="Error that the plan aims at.")] = 0.03,
    seed: Seed = 0,
) -> None:
    """Fit recorded runs, predict a network left out, train and prune it live, and plan."""
    chosen = _numbers(network, "--network")
    if len(chosen) != 3:
        raise BayeslawError(f"--network {network!r} must be depth,width,dataset_size, for instance 8,4,500.")
    from bayeslaw.quickstart import quickstart as run

    run(output, network=(chosen[0], chosen[1], chosen[2]), target_error=target_error, seed=seed, say=typer.echo)


@app.command()
def fit(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUNS...", help="Run tables (.parquet or .csv), or recorded sweeps.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Fit to write (.nc).")] = Path("fit.nc"),
    pool: Annotated[str | None, typer.Option(help="family: fit several families together.")] = None,
    law: LawOption = "sharpness",
    effects: Annotated[str, typer.Option(help="Where runs differ: np (on eps_np), p (on p'), both, or none.")] = "np,p",
    noise: Annotated[str, typer.Option(help="Noise of single levels: student_t or normal.")] = "student_t",
    steep: Annotated[bool, typer.Option(help="Noise grows with the local slope.")] = True,
    growth: Annotated[
        bool | None,
        typer.Option("--growth/--no-growth", help="Spreads grow with the error; by default with 20 networks or more."),
    ] = None,
    correlated: CorrelatedOption = True,
    deaths: Annotated[
        bool | None,
        typer.Option("--deaths/--no-deaths", help="Networks die, then repeat an error; by default where any did."),
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Least squares and its bootstrap beside it.")] = False,
    repetitions: Annotated[int, typer.Option(min=1, help="Refits of that bootstrap.")] = 100,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="How much priors and data matter.")] = False,
    predictive_check: Annotated[
        bool, typer.Option("--predictive-check", help="Measured runs beside replicated ones.")
    ] = False,
    column: Annotated[list[str] | None, typer.Option(help="Column mapping, ours=yours; repeatable.")] = None,
    n_test: Annotated[int | None, typer.Option(help="Test examples, if the table does not say.")] = None,
    chance_error: Annotated[float | None, typer.Option(help="Random-guess error, if the table does not say.")] = None,
    chains: Annotated[int, typer.Option(help="Chains.")] = 4,
    warmup: Annotated[int, typer.Option(help="Warm-up transitions per chain.")] = 300,
    draws: Annotated[int, typer.Option(help="Draws per chain.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Infer a law from a run table; print the posterior and the diagnostics."""
    import pandas as pd

    from bayeslaw import fit as infer

    if pool is not None and (baseline or sensitivity or predictive_check):
        raise BayeslawError(
            "--baseline, --sensitivity and --predictive-check are about one family: leave out --pool, or call "
            "Fit.summary(baseline=True), Fit.psense and Fit.predictive_check on a family of bayeslaw.load_pooled."
        )
    mapping = dict(_pair(entry) for entry in column or [])
    tables = [_table(name, columns=mapping or None, n_test=n_test, chance_error=chance_error) for name in runs]
    acting = [name for name in effects.split(",") if name not in ("", "none")]
    settings: Any = {
        "law": law, "effects": acting, "noise": noise, "steep": steep, "growth": growth, "correlated": correlated,
        "deaths": deaths, "seed": seed, "chains": chains, "warmup": warmup, "draws": draws,
    }  # fmt: skip
    if pool is None:
        result = infer(tables[0] if len(tables) == 1 else pd.concat(tables), **settings)
        summary = result.summary(baseline=baseline, repetitions=repetitions, seed=seed)
    else:
        result = infer(tables, pool=cast("Any", pool), **settings)
        summary = result.summary()
        typer.echo(f"{_text(result.exponents())}\n")
    result.save(output)
    typer.echo(_text(summary))
    typer.echo(f"\n{result.prior_note}")
    if sensitivity:
        typer.echo(f"\n{_text(result.psense())}")
    if predictive_check:
        typer.echo(f"\n{_text(result.predictive_check(seed=seed))}")
    typer.echo(f"\n{result.diagnose()}\n\nwritten to {output}")


@app.command()
def predict(
    fit: FitArgument,
    depths: Annotated[str, typer.Option(help="Depths, comma-separated.")] = "",
    widths: Annotated[str, typer.Option(help="Widths, comma-separated.")] = "",
    dataset_sizes: Annotated[str, typer.Option(help="Dataset sizes, comma-separated.")] = "",
    densities: Annotated[str, typer.Option(help="Densities, comma-separated.")] = "1,0.5,0.2,0.1,0.05,0.02,0.01",
    designs: Annotated[Path | None, typer.Option(help="Designs as a table (.parquet or .csv) instead.")] = None,
    kind: Annotated[str, typer.Option(help="mean: the curve; run: a new replicate.")] = "mean",
    interval: Annotated[float, typer.Option(help="Probability of the interval.")] = 0.9,
    family: FamilyOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table to write (.csv).")] = None,
    seed: Seed = 0,
) -> None:
    """Predict the error of networks, trained or not."""
    import itertools

    import pandas as pd

    from bayeslaw import load

    posterior = load(fit, family=family)
    if designs is not None:
        try:
            table = pd.read_parquet(designs) if designs.suffix == ".parquet" else pd.read_csv(designs)
        except (OSError, ValueError) as error:
            raise BayeslawError(f"{designs}: not a readable table of designs ({error}).") from None
    else:
        given = {"depth": depths, "width": widths, "dataset_size": dataset_sizes, "density": densities}
        options = ("--depths", "--widths", "--dataset-sizes", "--densities")
        axes = [_floats(text, option) for option, text in zip(options, given.values(), strict=True)]
        table = pd.DataFrame(itertools.product(*axes), columns=list(given))
    predicted = posterior.predict(table, interval=interval, kind=kind, seed=seed)
    assert isinstance(predicted, pd.DataFrame)
    if output is not None:
        predicted.to_csv(output, index=False)
    typer.echo(predicted.to_string(index=False, float_format=lambda v: f"{v:.4g}"))


@app.command()
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
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table to write (.csv).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure of the frontier to write (.png, .pdf).")] = None,
    regret_figure: Annotated[Path | None, typer.Option(help="Figure of the regret of every start.")] = None,
    reach_figure: Annotated[Path | None, typer.Option(help="Figure of who reaches the target.")] = None,
    pareto_figure: Annotated[Path | None, typer.Option(help="Figure of size against training cost.")] = None,
    seed: Seed = 0,
) -> None:
    """Choose the network to start from and how far to prune it."""
    from bayeslaw import load

    posterior = load(fit, family=family)
    runs = posterior.runs
    decision = posterior.plan(
        target_error,
        depths=_floats(depths, "--depths") if depths else sorted(runs["depth"].unique()),
        widths=_widths(widths) if widths else sorted(runs["width"].unique()),
        dataset_size=_floats(dataset_size, "--dataset-size") if dataset_size else int(runs["dataset_size"].max()),
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
        decision.starts.to_csv(output, index=False)
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


@app.command()
def suggest(
    fit: FitArgument,
    target_error: Annotated[float, typer.Option(help="Wanted test error of the decision, a fraction.")],
    template: Annotated[Path, typer.Option(help="TOML file of the sweep whose protocol is taken.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Sweep to write (.toml).")] = Path("next.toml"),
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
        depths=_floats(depths, "--depths") if depths else sorted(runs["depth"].unique()),
        widths=_floats(widths, "--widths") if widths else sorted(runs["width"].unique()),
        dataset_size=dataset_size or int(runs["dataset_size"].max()),
        allow_failed=allow_failed,
        seed=seed,
    )
    found = rank(posterior, objective=decision, batch=batch, budget=budget, seed=seed)
    written = found.to_sweep(output, template=template, runs=runs)
    typer.echo(f"{decision.advice}\n\n{found}\n\nwritten to {written}")


@app.command()
def autopilot(
    target_error: Annotated[float, typer.Option(help="Wanted test error of the decision, a fraction.")],
    depths: Annotated[str, typer.Option(help="Depths, comma-separated.")],
    widths: Annotated[str, typer.Option(help="Widths, comma-separated.")],
    dataset_size: Annotated[int, typer.Option(help="Training examples of the decision.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; a campaign that was stopped goes on.")],
    template: Annotated[Path | None, typer.Option(help="TOML file of a sweep: run its networks live.")] = None,
    replay: Annotated[str | None, typer.Option(help="Recorded sweep, or run table, to replay as if live.")] = None,
    dataset_sizes: Annotated[str, typer.Option(help="Training examples that may be run besides.")] = "",
    tolerance: Annotated[float, typer.Option(help="Expected regret, in per cent, that is sure enough.")] = 10.0,
    budget: Annotated[float | None, typer.Option(help="Most operations for all trainings.")] = None,
    batch: Annotated[int, typer.Option(help="Runs a round.")] = 3,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure of regret against cost (.png, .pdf).")] = None,
    seed: Seed = 0,
) -> None:
    """Fit, suggest, run, and fit again, until the decision is sure enough or the budget is spent."""
    from bayeslaw.campaign import Replay
    from bayeslaw.campaign import autopilot as fly
    from bayeslaw.live import Live

    if (template is None) == (replay is None):
        raise BayeslawError("give either --template, to run live, or --replay, a recorded sweep.")
    runner = Replay(_table(replay), order=seed) if replay else Live(str(template), output / "store", data_dir=data_dir)
    campaign = fly(
        runner,
        output,
        target_error=target_error,
        depths=_numbers(depths, "--depths"),
        widths=_numbers(widths, "--widths"),
        dataset_size=dataset_size,
        dataset_sizes=_numbers(dataset_sizes, "--dataset-sizes") if dataset_sizes else None,
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


@app.command()
def watch(
    store: Annotated[str, typer.Argument(help="Folder of a store of imp-runs, or its URL.")],
    fit: FitArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Figure: .png, .pdf, .svg.")] = Path("curves.png"),
    every: Annotated[float, typer.Option(help="Seconds between two drawings.", min=0)] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Draw once.")] = False,
    family: FamilyOption = None,
) -> None:
    """Draw the curves a sweep has measured so far over the law's bands, again and again while it runs."""
    from bayeslaw import load
    from bayeslaw.live import watch as run

    run(store, load(fit, family=family), output=output, every=every, once=once, say=typer.echo)


@app.command()
def compare(
    fits: Annotated[list[Path], typer.Argument(metavar="FIT...", help="Two fits or more of the same runs (.nc).")],
    folds: Annotated[
        int | None, typer.Option(help="Fit everything again without each of so many groups, instead of estimating.")
    ] = None,
    leave_out: Annotated[str, typer.Option(help="With --folds: configurations, trajectories, or largest.")] = (
        "configurations"
    ),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table to write (.csv).")] = None,
    seed: Seed = 0,
) -> None:
    """Rank fits by the density they give to trajectories, and to rows, that are left out."""
    from bayeslaw import compare as rank
    from bayeslaw import cross_validate, load

    loaded = {path.stem: load(path) for path in fits}
    exact = {"leave_out": leave_out, "folds": folds, "seed": seed}
    result = rank(loaded) if folds is None else cross_validate(loaded, **exact)
    if output is not None:
        result.table.to_csv(output, index_label="fit")
    typer.echo(str(result))


@app.command()
def evaluate(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="Recorded sweep, or a run table.")],
    law: LawOption = "sharpness",
    correlated: CorrelatedOption = True,
    leave_out: Annotated[str, typer.Option(help="configurations, trajectories, or largest.")] = "configurations",
    folds: Annotated[int, typer.Option(help="Groups left out in turn.")] = 5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Predicted rows to write (.csv).")] = None,
    seed: Seed = 0,
) -> None:
    """Compare posterior and least squares: deviation, seed spread, coverage of what was left out."""
    from bayeslaw.calibration import evaluate as run

    result = run(_table(runs), law=law, correlated=correlated, leave_out=leave_out, folds=folds, seed=seed)
    if output is not None:
        result.rows.to_csv(output, index=False)
    typer.echo(str(result))


@app.command()
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

    asked = _floats(factors, "--factors")
    result = run(_table(runs), factors=asked, law=law, correlated=correlated, seed=seed)
    if output is not None:
        result.save(output)
    typer.echo(str(result))


@app.command()
def check(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; a run that was stopped is continued.")],
    model: Annotated[str, typer.Option(help="single, few, hierarchical, all of these, or plan.")] = "all",
    repetitions: Annotated[
        int | None, typer.Option(help="Data sets; default 1000 for small models, 200 hierarchical, 500 for plans.")
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


@app.command()
def learning_curve(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="Recorded sweep, or a run table.")],
    counts: Annotated[str, typer.Option(help="Numbers of configurations to fit, comma-separated.")] = "6,10,15,25,40",
    repetitions: Annotated[int, typer.Option(help="Random draws of configurations for each number.")] = 5,
    law: LawOption = "sharpness",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Table to write and go on with (.csv).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to write (.png, .pdf, .svg).")] = None,
    seed: Seed = 0,
) -> None:
    """See how many runs suffice: fit random configurations, predict all others."""
    from bayeslaw.sufficiency import learning_curve as run

    asked = _numbers(counts, "--counts")
    result = run(_table(runs), counts=asked, repetitions=repetitions, law=law, seed=seed, path=output)
    if figure is not None:
        from bayeslaw.plots import plot_learning_curve

        plot_learning_curve(result).savefig(figure, dpi=150)
    shown = result.groupby("configurations")[["deviation", "log_width", "coverage", "passed"]].mean()
    typer.echo(shown.to_string(float_format=lambda v: f"{v:.3f}"))


def _table(runs: str, **reading: Any) -> pd.DataFrame:
    """Load a recorded sweep by its name, else the run table of a path."""
    from bayeslaw.runs import load_recorded, load_runs, recorded_names

    return load_recorded(runs) if runs in recorded_names() else load_runs(runs, **reading)


def _text(table: pd.DataFrame) -> str:
    return table.to_string(float_format=lambda value: f"{value:.3f}", na_rep="")


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BayeslawError(
            f"{option} {text!r} must be whole numbers separated by commas, for instance 8,14."
        ) from None


def _floats(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BayeslawError(f"{option} {text!r} must be numbers separated by commas, for instance 1,0.1.") from None


def _widths(text: str) -> list[float]:
    """Read widths, or the two ends of a range of them."""
    ends = text.split("-")
    if len(ends) != 2:
        return _floats(text, "--widths")
    from bayeslaw.starts import width_grid

    return width_grid(*(_floats(end, "--widths")[0] for end in ends)).tolist()


def _pair(entry: str) -> tuple[str, str]:
    ours, separator, yours = entry.partition("=")
    if not separator:
        raise BayeslawError(f"--column {entry!r} must be ours=yours, for instance error=test_err.")
    return ours, yours


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command; bad input ends it with one message and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (BayeslawError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
