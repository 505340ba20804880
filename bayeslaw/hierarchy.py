"""Where a run's error comes from: the dense law, its configuration's discrepancy, the run's own effects."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayeslaw.frame import Data
from bayeslaw.laws import log_dense_at

#: Spreads of latent effects; every other parameter enters the likelihood directly.
SPREADS = ("spread_np", "share_np", "tau_p")

#: What no estimate of a spread is below, so that its logarithm stays finite.
LEAST_SPREAD = 0.01
#: Weight of no growth in its estimate: of one effect at a distance of 2 natural logs.
STEADY = 4.0


def site(name: str, distribution: Any) -> jax.Array:
    """Sample one NumPyro site."""
    return jnp.asarray(numpyro.sample(name, distribution))


def split_spread(spread: Mapping[str, Any], *, of_runs: bool = False) -> dict[str, Any]:
    """Split the spread of eps_np into the configurations' and the trajectories' part.

    With one replicate only their total is informed; total and share are sampled because they are nearly independent.

    Args:
        spread: `spread_np` and, where there are both parts, `share_np`.
        of_runs: Where there is no share, whether all of it belongs to the trajectories.

    Returns:
        `sigma_np` and `tau_np`, as far as there are such effects.
    """
    if "spread_np" not in spread:
        return {}
    if "share_np" not in spread:
        return {"tau_np" if of_runs else "sigma_np": spread["spread_np"]}
    return {
        "sigma_np": spread["spread_np"] * jnp.sqrt(spread["share_np"]),
        "tau_np": spread["spread_np"] * jnp.sqrt(1 - spread["share_np"]),
    }


def spreads_at(value: Mapping[str, Any], centre: Any) -> dict[str, Any]:
    """Give the spreads of networks: those of the central one, grown with the error that the dense law expects.

    Args:
        value: `dense`, and as far as there are such parts `sigma_np`, `tau_np`, `tau_p`, `growth_np`, `growth_p`.
        centre: Log e of the networks by the dense law.

    Returns:
        `sigma_np`, `tau_np` and `tau_p` as far as there are such effects, broadcast with `centre`.
    """
    above = centre - jnp.log(value["dense"])
    growth = {name: value.get(f"growth_{name}", 0.0) * above for name in ("np", "p")}
    parts = (("sigma_np", "np"), ("tau_np", "np"), ("tau_p", "p"))
    return {name: value[name] * jnp.exp(growth[where]) for name, where in parts if name in value}


def centred_effects(data: Data, centre: jax.Array, spread: Mapping[str, Any]) -> tuple[jax.Array, Any]:
    """Sample log e of every trajectory, the configurations' own integrated out, and the sideways effects.

    Without trajectory effects on eps_np, log e of the configurations is sampled itself.

    Args:
        data: The data.
        centre: Log e of the configurations by the dense law.
        spread: Spreads of the configurations (`spreads_at`).

    Returns:
        log e and the sideways effect of every trajectory.
    """
    count = len(data.configuration)
    if "tau_np" in spread:
        log_e = site("log_e_run", dist.ImproperUniform(dist.constraints.real, (), (count,)))
        numpyro.factor("hierarchy", log_density_of_groups(log_e, data, centre, spread))
    else:
        own = site("log_e", dist.ImproperUniform(dist.constraints.real, (), (len(data.depth),)))
        numpyro.factor("hierarchy", dist.Normal(centre, spread["sigma_np"]).log_prob(own).sum())
        log_e = own[data.configuration]
        numpyro.deterministic("log_e_run", log_e)
    if "tau_p" not in spread:
        return log_e, jnp.zeros(count)
    with numpyro.plate("trajectory", count):
        return log_e, site("effect_p", dist.Normal(0.0, spread["tau_p"][data.configuration]))


def standardised_effects(data: Data, centre: jax.Array, spread: Mapping[str, Any]) -> tuple[jax.Array, Any]:
    """Sample effects in units of their spreads."""
    own, count = jnp.asarray(centre), len(data.configuration)
    if "sigma_np" in spread:
        with numpyro.plate("configuration", len(data.depth)):
            own = own + spread["sigma_np"] * site("discrepancy", dist.Normal())
    numpyro.deterministic("log_e", own)
    log_e, effect_p = own[data.configuration], jnp.zeros(count)
    with numpyro.plate("trajectory", count):
        if "tau_np" in spread:
            log_e = log_e + spread["tau_np"][data.configuration] * site("standard_np", dist.Normal())
        if "tau_p" in spread:
            effect_p = spread["tau_p"][data.configuration] * site("standard_p", dist.Normal())
            numpyro.deterministic("effect_p", effect_p)
    numpyro.deterministic("log_e_run", log_e)
    return log_e, effect_p


def log_density_of_groups(log_e: jax.Array, data: Data, centre: jax.Array, spread: Mapping[str, Any]) -> jax.Array:
    """Integrate log e_i out: trajectories of a configuration are exchangeable normals, in closed form.

    With R trajectories, mean m and within sum of squares S: (R - 1) log tau^2 + log(tau^2 + R sigma^2)
    + S / tau^2 + R (m - centre)^2 / (tau^2 + R sigma^2), times -1/2.
    """
    between, within = spread["sigma_np"] ** 2, spread["tau_np"] ** 2
    size, mean, squares = _group_moments(log_e, data)
    total = within + size * between
    density = jnp.log(total) + size * (mean - centre) ** 2 / total + (size - 1) * jnp.log(within) + squares / within
    return -0.5 * jnp.sum(density)


def group_total(values: Any, data: Data) -> jax.Array:
    """Add values of trajectories, `[..., trajectories]`, up for every configuration, `[..., configurations]`."""
    return jnp.zeros((*jnp.shape(values)[:-1], len(data.depth))).at[..., data.configuration].add(values)


def group_mean(values: Any, data: Data) -> jax.Array:
    """Average values of trajectories over every configuration, shaped as in `group_total`."""
    return group_total(values, data) / group_total(jnp.ones(len(data.configuration)), data)


def _group_moments(log_e: jax.Array, data: Data) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Count the trajectories of every configuration, their mean and their sum of squares around it."""
    mean = group_mean(log_e, data)
    size = group_total(jnp.ones_like(log_e), data)
    return size, mean, group_total((log_e - mean[data.configuration]) ** 2, data)


