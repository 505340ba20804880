"""The Laplace metric: where the posterior lies and how wide it is in every direction, from its mode and Hessian."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jax.flatten_util import ravel_pytree

from bayeslaw.density import Shapes, shapes_of, unraveller

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rounds of mode search and of moment estimates of the spreads.
ROUNDS = 5
#: A direction is taken to be no wider than this many units of its unconstrained parameter (prior scales are near 1).
WIDEST = 2.0


@dataclass(frozen=True)
class Laplace:
    """Hold the Gaussian that the sampler is preconditioned with.

    Attributes:
        mode: Position on the flat unconstrained scale, `[dimensions]`.
        factor: Matrix L with L L^T the covariance, `[dimensions, dimensions]`.
        clipped: Number of directions whose curvature was not positive enough and was replaced.
    """

    mode: NDArray
    factor: NDArray
    clipped: int


def laplace(
    potential: Callable[[Any, dict[str, Any]], jax.Array],
    context: Any,
    starts: Sequence[Mapping[str, Any]],
    estimate: Callable[[Any, dict[str, Any]], dict[str, jax.Array]] | None,
    variances: Mapping[str, float],
) -> Laplace:
    """Find the mode with the spreads held fixed, and the covariance from the exact Hessian there.

    A joint mode over effects and their spread degenerates (spread to zero), so spreads are held fixed in every
    search and set between searches to moment estimates. Given the same functions and shapes again, nothing is compiled.

    Args:
        potential: Negative log density of context and unconstrained parameters.
        context: What it depends on besides, a pytree of arrays.
        starts: Unconstrained values to start from; the best mode is kept.
        estimate: Moment estimates of the spreads from the context and all other parameters, all unconstrained; none
            where spreads are to be treated like any other parameter.
        variances: Variance of each estimate on the unconstrained scale.

    Returns:
        Mode and covariance factor; each spread has its own diagonal entry.
    """
    names = sorted(variances) if estimate else []
    free_starts = [{k: jnp.asarray(v, float) for k, v in start.items() if k not in names} for start in starts]
    fixed = {name: jnp.asarray(starts[0][name], float) for name in names}
    compiled = _compile(potential, estimate, shapes_of(free_starts[0]))
    unravel = unraveller(shapes_of(free_starts[0]))

    def search(flat: NDArray, held: dict[str, jax.Array], iterations: int) -> scipy.optimize.OptimizeResult:
        def evaluate(x: NDArray) -> tuple[float, NDArray]:
            value, gradient = compiled.value_and_gradient(x, context, held)
            return (float(value), np.asarray(gradient)) if np.isfinite(value) else (1e100, np.zeros_like(x))

        options = {"maxiter": iterations, "maxcor": 30, "maxfun": 3 * iterations}
        return scipy.optimize.minimize(evaluate, flat, jac=True, method="L-BFGS-B", options=options)

    searches = [search(np.asarray(ravel_pytree(start)[0]), fixed, 1500) for start in free_starts]
    flat = min(searches, key=lambda result: result.fun).x
    for _ in range(ROUNDS if names else 1):
        fixed = compiled.moments(flat, context)
        flat = search(flat, fixed, 1000).x
    covariance, clipped = _covariance(np.asarray(compiled.hessian(flat, context, fixed)))
    return _assemble(unravel(jnp.asarray(flat)), fixed, covariance, variances, clipped)


class _Compiled(NamedTuple):
    value_and_gradient: Callable[..., tuple[jax.Array, jax.Array]]
    hessian: Callable[..., jax.Array]
    moments: Callable[..., dict[str, jax.Array]]


@functools.cache
def _compile(potential: Callable[..., jax.Array], estimate: Callable[..., Any] | None, shapes: Shapes) -> _Compiled:
    """Compile the density of a flat position in everything but the spreads, once for each density and shape."""
    unravel = unraveller(shapes)

    def objective(flat: jax.Array, context: Any, held: dict[str, jax.Array]) -> jax.Array:
        return potential(context, {**unravel(flat), **held})

    def moments(flat: jax.Array, context: Any) -> dict[str, jax.Array]:
        return estimate(context, unravel(flat)) if estimate else {}

    return _Compiled(jax.jit(jax.value_and_grad(objective)), jax.jit(jax.hessian(objective)), jax.jit(moments))


def _covariance(hessian: NDArray) -> tuple[NDArray, int]:
    """Invert a Hessian; directions that are flat or curve downwards get the widest variance instead."""
    values, vectors = scipy.linalg.eigh(0.5 * (hessian + hessian.T))
    enough = WIDEST**-2
    clipped = int((values < enough).sum())
    return (vectors / np.maximum(values, enough)) @ vectors.T, clipped


def _assemble(
    free: dict[str, Any],
    fixed: dict[str, jax.Array],
    covariance: NDArray,
    variances: Mapping[str, float],
    clipped: int,
) -> Laplace:
    """Put free parameters and spreads into the order in which all of them are flattened."""
    names = list(fixed)
    numbers = ravel_pytree(free)[0].size
    position = _positions(free)
    order = np.concatenate(
        [np.ravel(position[k]) if k in free else [numbers + names.index(k)] for k in sorted({**free, **fixed})]
    ).astype(int)
    full = np.asarray(scipy.linalg.block_diag(covariance, *(np.array([[variances[name]]]) for name in names)))
    mode = np.concatenate([np.asarray(ravel_pytree(free)[0]), [float(fixed[name]) for name in names]])
    return Laplace(mode[order], np.linalg.cholesky(full[order][:, order]), clipped)


def _positions(tree: Mapping[str, Any]) -> dict[str, NDArray]:
    """Number the entries of a flattened dictionary of arrays."""
    flat, unravel = ravel_pytree({k: jnp.asarray(v) for k, v in tree.items()})
    return {k: np.asarray(v) for k, v in unravel(jnp.arange(flat.size, dtype=flat.dtype)).items()}
