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
from bayeslaw.law import saturate
from bayeslaw.laws import log_dense_at, moved_by_luck, share_of_data

#: Spreads of latent effects; every other parameter enters the likelihood directly.
SPREADS = ("spread_np", "share_np", "spread_p", "share_p")

#: What no estimate of a spread is below, so that its logarithm stays finite.
LEAST_SPREAD = 0.01
#: Weight of no growth in its estimate: of one effect at a distance of 2 natural logs.
STEADY = 4.0


def site(name: str, distribution: Any) -> jax.Array:
    """Sample one NumPyro site."""
    return jnp.asarray(numpyro.sample(name, distribution))


def split_spread(spread: Mapping[str, Any], *, of_runs: bool = False) -> dict[str, Any]:
    """Split the spreads of eps_np and of p' into the configurations' and the trajectories' part.

    With one replicate only their total is informed; total and share are sampled because they are nearly independent.

    Args:
        spread: `spread_np`, `spread_p` and, where there are both parts, `share_np`, `share_p`.
        of_runs: Where there is no share, whether all of it belongs to the trajectories.

    Returns:
        `sigma_np`, `tau_np`, `sigma_p` and `tau_p`, as far as there are such effects.
    """
    found = {}
    for where in ("np", "p"):
        if f"spread_{where}" not in spread:
            continue
        total = spread[f"spread_{where}"]
        if f"share_{where}" in spread:
            share = spread[f"share_{where}"]
            found[f"sigma_{where}"], found[f"tau_{where}"] = total * jnp.sqrt(share), total * jnp.sqrt(1 - share)
        else:
            found[f"tau_{where}" if of_runs else f"sigma_{where}"] = total
    return found


def spreads_at(value: Mapping[str, Any], centre: Any, width: Any, n_test: Any = None) -> dict[str, Any]:
    """Give the spreads of networks: those of the central one, grown with the expected error and as networks get narrow.

    Measured on a test set, runs spread by more: part of its binomial noise lasts through a run, which keeps getting the
    same examples wrong.

    Args:
        value: `dense`, and as far as there are such parts those of `split_spread`, `growth_np`, `growth_p`,
            `narrow_np`, `narrow_p`; with `n_test` also `lasting` and `log_eps_up`.
        centre: Log e of the networks by the dense law.
        width: Their centred log width, broadcast with `centre`.
        n_test: Test examples that their runs are measured on, broadcast with `centre`; nothing for population errors.

    Returns:
        What `split_spread` gives, as far as there are such effects, broadcast with `centre`.
    """
    along = grows_with(value, centre, width)
    growth = {where: log_growth(value, where, along) for where in ("np", "p")}
    parts = [(f"{part}_{where}", where) for where in ("np", "p") for part in ("sigma", "tau")]
    found = {name: value[name] * jnp.exp(growth[where]) for name, where in parts if name in value}
    if n_test is not None and "lasting" in value and "tau_np" in found:
        binomial = jnp.expm1(-saturate(centre, value["log_eps_up"])) / n_test  # (1 - eps) / (n eps), of log eps
        found["tau_np"] = jnp.sqrt(found["tau_np"] ** 2 + value["lasting"] * binomial)
    return found


def grows_with(value: Mapping[str, Any], centre: Any, width: Any) -> dict[str, Any]:
    """Give what spreads grow with, in logs, by the name of its exponent."""
    return {"growth": centre - jnp.log(value["dense"]), "narrow": -jnp.asarray(width)}


def log_growth(value: Mapping[str, Any], where: str, covariates: Mapping[str, Any]) -> Any:
    """Give the log of the factor on spreads at networks, `covariates` being those of `grows_with`."""
    return sum(value.get(f"{name}_{where}", 0.0) * along for name, along in covariates.items())


def spreads_of(value: Mapping[str, Any], data: Data, centre: Any) -> dict[str, Any]:
    """Give the spreads of the configurations of data as they were measured: `spreads_at` with their test examples."""
    log_eps_up = data.log_chance + jnp.log(value["plateau"])
    return spreads_at({**value, "log_eps_up": log_eps_up}, centre, data.width, data.tested)


