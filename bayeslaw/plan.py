"""From a posterior to a decision: which network to start from and how far to prune it."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
import scipy.special
import xarray as xr

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION
from bayeslaw.precision import in_float64
from bayeslaw.predict import (
    configuration_draws,
    extrapolation,
    generator,
    mean_errors,
    new_runs,
    observations,
    parameter_draws,
    predict,
    standard_noise,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.laws import Law
    from bayeslaw.posterior import Fit

#: Below this probability that any start reaches the target, there is nothing to plan.
OUT_OF_REACH = 0.05
#: Rounds looked at; 0.8^40 is a density of 0.013 %.
MAX_ROUNDS = 40


@dataclass(frozen=True)
class Plan:
    """Hold the decision and what it rests on.

    Attributes:
        target_error: The wanted error.
        dataset_size: Number of training examples.
        confidence: Wanted probability that a new run reaches the target.
        starts: One row per starting (depth, width). `p_best`: probability that it ends with the fewest parameters;
            `p_feasible`: that its mean unpruned error is at most the target; `size_median`, `size_lower`, `size_upper`:
            non-zero parameters at the density that just reaches the target, where feasible (90 %, equal-tailed);
            `rounds`, `density`, `size`: the deepest round at which a new run reaches the target with `confidence`;
            `p_reach`: that probability (population error, trained and pruned once more).
        recommended: The row of `starts` to begin with, or nothing if no start reaches the target with `confidence`.
        p_none: Probability that no start is feasible.
        notes: What the reader must know: extrapolation, prior-driven parameters, a failed gate.
    """

    target_error: float
    dataset_size: int
    confidence: float
    starts: pd.DataFrame
    recommended: pd.Series | None
    p_none: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        columns = ["depth", "width", "p_best", "p_feasible", "size_median", "size_lower", "size_upper"]
        columns += ["rounds", "density", "size", "p_reach"]
        shown = self.starts[columns].sort_values(["p_best", "size"], ascending=[False, True])
        formats = dict.fromkeys(("p_best", "p_feasible", "p_reach"), "{:.2f}".format)
        formats |= {name: "{:,.0f}".format for name in columns if name.startswith("size")}
        formats["density"] = "{:.4f}".format
        formats |= dict.fromkeys(("depth", "width", "rounds"), "{:g}".format)
        table = shown.to_string(index=False, formatters=formats, na_rep="-")
        return "\n".join([table, "", self.advice, *self.notes])

    @property
    def advice(self) -> str:
        """Say in a sentence what to do."""
        if self.recommended is None:
            best = self.starts.iloc[int(self.starts["p_reach"].to_numpy().argmax())]
            return (
                f"No start reaches error {self.target_error:g} with probability {self.confidence:g}; the closest is "
                f"depth {best['depth']:g}, width {best['width']:g} with {best['p_reach']:.2f}. Ask for less "
                "confidence, offer larger starts or more data."
            )
        row = self.recommended
        return (
            f"Start from depth {row['depth']:g}, width {row['width']:g} and prune {row['rounds']:g} rounds to density "
            f"{row['density']:.4f}: {row['size']:,.0f} non-zero parameters; a new run reaches error "
            f"{self.target_error:g} with probability {row['p_reach']:.2f}. It is the best of these starts with "
            f"probability {row['p_best']:.2f}."
        )


@in_float64
def plan(
    fit: Fit,
    target_error: float,
    *,
    depths: Iterable[int],
    widths: Iterable[float],
    dataset_size: int,
    family: Family | None = None,
    parameters: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    confidence: float = 0.9,
    allow_failed: bool = False,
    seed: int = 0,
) -> Plan:
    """Choose the starting network that ends with the fewest non-zero parameters at a wanted error.

    Args:
        fit: The posterior.
        target_error: Wanted top-1 test error, in (0, random-guess error).
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples.
        family: Counts parameters; default the fitted family.
        parameters: Own count instead: a function (depth, width) -> (prunable, unprunable), vectorised.
        confidence: Wanted probability that a new run reaches the target, in (0, 1).
        allow_failed: Plan although the fit failed its gate; the plan then says so.
        seed: Seed of fresh effects.

    Returns:
        The plan. Sizes are kept + unprunable parameters.

    Raises:
        BayeslawError: The fit failed its gate, the target is out of reach of every start (with how close one can get)
            or at the high plateau, no counts are known, or an argument is out of range.

    Source:
        Rosenfeld et al., ICML 2021, section 6; the inversion is `bayeslaw.law.log_m_at`.
    """
    starts = _starts(depths, widths, dataset_size)
    _check(fit, target_error, confidence)
    notes = _gate(fit, allow_failed)
    prunable, unprunable = _counts(fit, starts, family, parameters)
    value, log_e = _draws_of(fit, starts, seed)
    unpruned = mean_errors(fit.law, value, fit.frame, starts.assign(density=1.0), log_e)
    starts["p_feasible"] = (unpruned <= target_error).mean(0)
    log_density = _log_density_at(fit.law, value, fit.frame.covariates(starts), log_e, np.log(target_error))
    size, p_none = _sizes(np.asarray(log_density), prunable, unprunable)
    if 1 - p_none < OUT_OF_REACH:
        raise BayeslawError(_how_close(fit, starts, target_error, unpruned))
    best = np.where(np.isfinite(size).any(1), size.argmin(1), -1)
    starts["p_best"] = [(best == i).mean() for i in range(len(starts))]
    feasible = np.where(np.isfinite(size), size, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns that no draw finds feasible have no size
        quantiles = np.nanquantile(feasible, [0.5, 0.05, 0.95], axis=0)
    for name, row in zip(("size_median", "size_lower", "size_upper"), quantiles, strict=True):
        starts[name] = row
    starts[["rounds", "kept", "p_reach"]] = _deepest_rounds(
        fit, value, starts, target_error, prunable, confidence, seed
    )
    starts["density"] = starts["kept"] / prunable
    starts["size"] = starts["kept"] + unprunable
    starts["parameters"] = prunable + unprunable
    sizes = np.where(starts["p_reach"] >= confidence, starts["size"], np.inf)
    recommended = starts.iloc[int(sizes.argmin())] if np.isfinite(sizes).any() else None
    notes += _novelty_notes(fit, starts if recommended is None else starts.loc[[recommended.name]])
    return Plan(target_error, dataset_size, confidence, starts, recommended, p_none, tuple(notes))


def frontier(
    fit: Fit,
    targets: NDArray,
    *,
    depths: Iterable[int],
    widths: Iterable[float],
    dataset_size: int,
    family: Family | None = None,
    parameters: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    interval: float = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Give the fewest non-zero parameters over all starts for a range of errors, with credible intervals.

    Args:
        fit: The posterior.
        targets: Errors, `[targets]`.
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples.
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
    return _frontier(
        fit,
        np.asarray(targets, float),
        _starts(depths, widths, dataset_size),
        interval,
        seed,
        lambda starts: _counts(fit, starts, family, parameters),
    )


def size_draws(
    fit: Fit,
    target_error: float,
    *,
    depths: Iterable[int],
    widths: Iterable[float],
    dataset_size: int,
    family: Family | None = None,
    parameters: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Draw the fewest non-zero parameters over all starts that reach an error, of which `frontier` gives quantiles.

    Args:
        fit: The posterior.
        target_error: Wanted error.
        depths: Depths to choose from.
        widths: Widths to choose from.
        dataset_size: Number of training examples.
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
    starts = _starts(depths, widths, dataset_size)
    counts = _counts(fit, starts, family, parameters)
    sizes = _smallest_sizes(fit, np.array([target_error]), starts, counts, seed)
    return xr.DataArray(sizes.reshape(fit.posterior.sizes["chain"], -1), dims=("chain", "draw"), name="size")


@in_float64
def _smallest_sizes(
    fit: Fit, targets: NDArray, starts: pd.DataFrame, counts: tuple[NDArray, NDArray], seed: int
) -> NDArray[np.float64]:
    """Give the fewest parameters over all starts, `[targets, draws]`."""
    value, log_e = _draws_of(fit, starts, seed)
    at = functools.partial(_log_density_at, fit.law, value, fit.frame.covariates(starts), log_e)
    return np.array([_sizes(np.asarray(at(np.log(target))), *counts)[0].min(1) for target in targets])


def _frontier(
    fit: Fit, targets: NDArray, starts: pd.DataFrame, interval: float, seed: int, count: Callable[[pd.DataFrame], Any]
) -> pd.DataFrame:
    tail, rows = (1 - interval) / 2, []
    for target, sizes in zip(targets, _smallest_sizes(fit, targets, starts, count(starts), seed), strict=True):
        smallest = sizes[np.isfinite(sizes)]
        quantiles = np.quantile(smallest, [0.5, tail, 1 - tail]) if len(smallest) else np.full(3, np.nan)
        rows.append([target, *quantiles, len(smallest) / len(sizes)])
    return pd.DataFrame(rows, columns=["target_error", "median", "lower", "upper", "p_feasible"])


def _sizes(log_density: NDArray, prunable: NDArray, unprunable: NDArray) -> tuple[NDArray, float]:
    """Give non-zero parameters per draw and start, infinite where infeasible, and the share with no start at all."""
    size = np.where(log_density <= 0, np.exp(np.minimum(log_density, 0)) * prunable + unprunable, np.inf)
    return size, float(np.isinf(size).all(1).mean())


def rounds_of(prunable: float, *, prune_fraction: float = 0.2) -> NDArray[np.int64]:
    """List the weights kept after 0, 1, 2, ... rounds of 20 %, each rounded as the runner does.

    Example:
        >>> rounds_of(100)[:4].tolist()
        [100, 80, 64, 52]
    """
    from fractions import Fraction

    share, kept = Fraction(str(prune_fraction)), [round(prunable)]
    while len(kept) <= MAX_ROUNDS and 0 < kept[-1] - int(share * kept[-1]) < kept[-1]:
        kept.append(kept[-1] - int(share * kept[-1]))
    return np.array(kept)


def _deepest_rounds(
    fit: Fit,
    value: dict[str, Any],
    starts: pd.DataFrame,
    target_error: float,
    prunable: NDArray,
    confidence: float,
    seed: int,
) -> NDArray:
    """Find for every start the deepest round at which a new run's population error is at most the target.

    Returns:
        Rounds, weights kept and the probability, `[starts, 3]`; where no round is sure enough, those of the surest.
    """
    kept = [rounds_of(count) for count in prunable]
    start = np.repeat(np.arange(len(starts)), [len(rounds) for rounds in kept])
    designs = starts.loc[starts.index[start], CONFIGURATION].assign(density=np.concatenate(kept) / prunable[start])
    log_e, effect_p = new_runs(fit, starts, seed)
    runs, population = (log_e[:, start], effect_p[:, start]), np.full(len(designs), np.inf)
    location, scale = observations(fit.law, value, fit.frame, designs, runs, population)
    result = np.empty((len(starts), 3))
    for i, row in enumerate(starts[CONFIGURATION].itertuples(index=False, name=None)):
        own = start == i
        noise = standard_noise(generator(seed, row, "jitter"), value, np.arange(len(kept[i])))
        logits = location[:, own] + scale[:, own] * noise
        reach = (logits <= scipy.special.logit(target_error)).mean(0)
        sure = np.flatnonzero(reach >= confidence)
        chosen = int(sure[-1]) if len(sure) else int(reach.argmax())
        result[i] = chosen, kept[i][chosen], reach[chosen]
    return result


def _draws_of(fit: Fit, starts: pd.DataFrame, seed: int) -> tuple[dict[str, NDArray], NDArray]:
    """Give draws of the parameters, each `[draws, 1]`, and of log e of the starts, `[draws, starts]`."""
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    return value, configuration_draws(fit, starts, seed)


@functools.partial(jax.jit, static_argnums=0)
def _log_density_at(
    law: Law, value: dict[str, Any], covariates: dict[str, Any], log_e: Any, log_target: Any
) -> jax.Array:
    """Give the log density at which the central curve of each start reaches a target, `[draws, starts]`."""
    return law.log_density_at(law.curve(value, covariates, log_e, 0.0), log_target)


def _starts(depths: Iterable[int], widths: Iterable[float], dataset_size: int) -> pd.DataFrame:
    grid = list(itertools.product(sorted(set(depths)), sorted(set(widths))))
    faults = [] if grid else ["depths and widths must each name at least one value"]
    faults += [f"depth {depth}, width {width}" for depth, width in grid if not (depth > 0 and width > 0)]
    if faults or not dataset_size > 0:
        wrong = faults or [f"dataset_size = {dataset_size}"]
        raise BayeslawError(f"plan: {'; '.join(wrong)}: depths, widths and dataset_size must be above 0.")
    return pd.DataFrame(grid, columns=["depth", "width"]).assign(dataset_size=dataset_size)


def _check(fit: Fit, target_error: float, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise BayeslawError(f"confidence = {confidence} must be in (0, 1), for instance 0.9.")
    if not 0 < target_error < 1:
        raise BayeslawError(f"target_error = {target_error} must be a fraction in (0, 1), for instance 0.1.")
    highest = float(fit.posterior["eps_up"].quantile(0.05))
    if target_error >= highest:
        raise BayeslawError(
            f"target_error = {target_error:g} is at or above the high plateau (eps_up, {highest:.3g} or more): every "
            "network reaches it at any density. Ask for less error."
        )


def _gate(fit: Fit, allow_failed: bool) -> list[str]:
    diagnosis = fit.diagnose()
    if diagnosis.passed:
        return []
    message = "The fit failed its gate: " + "; ".join(diagnosis.failures) + "."
    if not allow_failed:
        raise BayeslawError(f"{message} Mend it, or pass allow_failed=True to plan with it all the same.")
    return [f"Warning: {message}"]


def _counts(
    fit: Fit,
    starts: pd.DataFrame,
    family: Family | None,
    parameters: Callable[[Any, Any], tuple[Any, Any]] | None,
) -> tuple[NDArray, NDArray]:
    count = parameters or (family or fit.frame.family).counts
    prunable, unprunable = count(starts["depth"].to_numpy(float), starts["width"].to_numpy(float))
    shape = (len(starts),)
    return np.broadcast_to(np.asarray(prunable, float), shape), np.broadcast_to(np.asarray(unprunable, float), shape)


def _how_close(fit: Fit, starts: pd.DataFrame, target_error: float, unpruned: NDArray) -> str:
    best = int(unpruned.mean(0).argmin())
    design = starts.iloc[[best]].assign(density=1.0)[[*CONFIGURATION, "density"]]
    closest = predict(fit, design)
    assert isinstance(closest, pd.DataFrame)
    row = closest.iloc[0]
    return (
        f"target_error = {target_error:g} is out of reach: the closest start is depth {row['depth']:g}, width "
        f"{row['width']:g}, whose unpruned mean error is {row['median']:.3g} ({row['lower']:.3g} to {row['upper']:.3g},"
        f" 90 %); it is at most the target with probability {(unpruned[:, best] <= target_error).mean():.3f}. Ask for "
        "more error, or offer larger starts or more data."
    )


def _novelty_notes(fit: Fit, chosen: pd.DataFrame) -> list[str]:
    notes = []
    distance = float(extrapolation(fit, chosen[[*CONFIGURATION, "density"]]).max())
    if fit.runs.empty:
        notes.append(
            f"Warning: no run of {fit.frame.label} was fitted: its exponents come from the other families, all else "
            "from the priors."
        )
    elif distance > 0:
        notes.append(
            f"Note: this start lies a factor {np.exp(distance):.2g} outside what was fitted; there the interval rests "
            "on the law."
        )
    for drivers, words in ((fit.prior_driven, "the prior"), (fit.population_driven, "the other families")):
        driven = [name for name in ("gamma", "phi", "psi", "knee") if name in drivers]
        if driven:
            notes.append(f"Note: {', '.join(driven)} driven by {words}, not by the data.")
    return notes