def draw_configurations(key: jax.Array, value: Mapping[str, Any], data: Data) -> jax.Array:
    """Draw log e of every configuration given its trajectories', the exact conditional of what was integrated out.

    Args:
        key: JAX key.
        value: One draw: constants of the dense law, spreads, their growth and `log_e_run`; or `log_e` itself, where it
            was sampled.
        data: The data.

    Returns:
        `log_e`, `[configurations]`.
    """
    if "log_e" in value:
        return value["log_e"]
    centre = log_dense_at(value, data.covariates)
    size, mean, _ = _group_moments(value["log_e_run"], data)
    spread = spreads_at(value, centre)
    between, within = spread["sigma_np"] ** -2, spread["tau_np"] ** -2
    precision = between + size * within
    location = (centre * between + size * mean * within) / precision
    return location + jax.random.normal(key, location.shape) / jnp.sqrt(precision)


def estimate_spreads(value: Mapping[str, Any], data: Data, variances: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Estimate the spreads and their growth from the expected squares of the effects.

    It is a step of expectation and maximisation (Dempster, Laird and Rubin 1977). The squares of effects at their mode
    alone would lack what is not known of them: spreads would shrink, the effects with them, and so on to nothing.

    Args:
        value: Constants of the dense law, growth of the spreads, `log_e_run` (or `log_e`, without effects of
            trajectories on it) and, with sideways effects, `effect_p`.
        data: The data.
        variances: Those of the effects about their mode, by the same names.

    Returns:
        `spread_np`, `share_np` where there are both parts (one half where nothing is replicated), `tau_p` where there
        are sideways effects, and the growth as far as `value` has it.
    """
    centre = log_dense_at(value, data.covariates)
    above = centre - jnp.log(value["dense"])
    found = {}
    if "effect_p" in value:
        squares = value["effect_p"] ** 2 + variances["effect_p"]
        found["tau_p"], growth = _spread_and_growth(squares, above[data.configuration], value.get("growth_p"))
        found |= {"growth_p": growth} if "growth_p" in value else {}
    if "log_e" in value:
        own, around, name = above, centre, "log_e"
    else:
        own, around, name = above[data.configuration], centre[data.configuration], "log_e_run"
    squares = (value[name] - around) ** 2 + variances[name]
    found["spread_np"], growth = _spread_and_growth(squares, own, value.get("growth_np"))
    found |= {"growth_np": growth} if "growth_np" in value else {}
    if "log_e" in value:
        return found
    unit = jnp.exp(growth * above)
    size, mean, squares = _group_moments(value["log_e_run"], data)
    unknown = group_mean(variances["log_e_run"], data)
    repeated = jnp.sum(size - 1)
    within = jnp.sum((squares + (size - 1) * unknown) / unit**2) / jnp.maximum(repeated, 1)
    apart = jnp.mean(((mean - centre) ** 2 + unknown / size) / unit**2)
    between = jnp.maximum(apart - within * jnp.mean(1 / size), 0.1 * apart)
    between, within = (jnp.where(repeated > 0, v, apart / 2) + 1e-4 for v in (between, within))
    return found | {"spread_np": jnp.sqrt(between + within), "share_np": between / (between + within)}


def _spread_and_growth(squares: Any, above: Any, growth: Any) -> tuple[jax.Array, Any]:
    """Fit expected squares by (tau exp(growth above))^2 with a few steps of scoring, growth drawn lightly towards 0."""

    def variance(growth: Any) -> jax.Array:
        return jnp.mean(squares * jnp.exp(-2 * growth * above))

    if growth is None:
        return jnp.sqrt(variance(0.0)) + LEAST_SPREAD, 0.0
    growth, information = jnp.asarray(growth), 2 * jnp.sum((above - above.mean()) ** 2) + STEADY
    for _ in range(5):
        excess = squares * jnp.exp(-2 * growth * above) / variance(growth) - 1
        growth = growth + jnp.clip((jnp.sum(excess * above) - STEADY * growth) / information, -1.0, 1.0)
    return jnp.sqrt(variance(growth)) + LEAST_SPREAD, growth


def spread_variances(data: Data, names: Container[str]) -> dict[str, float]:
    """Give the variance of the estimates of named spreads on the unconstrained scale, from the number of their groups.

    That of the logarithm of a spread of n known values is 1 / (2n); as much again for values that are not known.
    """
    groups, count = len(data.depth), len(data.configuration)
    share = 4 / groups + 4 / (count - groups) if count > groups else 2.0
    spreads = {"spread_np": 1 / groups, "share_np": min(share, 2.0), "tau_p": 1 / count}
    spreads |= {"growth_np": 1 / groups, "growth_p": 1 / count}
    return {name: variance for name, variance in spreads.items() if name in names}


def groups_of(data: Data) -> dict[str, Any]:
    """Name the latent values that are independent between configurations, with the configuration of every entry."""
    own = np.arange(len(data.depth))
    return {"log_e": own, "log_e_run": data.configuration, "effect_p": data.configuration}