def halfway_prior(spread: Any, subsets: int) -> Any:
    """Make the distribution that lucks are sampled from, half-way between themselves and units of their spread.

    Runs tell them apart to some hundredths, which is more than small spreads leave and less than large ones: in units
    of the spread they would narrow as it grows, and by themselves as it shrinks, many times over.
    """
    return dist.Normal(0.0, jnp.sqrt(spread)).expand((subsets,)).to_event(1)


def luck_of_subsets(value: Mapping[str, Any], data: Data) -> jax.Array:
    """Give the luck of every training subset (`bayeslaw.subsets`), `[..., subsets]`."""
    return jnp.sqrt(value["spread_subset"]) * (jnp.asarray(value["luck_halfway"]) @ jnp.asarray(data.luck_root).T)


def luck_of_runs(value: Mapping[str, Any], data: Data) -> jax.Array:
    """Say how far its subset moves log e of every trajectory, `[..., trajectories]`; 0 where there is no luck."""
    if "luck_halfway" not in value:
        return jnp.asarray(0.0)
    share = share_of_data(value, data.covariates)[..., data.configuration]
    return moved_by_luck(share, luck_of_subsets(value, data)[..., data.subset])


def centred_effects(data: Data, centre: jax.Array, spread: Mapping[str, Any], luck: jax.Array) -> tuple[jax.Array, Any]:
    """Sample log e and the sideways effect of every trajectory, the configurations' own integrated out.

    Without trajectory effects on eps_np, log e of the configurations is sampled itself.

    Args:
        data: The data.
        centre: Log e of the configurations by the dense law.
        spread: Spreads of the configurations (`spreads_at`).
        luck: How far its subset moves log e of every trajectory (`luck_of_runs`).

    Returns:
        log e, luck included, and the sideways effect of every trajectory.
    """
    count = len(data.configuration)
    if "tau_np" in spread:
        log_e = site("log_e_run", dist.ImproperUniform(dist.constraints.real, (), (count,)))
        spreads = spread["sigma_np"], spread["tau_np"]
        numpyro.factor("hierarchy", log_density_of_groups(log_e - luck, data, centre, *spreads))
    else:
        own = site("log_e", dist.ImproperUniform(dist.constraints.real, (), (len(data.depth),)))
        numpyro.factor("hierarchy", dist.Normal(centre, spread["sigma_np"]).log_prob(own).sum())
        log_e = own[data.configuration] + luck
        numpyro.deterministic("log_e_run", log_e)
    if "tau_p" not in spread:
        return log_e, jnp.zeros(count)
    effect_p = site("effect_p", dist.ImproperUniform(dist.constraints.real, (), (count,)))
    spreads = spread["sigma_p"], spread["tau_p"]
    numpyro.factor("sideways", log_density_of_groups(effect_p, data, jnp.zeros_like(centre), *spreads))
    return log_e, effect_p


def standardised_effects(
    data: Data, centre: jax.Array, spread: Mapping[str, Any], luck: jax.Array
) -> tuple[jax.Array, Any]:
    """Sample effects in units of their spreads; arguments as in `centred_effects`."""
    own, shift, count = jnp.asarray(centre), jnp.zeros(len(data.depth)), len(data.configuration)
    with numpyro.plate("configuration", len(data.depth)):
        if "sigma_np" in spread:
            own = own + spread["sigma_np"] * site("discrepancy", dist.Normal())
        if "sigma_p" in spread:
            shift = spread["sigma_p"] * site("discrepancy_p", dist.Normal())
    numpyro.deterministic("log_e", own)
    if "tau_p" in spread:
        numpyro.deterministic("shift_p", shift)
    log_e, effect_p = own[data.configuration] + luck, shift[data.configuration]
    with numpyro.plate("trajectory", count):
        if "tau_np" in spread:
            log_e = log_e + spread["tau_np"][data.configuration] * site("standard_np", dist.Normal())
        if "tau_p" in spread:
            effect_p = effect_p + spread["tau_p"][data.configuration] * site("standard_p", dist.Normal())
            numpyro.deterministic("effect_p", effect_p)
    numpyro.deterministic("log_e_run", log_e)
    return log_e, effect_p


