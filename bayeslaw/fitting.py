"""From a run table to a posterior."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from numpyro.distributions import biject_to

from bayeslaw.density import Context, constrain, flat_potential, named_potential, positions_of, shapes_of
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, Data, Frame, Labels, check_one_family, make_data, make_frame, varies
from bayeslaw.hierarchy import estimate_spreads, groups_of, spread_variances
from bayeslaw.laplace import Estimate, Laplace, laplace
from bayeslaw.law import saturate
from bayeslaw.model import EFFECTS, Structure, starting_values, structure_of
from bayeslaw.posterior import Fit
from bayeslaw.precision import in_float64
from bayeslaw.priors import Prior, describe_prior, resolve_priors, store_prior
from bayeslaw.runs import load_runs
from bayeslaw.sampler import Sampled, sample
from bayeslaw.straight import (
    StraightContext,
    bent_positions,
    recentre,
    ridges_of,
    straight_estimate,
    straight_potential,
    straighten,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

#: With fewer configurations than this the spreads are barely informed and centred effects form funnels: effects are
#: then sampled non-centred and the metric is adapted as usual.
FEW_CONFIGURATIONS = 8
#: What is said of a posterior against its prior.
_COMPARED = ("contraction", "shift")


@in_float64
def fit(
    runs: Any,
    *,
    law: str = "joint",
    effects: Sequence[str] = EFFECTS,
    noise: str = "student_t",
    steep: bool = True,
    growth: bool | None = None,
    correlated: bool = False,
    priors: Mapping[str, Distribution] | None = None,
    seed: int = 0,
    chains: int = 4,
    warmup: int = 300,
    draws: int = 1000,
    n_test: int | None = None,
    chance_error: float | None = None,
    target_acceptance: float = 0.9,
    progress: bool = True,
) -> Fit:
    """Infer a law from a run table with NUTS.

    Args:
        runs: Run table of one family: a path, a DataFrame, or what `load_runs` gave.
        law: `"joint"`, the paper's (M1); `"parameter_count"` (M0), `"sharpness"` (M2), `"anchored"` (M3) or `"sparse"`
            (Frantar et al.), to be compared with it; `"single"`, equation (1), for the runs of one network.
        effects: Where the effects of a training run act: `"np"`, up and down on eps_np; `"p"`, sideways on log p'.
        noise: Noise of single levels, `"student_t"` or `"normal"`.
        steep: Whether that noise grows with the local slope of the curve.
        growth: Whether the spreads of configurations and runs grow with the error that the dense law expects; by
            default where there are 20 configurations or more to tell.
        correlated: Whether the noise of a level is correlated with that of the level before it in its trajectory, by
            `rho` to the power of the rounds of 20 % between them.
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
        The fit. Call its `diagnose` before believing it; planning does so by itself. A second fit with the same
        structure and shapes compiles nothing.

    Raises:
        RunTableError: The table is faulty; all faults are listed.
        BayeslawError: Several families in one table, unknown priors, or settings out of range.

    Example:
        >>> import bayeslaw
        >>> runs = bayeslaw.load_recorded("digits_resnet")  # doctest: +SKIP
        >>> bayeslaw.fit(runs).summary()  # doctest: +SKIP
    """
    bind_submodules()
    _check_settings(chains=chains, warmup=warmup, draws=draws, target_acceptance=target_acceptance)
    table = load_runs(runs, n_test=n_test, chance_error=chance_error)
    check_one_family(table)
    structure = structure_of(
        table, law=law, effects=tuple(effects), noise=noise, steep=steep, growth=growth, correlated=correlated
    )
    frame = make_frame(table, chance_error_of(table))
    _warn_about(table, structure)
    resolved = {k: v for k, v in resolve_priors(priors, law=law).items() if k not in structure.without()}
    data, labels = make_data(table, frame)
    few = len(labels.configurations) < FEW_CONFIGURATIONS
    warmup = max(warmup, 1000) if few else warmup
    sampled, values = _sample(
        structure, data, resolved, few=few, seed=seed, chains=chains, warmup=warmup, draws=draws,
        target_acceptance=target_acceptance, progress=progress,
    )  # fmt: skip
    values |= derived_values(values, frame)
    tree = _tree(values, sampled, data, labels)
    settings = {
        "seed": seed,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "metric": "adapted" if few else "laplace",
        "priors": {name: describe_prior(prior) for name, prior in resolved.items()},
        "stored_priors": {name: store_prior(prior) for name, prior in resolved.items()},
        **_against_prior(values, resolved),
    }
    return Fit(tree, table, frame, structure, settings, dict(versions()))


@functools.cache
def versions() -> Mapping[str, str]:
    """List the versions of the libraries that compute a posterior."""
    names = ("bayeslaw", "jax", "numpyro", "arviz", "numpy", "xarray")
    return {name: importlib.metadata.version(name) for name in names}


def bind_submodules() -> None:
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
        "warmup": (settings["warmup"] >= 100, "an integer >= 100"),
        "draws": (settings["draws"] >= 50, "an integer >= 50"),
        "target_acceptance": (0 < settings["target_acceptance"] < 1, "in (0, 1)"),
    }
    faults = [f"{name} = {settings[name]} must be {rule}" for name, (ok, rule) in rules.items() if not ok]
    if faults:
        raise BayeslawError("fit: " + "; ".join(faults) + ".")


def chance_error_of(table: pd.DataFrame) -> float:
    """Give the error of random guessing, or 1 with a warning where a validated run table does not say."""
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
        if not varies and parameter not in structure.without()
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
    structure: Structure, data: Data, priors: Mapping[str, Prior], *, few: bool, seed: int, **settings: Any
) -> tuple[Sampled, dict[str, Any]]:
    """Find the Laplace metric and sample; give the draws also as named parameters."""
    starts = _starts(data, structure, priors, few=few)
    context = Context(Data(*(jnp.asarray(part) for part in data)), {k: v.distribution for k, v in priors.items()})
    variances = {k: v for k, v in spread_variances(data).items() if k in priors}
    estimate = None if few else straight_estimate(estimate_unconstrained)
    groups = {} if few else groups_of(data)
    density = straight_potential(named_potential(structure, not few))
    straight = StraightContext(context, jax.tree.map(jnp.asarray, ridges_of(data)))
    starts = [straighten(straight, start) for start in starts]
    straight, approximation = approximate(density, straight, starts, estimate, variances, groups)
    shapes = shapes_of(starts[0])
    sampled = sample(
        *flat_potential(density, straight, shapes),
        approximation.mode,
        approximation.axes,
        seed=seed,
        adapt_metric=few,
        **settings,
    )
    plain = bent_positions(straight, positions_of(shapes), sampled.positions)
    return sampled, constrain(structure, not few, shapes, context, plain, seed=seed + 1)


def approximate(
    density: Callable[[StraightContext, dict[str, Any]], jax.Array],
    straight: StraightContext,
    starts: Sequence[Mapping[str, Any]],
    estimate: Estimate | None,
    variances: Mapping[str, float],
    groups: Mapping[str, NDArray],
) -> tuple[StraightContext, Laplace]:
    """Find the Laplace metric, and again once it says how far effects are to be standardised.

    Args:
        density: Negative log density of context and straight coordinates.
        straight: The context, with effects as they are.
        starts: Straight coordinates to start from.
        estimate: Estimates of the spreads, as in `laplace`, like what follows.
        variances: Variance of each.
        groups: Group of every entry of the effects.

    Returns:
        The context to sample in, and the metric.
    """
    found = laplace(density, straight, starts, estimate, variances, groups)
    if not np.size(found.axes.own):
        return straight, found
    chosen, start = recentre(straight, positions_of(shapes_of(starts[0])), found.mode, found.axes)
    return chosen, laplace(density, chosen, [start], as_they_are, variances, groups)


def as_they_are(*_: Any) -> dict[str, jax.Array]:
    """Estimate nothing: spreads stay at what was found before."""
    return {}


def _starts(data: Data, structure: Structure, priors: Mapping[str, Prior], *, few: bool) -> list[dict[str, jax.Array]]:
    """Give unconstrained values to search the mode from: at the prior means, and to both sides of them."""
    absent = structure.without()
    latent: dict[str, Any] = starting_values(data, structure)
    if few:
        latent = {} if structure.of_runs else {"discrepancy": np.zeros(len(data.depth))}
        standard = {"standard_np": "np", "standard_p": "p"}
        effects = structure.effects if structure.has_trajectories else ()
        latent |= {name: np.zeros(len(data.configuration)) for name, where in standard.items() if where in effects}
    centre = _prior_middles({k: v.distribution for k, v in priors.items() if k not in absent})
    latent = {name: jnp.asarray(value) for name, value in latent.items()}
    return [{**{name: value + shift for name, value in centre.items()}, **latent} for shift in (0.0, -0.5, 0.5)]


@jax.jit
def _prior_middles(priors: dict[str, Any]) -> dict[str, jax.Array]:
    """Give the prior means on the unconstrained scale."""

    def middle(prior: Any) -> jax.Array:
        try:
            inverse = biject_to(prior.support).inv(prior.mean)
        except NotImplementedError:  # NumPyro does not know every mean
            grid, weight = on_grid(prior)
            inverse = jnp.sum(weight * grid)
        return jnp.where(jnp.isfinite(inverse), inverse, 0.0)

    return {name: middle(prior) for name, prior in priors.items()}


def estimate_unconstrained(context: Context, free: dict[str, Any], variances: dict[str, Any]) -> dict[str, jax.Array]:
    """Give the estimates of the spreads (`estimate_spreads`) from unconstrained values, themselves unconstrained."""
    transforms = {name: biject_to(prior.support) for name, prior in context.priors.items()}
    value = {k: transforms[k](v) if k in transforms else v for k, v in free.items()}
    found = estimate_spreads(value, context.data, variances)
    return {k: transforms[k].inv(v) for k, v in found.items() if k in transforms}


def derived_values(values: Mapping[str, Any], frame: Frame) -> dict[str, Any]:
    """Compute the law's parameters in the paper's units."""
    log_eps_np = saturate(jnp.asarray(values["log_e"]), jnp.asarray(values["log_eps_up"])[..., None])
    derived = {"eps_up": np.exp(values["log_eps_up"]), "eps_np": np.asarray(jnp.exp(log_eps_np))}
    if "phi" in values:
        log_m = values["phi"] * frame.log_depth + values["psi"] * frame.log_width
        derived["p_prime"] = values["knee"] * np.exp(log_m)
    return derived


def _tree(values: dict[str, Any], sampled: Sampled, data: Data, labels: Labels) -> xr.DataTree:
    chains, draws = values["plateau"].shape
    coords: dict[str, Any] = {"chain": np.arange(chains), "draw": np.arange(draws)}
    coords |= {name: ("configuration", labels.configurations[name].to_numpy()) for name in CONFIGURATION}
    coords |= {"trajectory": np.asarray(labels.trajectories, dtype=str)}
    own = {"log_e": ["configuration"], "eps_np": ["configuration"]}
    own |= {"log_e_run": ["trajectory"], "effect_p": ["trajectory"]}
    variables = {
        name: (["chain", "draw", *own.get(name, [])], np.asarray(value))
        for name, value in values.items()
        if name != "log_eps_up"
    }
    statistics = {name: (["chain", "draw"], value) for name, value in sampled.statistics.items()}
    rows = labels.rows
    observed = {"response": ("row", rows.response)}
    constant = {
        "log_density": ("row", rows.log_density),
        "n_test": ("row", rows.n_test),
        "trajectory_of_row": ("row", rows.trajectory),
        "configuration_of_trajectory": ("run", data.configuration),
    }
    groups = {
        "posterior": xr.Dataset(variables, coords),
        "sample_stats": xr.Dataset(statistics, {k: coords[k] for k in ("chain", "draw")}),
        "observed_data": xr.Dataset(observed),
        "constant_data": xr.Dataset(constant),
    }
    return xr.DataTree.from_dict(groups)


def _against_prior(values: Mapping[str, Any], priors: Mapping[str, Prior]) -> dict[str, dict[str, float]]:
    """Compare posterior with prior on the unconstrained scale, parameter by parameter: `contraction` and `shift`."""
    draws = {name: jnp.asarray(values[name]) for name in priors}
    result = _comparisons(draws, {name: prior.distribution for name, prior in priors.items()})
    return {what: {name: float(result[name][i]) for name in priors} for i, what in enumerate(_COMPARED)}


@jax.jit
def _comparisons(draws: dict[str, jax.Array], priors: dict[str, Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
    def one(prior: Any, draws: jax.Array) -> tuple[jax.Array, jax.Array]:
        grid, weight = on_grid(prior)
        centre = jnp.sum(weight * grid)
        variance = jnp.sum(weight * (grid - centre) ** 2)
        free = biject_to(prior.support).inv(draws)
        return 1 - jnp.var(free) / variance, (jnp.mean(free) - centre) / jnp.sqrt(variance)

    return {name: one(priors[name], value) for name, value in draws.items()}


def on_grid(prior: Any) -> tuple[jax.Array, jax.Array]:
    """Give an even grid of the unconstrained scale and the prior's probabilities on it."""
    transform = biject_to(prior.support)
    grid = jnp.linspace(-40.0, 40.0, 8001)
    inside = transform(grid)
    log_density = prior.log_prob(inside) + transform.log_abs_det_jacobian(grid, inside)
    return grid, jax.nn.softmax(jnp.where(jnp.isfinite(log_density), log_density, -jnp.inf))
