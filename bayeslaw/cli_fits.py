"""Commands from runs to a fit and its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from bayeslaw.cli_options import (
    CorrelatedOption,
    CurvatureOption,
    FamilyOption,
    FitArgument,
    LawOption,
    Seed,
    SubsetsOption,
    TableOption,
    read_floats,
    read_numbers,
    read_pair,
    table_of,
    text_of,
    write_csv,
)
from bayeslaw.errors import BayeslawError


def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path("quickstart"),
    network: Annotated[str, typer.Option(help="Network left out: depth,width,dataset_size.")] = "8,4,500",
    target_error: Annotated[float, typer.Option(help="Error that the plan aims at.")] = 0.03,
    seed: Seed = 0,
) -> None:
    """Fit recorded runs, predict a network left out, train and prune it live, and plan."""
    chosen = read_numbers(network, "--network")
    if len(chosen) != 3:
        raise BayeslawError(f"--network {network!r} must be depth,width,dataset_size, for instance 8,4,500.")
    from bayeslaw.quickstart import quickstart as run

    run(output, network=(chosen[0], chosen[1], chosen[2]), target_error=target_error, seed=seed, say=typer.echo)


def fit(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUNS...", help="Run tables (.parquet or .csv), or recorded sweeps.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Fit to write (.nc).", dir_okay=False)] = Path(
        "fit.nc"
    ),
    pool: Annotated[str | None, typer.Option(help="family: fit several families together.")] = None,
    law: LawOption = "sharpness",
    effects: Annotated[str, typer.Option(help="Where runs differ: np (on eps_np), p (on p'), both, or none.")] = "np,p",
    noise: Annotated[str, typer.Option(help="Noise of single levels: student_t or normal.")] = "student_t",
    steep: Annotated[bool, typer.Option(help="Noise grows with the local slope.")] = True,
    growth: Annotated[
        bool | None,
        typer.Option("--growth/--no-growth", help="Spreads grow with error and narrowness; default with 20 networks."),
    ] = None,
    correlated: CorrelatedOption = True,
    deaths: Annotated[
        bool | None,
        typer.Option("--deaths/--no-deaths", help="Networks die, then repeat an error; by default where any did."),
    ] = None,
    subsets: SubsetsOption = None,
    curvature: CurvatureOption = True,
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
    target_acceptance: Annotated[
        float | None, typer.Option(help="Acceptance rate of the sampler; default .98, .8 with 100 networks or more.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Infer a law from a run table; print the posterior and the diagnostics."""
    import pandas as pd

    from bayeslaw import fit as infer
    from bayeslaw.fit_file import check_writable

    if pool is not None and (baseline or sensitivity or predictive_check):
        raise BayeslawError(
            "--baseline, --sensitivity and --predictive-check are about one family: leave out --pool, or call "
            "Fit.summary(baseline=True), Fit.psense and Fit.predictive_check on a family of bayeslaw.load_pooled."
        )
    check_writable(output)
    mapping = dict(read_pair(entry) for entry in column or [])
    tables = [table_of(name, columns=mapping or None, n_test=n_test, chance_error=chance_error) for name in runs]
    acting = [name for name in effects.split(",") if name not in ("", "none")]
    settings: Any = {
        "law": law, "effects": acting, "noise": noise, "steep": steep, "growth": growth, "correlated": correlated,
        "deaths": deaths, "subsets": subsets, "curvature": curvature, "seed": seed, "chains": chains,
        "warmup": warmup, "draws": draws, "target_acceptance": target_acceptance,
    }  # fmt: skip
    if pool is None:
        result = infer(tables[0] if len(tables) == 1 else pd.concat(tables), **settings)
        result.save(output)
        summary = result.summary(baseline=baseline, repetitions=repetitions, seed=seed)
    else:
        result = infer(tables, pool=cast("Any", pool), **settings)
        result.save(output)
        summary = result.summary()
        typer.echo(f"{text_of(result.exponents())}\n")
    typer.echo(text_of(summary))
    typer.echo(f"\n{result.prior_note}")
    if sensitivity:
        typer.echo(f"\n{text_of(result.psense())}")
    if predictive_check:
        typer.echo(f"\n{text_of(result.predictive_check(seed=seed))}")
    typer.echo(f"\n{result.diagnose()}\n\nwritten to {output}")


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
    output: TableOption = None,
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
        axes = [read_floats(text, option) for option, text in zip(options, given.values(), strict=True)]
        table = pd.DataFrame(itertools.product(*axes), columns=list(given))
    predicted = posterior.predict(table, interval=interval, kind=kind, seed=seed)
    assert isinstance(predicted, pd.DataFrame)
    if output is not None:
        write_csv(predicted, output)
    typer.echo(predicted.to_string(index=False, float_format=lambda v: f"{v:.4g}"))


def compare(
    fits: Annotated[list[Path], typer.Argument(metavar="FIT...", help="Two fits or more of the same runs (.nc).")],
    folds: Annotated[
        int | None, typer.Option(help="Fit everything again without each of so many groups, instead of estimating.")
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="With --folds: configurations (the default), trajectories, or largest.")
    ] = None,
    output: TableOption = None,
    seed: Seed = 0,
) -> None:
    """Rank fits by the density they give to trajectories, and to rows, that are left out."""
    from bayeslaw import compare as rank
    from bayeslaw import cross_validate, load

    if leave_out is not None and folds is None:
        raise BayeslawError(
            f"--leave-out {leave_out} says what is left out of fits made again: give --folds too, for instance 3, or "
            "drop it for estimates from these fits."
        )
    stems = [path.stem for path in fits]
    loaded = {path.stem if stems.count(path.stem) == 1 else str(path): load(path) for path in fits}
    exact = {"leave_out": leave_out or "configurations", "folds": folds, "seed": seed}
    result = rank(loaded) if folds is None else cross_validate(loaded, **exact)
    if output is not None:
        write_csv(result.table.rename_axis("fit").reset_index(), output)
    typer.echo(str(result))


def watch(
    store: Annotated[str, typer.Argument(help="Folder of a store of imp-runs, or its URL.")],
    fit: FitArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Figure: .png, .pdf, .svg.", dir_okay=False)] = Path(
        "curves.png"
    ),
    every: Annotated[float, typer.Option(help="Seconds between two drawings.", min=0)] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Draw once.")] = False,
    family: FamilyOption = None,
) -> None:
    """Draw the curves a sweep has measured so far over the law's bands, again and again while it runs."""
    from bayeslaw import load
    from bayeslaw.live import watch as run

    run(store, load(fit, family=family), output=output, every=every, once=once, say=typer.echo)
