"""How strongly a posterior depends on its priors and on its data, by power-scaling."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from bayeslaw.compiled import jit
from bayeslaw.errors import BayeslawError
from bayeslaw.precision import in_float64
from bayeslaw.run_likelihood import row_log_likelihood

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

    from bayeslaw.posterior import Fit

#: Digits to which ArviZ rounds: all that matter.
_DIGITS = 6
#: How often draws are shifted to see what chance alone gives; the largest of 19 is passed by chance once in 20.
SHIFTS = 19
CONFLICT = "potential prior-data conflict"
STRONG_PRIOR = "potential strong prior / weak likelihood"
PRIOR_MATTERS = "prior matters; too few draws to tell conflict from weak likelihood"
TOO_FEW = "too few draws to tell"
FINE = "✓"


@in_float64
def psense(
    fit: Fit,
    *,
    quantities: Mapping[str, Any] | None = None,
    prior_var_names: Sequence[str] | None = None,
    priors: Mapping[str, Distribution] | None = None,
    threshold: float = 0.05,
    progress: bool = True,
) -> pd.DataFrame:
    r"""Say how strongly a fit's parameters depend on priors and on data.

    The posterior is proportional to p(y | theta, u) p(u | theta) p(theta), with parameters theta, configurations' and
    runs' effects u. How fast the marginal of a parameter moves is measured as alpha leaves 1 in

    $$p(y \mid \theta, u) \, p(u \mid \theta) \, p(\theta)^\alpha \quad \text{(prior)}, \qquad
    p(y \mid \theta, u)^\alpha \, p(u \mid \theta) \, p(\theta) \quad \text{(likelihood)}$$

    p(theta) is the product of the parameters' own priors (`prior_table`), as densities of the parameters as they are
    named there. The spread of effects p(u | theta) is part of the model, and scaled with neither. Nothing is fitted
    again: draws are weighted.

    Args:
        fit: The posterior.
        quantities: More to judge beside the parameters, by name: draws with dimensions `chain` and `draw` and possibly
            one more, such as `fit.predict(designs, return_draws=True)`.
        prior_var_names: Scale the priors of these parameters alone, to see which prior it is; all by default.
        priors: Distributions of those priors that a fit cannot keep (`Fit.priors`).
        threshold: Sensitivity from which the diagnosis calls it one.
        progress: Show a progress bar where standard error is a terminal and it takes more than two seconds.

    Returns:
        One row per parameter and quantity (`name[i]` where it has one more dimension): `prior` and `likelihood`
        sensitivity; `prior_noise` and `likelihood_noise`, what draws that do not depend on prior or likelihood at all
        would show (the largest of 19 shifts of the one against the other in time); and `diagnosis`. Above threshold
        and noise, it is `potential prior-data conflict` where both are, `potential strong prior / weak likelihood`
        where only the prior's is; it says where there are too few draws to tell. The likelihood has much noise, because
        the effects of all runs move it: it falls as the square root of the number of draws.

    Raises:
        BayeslawError: A prior could not be kept and is not given, a parameter is unknown, or a quantity does not have
            the fit's chains and draws, is not finite, or has a parameter's name.

    Source:
        Kallioinen, Paananen, Buerkner, Vehtari, Statistics and Computing 34, 57, 2024; computed by ArviZ.

    Example:
        >>> designs = pd.DataFrame({"depth": [20], "width": [32], "dataset_size": [1000], "density": [0.1]})
        >>> fit.psense(quantities={"error": fit.predict(designs, return_draws=True)})  # doctest: +SKIP
    """
    import arviz as az

    judged, own = _judged(fit, quantities or {}), log_prior(fit, priors)
    if unknown := [name for name in prior_var_names or () if name not in own]:
        raise BayeslawError(f"prior_var_names = {unknown} must be of {', '.join(map(str, own))}.")
    groups = {
        "posterior": judged,
        "log_prior": own,
        "log_likelihood": xr.Dataset({"runs": log_likelihood(fit, progress=progress)}),
    }
    scaled = None if prior_var_names is None else list(prior_var_names)
    with _quiet("arviz_stats.psense"):
        tree = xr.DataTree.from_dict(groups)
        table = az.psense_summary(tree, prior_var_names=scaled, threshold=threshold, round_to=_DIGITS)
    total = {
        "prior": own[scaled or list(own)].to_array().sum("variable"),
        "likelihood": groups["log_likelihood"]["runs"],
    }
    for group, draws in total.items():
        table[f"{group}_noise"] = _noise(judged, group, draws, progress).reindex(table.index)
    table["diagnosis"] = [_diagnose(row, threshold) for _, row in table.iterrows()]
    columns = ["prior", "prior_noise", "likelihood", "likelihood_noise", "diagnosis"]
    return table[columns].rename_axis("parameter")


def _noise(judged: xr.Dataset, group: str, draws: xr.DataArray, progress: bool) -> pd.Series:
    """Give the largest sensitivity to draws of a component that are shifted in time, so that nothing depends on them.

    Shifting keeps what chains do to an estimate: draws that follow each other are alike.
    """
    import arviz as az

    chains, length = draws.shape
    found = []
    hidden = None if progress else True
    for k in tqdm(range(1, SHIFTS + 1), f"chance, {group}", delay=2, disable=hidden, file=sys.stderr):
        moved = draws.copy(data=np.roll(draws.to_numpy(), (k % chains, round(k * length / (SHIFTS + 1))), (0, 1)))
        tree = xr.DataTree.from_dict({"posterior": judged, f"log_{group}": xr.Dataset({"all": moved})})
        found.append(az.psense(tree, group=group))
    largest = xr.concat(found, dim="shift").max("shift")
    return pd.Series({
        f"{name}[{i}]" if values.ndim else name: value
        for name, values in largest.data_vars.items()
        for i, value in enumerate(np.atleast_1d(values.to_numpy()))
    })  # fmt: skip


def _diagnose(row: pd.Series, threshold: float) -> str:
    """Say what sensitivities mean, in ArviZ's words where they suffice."""
    if row["prior"] < threshold:
        return FINE
    if row["prior"] <= row["prior_noise"]:
        return TOO_FEW
    if row["likelihood"] < threshold:
        return STRONG_PRIOR
    return CONFLICT if row["likelihood"] > row["likelihood_noise"] else PRIOR_MATTERS


