"""The bootstrap over trajectories of the paper's least squares: the only uncertainty that it has."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from bayeslaw.baseline import DESIGN, LeastSquares, RowTable, fit_all, fit_counted, predict_errors, tabulate, theta_of
from bayeslaw.errors import BayeslawError

#: Constants of the joint law that a fit by least squares gives.
CONSTANTS = ("gamma", "phi", "psi", "p_prime", "eps_up")
#: How often a resample without a fit is drawn again.
_REDRAWS = 100
#: Residuals drawn for each refit where new runs are predicted.
_RESIDUALS = 20


def resample(
    runs: pd.DataFrame, *, repetitions: int = 100, starts: int = 20, seed: int = 0, progress: bool = False
) -> Iterator[LeastSquares]:
    """Refit the joint law to resampled trajectories: the bootstrap distribution of everything a fit says.

    As many trajectories as the table has are drawn from it with replacement, each with all its rows. The mean unpruned
    error of those drawn is a configuration's eps_np; a configuration of which none is drawn drops out. Each refit
    starts from the fit to the whole table. Where the table has no trajectories a configuration counts as one.

    Args:
        runs: Validated run table (`load_runs`) of one family and dataset.
        repetitions: Number of refits.
        starts: Starting points of the fit to the whole table.
        seed: Seed of starting points and resampling.
        progress: Whether to show a progress bar.

    Yields:
        One fit per repetition; its `rows` and `deviations` repeat with the trajectories.

    Raises:
        BayeslawError: As `least_squares` does.

    Source:
        Efron 1979; whole trajectories because rows of a trajectory are not independent.
    """
    table = tabulate(runs)
    return _refits(table, fit_all(table, starts, seed), repetitions, seed, progress)


def bootstrap_parameters(
    runs: pd.DataFrame, *, repetitions: int = 100, starts: int = 20, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """Draw the joint law's constants from the bootstrap over trajectories (`resample`).

    Args:
        runs: Validated run table (`load_runs`) of one family and dataset.
        repetitions: Number of refits, 1 or more.
        starts: Starting points of the fit to the whole table.
        seed: Seed of starting points and resampling.
        progress: Whether to show a progress bar.

    Returns:
        One row per refit: `gamma`, `phi`, `psi`, `p_prime`, `eps_up`, in the units of `LeastSquares`.

    Raises:
        BayeslawError: As `least_squares` does, or `repetitions` is out of its range.

    Source:
        Efron 1979; whole trajectories because rows of a trajectory are not independent.
    """
    _check_repetitions(repetitions)
    return _constants(list(resample(runs, repetitions=repetitions, starts=starts, seed=seed, progress=progress)))


def baseline_table(
    runs: pd.DataFrame,
    *,
    interval: float = 0.9,
    repetitions: int = 100,
    starts: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Give the least-squares estimate of the joint law's constants with its bootstrap interval.

    Args:
        runs: Validated run table (`load_runs`) of one family and dataset.
        interval: Probability of the percentile interval, in (0, 1).
        repetitions: Number of refits, 1 or more.
        starts: Starting points of the fit to the whole table.
        seed: Seed of starting points and resampling.
        progress: Show a progress bar where standard error is a terminal and it takes more than two seconds.

    Returns:
        One row per constant that the table has a say in: `least_squares`, `least_squares_lower`,
        `least_squares_upper`.

    Raises:
        BayeslawError: As `bootstrap_parameters` does, or `interval` is out of its range.

    Source:
        Rosenfeld et al., ICML 2021, section 5, for the estimate.
    """
    _check_interval(interval)
    _check_repetitions(repetitions)
    table = tabulate(runs)
    best = fit_all(table, starts, seed)
    refits = _refits(table, best, repetitions, seed, progress=False)
    shown = tqdm(
        refits, "bootstrap", repetitions, unit="fit", delay=2, disable=None if progress else True, file=sys.stderr
    )
    draws = _constants(list(shown)).drop(columns=list(best.fixed))
    if best.at_edge:
        ends = ", ".join(f"{name} = {getattr(best, name):.3g}" for name in best.at_edge)
        warnings.warn(
            f"Least squares ended at the edge of what it searches, {ends}: the runs do not determine it.", stacklevel=3
        )
    tail = (1 - interval) / 2
    return pd.DataFrame(
        {
            "least_squares": _constants([best])[list(draws)].iloc[0],
            "least_squares_lower": draws.quantile(tail),
            "least_squares_upper": draws.quantile(1 - tail),
        }
    ).rename_axis("parameter")


