"""From a posterior to predictions for networks, trained or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.curves import Drawn, configuration_draws, mean_errors, parameter_draws, unique_rows
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, error_from_logit
from bayeslaw.new_runs import n_test_for, run_logits
from bayeslaw.precision import in_float64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit


@in_float64
def predict(
    fit: Fit,
    designs: pd.DataFrame,
    *,
    interval: float = 0.9,
    kind: str = "mean",
    seed: int = 0,
    return_draws: bool = False,
) -> pd.DataFrame | xr.DataArray:
    """Predict the error of networks.

    Args:
        fit: The posterior.
        designs: One row per network, with `depth`, `width`, `dataset_size`, `density` in (0, 1] and, for
            `kind="run"`, optionally `n_test` (else that of the fitted runs), `replicate`, which tells several new runs
            of one configuration apart, and `subset_id`, the training subset, of which fitted runs may tell.
        interval: Probability of the equal-tailed interval, in (0, 1).
        kind: `"mean"`: the configuration's curve while it lives, averaged over runs; its own posterior where it was
            trained, else the dense law with a fresh discrepancy. `"run"`: what a new replicate would measure: run
            effects, jitter of single levels and the noise of `n_test` test examples on top. Runs of one `replicate` and
            dataset size share the luck of a new training subset, unless `subset_id` names a known one. Joint draws of
            one configuration, or of one `replicate` of it, are those of one run, its noise correlated from round to
            round as the posterior says; near random guessing it may die, and then shows what dead networks of the table
            show; densities count as the nearest number of rounds of 20 %.
        seed: Seed of fresh effects and noise; they depend on seed and design alone, not on what else is asked for.
        return_draws: Return the joint draws instead of their summary.

    Returns:
        The designs with `mean`, `median`, `lower`, `upper` of the error, `trained` (the configuration was fitted) and
        `extrapolation` (how far, in factors of e, the design lies outside the fitted range along its worst axis; 0
        inside). With `return_draws`, a DataArray with dimensions `chain`, `draw`, `design`.

    Raises:
        BayeslawError: A column is missing, a value is out of range, or `kind` or `interval` is unknown.

    Example:
        >>> designs = pd.DataFrame({"depth": [20], "width": [32], "dataset_size": [1000], "density": [0.1]})
        >>> fit.predict(designs, kind="run")  # doctest: +SKIP
    """
    designs = check_designs(designs, interval, kind)
    if kind == "mean":
        draws = _mean_draws(fit, designs, seed)
    else:
        draws = error_from_logit(run_logits(fit, designs, seed), n_test_for(fit, designs))
    if return_draws:
        chains = fit.posterior.sizes["chain"]
        return xr.DataArray(draws.reshape(chains, -1, len(designs)), dims=("chain", "draw", "design"), name="error")
    return designs.assign(**summarise(draws, interval), **_novelty(fit, designs))


def summarise(draws: NDArray, interval: float) -> dict[str, NDArray]:
    """Give mean, median and equal-tailed interval over the first axis."""
    tail = (1 - interval) / 2
    lower, median, upper = np.quantile(draws, [tail, 0.5, 1 - tail], axis=0)
    return {"mean": draws.mean(0), "median": median, "lower": lower, "upper": upper}


def _mean_draws(fit: Fit, designs: pd.DataFrame, seed: int) -> NDArray:
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    configurations, index = unique_rows(designs, CONFIGURATION)
    drawn = Drawn(*(effect[:, index] for effect in configuration_draws(fit, configurations, seed)))
    return mean_errors(fit.law, value, fit.frame, designs, drawn)


def _novelty(fit: Fit, designs: pd.DataFrame) -> dict[str, NDArray]:
    known = set(fit.configurations.itertuples(index=False, name=None))
    rows = designs[CONFIGURATION].itertuples(index=False, name=None)
    return {"trained": np.array([row in known for row in rows]), "extrapolation": extrapolation(fit, designs)}


def extrapolation(fit: Fit, designs: pd.DataFrame) -> NDArray:
    """Measure how far designs lie outside the fitted range, in natural logs along the worst axis; 0 inside.

    Infinite where no run was fitted (`PooledFit.new_family`).
    """
    if fit.runs.empty:
        return np.full(len(designs), np.inf)
    axes = [name for name in (*CONFIGURATION, "density") if name in designs]
    outside = np.zeros(len(designs))
    for name in axes:
        value, fitted = np.log(designs[name].to_numpy(float)), np.log(fit.runs[name].to_numpy(float))
        outside = np.maximum(outside, np.maximum(value - fitted.max(), fitted.min() - value))
    return outside


def check_designs(designs: pd.DataFrame, interval: float, kind: str) -> pd.DataFrame:
    """Refuse designs that lack a column or are out of range, with all their faults, and unknown settings.

    Returns:
        The designs, numbers that were text as numbers.
    """
    if not isinstance(designs, pd.DataFrame):
        raise BayeslawError(f"designs are a pandas DataFrame, one row per network; got {type(designs).__name__}.")
    missing = [name for name in (*CONFIGURATION, "density") if name not in designs]
    if missing:
        raise BayeslawError(f"designs lack {', '.join(missing)}; give one row per network with these columns.")
    if designs.empty:
        raise BayeslawError("designs have no rows; give one row per network.")
    faults, numbers = [], {}
    for name in (*CONFIGURATION, "density", *(["n_test"] if "n_test" in designs else [])):
        numbers[name] = pd.to_numeric(designs[name], errors="coerce")
        values = numbers[name].to_numpy(float)
        bad = ~((values > 0) & ((values <= 1) | (name != "density")) & (np.isfinite(values) | (name == "n_test")))
        faults += [f"row {i}, {name} = {designs[name].iloc[i]}" for i in np.flatnonzero(bad)]
    if "replicate" in designs and designs["replicate"].isna().any():
        at = ", ".join(str(i) for i in np.flatnonzero(designs["replicate"].isna())[:20])
        raise BayeslawError(f"designs: replicate is missing in row {at}; name every run, or leave the column out.")
    if faults:
        raise BayeslawError(
            f"designs: {'; '.join(faults[:20])}; depth, width, dataset_size and n_test must be above 0, density in "
            "(0, 1]."
        )
    if not 0 < interval < 1:
        raise BayeslawError(f"interval = {interval} must be in (0, 1), for instance 0.9.")
    if kind not in ("mean", "run"):
        raise BayeslawError(f"kind = {kind!r} must be 'mean' (the curve) or 'run' (a new replicate).")
    return designs.assign(**numbers)
