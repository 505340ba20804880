"""The paper's conclusions on where to start, as probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.objectives import Question, check_gate, check_target, draws_of, values_of
from bayeslaw.starts import Costs, costs_of, make_starts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: How many times too wide is looked at.
TOO_WIDE = (2.0, 4.0)
#: Density after one round of pruning.
ONE_ROUND = 0.8
#: Relative step in width over which counts are differentiated.
STEP = 1e-3


@dataclass(frozen=True)
class Conclusions:
    """Hold what the posterior says of the paper's conclusions for one target.

    Attributes:
        statements: One row per statement with its `probability`, the Monte Carlo standard error `mcse` of that, and the
            probability `p_asked` that the question arises (some start is feasible, and for the last statement one that
            is a size larger too).
        too_wide: One row per factor on the best width: `regret_median`, `regret_lower`, `regret_upper`, the size above
            the best start's in per cent (90 %, equal-tailed; infinite where the target is never reached), and
            `p_hurts`, the probability that it is larger.
        exponents: One row per start: `a_l` and `a_w`, by which powers of depth and width its prunable weights grow,
            and `depth_excess` = a_l - phi and `width_excess` = a_w - psi (`_median`, `_lower`, `_upper`, and
            `p_depth_hurts`, `p_width_hurts`, the probabilities that they are positive). Once the unpruned error no
            longer matters, the final size grows as these powers of depth and width.
    """

    statements: pd.DataFrame
    too_wide: pd.DataFrame
    exponents: pd.DataFrame

    def __str__(self) -> str:
        def form(table: pd.DataFrame) -> str:
            return table.to_string(float_format=lambda v: f"{v:.2f}")

        return f"{form(self.statements)}\n\n{form(self.too_wide)}\n\n{form(self.exponents)}"


def conclude(
    fit: Fit,
    target_error: float,
    *,
    depths: Iterable[float],
    widths: Iterable[float],
    dataset_size: float,
    family: Family | None = None,
    allow_failed: bool = False,
    seed: int = 0,
) -> Conclusions:
    """Say how sure the paper's conclusions are for one target and a grid of starts.

    Args:
        fit: The posterior, of a law with phi and psi.
        target_error: Wanted error.
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples.
        family: Counts parameters; default the fitted family.
        allow_failed: Conclude although the fit failed its gate.
        seed: Seed of fresh discrepancies.

    Returns:
        The conclusions.

    Raises:
        BayeslawError: The fit failed its gate, its law has no phi and psi, the target is at the high plateau, counts
            are not known, or an argument is out of range.

    Source:
        Rosenfeld et al., ICML 2021, section 6.

    Example:
        >>> import bayeslaw
        >>> print(bayeslaw.conclude(fit, 0.1, depths=[8, 14], widths=[2, 4, 8], dataset_size=1000))  # doctest: +SKIP
    """
    if missing := [name for name in ("phi", "psi") if name not in fit.posterior]:
        raise BayeslawError(f"conclusions are about phi and psi, and the fit has no {' and no '.join(missing)}.")
    question = Question(target_error=target_error)
    question.check()
    check_target(fit, question)
    check_gate(fit, allow_failed=allow_failed)
    widths = sorted(set(widths))
    starts = make_starts(depths, widths, dataset_size)
    costs = costs_of(fit, starts, family)
    drawn = draws_of(fit, starts, seed)
    value = values_of(fit, question, starts, costs, drawn)
    statements = _statements(value, starts, costs, fit.posterior.sizes["chain"])
    too_wide = _too_wide(fit, question, value, starts, family, seed)
    return Conclusions(statements, too_wide, _exponents(fit, starts, costs, family))


def _statements(value: NDArray, starts: pd.DataFrame, costs: Costs, chains: int) -> pd.DataFrame:
    feasible, row, best = np.isfinite(value), np.arange(len(value)), value.argmin(1)
    any_ = feasible.any(1)
    density = (value[row, best] - costs.unprunable[best]) / costs.prunable[best]
    smallest = np.where(feasible, costs.parameters, np.inf).argmin(1)
    larger = _one_size_larger(value, starts, smallest)
    asked = any_ & np.isfinite(larger)
    rows = {
        "the smallest network that reaches the target is a pruned one": (density <= ONE_ROUND, any_),
        "it is one that did not start smallest": (best != smallest, any_),
        "starting one size larger than the smallest that reaches it ends smaller": (
            larger < value[row, smallest],
            asked,
        ),
    }
    return pd.DataFrame({name: _probability(true, arises, chains) for name, (true, arises) in rows.items()}).T


def _one_size_larger(value: NDArray, starts: pd.DataFrame, smallest: NDArray) -> NDArray[np.float64]:
    """Give the better end of the next depth and the next width of the grid, infinite where neither reaches it."""
    order = starts.reset_index(drop=True)
    ends = np.full(len(value), np.inf)
    for along, across in (("depth", "width"), ("width", "depth")):
        following = np.full(len(order), -1)
        for _, own in order.sort_values(along).groupby(across):
            following[own.index[:-1]] = own.index[1:]
        next_ = following[smallest]
        ends = np.minimum(ends, np.where(next_ >= 0, value[np.arange(len(value)), next_], np.inf))
    return ends


def _probability(true: NDArray, arises: NDArray, chains: int) -> dict[str, float]:
    import arviz as az

    asked = float(arises.mean())
    share = float(true[arises].mean()) if asked else np.nan
    if not 0 < share < 1:
        return {"probability": share, "mcse": 0.0 if asked else np.nan, "p_asked": asked}
    effective = float(az.ess((true & arises).reshape(chains, -1).astype(float), method="mean"))
    return {"probability": share, "mcse": np.sqrt(share * (1 - share) / (effective * asked)), "p_asked": asked}


def _too_wide(
    fit: Fit, question: Question, value: NDArray, starts: pd.DataFrame, family: Family | None, seed: int
) -> pd.DataFrame:
    """Compare the best start with ones of its depth that are wider."""
    row, best, any_, rows = np.arange(len(value)), value.argmin(1), np.isfinite(value).any(1), {}
    for factor in TOO_WIDE:
        wider = starts.assign(width=factor * starts["width"])
        ends = values_of(fit, question, wider, costs_of(fit, wider, family), draws_of(fit, wider, seed))
        regret = 100 * (ends[row, best] / np.where(any_, value[row, best], 1.0) - 1)[any_]
        lower, median, upper = _quantiles(regret) if any_.any() else np.full(3, np.nan)
        rows[f"{factor:g} x the best width"] = {
            "regret_median": median, "regret_lower": lower, "regret_upper": upper, "p_hurts": (regret > 0).mean(),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def _quantiles(regret: NDArray) -> NDArray[np.float64]:
    """Give 5 %, median and 95 % of values that may be infinite."""
    at = [0.05, 0.5, 0.95]
    with np.errstate(invalid="ignore"):  # nothing lies between an infinite value and the next
        found = np.quantile(regret, at)
    return np.where(np.isnan(found), np.quantile(regret, at, method="nearest"), found)


def _exponents(fit: Fit, starts: pd.DataFrame, costs: Costs, family: Family | None) -> pd.DataFrame:
    """Differentiate the counts, in depth over one step to the next network, and compare with phi and psi."""
    wider = costs_of(fit, starts.assign(width=starts["width"] * (1 + STEP)), family)
    next_depth = starts["depth"].map((family or fit.frame.family).next_depth)
    deeper = costs_of(fit, starts.assign(depth=next_depth), family)
    table = starts[["depth", "width"]].assign(
        a_l=np.log(deeper.prunable / costs.prunable) / np.log(next_depth / starts["depth"]),
        a_w=np.log(wider.prunable / costs.prunable) / np.log1p(STEP),
    )
    for axis, count, exponent in (("depth", "a_l", "phi"), ("width", "a_w", "psi")):
        excess = table[count].to_numpy() - fit.posterior[exponent].to_numpy().reshape(-1, 1)
        lower, median, upper = np.quantile(excess, [0.05, 0.5, 0.95], axis=0)
        table[f"{axis}_excess_median"], table[f"{axis}_excess_lower"] = median, lower
        table[f"{axis}_excess_upper"], table[f"p_{axis}_hurts"] = upper, (excess > 0).mean(0)
    return table
