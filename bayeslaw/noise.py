"""The noise of a measured error: its empirical logit around the law's curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

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
        value: `sigma` and, where there are such parts, `kappa` with `noise_power`, and `floor`.

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
    risen = jnp.exp(value.get("noise_power", 0.0) * (log_mean + LOG_2))
    own = value["sigma"] ** 2 + (value.get("kappa", 0.0) * slope / (1 - mean)) ** 2
    variance = jnp.where(known, 1 / wrong + 1 / right, 0.0) * value.get("floor", 0.0) ** 2 + risen**2 * own
    return jnp.log(wrong) - jnp.log(right), jnp.sqrt(variance)


def response_distribution(
    law: Law, curve: Any, log_density: Any, n_test: Any, value: Mapping[str, Any], gap: Any = jnp.inf
) -> LogitNoise:
    """Give the distribution of the empirical logits of measured errors.

    Args:
        law: The law.
        curve: Its curve of the trajectory.
        log_density: Where on the curve, `[..., rows]`.
        n_test: Test examples; infinite for the population error.
        value: `sigma` and, where there are such parts, `kappa`, `noise_power`, `floor`, `nu` and `rho`.
        gap: Rounds since the row before, of the same trajectory; infinite where there is none.
    """
    log_mean, slope = law.log_error_and_slope(curve, jnp.asarray(log_density))
    return LogitNoise(log_mean, slope, n_test, noise_of(value), gap)


_NOISE = ("floor", "sigma", "kappa", "noise_power", "nu", "rho", "dies", "dies_power")


def noise_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the parameters of the noise and of dying, as far as there are such parts."""
    return {name: value[name] for name in _NOISE if name in value}


#: `sigma` and `kappa` are about an error of one half.
LOG_2 = math.log(2.0)
#: Rows of a trajectory that lie closer than this, in rounds, are taken to be this far apart.
_CLOSEST = 0.1


class LogitNoise(dist.Distribution):
    r"""Student's t, or the normal, around the logit of the curve, correlated along a trajectory.

    With standardised residuals z of rows in order and r rounds of 20 % from one to the next,

    $$z_k = \rho^r z_{k-1} + \sqrt{1 - \rho^{2r}} t_k$$

    so that `log_prob` gives the log density of every row given the row before, in the order of the flattened batch.

    Args:
        log_mean: Log error of the curve.
        slope: d log error / d log density.
        n_test: Test examples; infinite for the population error.
        value: `sigma` and, where there are such parts, `kappa` with `noise_power`, `floor`, `nu` (else normal) and
            `rho` (else independent).
        gap: Rounds since the row before; infinite where there is none.
    """

    def __init__(
        self, log_mean: jax.Array, slope: jax.Array, n_test: Any, value: Mapping[str, Any], gap: Any = jnp.inf
    ) -> None:
        self.log_mean, self.slope, self.n_test, self.value, self.gap = log_mean, slope, n_test, value, gap
        super().__init__(batch_shape=jnp.broadcast_shapes(jnp.shape(log_mean), jnp.shape(n_test)))

    @property
    def support(self) -> Any:
        """All real numbers."""
        return dist.constraints.real

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw responses."""
        location, scale = location_and_scale(self.log_mean, self.slope, self.n_test, self.value)
        shape = (*sample_shape, *self.batch_shape)
        residual = jax.random.t(key, self.value["nu"], shape) if "nu" in self.value else jax.random.normal(key, shape)
        if "rho" in self.value:
            share = jnp.broadcast_to(self._correlation, self.batch_shape)
            residual = _correlate(residual.reshape(*sample_shape, -1), jnp.ravel(share)).reshape(shape)
        return location + scale * residual

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Compute the log density of every response given the one before."""
        noise = tuple(jnp.asarray(self.value.get(name, 0.0), float) for name in _NOISE[:4])
        residual, log_scale = standardise(
            self.log_mean, self.slope, jnp.asarray(value), jnp.asarray(self.n_test), noise
        )
        if "rho" in self.value:
            correlation = self._correlation
            rest = 1 - correlation**2
            residual = (residual - correlation * _before(residual)) / jnp.sqrt(rest)
            log_scale = log_scale + 0.5 * jnp.log(rest)
        if "nu" not in self.value:
            return -0.5 * residual**2 - 0.5 * jnp.log(2 * jnp.pi) - log_scale
        nu = self.value["nu"]
        constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * jnp.log(nu * jnp.pi)
        return constant - (nu + 1) / 2 * jnp.log1p(residual**2 / nu) - log_scale

    @property
    def _correlation(self) -> jax.Array:
        return correlation_over(jnp.asarray(self.gap), self.value["rho"])[0]


