r"""The density of several families at once: their exponents are drawn from one population.

For family k and each exponent x of the law

    u_k = phi or psi themselves, log gamma, log alpha, log beta     (a spread of exponents as factors)
    u_k ~ Normal(u, between_x)                                      u: that of the population's centre

The centre has the prior that the exponent has in the fit of one family; the spread between families has a prior of its
own. All other parameters are each family's own. The joint density is the sum of the families' densities
(`bayeslaw.density`), each with the population's distribution as prior of its exponents, and of the population's prior.

With few families the spread is uncertain, and as it shrinks all exponents and their centre are drawn together: a funnel
that no fixed metric fits. They are therefore sampled relative to where they lie and how far they spread *given* the
spread between families, taking what the runs say about each for normal (`Told`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import potential_energy

from bayeslaw.density import Context, estimate_unconstrained, named_potential, prior_middles
from bayeslaw.hierarchy import site
from bayeslaw.model import Structure
from bayeslaw.priors import ON_LINE

#: Least precision that the prior of a centre is taken to have.
_WEAKEST = 0.01


class Part(NamedTuple):
    """Say how one family enters the joint density.

    Attributes:
        structure: Structure of its model.
        centred: Parametrisation of its effects (`make_model`).
    """

    structure: Structure
    centred: bool


class Told(NamedTuple):
    """Hold what is said about an exponent apart from the population: by the centre's prior, then by each family's runs.

    Attributes:
        precision: Of the normal that stands for it, `[1 + families]`; 0 where nothing is said.
        weighted: Its mean times the precision, `[1 + families]`.
    """

    precision: Any
    weighted: Any


class PooledContext(NamedTuple):
    """Hold what the joint density depends on besides the position.

    Attributes:
        families: Data and priors of each family.
        population: Priors of the centres and of the spreads between families, by name.
        told: What is said about each exponent, by name; used for coordinates alone.
    """

    families: tuple[Context, ...]
    population: dict[str, Any]
    told: dict[str, Told]


def key_of(family: int, name: str) -> str:
    """Name a parameter of one family among those of all."""
    return f"{family}/{name}"


def values_of(family: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the parameters of one family from those of all."""
    prefix = key_of(family, "")
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def location(name: str, centre: Any) -> Any:
    """Give the scale on which families spread normally: the line itself, or logs.

    Example:
        >>> location("phi", 0.7)
        0.7
    """
    return centre if name in ON_LINE else jnp.log(centre)


def exponent_of(name: str, position: Any) -> Any:
    """Undo `location`."""
    return position if name in ON_LINE else jnp.exp(position)


def distribution_of(name: str, population: Mapping[str, Any]) -> Any:
    """Make the distribution of a family's exponent, given the population."""
    kind = dist.Normal if name in ON_LINE else dist.LogNormal
    return kind(location(name, population[name]), population[f"between_{name}"])


