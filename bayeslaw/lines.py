"""The log density of all measured errors together, with its derivatives in the same pass.

It is what the sampler spends its time on. Rows are laid out in lines (`bayeslaw.frame.Data`), computed in their own
precision, float32 in a fit, and summed in float64. `bayeslaw.noise` computes the same row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from bayeslaw.deaths import log_hazard
from bayeslaw.laws import Law
from bayeslaw.noise import LOG_2, LogitNoise, correlation_over, noise_of


class Places(NamedTuple):
    """Hold what is known of rows before they are measured, each `[length, lines]`, as in `bayeslaw.frame.Data`.

    Attributes:
        log_density: Log density.
        n_test: Test examples; infinite where unknown.
        gap: Rounds since the row before.
        measured: Whether there is a row of a living network.
        at_risk: Whether there is a row by which a living network could have died; did, if not `measured`.
        log_chance: Logarithm of the random-guess error, a number.
    """

    log_density: Any
    n_test: Any
    gap: Any
    measured: Any
    at_risk: Any
    log_chance: Any


class LineNoise(dist.Distribution):
    """The empirical logits of all measured errors, as one event.

    Args:
        law: The law.
        curve: Its curves, `[lines]` or numbers.
        places: The rows.
        value: Parameters of the noise, as for `LogitNoise`.
    """

    def __init__(self, law: Law, curve: Any, places: Places, value: Mapping[str, Any]) -> None:
        self.places, self.value = places, noise_of(value)
        self.log_mean, self.slope = law.log_error_and_slope(curve, places.log_density)
        super().__init__(event_shape=jnp.shape(places.log_density))

    @property
    def support(self) -> Any:
        """All real numbers."""
        return dist.constraints.independent(dist.constraints.real, 2)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw responses."""
        rows = (jnp.swapaxes(part, -1, -2) for part in (self.log_mean, self.slope, self.places.n_test, self.places.gap))
        log_mean, slope, n_test, gap = rows
        return jnp.swapaxes(LogitNoise(log_mean, slope, n_test, self.value, gap).sample(key, sample_shape), -1, -2)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Compute the log density of all responses together."""
        return log_density_of_lines(self.log_mean, self.slope, self.value, jnp.asarray(value), self.places)


@jax.custom_vjp
def log_density_of_lines(
    log_mean: jax.Array, slope: jax.Array, value: dict[str, Any], response: jax.Array, places: Places
) -> jax.Array:
    """Compute the sum of `LogitNoise.log_prob` over the rows measured, and of deaths, derivatives written out.

    Args:
        log_mean: Log error of the curve, `[length, lines]`.
        slope: d log error / d log density, `[length, lines]`.
        value: Parameters of the noise and of dying.
        response: Empirical logits, `[length, lines]`; no derivatives are given by them and by what follows.
        places: The rows.

    Returns:
        The log density, a number.
    """
    return _total_and_derivatives(log_mean, slope, value, response, places)[0]


def _total_and_derivatives(
    log_mean: jax.Array, slope: jax.Array, value: dict[str, Any], response: jax.Array, places: Places
) -> tuple[jax.Array, tuple[Any, ...]]:
    dtype = response.dtype
    log_mean, slope, n_test, gap = (part.astype(dtype) for part in (log_mean, slope, places.n_test, places.gap))
    part = {name: jnp.asarray(v).astype(dtype) for name, v in value.items()}
    measured, known = jnp.asarray(places.measured).astype(dtype), jnp.isfinite(n_test)
    zero = jnp.zeros((), dtype)
    floor, sigma, kappa, power = (part.get(name, zero) for name in ("floor", "sigma", "kappa", "noise_power"))

    count, half = jnp.where(known, n_test, 1), jnp.where(known, 0.5, 0).astype(dtype)
    mean = jnp.exp(log_mean)
    total, wrong = count + 2 * half, count * mean + half
    right = total - wrong
    both, rest = 1 / (wrong * right), 1 / (1 - mean)
    above = log_mean + LOG_2
    risen = jnp.exp(power * above) if "noise_power" in part else jnp.ones((), dtype)
    lift = risen * rest
    binomial, sideways = jnp.where(known, total * both, 0), slope * lift
    jitter = (kappa * sideways) ** 2
    own_variance = (sigma * risen) ** 2 + jitter
    precision = 1 / (floor**2 * binomial + own_variance)
    root = jnp.sqrt(precision)
    residual = (response - jnp.log(wrong * wrong * both)) * root
    z, stretch, correlation, rounds = residual, jnp.ones((), dtype), zero, zero
    if "rho" in part:
        correlation, rounds = correlation_over(gap, part["rho"])
        stretch = jax.lax.rsqrt(1 - correlation**2)
        z = (residual - correlation * before(residual)) * stretch
    log_scale_and_more = 0.5 * jnp.log(precision * stretch**2)

    if "nu" in part:
        nu = part["nu"]
        tail = 1 + z * z / nu
        log_tail = jnp.log(tail)
        rows = log_scale_and_more - (nu + 1) / 2 * log_tail
        by_z = -measured * (nu + 1) * z / (nu * tail)
        by_nu = {"nu": measured * ((nu + 1) / 2 * z * z / (nu * nu * tail) - 0.5 * log_tail)}
    else:
        rows, by_z, by_nu = log_scale_and_more - 0.5 * z * z, -measured * z, {}
    own = by_z * stretch
    by_residual = own - after(own * correlation) if "rho" in part else own
    by_variance = -0.5 * precision * (measured + by_residual * residual)
    pull = count * both
    by_log_mean = 2 * (jitter * mean * rest + own_variance * power)
    by_log_mean = by_log_mean - floor**2 * binomial * pull * (right - wrong) * mean
    by_log_mean = by_variance * by_log_mean - by_residual * root * pull * total * mean
    by_noise = {
        "floor": by_variance * binomial * 2 * floor,
        "sigma": by_variance * risen**2 * 2 * sigma,
        "kappa": by_variance * sideways**2 * 2 * kappa,
        "noise_power": by_variance * 2 * own_variance * above,
        **by_nu,
    }
    if "rho" in part:
        shift = by_z * stretch * (z * correlation * stretch - before(residual)) + measured * correlation * stretch**2
        by_noise["rho"] = shift * correlation * rounds / part["rho"]
    total_of_rows = measured * rows
    if "dies" in part:
        deaths, through_mean, by_dying = _deaths_and_derivatives(log_mean, part, places, measured)
        total_of_rows, by_log_mean = total_of_rows + deaths, by_log_mean + through_mean
        by_noise |= by_dying
    noise = {name: _sum(by_noise[name]) for name in value}
    constant, by_constant = jax.value_and_grad(_constant)({k: jnp.asarray(v, float) for k, v in value.items()})
    count = _sum(measured)
    noise = {name: noise[name] + count * by_constant[name] for name in noise}
    derivatives = by_log_mean, by_variance * 2 * kappa**2 * sideways * lift, noise
    return _sum(total_of_rows) + count * constant, derivatives


def _deaths_and_derivatives(
    log_mean: jax.Array, part: Mapping[str, jax.Array], places: Places, measured: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Give the log probability of having died or not by every row, and its derivatives by log mean and parameters."""
    at_risk, log_chance = (jnp.asarray(v).astype(log_mean.dtype) for v in (places.at_risk, places.log_chance))
    log_dying, died = log_hazard(part, log_mean, log_chance), 1 - measured
    dying = jnp.exp(log_dying)
    by_dying = at_risk * (died - dying) / (1 - dying)
    by_parameters = {"dies": by_dying / part["dies"], "dies_power": by_dying * (log_mean - log_chance)}
    deaths = at_risk * jnp.where(died > 0, log_dying, jnp.log1p(-dying))
    return deaths, by_dying * part["dies_power"], by_parameters


