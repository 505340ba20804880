"""Coordinates in which exponents of several families mix at any spread between families.

With few families the spread is uncertain, and as it shrinks all exponents and their centre are drawn together: a funnel
that no fixed axes fit. Exponents are therefore sampled relative to where they lie and how far they spread *given* the
spread between families, taking what is said about each for normal. All else of a family is sampled in its straight
coordinates (`bayeslaw.straight`), which leave exponents as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from bayeslaw.axes import Axes
from bayeslaw.compiled import jit
from bayeslaw.laplace import Laplace
from bayeslaw.population import (
    Part,
    PooledContext,
    key_of,
    location,
    pooled_estimate,
    pooled_potential,
    population_at,
    values_of,
)
from bayeslaw.priors import BETWEEN, ON_LINE
from bayeslaw.ridges import Ridges, StraightContext, ridges_of
from bayeslaw.straight import bend, recentre, straight_spreads, straighten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.frame import Data
    from bayeslaw.laplace import Estimate

#: Least precision that the prior of a centre is taken to have.
_WEAKEST = 0.01


class Told(NamedTuple):
    """Hold what is said about an exponent apart from the population: by the centre's prior, then by each family's runs.

    Attributes:
        precision: Of the normal that stands for it, `[1 + families]`; 0 where nothing is said.
        weighted: Its mean times the precision, `[1 + families]`.
    """

    precision: Any
    weighted: Any


def told_by(prior: Any, name: str, spread: float, mode: NDArray, covariance: NDArray) -> Told:
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
        # The centre is not sampled on the scale of the families: it stays as it is, they are in units of the spread.
        return Told(np.array([1.0] + [0.0] * families), np.array([mode[0]] + [0.0] * families))
    pull = np.array([families, *[1.0] * families]) / spread**2
    precision = np.maximum(np.diag(np.linalg.inv(covariance)) - pull, 0.0)
    precision[0] = max(precision[0], _WEAKEST)
    away = mode[1:] - mode[0]
    return Told(precision, precision * mode + np.array([-away.sum(), *away]) / spread**2)


def place(
    priors: Mapping[str, Any], told: Mapping[str, Told], relative: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    r"""Turn relative coordinates z of the exponents into the unconstrained exponents.

    With precision w and mean m of what is said, apart from the population, of the centre (0) and of family k,

    $$u = \frac{w_0 m_0 + \sum_k r_k m_k}{R} + \frac{z_0}{\sqrt R}, \quad r_k = \frac{w_k}{1 + w_k b^2},
    \quad R = w_0 + \sum_k r_k, \qquad
    u_k = \frac{w_k m_k b^2 + u}{w_k b^2 + 1} + \frac{b z_k}{\sqrt{w_k b^2 + 1}}$$

    the conditional means and standard deviations of a normal hierarchy given its spread b. A family that says nothing
    (w = 0) is thus sampled in units of b, one that says much by itself.

    Args:
        priors: Of the population, by name.
        told: What is said about each exponent, by name.
        relative: Unconstrained values with z in the exponents' places, of any leading shape.

    Returns:
        The unconstrained values, and the log determinant.
    """
    placed, log_determinant = dict(relative), jnp.asarray(0.0)
    for name, (precision, weighted) in told.items():
        spread = population_at(priors, relative)[f"{BETWEEN}{name}"]
        families = range(1, len(precision))
        shrink = {k: 1 + spread**2 * precision[k] for k in families}
        total = precision[0] + sum(precision[k] / shrink[k] for k in families)
        mean = (weighted[0] + sum(weighted[k] / shrink[k] for k in families)) / total
        placed[name] = mean + relative[name] / jnp.sqrt(total)
        log_determinant = log_determinant - 0.5 * jnp.log(total)
        centre = location(name, biject_to(priors[name].support)(placed[name]))
        for k in families:
            own = (spread**2 * weighted[k] + centre) / shrink[k]
            key = key_of(k - 1, name)
            placed[key] = own + spread * relative[key] / jnp.sqrt(shrink[k])
            log_determinant = log_determinant + jnp.log(spread) - 0.5 * jnp.log(shrink[k])
    return placed, log_determinant


class RelativeContext(NamedTuple):
    """Hold what the joint density in relative coordinates depends on besides the position.

    Attributes:
        pooled: What the density itself depends on.
        ridges: What the straight coordinates of each family depend on.
        told: What is said about each exponent, by name; nothing where exponents are sampled as they are.
    """

    pooled: PooledContext
    ridges: tuple[Ridges, ...]
    told: dict[str, Told]

    def family(self, k: int) -> StraightContext:
        """Choose the context of one family."""
        return StraightContext(self.pooled.families[k], self.ridges[k])


def unplaced(context: PooledContext, data: Sequence[Data]) -> RelativeContext:
    """Give coordinates in which all but the exponents of each family is straight."""
    ridges = (ridges_of(own)._replace(shared=()) for own in data)
    return RelativeContext(context, tuple(jax.tree.map(jnp.asarray, own) for own in ridges), {})


def straighten_families(context: RelativeContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn plain unconstrained values into straight coordinates, exponents left as they are."""
    straight = dict(values)
    for k in range(len(context.ridges)):
        own = straighten(context.family(k), values_of(k, values))
        straight |= {key_of(k, name): value for name, value in own.items()}
    return straight