def log_density_of_groups(
    effects: jax.Array, data: Data, centre: jax.Array, sigma: jax.Array, tau: jax.Array
) -> jax.Array:
    """Integrate the configurations' own effects out: their trajectories are exchangeable normals, in closed form.

    With R trajectories, mean m and within sum of squares S: (R - 1) log tau^2 + log(tau^2 + R sigma^2)
    + S / tau^2 + R (m - centre)^2 / (tau^2 + R sigma^2), times -1/2.

    Args:
        effects: Of the trajectories.
        data: The data.
        centre: What the configurations' effects are about, `[configurations]`.
        sigma: Spread of the configurations about it, `[configurations]`.
        tau: Spread of trajectories about their configuration, `[configurations]`.
    """
    between, within = sigma**2, tau**2
    size, mean, squares = _group_moments(effects, data)
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


def draw_configurations(key: jax.Array, value: Mapping[str, Any], data: Data) -> dict[str, jax.Array]:
    """Draw the effects of the configurations given their trajectories', which were sampled without them.

    Args:
        key: Random key.
        value: One draw: constants of the dense law, plateau, spreads, their growth, what lasts of a test set's noise,
            what luck is made of, `log_e_run` and `effect_p`; or the configurations' own `log_e` and `shift_p`, where
            they were sampled.
        data: The data.

    Returns:
        `log_e` and, where there are sideways effects, `shift_p`, `[configurations]`.
    """
    centre = log_dense_at(value, data.covariates)
    spread = spreads_of(value, data, centre)
    nothing, luck = jnp.zeros_like(centre), luck_of_runs(value, data)
    named = (("log_e", "log_e_run", centre, luck, "np"), ("shift_p", "effect_p", nothing, 0.0, "p"))
    found = {}
    for (own, of_runs, about, shared, where), key_of_it in zip(named, jax.random.split(key), strict=True):
        if own in value:
            found[own] = value[own]
        elif of_runs in value:
            spreads = spread[f"sigma_{where}"], spread[f"tau_{where}"]
            found[own] = _given_runs(key_of_it, value[of_runs] - shared, data, about, *spreads)
    return found


def _given_runs(
    key: jax.Array, effects: jax.Array, data: Data, centre: jax.Array, sigma: jax.Array, tau: jax.Array
) -> jax.Array:
    """Draw the configurations' effects given those of their trajectories; arguments as in `log_density_of_groups`."""
    size, mean, _ = _group_moments(effects, data)
    between, within = sigma**2, tau**2 / size
    known = between / (between + within)
    location = centre + known * (mean - centre)
    return location + jax.random.normal(key, location.shape) * jnp.sqrt(known * within)