def _constant(value: Mapping[str, Any]) -> jax.Array:
    """Give the logarithm of what makes the density of a standardised residual one of probability."""
    if "nu" not in value:
        return jnp.asarray(-0.5 * jnp.log(2 * jnp.pi))
    nu = value["nu"]
    return gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * jnp.log(nu * jnp.pi)


def _forward(log_mean: Any, slope: Any, value: Any, response: Any, places: Any) -> tuple[jax.Array, Any]:
    total, (by_log_mean, by_slope, by_value) = _total_and_derivatives(log_mean, slope, value, response, places)
    kinds = jax.tree.map(lambda part: jnp.zeros((), jnp.result_type(part)), (log_mean, slope, value))
    return total, (by_log_mean, by_slope, by_value, kinds)


def _backward(kept: Any, weight: jax.Array) -> tuple[Any, ...]:
    *derivatives, kinds = kept
    found = jax.tree.map(lambda own, kind: (own * weight).astype(kind.dtype), tuple(derivatives), kinds)
    return (*found, None, None)


log_density_of_lines.defvjp(_forward, _backward)


def before(rows: jax.Array) -> jax.Array:
    """Give the row before each, `[length, lines]`: the last of a line comes before the first of the next."""
    return jnp.concatenate([jnp.roll(rows[-1:], 1, axis=1), rows[:-1]])


def after(rows: jax.Array) -> jax.Array:
    """Give the row after each, `[length, lines]`."""
    return jnp.concatenate([rows[1:], jnp.roll(rows[:1], -1, axis=1)])


def _sum(rows: jax.Array) -> jax.Array:
    """Sum in float64, along lines in their precision; by products, which run in parallel."""
    of_lines = (jnp.ones(len(rows), rows.dtype) @ rows).astype(jnp.float64)
    return jnp.ones(len(of_lines)) @ of_lines