def correlation_over(gap: jax.Array, rho: Any) -> tuple[jax.Array, jax.Array]:
    """Give the correlation of residuals that are rounds apart, none where the gap is infinite, and those rounds."""
    follows = jnp.isfinite(gap)
    rounds = jnp.maximum(jnp.where(follows, gap, 1.0), _CLOSEST).astype(gap.dtype)
    return jnp.where(follows, jnp.exp(rounds * jnp.log(rho)), 0.0).astype(gap.dtype), rounds


def _before(values: jax.Array) -> jax.Array:
    """Shift by one in the flattened order."""
    flat = jnp.ravel(values)
    return jnp.concatenate([jnp.zeros_like(flat[:1]), flat[:-1]]).reshape(values.shape)


def _correlate(independent: jax.Array, correlation: jax.Array) -> jax.Array:
    """Turn independent residuals `[..., rows]` into correlated ones."""

    def step(before: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        own, share = now
        after = share * before + jnp.sqrt(1 - share**2) * own
        return after, after

    first = jnp.zeros_like(independent[..., 0])
    along = jax.lax.scan(step, first, (jnp.moveaxis(independent, -1, 0), correlation))[1]
    return jnp.moveaxis(along, 0, -1)


@jax.custom_jvp
def standardise(log_mean: Any, slope: Any, response: Any, n_test: Any, noise: tuple[Any, ...]) -> tuple[Any, Any]:
    """Give the residual of a response in units of its scale, and the log of the scale, derivatives written out.

    Args:
        log_mean: Log error of the curve.
        slope: d log error / d log density.
        response: The empirical logit measured; derivatives by it are left out.
        n_test: Test examples.
        noise: `floor`, `sigma`, `kappa` and `noise_power`.

    Returns:
        Residual and log scale, broadcast.
    """
    return _standardise(log_mean, slope, response, n_test, noise)[0]


def _standardise(
    log_mean: Any, slope: Any, response: Any, n_test: Any, noise: tuple[Any, ...]
) -> tuple[tuple[Any, Any], tuple[Any, ...]]:
    floor, sigma, kappa, power = noise
    known = jnp.isfinite(n_test)
    count, half = jnp.where(known, n_test, 1.0), jnp.where(known, 0.5, 0.0)
    mean = jnp.exp(log_mean)
    total, wrong = count + 2 * half, count * mean + half
    right = total - wrong
    both, risen = 1 / (wrong * right), jnp.exp(power * (log_mean + LOG_2))
    lift = risen / (1 - mean)
    binomial, sideways = jnp.where(known, total * both, 0.0), slope * lift
    variance = floor**2 * binomial + (sigma * risen) ** 2 + (kappa * sideways) ** 2
    precision = 1 / variance
    root = jnp.sqrt(precision)
    residual = (response - jnp.log(wrong * wrong * both)) * root
    return (residual, -jnp.log(root)), (
        count,
        mean,
        total,
        wrong,
        right,
        both,
        risen,
        lift,
        binomial,
        sideways,
        precision,
        root,
    )


@standardise.defjvp
def _standardise_jvp(primals: Any, tangents: Any) -> Any:
    log_mean, slope, response, n_test, noise = primals
    by_log_mean, by_slope, _, _, by_noise = tangents
    floor, sigma, kappa, power = noise
    (residual, log_scale), parts = _standardise(log_mean, slope, response, n_test, noise)
    count, mean, total, wrong, right, both, risen, lift, binomial, sideways, precision, root = parts
    pull, jitter = count * both, (kappa * sideways) ** 2
    own = jitter + (sigma * risen) ** 2
    by_mean = jitter * mean / (1 - mean) + own * power - 0.5 * floor**2 * binomial * pull * (right - wrong) * mean
    change = (
        precision * by_mean * by_log_mean
        + precision * kappa**2 * sideways * lift * by_slope
        + precision * floor * binomial * by_noise[0]
        + precision * sigma * risen**2 * by_noise[1]
        + precision * kappa * sideways**2 * by_noise[2]
        + precision * own * (log_mean + LOG_2) * by_noise[3]
    )
    moved = -pull * total * mean * root * by_log_mean - residual * change
    return (residual, log_scale), (moved, change)