def estimate_spreads(value: Mapping[str, Any], data: Data, variances: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Estimate the spreads and their growth from the expected squares of the effects.

    It is a step of expectation and maximisation (Dempster, Laird and Rubin 1977). The squares of effects at their mode
    alone would lack what is not known of them: spreads would shrink, the effects with them, and so on to nothing.

    Args:
        value: Constants of the dense law, growth of the spreads, what luck is made of, `log_e_run` (or `log_e`, without
            effects of trajectories on it) and, with sideways effects, `effect_p`.
        data: The data.
        variances: Those of the effects about their mode, by the same names.

    Returns:
        `spread_np`, and `spread_p` where there are sideways effects; their shares where there are both parts (one half
        where nothing is replicated); and the growth as far as `value` has it.
    """
    centre = log_dense_at(value, data.covariates)
    along = grows_with(value, centre, data.width)
    found = {}
    if "luck_halfway" in value:
        found["spread_subset"] = _spread_of_lucks(value)
    if "effect_p" in value:
        found |= _of_both(value, data, variances, ("effect_p", "p"), jnp.zeros_like(centre), along)
    if "log_e" not in value:
        return found | _of_both(value, data, variances, ("log_e_run", "np"), centre, along)
    squares = (value["log_e"] - centre) ** 2 + variances["log_e"]
    found["spread_np"], growth = _spread_and_growth(value, "np", squares, along)
    return found | growth


def _of_both(
    value: Mapping[str, Any],
    data: Data,
    variances: Mapping[str, Any],
    names: tuple[str, str],
    centre: jax.Array,
    along: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Estimate spread, growth and share from effects of trajectories, those of their configurations included."""
    name, where = names
    effects = value[name] - (luck_of_runs(value, data) if where == "np" else 0.0)
    squares = (effects - centre[data.configuration]) ** 2 + variances[name]
    of_runs = {exponent: each[data.configuration] for exponent, each in along.items()}
    found = _spread_and_growth(value, where, squares, of_runs)[1]
    unit = jnp.exp(log_growth(found, where, along))
    size, mean, squares = _group_moments(effects, data)
    unknown = group_mean(variances[name], data)
    repeated = jnp.sum(size - 1)
    within = jnp.sum((squares + (size - 1) * unknown) / unit**2) / jnp.maximum(repeated, 1)
    apart = jnp.mean(((mean - centre) ** 2 + unknown / size) / unit**2)
    between = jnp.maximum(apart - within * jnp.mean(1 / size), 0.1 * apart)
    between, within = (jnp.where(repeated > 0, v, apart / 2) + LEAST_SPREAD**2 for v in (between, within))
    return found | {f"spread_{where}": jnp.sqrt(between + within), f"share_{where}": between / (between + within)}


def _spread_of_lucks(value: Mapping[str, Any]) -> jax.Array:
    """Estimate the spread of lucks; of what they have in common runs say little, and of that the spread stays."""
    lucks = jnp.sqrt(value["spread_subset"]) * value["luck_halfway"]
    return jnp.sqrt(jnp.mean(lucks**2) + 0.5 * value["spread_subset"] ** 2 + LEAST_SPREAD**2)


def _spread_and_growth(
    value: Mapping[str, Any], where: str, squares: Any, along: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Fit expected squares by a spread that grows along covariates, with a few steps of scoring.

    Exponents, as far as `value` has them, are drawn lightly towards 0.

    Returns:
        The spread where nothing has grown, and the exponents by name.
    """
    names = [name for name in along if f"{name}_{where}" in value]

    def variance(log_factor: Any) -> jax.Array:
        return jnp.mean(squares * jnp.exp(-2 * log_factor))

    if not names:
        return jnp.sqrt(variance(0.0)) + LEAST_SPREAD, {}
    covariates = jnp.stack([jnp.broadcast_to(along[name], jnp.shape(squares)) for name in names])
    apart = covariates - covariates.mean(1, keepdims=True)
    information = 2 * apart @ apart.T + STEADY * jnp.eye(len(names))
    exponents = jnp.stack([jnp.asarray(value[f"{name}_{where}"]).reshape(()) for name in names])
    for _ in range(5):
        log_factor = exponents @ covariates
        excess = squares * jnp.exp(-2 * log_factor) / variance(log_factor) - 1
        step = jnp.linalg.solve(information, covariates @ excess - STEADY * exponents)
        exponents = exponents + jnp.clip(step, -1.0, 1.0)
    found = dict(zip([f"{name}_{where}" for name in names], exponents, strict=True))
    return jnp.sqrt(variance(exponents @ covariates)) + LEAST_SPREAD, found


def spread_variances(data: Data, names: Container[str]) -> dict[str, float]:
    """Give the variance of the estimates of named spreads on the unconstrained scale, from the number of their groups.

    That of the logarithm of a spread of n known values is 1 / (2n); as much again for values that are not known.
    """
    groups, count = len(data.depth), len(data.configuration)
    share = min(4 / groups + 4 / (count - groups), 2.0) if count > groups else 2.0
    of = {"spread": 1 / groups, "share": share, "growth": 1 / groups, "narrow": 1 / groups}
    variances = {f"{name}_{where}": variance for name, variance in of.items() for where in ("np", "p")}
    variances["spread_subset"] = 0.5
    return {name: variance for name, variance in variances.items() if name in names}


def groups_of(data: Data) -> dict[str, Any]:
    """Name the latent values that are independent between configurations, with the configuration of every entry."""
    own = np.arange(len(data.depth))
    return {"log_e": own, "log_e_run": data.configuration, "effect_p": data.configuration}