def _constants(fits: list[LeastSquares]) -> pd.DataFrame:
    return pd.DataFrame({name: [getattr(fit, name) for fit in fits] for name in CONSTANTS})


def _check_interval(interval: float) -> None:
    if not 0 < interval < 1:
        raise BayeslawError(f"interval= is the probability of the interval, in (0, 1); got {interval!r}.")


def _check_repetitions(repetitions: int) -> None:
    if repetitions < 1:
        raise BayeslawError(f"repetitions= is the number of refits, 1 or more; got {repetitions!r}.")


def bootstrap(
    runs: pd.DataFrame,
    designs: pd.DataFrame,
    *,
    repetitions: int = 100,
    interval: float = 0.9,
    kind: Literal["mean", "run"] = "mean",
    starts: int = 20,
    seed: int = 0,
    progress: bool = False,
    return_draws: bool = False,
) -> pd.DataFrame | NDArray[np.float64]:
    """Predict errors by least squares with intervals from the bootstrap over trajectories (`resample`).

    A refit that cannot predict a design (its configuration dropped out, and too few are left for the dense law) is
    drawn again.

    Args:
        runs: Validated run table (`load_runs`) of one family and dataset.
        designs: Columns depth, width, dataset_size and density, one row per prediction.
        repetitions: Number of refits.
        interval: Probability between `lower` and `upper`, equal-tailed, in (0, 1).
        kind: `"mean"`, the uncertainty of the fitted curve; `"run"`, that of a newly measured error: each predicted
            error is divided by 1 + a relative deviation drawn from those of the fit to the whole table, and is at most
            1. The deviations are drawn independently, wherever on the curve they came from.
        starts: Starting points of the fit to the whole table.
        seed: Seed of starting points, resampling and residuals.
        progress: Whether to show a progress bar.
        return_draws: Return the draws, `[draws, designs]`, instead of their summary.

    Returns:
        The designs' four columns with `mean`, `median`, `lower` and `upper` of the bootstrap distribution, under the
        designs' index.

    Raises:
        BayeslawError: As `least_squares` and `LeastSquares.predict` do, or an argument is out of its range.

    Source:
        Efron 1979; the interval is the percentile one.
    """
    _check_interval(interval)
    _check_repetitions(repetitions)
    if kind not in ("mean", "run"):
        raise BayeslawError(f'kind= is "mean" or "run"; got {kind!r}.')
    table = tabulate(runs)
    best = fit_all(table, starts, seed)
    best.predict(designs)
    refits = _refits(table, best, None, seed, progress=False)
    draws = np.array(
        [
            _predict_with_next(refits, best, designs)
            for _ in tqdm(range(repetitions), desc="bootstrap", unit="fit", disable=not progress)
        ]
    )
    if kind == "run":
        draws = np.repeat(draws, _RESIDUALS, axis=0)
        residuals = np.random.default_rng([seed, 1]).choice(best.deviations, draws.shape)
        draws = np.minimum(draws / (1 + residuals), 1.0)
    if return_draws:
        return draws
    lower, median, upper = np.quantile(draws, [(1 - interval) / 2, 0.5, (1 + interval) / 2], axis=0)
    return designs.filter(DESIGN).assign(mean=draws.mean(0), median=median, lower=lower, upper=upper)


def _refits(
    table: RowTable, best: LeastSquares, repetitions: int | None, seed: int, progress: bool
) -> Iterator[LeastSquares]:
    """Refit to resampled trajectories from the best fit, without end where no number is given."""
    rng = np.random.default_rng([seed, 0])
    number = int(table.trajectory.max()) + 1
    start = theta_of(best)
    with tqdm(total=repetitions, desc="bootstrap", unit="fit", disable=not progress) as bar:
        done, failed = 0, 0
        while repetitions is None or done < repetitions:
            counts = np.bincount(rng.integers(number, size=number), minlength=number)
            try:
                fit = fit_counted(table, counts, [start])
            except BayeslawError:
                failed += 1
                if failed > _REDRAWS:
                    raise
                continue
            yield fit
            done, failed = done + 1, 0
            bar.update()


def _predict_with_next(
    refits: Iterator[LeastSquares], best: LeastSquares, designs: pd.DataFrame
) -> NDArray[np.float64]:
    """Predict with the next refit that can."""
    for attempt in range(_REDRAWS):
        fit = next(refits)
        try:
            return predict_errors(fit, designs, best)
        except BayeslawError:
            if attempt == _REDRAWS - 1:
                raise
    raise AssertionError
