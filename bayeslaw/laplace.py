"""The Laplace metric: where the posterior lies and how wide it is in every direction, from its mode and curvature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from threadpoolctl import threadpool_limits

from bayeslaw.axes import Axes, axes_from, embed, lay_out, seeds_of, unit_axes
from bayeslaw.density import Shapes, positions_of, shapes_of, unraveller

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rounds of mode search and of moment estimates of the spreads.
ROUNDS = 5
#: Iterations of the search from each start, and of the search in the coordinates of each round.
ROUGH, FINE = 150, 100


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
    names = sorted(variances) if estimate else []
    free_starts = [{k: jnp.asarray(v, float) for k, v in start.items() if k not in names} for start in starts]
    held = {name: jnp.asarray(starts[0][name], float) for name in names}
    compiled = _compile(potential, estimate, shapes_of(free_starts[0]))
    positions = positions_of(shapes_of(free_starts[0]))
    layout = lay_out(positions, groups or {})
    seeds = seeds_of(layout, sum(where.size for where in positions.values()))

    def search(origin: NDArray, axes: Axes, iterations: int) -> tuple[float, NDArray]:
        def evaluate(q: NDArray) -> tuple[float, NDArray]:
            value, gradient = compiled.value_and_gradient(q, origin, axes, context, held)
            return (float(value), np.asarray(gradient)) if np.isfinite(value) else (1e100, np.zeros_like(q))

        options = {"maxiter": iterations, "maxcor": 10, "maxfun": 3 * iterations}
        found = scipy.optimize.minimize(evaluate, np.zeros_like(origin), jac=True, method="L-BFGS-B", options=options)
        return found.fun, origin + np.asarray(_move(axes, found.x))

    def axes_at(flat: NDArray) -> tuple[Axes, int]:
        return axes_from(layout, np.asarray(compiled.products(flat, context, held, seeds)))

    searches = [search(np.asarray(ravel_pytree(start)[0]), unit_axes(layout), ROUGH) for start in free_starts]
    flat = min(searches, key=lambda found: found[0])[1]
    for _ in range(ROUNDS):
        held = compiled.moments(flat, context)
        flat = search(flat, axes_at(flat)[0], FINE)[1]
    axes, clipped = axes_at(flat)
    return _assemble(positions, flat, held, axes, variances, clipped)


@jax.jit
def _move(axes: Axes, q: jax.Array) -> jax.Array:
    return axes.move(q)


class _Compiled(NamedTuple):
    value_and_gradient: Callable[..., tuple[jax.Array, jax.Array]]
    products: Callable[..., jax.Array]
    moments: Callable[..., dict[str, jax.Array]]


@functools.cache
def _compile(potential: Callable[..., jax.Array], estimate: Callable[..., Any] | None, shapes: Shapes) -> _Compiled:
    """Compile the density of a flat position in everything but the spreads, once for each density and shape."""
    unravel = unraveller(shapes)

    def objective(flat: jax.Array, context: Any, held: dict[str, jax.Array]) -> jax.Array:
        return potential(context, {**unravel(flat), **held})

    def along(q: jax.Array, origin: jax.Array, axes: Axes, context: Any, held: dict[str, jax.Array]) -> jax.Array:
        return objective(origin + axes.move(q), context, held)

    def products(flat: jax.Array, context: Any, held: dict[str, jax.Array], seeds: jax.Array) -> jax.Array:
        def one(seed: jax.Array) -> jax.Array:
            return jax.jvp(lambda x: jax.grad(objective)(x, context, held), (flat,), (seed,))[1]

        return jax.lax.map(one, seeds)  # one by one: the memory stays that of a gradient

    def moments(flat: jax.Array, context: Any) -> dict[str, jax.Array]:
        return estimate(context, unravel(flat)) if estimate else {}

    return _Compiled(jax.jit(jax.value_and_grad(along)), jax.jit(products), jax.jit(moments))


def _assemble(
    positions: Mapping[str, NDArray],
    flat: NDArray,
    held: dict[str, jax.Array],
    axes: Axes,
    variances: Mapping[str, float],
    clipped: int,
) -> Laplace:
    """Put free parameters and spreads into the order in which all of them are flattened."""
    full = positions_of(shapes_of({**positions, **held}))
    where = np.empty(len(flat), int)
    for name, own in positions.items():
        where[own.ravel()] = full[name].ravel()
    mode = np.empty(len(flat) + len(held))
    mode[where] = flat
    for name, value in held.items():
        mode[full[name]] = float(value)
    return Laplace(mode, embed(axes, where, {int(full[name]): variances[name] for name in held}), clipped)
