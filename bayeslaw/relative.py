"""Coordinates in which exponents of several families mix at any spread between families.

With few families the spread is uncertain, and as it shrinks all exponents and their centre are drawn together: a funnel
that no fixed axes fit. Exponents are therefore sampled relative to where they lie and how far they spread *given* the
spread between families, taking what is said about each for normal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from bayeslaw.axes import Axes
from bayeslaw.laplace import Laplace
from bayeslaw.population import Part, PooledContext, key_of, location, pooled_potential, population_at
from bayeslaw.priors import BETWEEN, ON_LINE

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        told: What is said about each exponent, by name; the coordinates depend on it alone.
    """

    pooled: PooledContext
    told: dict[str, Told]


@functools.cache
def relative_potential(parts: tuple[Part, ...]) -> Callable[[RelativeContext, dict[str, Any]], jax.Array]:
    """Give the density of `bayeslaw.population.pooled_potential` in relative coordinates."""
    plain = pooled_potential(parts)

    def potential(context: RelativeContext, values: dict[str, Any]) -> jax.Array:
        placed, log_determinant = place(context.pooled.population, context.told, values)
        return plain(context.pooled, placed) - log_determinant

    return potential


def make_relative(
    context: PooledContext, found: Laplace, positions: Mapping[str, NDArray]
) -> tuple[RelativeContext, NDArray, Axes]:
    """Carry a Laplace approximation of the plain density over to relative coordinates.

    Args:
        context: The context of the density.
        found: The approximation, its exponents among the shared entries.
        positions: Where the entries of every value are in the flat position.

    Returns:
        The context; the mode in relative coordinates, where the exponents are 0; and the axes: at
        one spread the coordinates are linear in the plain ones.
    """
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
    return RelativeContext(context, told), centre, axes
