"""The noise of a measured error: its empirical logit around the law's curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln

from bayeslaw.laws import Law


def observation(
    law: Law, curve: Any, log_density: Any, n_test: Any, value: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Give location and scale of the empirical logit of a measured error.

    Args:
        law: The law.
        curve: Its curve of the trajectory.
        log_density: Where on the curve.
        n_test: Test examples; infinite for the population error.
        value: `sigma` and, where there are such parts, `kappa` and `floor`.

    Returns:
        Location and scale, broadcast.
    """
    log_mean, slope = law.log_error(curve, log_density), law.log_slope(curve, log_density)
    return location_and_scale(log_mean, slope, n_test, value)


def location_and_scale(
    log_mean: jax.Array, slope: Any, n_test: Any, value: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Give location and scale of the empirical logit from the curve's log error and slope."""
    mean = jnp.exp(log_mean)
    known = jnp.isfinite(n_test)
    count, half = jnp.where(known, n_test, 1.0), jnp.where(known, 0.5, 0.0)
    wrong, right = count * mean + half, count * (1 - mean) + half
    variance = jnp.where(known, 1 / wrong + 1 / right, 0.0) * value.get("floor", 0.0) ** 2 + value["sigma"] ** 2
    if "kappa" in value:
        variance = variance + (value["kappa"] * slope / (1 - mean)) ** 2
    return jnp.log(wrong) - jnp.log(right), jnp.sqrt(variance)


def response_distribution(law: Law, curve: Any, log_density: Any, n_test: Any, value: Mapping[str, Any]) -> Any:
    """Give the distribution of the empirical logit of a measured error; arguments are those of `observation`."""
    log_mean, slope = law.log_error_and_slope(curve, log_density)
    if "nu" in value:
        return LogitStudentT(log_mean, slope, n_test, {name: value[name] for name in _NOISE if name in value})
    return dist.Normal(*location_and_scale(log_mean, slope, n_test, value))


_NOISE = ("floor", "sigma", "kappa", "nu")


class LogitStudentT(dist.Distribution):
    """Student's t around the logit of the curve, whose log density shares its work with its derivatives.

    Args:
        log_mean: Log error of the curve.
        slope: d log error / d log density.
        n_test: Test examples; infinite for the population error.
        value: `nu`, `sigma` and, where there are such parts, `kappa` and `floor`.
    """

    def __init__(self, log_mean: jax.Array, slope: jax.Array, n_test: Any, value: Mapping[str, Any]) -> None:
        self.log_mean, self.slope, self.n_test, self.value = log_mean, slope, n_test, value
        super().__init__(batch_shape=jnp.broadcast_shapes(jnp.shape(log_mean), jnp.shape(n_test)))

    @property
    def support(self) -> Any:
        """All real numbers."""
        return dist.constraints.real

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw responses."""
        location, scale = location_and_scale(self.log_mean, self.slope, self.n_test, self.value)
        return location + scale * jax.random.t(key, self.value["nu"], (*sample_shape, *self.batch_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Compute the log density of responses."""
        noise = tuple(jnp.asarray(self.value.get(name, 0.0), float) for name in _NOISE)
        return log_density(self.log_mean, self.slope, jnp.asarray(value), jnp.asarray(self.n_test), noise)


@jax.custom_jvp
def log_density(log_mean: Any, slope: Any, response: Any, n_test: Any, noise: tuple[Any, ...]) -> jax.Array:
    """Compute the log density of `LogitStudentT`, with its derivatives written out.

    Args:
        log_mean: Log error of the curve.
        slope: d log error / d log density.
        response: The empirical logit measured; derivatives by it are left out.
        n_test: Test examples.
        noise: `floor`, `sigma`, `kappa` and `nu`.

    Returns:
        The log density, broadcast.
    """
    return _log_density(log_mean, slope, response, n_test, noise)[0]


def _log_density(
    log_mean: Any, slope: Any, response: Any, n_test: Any, noise: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    floor, sigma, kappa, nu = noise
    known = jnp.isfinite(n_test)
    count, half = jnp.where(known, n_test, 1.0), jnp.where(known, 0.5, 0.0)
    mean = jnp.exp(log_mean)
    total, wrong = count + 2 * half, count * mean + half
    right = total - wrong
    both, rest = 1 / (wrong * right), 1 / (1 - mean)
    binomial, sideways = jnp.where(known, total * both, 0.0), slope * rest
    variance = floor**2 * binomial + sigma**2 + (kappa * sideways) ** 2
    residual = response - jnp.log(wrong * wrong * both)
    wide = nu * variance + residual**2
    log_variance, log_wide = jnp.log(variance), jnp.log(wide)
    constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) + (nu * jnp.log(nu) - jnp.log(jnp.pi)) / 2
    density = constant + (nu * log_variance - (nu + 1) * log_wide) / 2
    parts = (count, known, mean, total, wrong, right, both, rest, binomial, sideways, variance, residual, wide)
    return density, (*parts, log_variance, log_wide)


@log_density.defjvp
def _log_density_jvp(primals: Any, tangents: Any) -> Any:
    log_mean, slope, response, n_test, noise = primals
    by_log_mean, by_slope, _, _, by_noise = tangents
    floor, sigma, kappa, nu = noise
    density, parts = _log_density(log_mean, slope, response, n_test, noise)
    count, _, mean, total, wrong, right, both, rest, binomial, sideways, variance, residual, wide, *logs = parts
    quotient = 1 / (variance * wide)
    by_variance = 0.5 * nu * (wide - (nu + 1) * variance) * quotient
    by_residual = -(nu + 1) * residual * variance * quotient
    pull = count * both
    by_mean = -by_residual * pull * total + by_variance * (
        2 * kappa**2 * sideways**2 * rest - floor**2 * binomial * pull * (right - wrong)
    )
    by_nu = 0.5 * (digamma((nu + 1) / 2) - digamma(nu / 2) + jnp.log(nu) + 1)
    by_nu = by_nu + 0.5 * (logs[0] - logs[1] - (nu + 1) * variance * variance * quotient)
    change = (
        by_mean * mean * by_log_mean
        + 2 * by_variance * kappa**2 * sideways * rest * by_slope
        + 2 * by_variance * floor * binomial * by_noise[0]
        + 2 * by_variance * sigma * by_noise[1]
        + 2 * by_variance * kappa * sideways**2 * by_noise[2]
        + by_nu * by_noise[3]
    )
    return density, change