@in_float64
def log_prior(fit: Fit, priors: Mapping[str, Distribution] | None = None) -> xr.Dataset:
    """Compute the log density of every parameter's own prior at the draws.

    Args:
        fit: The posterior.
        priors: Distributions of those priors that a fit cannot keep.

    Returns:
        One variable per parameter, dimensions `chain` and `draw`; what a `log_prior` group of ArviZ holds.
    """
    distributions = {name: prior.distribution for name, prior in fit.priors(priors).items()}
    values = _log_densities(distributions, {name: jnp.asarray(fit.posterior[name]) for name in distributions})
    return xr.Dataset({name: (("chain", "draw"), np.asarray(values[name])) for name in distributions})


@jit
def _log_densities(priors: dict[str, Any], draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: priors[name].log_prob(value) for name, value in draws.items()}


def log_likelihood(fit: Fit, *, progress: bool = True) -> xr.DataArray:
    """Sum the log likelihood of all rows, given all effects, in chunks of rows: `[chain, draw]`."""
    posterior = fit.posterior
    chunks = row_log_likelihood(fit)
    hidden = None if progress else True
    total = sum(
        part.sum(1) for part in tqdm(chunks, "likelihood", unit="chunk", delay=2, disable=hidden, file=sys.stderr)
    )
    return xr.DataArray(np.reshape(total, (posterior.sizes["chain"], -1)), dims=("chain", "draw"))


def _judged(fit: Fit, quantities: Mapping[str, Any]) -> xr.Dataset:
    """Gather the parameters that are one number per draw, and the quantities."""
    posterior = fit.posterior
    scalars = posterior[[name for name in posterior.data_vars if posterior[name].ndim == 2]]
    judged = xr.Dataset({name: (("chain", "draw"), values.to_numpy()) for name, values in scalars.data_vars.items()})
    shape = (posterior.sizes["chain"], posterior.sizes["draw"])
    for name, given in quantities.items():
        draws = given.transpose("chain", "draw", ...) if isinstance(given, xr.DataArray) else given
        values = np.asarray(draws, float)
        if name in judged:
            raise BayeslawError(f"quantities: {name!r} is a parameter of the fit; give the quantity another name.")
        if values.shape[:2] != shape or values.ndim > 3:
            raise BayeslawError(
                f"quantities: {name!r} has the shape {values.shape}; it must have the fit's {shape[0]} chains and "
                f"{shape[1]} draws and at most one dimension more, as fit.predict(..., return_draws=True) has."
            )
        if not np.isfinite(values).all():
            raise BayeslawError(
                f"quantities: {name!r} is not finite in {np.mean(~np.isfinite(values)):.1%} of its draws; clip it, or "
                "give its logarithm or its inverse."
            )
        judged[name] = (("chain", "draw", f"{name}_index")[: values.ndim], values)
    return judged


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from saying what the table already says."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
