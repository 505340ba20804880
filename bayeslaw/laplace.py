"""The Laplace metric: where the posterior lies and how wide it is in every direction, from its mode and curvature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from threadpoolctl import threadpool_limits

from bayeslaw.axes import Axes, Layout, axes_from, lay_out, moved, seeds_of, unit_axes, value_and_gradient
from bayeslaw.compiled import jit
from bayeslaw.density import Shapes, flat_potential, positions_of, shapes_of, unraveller

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Estimates of the spreads from context, all parameters and the variances of those in groups, all unconstrained.
Estimate = Callable[[Any, dict[str, Any], dict[str, Any]], dict[str, jax.Array]]
#: Rounds of mode search and of estimates of the spreads.
ROUNDS = 5
#: Iterations of the search from each start, and of the search in the coordinates of each round.
ROUGH, FINE = 150, 100
#: Half the distance, on the unconstrained scale, of the two gradients that a second derivative is taken from.
STEP = 1e-3


@dataclass(frozen=True)
class Laplace:
    """Hold the Gaussian that the sampler is preconditioned with.

    Attributes:
        mode: Position on the flat unconstrained scale, `[dimensions]`.
        axes: Coordinates in which it is round.
        clipped: Number of directions whose curvature was not positive enough and was replaced.
    """

    mode: NDArray
    axes: Axes
    clipped: int


@threadpool_limits.wrap(limits=1, user_api="blas")  # on vectors this short, threads only wait for each other
def laplace(
    potential: Callable[[Any, dict[str, Any]], jax.Array],
    context: Any,
    starts: Sequence[Mapping[str, Any]],
    estimate: Estimate | None,
    variances: Mapping[str, float],
    groups: Mapping[str, NDArray] | None = None,
) -> Laplace:
    """Find the mode with the spreads held fixed, and the axes of the exact Hessian there.

    A joint mode over effects and their spread degenerates (spread to zero), so spreads are held fixed in every
    search and set between searches to estimates from the effects and their variances. After a rough search every round
    takes the Hessian where it stands and searches on in its axes, where few steps suffice. Given the same functions and
    shapes again, nothing is compiled.

    Args:
        potential: Negative log density of context and unconstrained parameters.
        context: What it depends on besides, a pytree of arrays.
        starts: Unconstrained values to start from; the best mode is kept.
        estimate: Estimates of the spreads, given the variances that parameters in groups have when all others are
            known; none where spreads are to be treated like any other parameter.
        variances: Variance of each estimate on the unconstrained scale.
        groups: For parameters that are independent between groups given all others, the group of every entry; the
            Hessian then costs as many products as there are others, and entries in the largest group.

    Returns:
        Mode and axes; each spread has an axis of its own.
    """
    shapes = shapes_of(starts[0])
    density, arrays = flat_potential(potential, context, shapes)
    positions = positions_of(shapes)
    spreads = {name: int(positions[name]) for name in sorted(variances)} if estimate else {}
    held = np.array(list(spreads.values()), int)
    layout = lay_out(positions, groups or {})

    def search(origin: NDArray, axes: Axes, iterations: int) -> tuple[float, NDArray]:
        def evaluate(q: NDArray) -> tuple[float, NDArray]:
            value, gradient = value_and_gradient(density, arrays, origin, axes, q)
            if not np.isfinite(value):
                return 1e100, np.zeros_like(q)
            slope = np.array(gradient)
            slope[held] = 0.0
            return float(value), slope

        options = {"maxiter": iterations, "maxcor": 10, "maxfun": 3 * iterations}
        found = scipy.optimize.minimize(evaluate, np.zeros_like(origin), jac=True, method="L-BFGS-B", options=options)
        return found.fun, origin + np.asarray(moved(axes, found.x))

    def axes_at(flat: NDArray) -> tuple[Axes, int]:
        products = _hessian_products(density, arrays, flat, layout)
        products[:, held] = 0.0
        of_spreads = np.searchsorted(layout.shared, held)
        products[of_spreads] = 0.0
        products[of_spreads, held] = [1 / variances[name] for name in spreads]
        return axes_from(layout, products)

    searches = [search(np.asarray(ravel_pytree(start)[0]), unit_axes(layout), ROUGH) for start in starts]
    flat = min(searches, key=lambda found: found[0])[1]
    for _ in range(ROUNDS):
        axes, _ = axes_at(flat)
        if estimate:
            for name, value in _estimated(estimate, shapes, context, flat, axes.own_variances(len(flat))).items():
                flat[spreads[name]] = value
        flat = search(flat, axes, FINE)[1]
    return Laplace(flat, *axes_at(flat))


def laplace_recentred(
    potential: Callable[[Any, dict[str, Any]], jax.Array],
    context: Any,
    starts: Sequence[Mapping[str, Any]],
    estimate: Estimate | None,
    variances: Mapping[str, float],
    groups: Mapping[str, NDArray],
    recentre: Callable[[Any, Laplace], tuple[Any, dict[str, Any]]],
) -> tuple[Any, Laplace]:
    """Find the metric, and again once it says in which coordinates parameters in groups are best sampled.

    Args:
        potential: As in `laplace`, like what follows.
        context: What it depends on besides, coordinates included; in these, effects are as they are.
        starts: Unconstrained values to start from.
        estimate: Estimates of the spreads.
        variances: Variance of each estimate.
        groups: Group of every entry of the effects.
        recentre: Chooses coordinates by the metric; gives the context with them, and the mode in them.

    Returns:
        The context to sample in, and the metric.
    """
    found = laplace(potential, context, starts, estimate, variances, groups)
    if not np.size(found.axes.own):
        return context, found
    context, start = recentre(context, found)
    # Spreads stay at what was found.
    return context, laplace(potential, context, [start], _nothing, variances, groups)


def _nothing(*_: Any) -> dict[str, jax.Array]:
    """Estimate no spread."""
    return {}


def _hessian_products(density: Callable[..., jax.Array], arrays: list[Any], flat: NDArray, layout: Layout) -> NDArray:
    """Multiply the Hessian with the layout's seeds, by central differences of the gradient.

    The distance is far beyond what float32 makes of the rows and far below the width of most directions; nothing is
    compiled for it.
    """
    unit, nowhere = unit_axes(layout), np.zeros_like(flat)

    def gradient(position: NDArray) -> NDArray:
        return np.asarray(value_and_gradient(density, arrays, position, unit, nowhere)[1])

    steps = STEP * seeds_of(layout, len(flat))
    return np.stack([(gradient(flat + step) - gradient(flat - step)) / (2 * STEP) for step in steps])


@jit(static_argnums=(0, 1))
def _estimated(
    estimate: Estimate,
    shapes: Shapes,
    context: Any,
    flat: jax.Array,
    variances: jax.Array,
) -> dict[str, jax.Array]:
    """Estimate the spreads at a position, the others of which have these variances."""
    return estimate(context, unraveller(shapes)(flat), unraveller(shapes)(variances))
