"""The posterior density of one structure and shape, compiled once per process however many tables it is given."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy

from bayeslaw.compiled import jit
from bayeslaw.frame import Data
from bayeslaw.hierarchy import draw_configurations, estimate_spreads
from bayeslaw.model import Structure, make_model
from bayeslaw.unconstrained import prior_middles

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Names and shapes of unconstrained values, sorted by name.
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
#: Draws constrained at once.
_BATCH = 64
#: What a fit keeps beside the parameters that have priors.
_DERIVED = ("a", "b", "c", "sigma_np", "tau_np", "sigma_p", "tau_p", "log_eps_up", "log_e_run", "effect_p", "luck")


class Context(NamedTuple):
    """Hold what the density depends on besides the position; arrays alone, so that nothing of it is compiled in.

    Attributes:
        data: The data.
        priors: NumPyro distributions by parameter name; JAX sees their arguments.
    """

    data: Data
    priors: dict[str, Any]


def shapes_of(values: Mapping[str, Any]) -> Shapes:
    """Describe unconstrained values."""
    return tuple(sorted((name, np.shape(value)) for name, value in values.items()))


def positions_of(shapes: Shapes) -> dict[str, NDArray[np.intp]]:
    """Number the entries of the flat position that named values make."""
    found, start = {}, 0
    for name, shape in shapes:
        found[name] = start + np.arange(math.prod(shape)).reshape(shape)
        start += found[name].size
    return found


@functools.cache
def unraveller(shapes: Shapes) -> Callable[[Any], dict[str, jax.Array]]:
    """Give the function that makes named values of a flat position; the same object for the same shapes."""
    return ravel_pytree({name: np.zeros(shape) for name, shape in shapes})[1]


@functools.cache
def named_potential(structure: Structure, centred: bool) -> Callable[[Context, dict[str, Any]], jax.Array]:
    """Give the negative log density of unconstrained named values."""
    model = make_model(structure, centred=centred)

    def potential(context: Context, values: dict[str, Any]) -> jax.Array:
        return jnp.asarray(potential_energy(model, (context.data, context.priors), {}, values))

    return potential


def flat_potential(
    potential: Callable[[Any, dict[str, Any]], jax.Array], context: Any, shapes: Shapes
) -> tuple[Callable[[list[Any], jax.Array], jax.Array], list[Any]]:
    """Give the negative log density of arrays and a flat position from that of a context and named values.

    Args:
        potential: Negative log density of context and named values.
        context: The context. Taking its distributions apart anew for every gradient would cost more than many a
            gradient.
        shapes: Names and shapes of the values.

    Returns:
        The density, the same object for contexts of the same kind, and the arrays of this one.
    """
    arrays, kind = jax.tree.flatten(context)
    return _flat_potential(potential, shapes, kind), arrays


@functools.cache
def _flat_potential(
    potential: Callable[[Any, dict[str, Any]], jax.Array], shapes: Shapes, kind: Any
) -> Callable[[list[Any], jax.Array], jax.Array]:
    unravel = unraveller(shapes)
    return lambda arrays, flat: potential(jax.tree.unflatten(kind, arrays), unravel(flat))


def estimate_unconstrained(context: Context, free: dict[str, Any], variances: dict[str, Any]) -> dict[str, jax.Array]:
    """Give the estimates of the spreads (`estimate_spreads`) from unconstrained values, themselves unconstrained.

    An estimate that a prior does not allow gives way to the middle of the prior.
    """
    transforms = {name: biject_to(prior.support) for name, prior in context.priors.items()}
    value = {k: transforms[k](v) if k in transforms else v for k, v in free.items()}
    found = estimate_spreads(value, context.data, variances)
    found = {k: transforms[k].inv(v) for k, v in found.items() if k in transforms}
    middles = prior_middles({name: context.priors[name] for name in found})
    return {name: jnp.where(jnp.isfinite(v), v, middles[name]) for name, v in found.items()}


@functools.cache
def _constrainer(structure: Structure, centred: bool, shapes: Shapes) -> Callable[..., dict[str, jax.Array]]:
    model, unravel = make_model(structure, centred=centred), unraveller(shapes)

    def one(context: Context, key: jax.Array, flat: jax.Array) -> dict[str, jax.Array]:
        arguments = (context.data, context.priors)
        values = constrain_fn(model, arguments, {}, unravel(flat), return_deterministic=True)
        names = (*context.priors, *_DERIVED)
        of_configurations = draw_configurations(key, values, context.data)
        return {name: values[name] for name in names if name in values} | of_configurations

    def every(context: Context, keys: jax.Array, positions: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.map(lambda inputs: one(context, *inputs), (keys, positions), batch_size=_BATCH)

    return jit(every)


def constrain(
    structure: Structure, centred: bool, shapes: Shapes, context: Context, positions: Any, *, seed: int
) -> dict[str, np.ndarray]:
    """Turn flat positions into named parameters, and draw what was integrated out.

    Args:
        structure: Structure of the model.
        centred: Its parametrisation.
        shapes: Names and shapes of the unconstrained values.
        context: Data and priors.
        positions: `[chains, draws, dimensions]`.
        seed: Seed of what is drawn.

    Returns:
        Arrays `[chains, draws, ...]` by name.
    """
    chains, draws, _ = np.shape(positions)
    keys = jax.random.split(jax.random.PRNGKey(seed), chains * draws)
    flat = jnp.asarray(positions).reshape(chains * draws, -1)
    values = _constrainer(structure, centred, shapes)(context, keys, flat)
    return {name: np.asarray(value).reshape(chains, draws, *value.shape[1:]) for name, value in values.items()}