def population_at(priors: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Constrain the population's parameters, as far as they are among unconstrained values."""
    return {name: biject_to(prior.support)(values[name]) for name, prior in priors.items() if name in values}


@functools.cache
def pooled_potential(parts: tuple[Part, ...]) -> Callable[[PooledContext, dict[str, Any]], jax.Array]:
    """Give the negative log density of the unconstrained values of all families and of the population."""
    densities = [named_potential(*part) for part in parts]

    def potential(context: PooledContext, values: dict[str, Any]) -> jax.Array:
        own = {name: values[name] for name in context.population}
        total = jnp.asarray(potential_energy(_population, (context.population,), {}, own))
        population = population_at(context.population, values)
        drawn = {name: distribution_of(name, population) for name in context.told}
        for k, (density, family) in enumerate(zip(densities, context.families, strict=True)):
            total = total + density(Context(family.data, {**family.priors, **drawn}), values_of(k, values))
        return total

    return potential


def _population(priors: Mapping[str, Any]) -> None:
    for name, prior in priors.items():
        site(name, prior)


@functools.cache
def relative_potential(parts: tuple[Part, ...]) -> Callable[[PooledContext, dict[str, Any]], jax.Array]:
    """Give the same density in relative coordinates."""
    plain = pooled_potential(parts)

    def potential(context: PooledContext, values: dict[str, Any]) -> jax.Array:
        placed, log_determinant = place(context, values)
        return plain(context, placed) - log_determinant

    return potential


def place(context: PooledContext, relative: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    r"""Turn relative coordinates z of the exponents into the unconstrained exponents.

    With precision w and mean m of what is said, apart from the population, of the centre (0) and of family k,

    $$u = \frac{w_0 m_0 + \sum_k r_k m_k}{R} + \frac{z_0}{\sqrt R}, \quad r_k = \frac{w_k}{1 + w_k b^2},
    \quad R = w_0 + \sum_k r_k, \qquad
    u_k = \frac{w_k m_k b^2 + u}{w_k b^2 + 1} + \frac{b z_k}{\sqrt{w_k b^2 + 1}}$$

    the conditional means and standard deviations of a normal hierarchy given its spread b. A family that says nothing
    (w = 0) is thus sampled in units of b, one that says much by itself.

    Args:
        context: The context.
        relative: Unconstrained values with z in the exponents' places, of any leading shape.

    Returns:
        The unconstrained values, and the log determinant.
    """
    placed, log_determinant = dict(relative), jnp.asarray(0.0)
    for name, told in context.told.items():
        prior = context.population[f"between_{name}"]
        spread = biject_to(prior.support)(relative[f"between_{name}"])
        mean, precision, shrink = _centre_given(told, spread)
        placed[name] = mean + relative[name] / jnp.sqrt(precision)
        centre = location(name, population_at(context.population, {name: placed[name]})[name])
        log_determinant = log_determinant - 0.5 * jnp.log(precision)
        for k in range(len(context.families)):
            own = (spread**2 * told.weighted[k + 1] + centre) / shrink[k]
            placed[key_of(k, name)] = own + spread * relative[key_of(k, name)] / jnp.sqrt(shrink[k])
            log_determinant = log_determinant + jnp.log(spread) - 0.5 * jnp.log(shrink[k])
    return placed, log_determinant


def displace(context: PooledContext, placed: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `place`."""
    relative = dict(placed)
    for name, told in context.told.items():
        prior = context.population[f"between_{name}"]
        spread = biject_to(prior.support)(placed[f"between_{name}"])
        mean, precision, shrink = _centre_given(told, spread)
        relative[name] = (placed[name] - mean) * jnp.sqrt(precision)
        centre = location(name, population_at(context.population, {name: placed[name]})[name])
        for k in range(len(context.families)):
            own = (spread**2 * told.weighted[k + 1] + centre) / shrink[k]
            relative[key_of(k, name)] = (placed[key_of(k, name)] - own) * jnp.sqrt(shrink[k]) / spread
    return relative


def _centre_given(told: Told, spread: Any) -> tuple[Any, Any, list[Any]]:
    """Give mean and precision of the centre given the spread, and 1 + w b^2 of each family."""
    families = range(1, len(told.precision))
    shrink = [1 + spread**2 * told.precision[k] for k in families]
    precision = told.precision[0] + sum(told.precision[k] / shrink[k - 1] for k in families)
    weighted = told.weighted[0] + sum(told.weighted[k] / shrink[k - 1] for k in families)
    return weighted / precision, precision, shrink


def nothing_told(families: int) -> Told:
    """Leave the centre where it is, and take families in units of the spread."""
    return Told(np.array([1.0] + [0.0] * families), np.zeros(1 + families))


def told_by(prior: Any, name: str, spread: float, mode: np.ndarray, covariance: np.ndarray) -> Told:
    """Tell from a Laplace approximation what is said about an exponent apart from the population.

    The precision of centre and families has 1 / spread^2 from the population on its diagonal, once for every family and
    as often as there are families for the centre; the rest is what is said. At the mode the pulls are in balance.

    Args:
        prior: Prior of the centre.
        name: The exponent.
        spread: The spread between families at which the approximation was made.
        mode: Of the centre and of the families, unconstrained, `[1 + families]`.
        covariance: Theirs, `[1 + families, 1 + families]`.

    Returns:
        What is said.
    """
    families = len(mode) - 1
    if prior.support is not (constraints.real if name in ON_LINE else constraints.positive):
        return nothing_told(families)  # the centre is not sampled on the scale of the families
    pull = np.array([families, *[1.0] * families]) / spread**2
    precision = np.maximum(np.diag(np.linalg.inv(covariance)) - pull, 0.0)
    precision[0] = max(precision[0], _WEAKEST)
    away = mode[1:] - mode[0]
    return Told(precision, precision * mode + np.array([-away.sum(), *away]) / spread**2)


@functools.cache
def pooled_estimate(parts: tuple[Part, ...]) -> Callable[[PooledContext, dict[str, Any]], dict[str, jax.Array]]:
    """Give moment estimates of all spreads from all other parameters, all unconstrained.

    Of the spread between families there are but few observations: the middle of its prior counts as one more.
    """

    def estimate(context: PooledContext, free: dict[str, Any]) -> dict[str, jax.Array]:
        population = population_at(context.population, {**prior_middles(context.population), **free})
        found = {}
        for k, (part, family) in enumerate(zip(parts, context.families, strict=True)):
            if part.centred:
                spreads = estimate_unconstrained(family, values_of(k, free))
                found |= {key_of(k, name): value for name, value in spreads.items()}
        for name in context.told:
            between = f"between_{name}"
            away = [free[key_of(k, name)] - location(name, population[name]) for k in range(len(parts))]
            square = sum((x**2 for x in away), population[between] ** 2) / (1 + len(away))
            found[between] = jnp.asarray(biject_to(context.population[between].support).inv(jnp.sqrt(square)))
        return found

    return estimate


def spread_moments(prior: Any, told: Told) -> tuple[float, float]:
    r"""Give mean and standard deviation of an unconstrained spread between families, what is said taken for normal.

    With centre and exponents integrated out, and h = w m, the likelihood of the spread b is

    $$\log L = \frac{H^2}{2R} - \frac{\log R}{2} + \frac12 \sum_k \left( \frac{b^2 h_k^2}{1 + w_k b^2}
    - \log(1 + w_k b^2) \right), \quad H = h_0 + \sum_k \frac{h_k}{1 + w_k b^2}$$
    """
    grid = jnp.linspace(-20.0, 20.0, 4001)
    transform = biject_to(prior.support)
    spread = transform(grid)
    mean, precision, shrink = _centre_given(told, spread)
    log_density = prior.log_prob(spread) + transform.log_abs_det_jacobian(grid, spread)
    log_density += 0.5 * (mean**2 * precision - jnp.log(precision))
    for weighted, one in zip(told.weighted[1:], shrink, strict=True):
        log_density += 0.5 * (spread**2 * weighted**2 / one - jnp.log(one))
    weight = jax.nn.softmax(jnp.where(jnp.isfinite(log_density), log_density, -jnp.inf))
    middle = jnp.sum(weight * grid)
    return float(middle), float(jnp.sqrt(jnp.sum(weight * (grid - middle) ** 2)))


def draw_exponents(population: Mapping[Any, Any], name: str, rng: np.random.Generator) -> np.ndarray:
    """Draw the exponent of a family that was not fitted, one per draw of the population."""
    centre = np.asarray(population[name])
    normal = rng.standard_normal(centre.shape)
    return np.asarray(exponent_of(name, location(name, centre) + np.asarray(population[f"between_{name}"]) * normal))
