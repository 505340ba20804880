r"""The density of several families at once: their exponents are drawn from one population.

For family k and each exponent x of the law

    u_k = phi or psi themselves, log gamma, log alpha, log beta     (a spread of exponents as factors)
    u_k ~ Normal(u, between_x)                                      u: that of the population's centre

The centre has the prior that the exponent has in the fit of one family; the spread between families has a prior of its
own. All other parameters are each family's own. The joint density is the sum of the families' densities
(`bayeslaw.density`), each with the population's distribution as prior of its exponents, and of the population's prior.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.infer.util import potential_energy

from bayeslaw.density import Context, estimate_unconstrained, named_potential
from bayeslaw.hierarchy import site
from bayeslaw.model import Structure
from bayeslaw.priors import BETWEEN, ON_LINE
from bayeslaw.unconstrained import prior_middles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.laplace import Estimate


class Part(NamedTuple):
    """Say how one family enters the joint density.

    Attributes:
        structure: Structure of its model.
        centred: Parametrisation of its effects (`make_model`).
    """

    structure: Structure
    centred: bool


class PooledContext(NamedTuple):
    """Hold what the joint density depends on besides the position.

    Attributes:
        families: Data and priors of each family; of its exponents the population's distribution takes the place.
        population: Priors of the centres and of the spreads between families, by name.
    """

    families: tuple[Context, ...]
    population: dict[str, Any]

    @property
    def exponents(self) -> list[str]:
        """Names of what families share."""
        return exponents_in(self.population)


def key_of(family: int, name: str) -> str:
    """Name a parameter of one family among those of all."""
    return f"{family}/{name}"


def values_of(family: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the parameters of one family from those of all."""
    prefix = key_of(family, "")
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def exponents_in(population: Mapping[Any, Any]) -> list[str]:
    """Name the exponents that a population is of."""
    return [str(name) for name in population if not str(name).startswith(BETWEEN)]


def location(name: str, centre: Any) -> Any:
    """Give the scale on which families spread normally: the line itself, or logs.

    Example:
        >>> location("phi", 0.7)
        0.7
    """
    return centre if name in ON_LINE else jnp.log(centre)


def kind_of(name: str) -> Any:
    """Give the kind of distribution that a family's exponent has, of location and spread."""
    return dist.Normal if name in ON_LINE else dist.LogNormal


def distribution_of(name: str, population: Mapping[str, Any]) -> Any:
    """Make the distribution of a family's exponent, given the population."""
    return kind_of(name)(location(name, population[name]), population[f"{BETWEEN}{name}"])


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
        drawn = {name: distribution_of(name, population) for name in context.exponents}
        for k, (density, family) in enumerate(zip(densities, context.families, strict=True)):
            total = total + density(Context(family.data, {**family.priors, **drawn}), values_of(k, values))
        return total

    return potential


def _population(priors: Mapping[str, Any]) -> None:
    for name, prior in priors.items():
        site(name, prior)


@functools.cache
def pooled_estimate(parts: tuple[Part, ...]) -> Estimate:
    """Give estimates of all spreads from all other parameters and the effects' variances, all unconstrained.

    Of the spread between families there are but few observations: the middle of its prior counts as one more.
    """

    def estimate(context: PooledContext, free: dict[str, Any], variances: dict[str, Any]) -> dict[str, jax.Array]:
        population = population_at(context.population, {**prior_middles(context.population), **free})
        found = {}
        for k, (part, family) in enumerate(zip(parts, context.families, strict=True)):
            if part.centred:
                spreads = estimate_unconstrained(family, values_of(k, free), values_of(k, variances))
                found |= {key_of(k, name): value for name, value in spreads.items()}
        for name in context.exponents:
            between = f"{BETWEEN}{name}"
            away = [free[key_of(k, name)] - location(name, population[name]) for k in range(len(parts))]
            square = sum((x**2 for x in away), population[between] ** 2) / (1 + len(away))
            found[between] = jnp.asarray(biject_to(context.population[between].support).inv(jnp.sqrt(square)))
        return found

    return estimate


def draw_exponents(population: Mapping[Any, Any], rng: np.random.Generator) -> dict[str, NDArray]:
    """Draw the exponents of a family that was not fitted, one per draw of the population."""
    drawn = {}
    for name in exponents_in(population):
        centre = np.asarray(location(name, np.asarray(population[name])))
        own = centre + np.asarray(population[f"{BETWEEN}{name}"]) * rng.standard_normal(centre.shape)
        drawn[name] = own if name in ON_LINE else np.exp(own)
    return drawn
