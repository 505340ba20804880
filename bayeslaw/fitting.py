"""From a run table to a posterior."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy

from bayeslaw.errors import BayeslawError
from bayeslaw.laplace import laplace
from bayeslaw.law import saturate
from bayeslaw.model import (
    CONFIGURATION,
    Data,
    Frame,
    Structure,
    check_one_family,
    draw_configurations,
    estimate_spreads,
    make_data,
    make_frame,
    make_model,
    spread_variances,
    starting_values,
    structure_of,
    varies,
)
from bayeslaw.posterior import Fit
from bayeslaw.precision import in_float64
from bayeslaw.priors import Prior, describe_prior, resolve_priors
from bayeslaw.runs import load_runs
from bayeslaw.sampler import Sampled, sample

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


#: With fewer configurations than this the spreads are barely informed and centred effects form funnels: effects are
#: then sampled non-centred and the metric is adapted as usual.
FEW_CONFIGURATIONS = 8


@in_float64
def fit(
    runs: Any,
    *,
    priors: Mapping[str, Distribution] | None = None,
    seed: int = 0,
    chains: int = 4,
    warmup: int = 300,
    draws: int = 1000,
    n_test: int | None = None,
    chance_error: float | None = None,
    target_acceptance: float = 0.95,
    progress: bool = True,
) -> Fit:
    """Infer the joint law from a run table with NUTS.

    Args:
        runs: Run table of one family: a path, a DataFrame, or what `load_runs` gave.
        priors: NumPyro distributions by parameter name, in place of defaults (`bayeslaw.default_priors`).
        seed: Seed of everything random; same seed, versions and machine give the same draws.
        chains: Number of chains, at least 2 for R-hat; they run on as many threads as there are cores.
        warmup: Transitions per chain in which the step size (with few configurations also the metric) is adapted.
        draws: Transitions kept per chain.
        n_test: Number of test examples, for tables without that column.
        chance_error: Error of random guessing, in (0, 1), for tables without `classes` or `chance_error`.
        target_acceptance: Acceptance rate that the step size aims at, in (0, 1).
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The fit. Call its `diagnose` before believing it; planning does so by itself.

    Raises:
        RunTableError: The table is faulty; all faults are listed.
        BayeslawError: Several families in one table, unknown priors, or settings out of range.

    Example:
        >>> import bayeslaw
        >>> runs = bayeslaw.load_recorded("digits_resnet")  # doctest: +SKIP
        >>> bayeslaw.fit(runs).summary()  # doctest: +SKIP
    """
    _bind_submodules()
    _check_settings(chains=chains, warmup=warmup, draws=draws, target_acceptance=target_acceptance)
    table = load_runs(runs, n_test=n_test, chance_error=chance_error)
    check_one_family(table)
    structure, frame = structure_of(table), make_frame(table, _chance_error(table))
    _warn_about(table, structure)
    resolved = resolve_priors(priors)
    data, configurations, trajectories = make_data(table, frame)
    few = len(configurations) < FEW_CONFIGURATIONS
    model = make_model(resolved, structure, centred=not few)
    warmup = max(warmup, 1000) if few else warmup
    sampled, constrain = _sample(
        model, data, structure, resolved, few=few, seed=seed, chains=chains, warmup=warmup, draws=draws,
        target_acceptance=target_acceptance, progress=progress,
    )  # fmt: skip
    values = constrain(sampled.positions)
    values |= _derived(values, frame, data)
    tree = _tree(values, sampled, data, configurations, trajectories)
    settings = {
        "seed": seed,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "metric": "adapted" if few else "laplace",
        "priors": {name: describe_prior(prior) for name, prior in resolved.items()},
        "contraction": _contraction(values, resolved),
    }
    names = ("bayeslaw", "jax", "numpyro", "arviz", "numpy", "xarray")
    versions = {name: importlib.metadata.version(name) for name in names}
    return Fit(tree, table, frame, structure, settings, versions)


def _bind_submodules() -> None:
    """Bind numpyro's submodules to their packages where that was lost.

    ArviZ leaves numpyro to be loaded on first use. `import arviz` followed by `import numpyro.distributions` then runs
    that package twice, and the second run, finding its parts imported already, does not bind them.
    """
    for name in [name for name in sys.modules if name.startswith("numpyro.")]:
        package, _, part = name.rpartition(".")
        if not hasattr(sys.modules[package], part):
            setattr(sys.modules[package], part, sys.modules[name])


def _check_settings(**settings: float) -> None:
    rules = {
        "chains": (settings["chains"] >= 2, "an integer >= 2, so that chains can be compared"),
        "warmup": (settings["warmup"] >= 50, "an integer >= 50"),
        "draws": (settings["draws"] >= 50, "an integer >= 50"),
        "target_acceptance": (0 < settings["target_acceptance"] < 1, "in (0, 1)"),
    }
    faults = [f"{name} = {settings[name]} must be {rule}" for name, (ok, rule) in rules.items() if not ok]
    if faults:
        raise BayeslawError("fit: " + "; ".join(faults) + ".")


def _chance_error(table: pd.DataFrame) -> float:
    if "chance_error" not in table:
        warnings.warn(
            "The table has neither classes nor chance_error: eps_up is only bounded by 1. "
            "Pass chance_error=, for instance 0.9 for ten balanced classes.",
            stacklevel=4,
        )
        return 1.0
    return float(table["chance_error"].iloc[0])


def _warn_about(table: pd.DataFrame, structure: Structure) -> None:
    fixed = [
        f"{name} never varies, so {parameter} is driven by its prior alone"
        for name, parameter, varies in (
            ("depth", "phi", structure.depth_varies),
            ("width", "psi", structure.width_varies),
            ("dataset_size", "alpha", varies(table["dataset_size"])),
        )
        if not varies
    ]
    if fixed:
        warnings.warn("; ".join(fixed) + ": predictions along it rest on the prior.", stacklevel=4)
    if not structure.has_trajectories:
        warnings.warn(
            "The table has no trajectory (or replicate) column: there are no trajectory effects, and intervals take "
            "rows of one run as independent. Map it with load_runs(..., columns={'trajectory': ...}).",
            stacklevel=4,
        )


def _sample(
    model: Callable[[Data], None],
    data: Data,
    structure: Structure,
    priors: Mapping[str, Prior],
    *,
    few: bool,
    seed: int,
    **settings: Any,
) -> tuple[Sampled, Callable[[Any], dict[str, Any]]]:
    """Find the Laplace metric and sample; also return what maps flat positions to named parameters."""
    data = Data(*(jnp.asarray(part) for part in data))
    starts = _starts(data, structure, priors, few=few)
    unravel = ravel_pytree(starts[0])[1]

    def potential(values: dict[str, Any]) -> jax.Array:
        return jnp.asarray(potential_energy(model, (data,), {}, values))

    variances = {k: v for k, v in spread_variances(data).items() if k not in structure.without()}
    approximation = laplace(potential, starts, None if few else _estimator(priors, data), variances)

    def constrain_one(inputs: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        key, flat = inputs
        values = constrain_fn(model, (data,), {}, unravel(flat), return_deterministic=True)
        log_e = values["log_e"] if few else draw_configurations(key, values, data)
        names = (*priors, "a", "b", "c", "sigma_np", "tau_np", "log_eps_up", "log_e_run", "effect_p")
        return {"log_e": log_e, **{name: values[name] for name in names if name in values}}

    constrain_all = jax.jit(lambda inputs: jax.lax.map(constrain_one, inputs, batch_size=64))

    def constrain(positions: Any) -> dict[str, Any]:
        chains, draws, _ = positions.shape
        keys = jax.random.split(jax.random.PRNGKey(seed + 1), chains * draws)
        values = constrain_all((keys, jnp.asarray(positions).reshape(chains * draws, -1)))
        return {name: np.asarray(v).reshape(chains, draws, *v.shape[1:]) for name, v in values.items()}

    sampled = sample(
        lambda flat: potential(unravel(flat)),
        approximation.mode,
        approximation.factor,
        seed=seed,
        adapt_metric=few,
        **settings,
    )
    return sampled, constrain


def _starts(data: Data, structure: Structure, priors: Mapping[str, Prior], *, few: bool) -> list[dict[str, jax.Array]]:
    """Give unconstrained values to search the mode from: at the prior means, and to both sides of them."""
    names = [name for name in priors if name not in structure.without()]
    latent: dict[str, Any] = starting_values(data, structure)
    if few:
        latent = {"discrepancy": np.zeros(len(data.depth))}
        if structure.has_trajectories:
            latent |= {name: np.zeros(len(data.configuration)) for name in ("standard_np", "standard_p")}

    def middle(prior: Prior) -> jax.Array:
        inverse = biject_to(prior.distribution.support).inv(prior.distribution.mean)
        return jnp.where(jnp.isfinite(inverse), inverse, 0.0)

    centre = jax.jit(lambda: {name: middle(priors[name]) for name in names})()
    latent = {name: jnp.asarray(value) for name, value in latent.items()}
    return [{**{name: value + shift for name, value in centre.items()}, **latent} for shift in (0.0, -0.5, 0.5)]


def _estimator(priors: Mapping[str, Prior], data: Data) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
    """Give the moment estimates of the spreads as a function of the other parameters, all unconstrained."""

    def transform(name: str) -> Any:
        return biject_to(priors[name].distribution.support)

    def estimate(free: dict[str, Any]) -> dict[str, jax.Array]:
        value = {k: transform(k)(v) if k in priors else v for k, v in free.items()}
        return {k: transform(k).inv(v) for k, v in estimate_spreads(value, data).items()}

    return estimate


def _derived(values: Mapping[str, Any], frame: Frame, data: Data) -> dict[str, Any]:
    """Compute the law's parameters in the paper's units."""
    log_m = values["phi"] * frame.log_depth + values["psi"] * frame.log_width
    log_eps_np = saturate(jnp.asarray(values["log_e"]), jnp.asarray(values["log_eps_up"])[..., None])
    return {
        "eps_up": np.exp(values["log_eps_up"]),
        "p_prime": values["knee"] * np.exp(log_m),
        "eps_np": np.asarray(jnp.exp(log_eps_np)),
    }


def _tree(
    values: dict[str, Any], sampled: Sampled, data: Data, configurations: pd.DataFrame, trajectories: pd.Index
) -> xr.DataTree:
    chains, draws = values["gamma"].shape
    coords: dict[str, Any] = {"chain": np.arange(chains), "draw": np.arange(draws)}
    coords |= {name: ("configuration", configurations[name].to_numpy()) for name in CONFIGURATION}
    coords |= {"trajectory": np.asarray(trajectories, dtype=str)}
    own = {"log_e": ["configuration"], "eps_np": ["configuration"]}
    own |= {"log_e_run": ["trajectory"], "effect_p": ["trajectory"]}
    variables = {
        name: (["chain", "draw", *own.get(name, [])], np.asarray(value))
        for name, value in values.items()
        if name != "log_eps_up"
    }
    statistics = {name: (["chain", "draw"], value) for name, value in sampled.statistics.items()}
    observed = {"response": ("row", data.response)}
    constant = {
        "log_density": ("row", data.log_density),
        "n_test": ("row", data.n_test),
        "trajectory_of_row": ("row", data.trajectory),
        "configuration_of_trajectory": ("run", data.configuration),
    }
    groups = {
        "posterior": xr.Dataset(variables, coords),
        "sample_stats": xr.Dataset(statistics, {k: coords[k] for k in ("chain", "draw")}),
        "observed_data": xr.Dataset(observed),
        "constant_data": xr.Dataset(constant),
    }
    return xr.DataTree.from_dict(groups)


def _contraction(values: Mapping[str, Any], priors: Mapping[str, Prior]) -> dict[str, float]:
    """Compare posterior with prior variance on the unconstrained scale, parameter by parameter."""
    names = [name for name in priors if name in values]
    draws = {name: jnp.asarray(values[name]) for name in names}

    def one(prior: Prior, draws: jax.Array) -> jax.Array:
        transform = biject_to(prior.distribution.support)
        grid = jnp.linspace(-40.0, 40.0, 8001)
        inside = transform(grid)
        log_density = prior.distribution.log_prob(inside) + transform.log_abs_det_jacobian(grid, inside)
        weight = jax.nn.softmax(jnp.where(jnp.isfinite(log_density), log_density, -jnp.inf))
        centre = jnp.sum(weight * grid)
        return 1 - jnp.var(transform.inv(draws)) / jnp.sum(weight * (grid - centre) ** 2)

    result = jax.jit(lambda draws: {name: one(priors[name], draws[name]) for name in names})(draws)
    return {name: float(value) for name, value in result.items()}
