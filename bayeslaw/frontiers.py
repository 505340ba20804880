"""How small networks can end, for a whole range of errors and for a whole range of training budgets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION
from bayeslaw.measured import Recorded, middle
from bayeslaw.objectives import Question, check_gate, check_target, draws_of, sparsest_densities, values_of
from bayeslaw.starts import MAX_ROUNDS, Costs, Counter, costs_of, make_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Starts inverted together; bounds the memory at this many times draws.
BLOCK = 256
#: Budgets of a Pareto front, where none are given.
BUDGETS = 40


def frontier(
    fit: Fit,
    targets: NDArray,
    *,
    depths: Iterable[float],
    widths: Iterable[float],
    dataset_size: float | Iterable[float],
    family: Family | None = None,
    parameters: Counter | None = None,
    interval: float = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Give the fewest non-zero parameters over all starts for a range of errors, with credible intervals.

    Args:
        fit: The posterior.
        targets: Errors, `[targets]`.
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples, or several to choose from.
        family: Counts parameters; default the fitted family.
        parameters: Own count instead, as in `plan`.
        interval: Probability of the equal-tailed interval.
        seed: Seed of fresh effects.

    Returns:
        One row per target: `target_error`, `median`, `lower`, `upper` size and `p_feasible`, the probability that any
        start reaches it. Quantiles are over the draws in which the target is feasible. Beside it `measured`, the fewest
        parameters at which a fitted network of these starts reached it (the middle one of its runs,
        `bayeslaw.measured`); NaN where none did.

    Source:
        Rosenfeld et al., ICML 2021, figure 8.
    """
    starts = make_starts(depths, widths, dataset_size)
    targets = np.atleast_1d(np.asarray(targets, float))
    if targets.ndim != 1 or not ((targets > 0) & (targets < 1)).all():
        raise BayeslawError(f"targets = {targets.tolist()} must be errors, fractions in (0, 1).")
    _check_interval(interval)
    tail, rows = (1 - interval) / 2, []
    costs = costs_of(fit, starts, family, parameters)
    sizes = _smallest_sizes(fit, targets, starts, costs, seed)
    for target, own in zip(targets, sizes, strict=True):
        smallest = own[np.isfinite(own)]
        quantiles = np.quantile(smallest, [0.5, tail, 1 - tail]) if len(smallest) else np.full(3, np.nan)
        rows.append([target, *quantiles, len(smallest) / len(own)])
    table = pd.DataFrame(rows, columns=["target_error", "median", "lower", "upper", "p_feasible"])
    return table.assign(measured=_measured(fit, targets, starts, costs))


def _check_interval(interval: float) -> None:
    if not 0 < interval < 1:
        raise BayeslawError(f"interval = {interval} must be a probability in (0, 1), for instance 0.9.")


def _measured(fit: Fit, targets: NDArray, starts: pd.DataFrame, costs: Costs) -> NDArray[np.float64]:
    """Give the fewest parameters at which fitted runs of starts reach each target, NaN where none do."""
    offered = pd.MultiIndex.from_frame(starts[CONFIGURATION].astype(float))
    own = fit.runs[pd.MultiIndex.from_frame(fit.runs[CONFIGURATION].astype(float)).isin(offered)]
    if own.empty or "trajectory" not in own:
        return np.full(len(targets), np.nan)
    recorded, found = Recorded(own), []
    for target in targets:
        runs = recorded.densities(float(target))
        place = offered.get_indexer(pd.MultiIndex.from_frame(runs[CONFIGURATION].astype(float)))
        sizes = runs.assign(size=runs["density"] * costs.prunable[place] + costs.unprunable[place])
        size = sizes.groupby(CONFIGURATION)["size"].agg(lambda own: middle(own.to_numpy()))
        found.append(size.min() if np.isfinite(size).any() else np.nan)
    return np.array(found)


