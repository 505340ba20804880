"""Priors on the unconstrained scale: their middles, and how far a posterior moved away from them and narrowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from bayeslaw.compiled import jit
from bayeslaw.priors import Prior

#: What is said of a posterior against its prior.
COMPARED = ("contraction", "shift")


def on_grid(prior: Any) -> tuple[jax.Array, jax.Array]:
    """Give an even grid of the unconstrained scale and the prior's probabilities on it."""
    transform = biject_to(prior.support)
    grid = jnp.linspace(-40.0, 40.0, 8001)
    inside = transform(grid)
    log_density = prior.log_prob(inside) + transform.log_abs_det_jacobian(grid, inside)
    return grid, jax.nn.softmax(jnp.where(jnp.isfinite(log_density), log_density, -jnp.inf))


@jit
def prior_middles(priors: dict[str, Any]) -> dict[str, jax.Array]:
    """Give the prior means on the unconstrained scale."""

    def middle(prior: Any) -> jax.Array:
        try:
            inverse = biject_to(prior.support).inv(prior.mean)
        except NotImplementedError:  # NumPyro does not know every mean
            grid, weight = on_grid(prior)
            inverse = jnp.sum(weight * grid)
        return jnp.where(jnp.isfinite(inverse), jnp.asarray(inverse, float), 0.0)

    return {name: middle(prior) for name, prior in priors.items()}


def against_prior(values: Mapping[str, Any], priors: Mapping[str, Prior]) -> dict[str, dict[str, float]]:
    """Compare posterior with prior on the unconstrained scale, parameter by parameter: `contraction` and `shift`."""
    draws = {name: jnp.asarray(values[name]) for name in priors}
    result = _comparisons(draws, {name: prior.distribution for name, prior in priors.items()})
    return {what: {name: float(result[name][i]) for name in priors} for i, what in enumerate(COMPARED)}


@jit
def _comparisons(draws: dict[str, jax.Array], priors: dict[str, Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
    def one(prior: Any, draws: jax.Array) -> tuple[jax.Array, jax.Array]:
        grid, weight = on_grid(prior)
        centre = jnp.sum(weight * grid)
        variance = jnp.sum(weight * (grid - centre) ** 2)
        free = biject_to(prior.support).inv(draws)
        return 1 - jnp.var(free) / variance, (jnp.mean(free) - centre) / jnp.sqrt(variance)

    return {name: one(priors[name], value) for name, value in draws.items()}
