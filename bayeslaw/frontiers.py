"""How small networks can end for a whole range of errors, and what getting there costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.families import Family
from bayeslaw.objectives import Question, draws_of, values_of
from bayeslaw.starts import Costs, Counter, costs_of, make_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Starts inverted together; bounds the memory at this many times draws.
BLOCK = 256


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
        start reaches it. Quantiles are over the draws in which the target is feasible.

    Source:
        Rosenfeld et al., ICML 2021, figure 8.
    """
    starts = make_starts(depths, widths, dataset_size)
    targets = np.asarray(targets, float)
    tail, rows = (1 - interval) / 2, []
    sizes = _smallest_sizes(fit, targets, starts, costs_of(fit, starts, family, parameters), seed)
    for target, own in zip(targets, sizes, strict=True):
        smallest = own[np.isfinite(own)]
        quantiles = np.quantile(smallest, [0.5, tail, 1 - tail]) if len(smallest) else np.full(3, np.nan)
        rows.append([target, *quantiles, len(smallest) / len(own)])
    return pd.DataFrame(rows, columns=["target_error", "median", "lower", "upper", "p_feasible"])


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