def pareto(
    fit: Fit,
    target_error: float,
    *,
    depths: Iterable[float],
    widths: Iterable[float],
    dataset_size: float | Iterable[float],
    budgets: NDArray | None = None,
    family: Family | None = None,
    parameters: Counter | None = None,
    interval: float = 0.9,
    allow_failed: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Give the fewest non-zero parameters at an error for a range of training budgets: size against cost.

    Every round trains the whole network again, so that a budget is a number of rounds for every start, and a small
    network that can be pruned often competes with a large one that cannot. What a budget of `plan` does to one
    decision, this does draw by draw for all of them.

    Args:
        fit: The posterior.
        target_error: Wanted error, by the curve of a typical run.
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples, or several to choose from.
        budgets: Floating-point operations for all trainings of one campaign, `[budgets]`; by default from one training
            of the cheapest start to as many as any start can use, evenly in the logarithm.
        family: Counts parameters; default the fitted family.
        parameters: Own counts instead, as in `plan`; needs multiply-adds.
        interval: Probability of the equal-tailed interval.
        allow_failed: Name starts although the fit failed its gate.
        seed: Seed of fresh effects.

    Returns:
        One row per budget: `training_flops`; `median`, `lower`, `upper` of the smallest size and `p_feasible`, the
        probability that any start reaches the target within the budget, the quantiles being over the draws in which one
        does; `depth`, `width`, `dataset_size` of the start that is most often the smallest, and `p_best`, how often.

    Raises:
        BayeslawError: The fit failed its gate, the target, a budget or the interval is out of range, or multiply-adds
            are not known.

    Example:
        >>> starts = {"depths": [8, 14], "widths": [4, 8], "dataset_size": 1000}
        >>> bayeslaw.pareto(fit, 0.1, **starts)  # doctest: +SKIP
    """
    question = Question(target_error=target_error)
    question.check()
    _check_interval(interval)
    check_target(fit, question)
    check_gate(fit, allow_failed=allow_failed)
    starts = make_starts(depths, widths, dataset_size)
    costs = costs_of(fit, starts, family, parameters)
    budgets = _budgets(budgets, costs)
    smallest: NDArray | float = np.inf
    best: NDArray | int = -1
    lowest = sparsest_densities(budgets, costs) * costs.prunable + costs.unprunable
    for begin in range(0, len(starts), BLOCK):
        own = slice(begin, begin + BLOCK)
        block, counts = starts.iloc[own], Costs(*(count[own] for count in costs))
        size = values_of(fit, question, block, counts, draws_of(fit, block, seed))
        within = [np.maximum(size, floor) for floor in lowest[:, own]]
        least, place = (np.stack([choose(sizes, axis=1) for sizes in within]) for choose in (np.min, np.argmin))
        best = np.where(least < smallest, begin + place, best)
        smallest = np.minimum(smallest, least)
    tail, rows = (1 - interval) / 2, []
    for budget, sizes, winners in zip(budgets, np.asarray(smallest), np.asarray(best), strict=True):
        any_ = np.isfinite(sizes)
        row = {"training_flops": budget} | dict.fromkeys(("median", "lower", "upper"), np.nan)
        row |= {"p_feasible": any_.mean()} | dict.fromkeys(("depth", "width", "dataset_size", "p_best"), np.nan)
        if any_.any():
            row |= zip(("median", "lower", "upper"), np.quantile(sizes[any_], [0.5, tail, 1 - tail]), strict=True)
            wins = np.bincount(winners[any_])
            row |= starts.iloc[int(wins.argmax())].to_dict() | {"p_best": wins.max() / len(sizes)}
        rows.append(row)
    return pd.DataFrame(rows)


def _budgets(given: NDArray | None, costs: Costs) -> NDArray[np.float64]:
    if given is None:
        return np.geomspace(costs.training.min(), costs.training.max() * (MAX_ROUNDS + 1), BUDGETS)
    budgets = np.atleast_1d(np.asarray(given, float))
    if not (len(budgets) and (budgets > 0).all()):
        raise BayeslawError(f"budgets = {given} must be numbers of floating-point operations above 0, at least one.")
    return budgets


def size_draws(
    fit: Fit,
    target_error: float,
    *,
    depths: Iterable[float],
    widths: Iterable[float],
    dataset_size: float | Iterable[float],
    family: Family | None = None,
    parameters: Counter | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Draw the fewest non-zero parameters over all starts that reach an error, of which `frontier` gives quantiles.

    Args:
        fit: The posterior.
        target_error: Wanted error.
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples, or several to choose from.
        family: Counts parameters; default the fitted family.
        parameters: Own count instead, as in `plan`.
        seed: Seed of fresh effects.

    Returns:
        Sizes with dimensions `chain` and `draw`, infinite in draws in which no start reaches the error.

    Example:
        >>> starts = {"depths": [8, 14], "widths": [4, 8], "dataset_size": 1000}
        >>> sizes = size_draws(fit, 0.1, **starts)  # doctest: +SKIP
        >>> fit.psense(quantities={"size": sizes.clip(max=1e6)})  # doctest: +SKIP
    """
    starts = make_starts(depths, widths, dataset_size)
    costs = costs_of(fit, starts, family, parameters)
    sizes = _smallest_sizes(fit, np.array([target_error]), starts, costs, seed)
    return xr.DataArray(sizes.reshape(fit.posterior.sizes["chain"], -1), dims=("chain", "draw"), name="size")


def _smallest_sizes(fit: Fit, targets: NDArray, starts: pd.DataFrame, costs: Costs, seed: int) -> NDArray[np.float64]:
    """Give the fewest parameters over all starts, `[targets, draws]`."""
    smallest: list[NDArray | float] = [np.inf] * len(targets)
    for begin in range(0, len(starts), BLOCK):
        own = slice(begin, begin + BLOCK)
        block, counts = starts.iloc[own], Costs(*(count[own] for count in costs))
        drawn = draws_of(fit, block, seed)
        for k, target in enumerate(targets):
            size = values_of(fit, Question(target_error=float(target)), block, counts, drawn)
            smallest[k] = np.minimum(smallest[k], size.min(1))
    return np.array(smallest)