def unrelative(context: RelativeContext, relative: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Turn relative coordinates into plain unconstrained values.

    Returns:
        The values, and the log determinant.
    """
    values, log_determinant = place(context.pooled.population, context.told, relative)
    for k in range(len(context.ridges)):
        own, log_scale = bend(context.family(k), values_of(k, values))
        values |= {key_of(k, name): value for name, value in own.items()}
        log_determinant = log_determinant + log_scale
    return values, log_determinant


@jit
def _unrelative(context: RelativeContext, relative: Mapping[str, Any]) -> dict[str, Any]:
    return unrelative(context, relative)[0]


def plain_draws(context: RelativeContext, where: Mapping[str, NDArray], positions: NDArray) -> dict[str, NDArray]:
    """Turn flat positions in relative coordinates into plain unconstrained values by name.

    Args:
        context: What the coordinates depend on.
        where: Where the entries of every value are in the flat position.
        positions: `[..., dimensions]`.

    Returns:
        Values `[..., *shape]`, each of its own shape.
    """
    named = {name: positions[..., np.atleast_1d(index)] for name, index in where.items()}
    plain = _unrelative(context, named)
    return {name: np.asarray(plain[name]).reshape(positions.shape[:-1] + index.shape) for name, index in where.items()}


@functools.cache
def relative_potential(parts: tuple[Part, ...]) -> Callable[[RelativeContext, dict[str, Any]], jax.Array]:
    """Give the density of `bayeslaw.population.pooled_potential` in relative coordinates."""
    plain = pooled_potential(parts)

    def potential(context: RelativeContext, values: dict[str, Any]) -> jax.Array:
        placed, log_determinant = unrelative(context, values)
        return plain(context.pooled, placed) - log_determinant

    return potential


@functools.cache
def relative_estimate(parts: tuple[Part, ...]) -> Estimate:
    """Give the estimates of `bayeslaw.population.pooled_estimate` in relative coordinates, effects as they are."""
    plain = pooled_estimate(parts)

    def estimate(context: RelativeContext, free: dict[str, Any], variances: dict[str, Any]) -> dict[str, jax.Array]:
        values = unrelative(context, free)[0]
        found = plain(context.pooled, values, variances)
        for k in range(len(context.ridges)):
            own = straight_spreads(context.family(k), values_of(k, values), values_of(k, found))
            found |= {key_of(k, name): value for name, value in own.items()}
        return found

    return estimate


def recentre_families(
    context: RelativeContext, parts: Sequence[Part], found: Laplace, positions: Mapping[str, NDArray]
) -> tuple[RelativeContext, dict[str, Any]]:
    """Choose how far the effects of every family are in units of their spreads (`bayeslaw.straight.recentre`).

    Args:
        context: Coordinates in which exponents and effects are as they are.
        parts: How families enter.
        found: Where the posterior is, and axes about it.
        positions: Where the entries of every value are in the flat position.

    Returns:
        The coordinates to sample in, and the mode in them.
    """
    ridges, start = list(context.ridges), {name: jnp.asarray(found.mode[where]) for name, where in positions.items()}
    for k, part in enumerate(parts):
        if part.centred:
            chosen, own = recentre(context.family(k), values_of(k, positions), found.mode, found.axes)
            ridges[k] = chosen.ridges
            start |= {key_of(k, name): value for name, value in own.items()}
    return context._replace(ridges=tuple(ridges)), start


def make_relative(
    relative: RelativeContext, found: Laplace, positions: Mapping[str, NDArray]
) -> tuple[RelativeContext, NDArray, Axes]:
    """Carry a Laplace approximation over to coordinates in which exponents are relative to their population.

    Args:
        relative: Coordinates of the approximation, in which exponents are as they are.
        found: The approximation, its exponents among the shared entries.
        positions: Where the entries of every value are in the flat position.

    Returns:
        The context; the mode in relative coordinates, where the exponents are 0; and the axes: at one spread the
        coordinates are linear in those of the approximation.
    """
    context = relative.pooled
    names = {name: [name, *(key_of(k, name) for k in range(len(context.families)))] for name in context.exponents}
    rows = {int(where): row for row, where in enumerate(found.axes.shared)}
    population = population_at(context.population, {name: found.mode[where] for name, where in positions.items()})
    factor = np.asarray(found.axes.shared_factor)
    covariance = factor @ factor.T
    told = {}
    for name, keys in names.items():
        own = [rows[int(positions[key])] for key in keys]
        mode = found.mode[[int(positions[key]) for key in keys]]
        spread = float(population[f"{BETWEEN}{name}"])
        told[name] = told_by(context.population[name], name, spread, mode, covariance[np.ix_(own, own)])
    every = [key for keys in names.values() for key in keys]
    where = np.array([int(positions[key]) for key in every])
    centre = found.mode.copy()
    centre[where] = 0.0
    around = {name: centre[index] for name, index in positions.items()}

    def placed(z: jax.Array) -> jax.Array:
        moved, _ = place(context.population, told, around | dict(zip(every, z, strict=True)))
        return jnp.stack([moved[key] for key in every])

    shared = [rows[int(index)] for index in where]
    slope = np.eye(len(rows))
    slope[np.ix_(shared, shared)] = jax.jacfwd(placed)(jnp.zeros(len(every)))
    axes = found.axes._replace(
        shared_factor=np.linalg.solve(slope, factor), coupling=np.asarray(found.axes.coupling) @ slope
    )
    return relative._replace(told=told), centre, axes
