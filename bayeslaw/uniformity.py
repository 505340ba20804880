"""Are ranks uniform? An exact test of their empirical distribution, and the band it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.special
import scipy.stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def uniformity_p_value(ranks: ArrayLike, largest: int) -> float:
    r"""Test whether ranks are uniform on 0, 1, ..., `largest`.

    Of the N ranks C_r are below r, a Binomial(N, r / (largest + 1)) number if they are uniform. The statistic is the
    smallest of the two-sided pointwise tail probabilities

    $$\min_r \, 2 \min \{ P(C_r \le c_r), P(C_r \ge c_r) \},$$

    so that shifts, widths and tails all count. Its distribution, discreteness included, is computed and not simulated:
    C_1, C_2, ... is a Markov chain of binomial steps.

    Args:
        ranks: Whole numbers from 0 to `largest`, `[N]`.
        largest: Largest possible rank, the number of draws that a truth was ranked among.

    Returns:
        The probability of a statistic as small as this one or smaller, to about 1e-12.

    Source:
        Saeilynoja, Buerkner, Vehtari, Statistics and Computing 2022, sections 2.2 and 2.3.

    Example:
        >>> round(uniformity_p_value(np.arange(100), 99), 3)
        1.0
        >>> uniformity_p_value(np.arange(100) // 2, 99) < 1e-9
        True
    """
    counts = counts_below(ranks, largest)
    total = len(np.asarray(ranks))
    inside = probability_inside(*bounds(smallest_tail(counts, total, largest), total, largest), total, largest)
    return 1 - inside


def counts_below(ranks: ArrayLike, largest: int) -> NDArray[np.intp]:
    """Count the ranks below each of 1, ..., `largest`."""
    return np.cumsum(np.bincount(np.asarray(ranks), minlength=largest + 1))[:largest]


def smallest_tail(counts: NDArray[np.intp], total: int, largest: int) -> float:
    """Give the smallest two-sided pointwise tail probability of counts below 1, ..., `largest`."""
    share = np.arange(1, largest + 1) / (largest + 1)
    below, above = scipy.stats.binom.cdf(counts, total, share), scipy.stats.binom.sf(counts - 1, total, share)
    return float(np.minimum(1.0, 2 * np.minimum(below, above)).min())


def bounds(tail: float, total: int, largest: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the smallest and the largest counts whose pointwise tail probability is above `tail`, `[largest]` each.

    Where no count is, the largest is below the smallest.
    """
    share = np.arange(1, largest + 1)[:, None] / (largest + 1)
    count = np.arange(total + 1)
    below, above = scipy.stats.binom.cdf(count, total, share), scipy.stats.binom.sf(count - 1, total, share)
    # Tail probabilities of the observed counts come back as they were but for rounding; they must stay outside.
    inside = np.minimum(1.0, 2 * np.minimum(below, above)) > tail * (1 + 1e-9)
    none = ~inside.any(axis=1)
    return np.where(none, 1, inside.argmax(1)), np.where(none, 0, total - inside[:, ::-1].argmax(1))


def probability_inside(lowest: NDArray[np.intp], highest: NDArray[np.intp], total: int, largest: int) -> float:
    """Compute the probability that the counts below 1, ..., `largest` of uniform ranks all lie within bounds."""
    if (highest < lowest).any():
        return 0.0
    log_factorial = scipy.special.gammaln(np.arange(total + 1) + 1.0)
    count, weight = np.array([0]), np.array([1.0])
    for step, (low, high) in enumerate(zip(lowest, highest, strict=True)):
        share = 1 / (largest + 1 - step)  # of the ranks that are not below `step`, those equal to it
        reached = np.arange(low, high + 1)
        added, left = reached[:, None] - count, total - count
        possible = (added >= 0) & (added <= left)
        some = np.where(possible, added, 0)
        ways = log_factorial[left] - log_factorial[some] - log_factorial[left - some]
        log_probability = ways + some * np.log(share) + (left - some) * np.log1p(-share)
        weight = np.exp(np.where(possible, log_probability, -np.inf)) @ weight
        count = reached
    return float(min(weight.sum(), 1.0))


def simultaneous_band(probability: float, total: int, largest: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the narrowest band of counts that uniform ranks leave with at most a given probability.

    Ranks leave it exactly where `uniformity_p_value` is at most that probability.

    Args:
        probability: Of leaving the band anywhere, in (0, 1).
        total: Number of ranks.
        largest: Largest possible rank.

    Returns:
        Smallest and largest counts below 1, ..., `largest` that are inside, `[largest]` each.
    """
    low, high = np.log(probability) - np.log(4.0 * largest * total), np.log(probability)
    for _ in range(40):
        middle = 0.5 * (low + high)
        leaves = 1 - probability_inside(*bounds(np.exp(middle), total, largest), total, largest)
        low, high = (middle, high) if leaves <= probability else (low, middle)
    return bounds(np.exp(low), total, largest)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values of several tests so that comparing each with one level keeps that level over all of them.

    Args:
        p_values: `[tests]`, dependent in whatever way.

    Returns:
        Adjusted p-values, in the order given.

    Source:
        Holm, Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.5, 0.02]).tolist()
        [0.03, 0.5, 0.04]
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
