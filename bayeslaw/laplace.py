"""The Laplace metric: where the posterior lies and how wide it is in every direction, from its mode and curvature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits

from bayeslaw.axes import Axes, Layout, axes_from, lay_out, seeds_of, unit_axes, value_and_gradient
from bayeslaw.density import Shapes, flat_potential, positions_of, shapes_of, unraveller

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rounds of mode search and of moment estimates of the spreads.
ROUNDS = 5
#: Iterations of the search from each start, and of the search in the coordinates of each round.
ROUGH, FINE = 150, 100
#: Half the distance, on the unconstrained scale, of the two gradients that a second derivative is taken from.
STEP = 1e-5


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
    estimate: Callable[[Any, dict[str, Any]], dict[str, jax.Array]] | None,
    variances: Mapping[str, float],
    groups: Mapping[str, NDArray] | None = None,
) -> Laplace:
    """Find the mode with the spreads held fixed, and the axes of the exact Hessian there.

    A joint mode over effects and their spread degenerates (spread to zero), so spreads are held fixed in every
    search and set between searches to moment estimates. After a rough search every round takes the Hessian where it
    stands and searches on in its axes, where few steps suffice. Given the same functions and shapes again, nothing is
    compiled.

    Args:
        potential: Negative log density of context and unconstrained parameters.
        context: What it depends on besides, a pytree of arrays.
        starts: Unconstrained values to start from; the best mode is kept.
        estimate: Moment estimates of the spreads from the context and all other parameters, all unconstrained; none
            where spreads are to be treated like any other parameter.
        variances: Variance of each estimate on the unconstrained scale.
        groups: For parameters that are independent between groups given all others, the group of every entry; the
            Hessian then costs as many products as there are others, and entries in the largest group.

    Returns:
        Mode and axes; each spread has an axis of its own.
    """
    shapes = shapes_of(starts[0])
    arrays, kind = jax.tree.flatten(context)
    density, positions = flat_potential(potential, shapes, kind), positions_of(shapes)
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
        return found.fun, origin + np.asarray(_move(axes, found.x))

    def axes_at(flat: NDArray) -> tuple[Axes, int]:
        products = _hessian_products(density, arrays, flat, layout)
        products[:, held] = 0.0
        of_spreads = np.searchsorted(layout.shared, held)
        products[of_spreads] = 0.0
        products[of_spreads, held] = [1 / variances[name] for name in spreads]
        return axes_from(layout, products)

    searches = [search(_flattened(start), unit_axes(layout), ROUGH) for start in starts]
    flat = min(searches, key=lambda found: found[0])[1]
    for _ in range(ROUNDS):
        for name, value in _moments(estimate, shapes, tuple(spreads), context, flat).items() if estimate else ():
            flat[spreads[name]] = value
        flat = search(flat, axes_at(flat)[0], FINE)[1]
    return Laplace(flat, *axes_at(flat))


def _hessian_products(density: Callable[..., jax.Array], arrays: list[Any], flat: NDArray, layout: Layout) -> NDArray:
    """Multiply the Hessian with the layout's seeds, by central differences of the gradient.

    They are good to a millionth, and nothing is compiled for them.
    """
    unit, nowhere = unit_axes(layout), np.zeros_like(flat)

    def gradient(position: NDArray) -> NDArray:
        return np.asarray(value_and_gradient(density, arrays, position, unit, nowhere)[1])

    steps = STEP * seeds_of(layout, len(flat))
    return np.stack([(gradient(flat + step) - gradient(flat - step)) / (2 * STEP) for step in steps])


def _flattened(values: Mapping[str, Any]) -> NDArray:
    return np.concatenate([np.ravel(np.asarray(values[name], float)) for name in sorted(values)])


@jax.jit
def _move(axes: Axes, q: jax.Array) -> jax.Array:
    return axes.move(q)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _moments(
    estimate: Callable[[Any, dict[str, Any]], dict[str, jax.Array]],
    shapes: Shapes,
    spreads: tuple[str, ...],
    context: Any,
    flat: jax.Array,
) -> dict[str, jax.Array]:
    """Estimate the spreads from all other parameters."""
    return estimate(context, {k: v for k, v in unraveller(shapes)(flat).items() if k not in spreads})
