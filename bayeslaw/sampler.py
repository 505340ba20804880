"""NUTS in whitened coordinates, one thread per chain, with a cheap progress bar."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import NUTS

from bayeslaw.precision import in_float64

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Transitions per compiled call; the progress bar moves once per call.
CHUNK = 25


class Sampled(NamedTuple):
    """Hold the draws of all chains on the flat unconstrained scale, and NUTS's own statistics.

    Attributes:
        positions: `[chains, draws, dimensions]`.
        statistics: `diverging`, `energy`, `tree_depth`, `n_steps`, `acceptance_rate`, `step_size`, each
            `[chains, draws]`.
    """

    positions: NDArray
    statistics: dict[str, NDArray]


def sample(
    potential: Callable[[Any, jax.Array], jax.Array],
    context: Any,
    centre: NDArray,
    factor: NDArray,
    *,
    seed: int,
    chains: int,
    warmup: int,
    draws: int,
    adapt_metric: bool | tuple[int, ...] = False,
    target_acceptance: float = 0.8,
    progress: bool = True,
) -> Sampled:
    """Sample a density with NUTS in the coordinates q of x = centre + factor q.

    A linear change of coordinates changes no posterior, only its shape: with the factor of a Laplace covariance it is
    nearly round and an identity metric suffices. Chains start from overdispersed draws of that Gaussian. Given the same
    `potential` and shapes again, nothing is compiled.

    Args:
        potential: Negative log density of context and flat unconstrained position.
        context: What it depends on besides, a pytree of arrays.
        centre: Origin of the coordinates, `[dimensions]`.
        factor: Their axes, `[dimensions, dimensions]`.
        seed: Seed of everything random.
        chains: Number of chains, run on as many threads as there are cores.
        warmup: Transitions in which the step size is adapted, dropped.
        draws: Transitions kept per chain.
        adapt_metric: Also adapt a dense metric in the whitened coordinates, for few parameters or poor factors; with
            numbers of coordinates a dense one in these and a diagonal one in all others.
        target_acceptance: Mean acceptance rate that the step size aims at.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The draws and the statistics.
    """
    target = _Target(potential, warmup, adapt_metric, target_acceptance)
    coordinates = (context, jnp.asarray(centre), jnp.asarray(factor))
    keys = jax.random.split(jax.random.PRNGKey(seed), 2 * chains)
    positions = [1.2 * jax.random.normal(keys[2 * i + 1], (len(centre),)) for i in range(chains)]
    initial = [_initialise(target, coordinates, keys[2 * i], position) for i, position in enumerate(positions)]
    lengths = _lengths(warmup) + _lengths(draws)
    with _bar(chains * (warmup + draws), progress) as bar:
        first, lock = threading.Lock(), threading.Lock()

        @in_float64
        def run(state: Any) -> dict[str, NDArray]:
            parts = []
            for i, length in enumerate(lengths):
                with first if i == 0 else contextlib.nullcontext():  # one thread compiles for all
                    state, kept = _advance(target, coordinates, state, length)
                parts.append(jax.tree.map(np.asarray, kept))
                with lock:
                    bar.update(length)
            return {name: np.concatenate([part[name] for part in parts])[warmup:] for name in parts[0]}

        with concurrent.futures.ThreadPoolExecutor(min(chains, os.cpu_count() or 1)) as pool:
            results = list(pool.map(run, initial))
    statistics = {name: np.stack([result[name] for result in results]) for name in results[0]}
    whitened = statistics.pop("position")
    statistics["tree_depth"] = np.ceil(np.log2(statistics["n_steps"] + 1)).astype(int)
    return Sampled(np.asarray(centre) + whitened @ np.asarray(factor).T, statistics)


class _Target(NamedTuple):
    """Hold what a compiled transition is made for."""

    potential: Callable[[Any, jax.Array], jax.Array]
    warmup: int
    adapt_metric: bool | tuple[int, ...]
    target_acceptance: float

    def kernel(self, coordinates: Any) -> NUTS:
        """Make the kernel in whitened coordinates."""
        context, centre, factor = coordinates
        dense: Any = self.adapt_metric if isinstance(self.adapt_metric, bool) else [("dense",)]
        return NUTS(
            potential_fn=lambda q: self.potential(context, centre + factor @ self.join(q)),
            step_size=0.5,
            adapt_mass_matrix=self.adapt_metric is not False,
            dense_mass=dense,
            target_accept_prob=self.target_acceptance,
        )

    def split(self, position: jax.Array) -> Any:
        """Part the coordinates by their metric."""
        if isinstance(self.adapt_metric, bool):
            return position
        order, own = self._order(len(position)), len(self.adapt_metric)
        return {"dense": position[order[:own]], "diagonal": position[order[own:]]}

    def join(self, parts: Any) -> jax.Array:
        """Undo `split`."""
        if isinstance(self.adapt_metric, bool):
            return parts
        flat = jnp.concatenate([parts["dense"], parts["diagonal"]])
        return flat[np.argsort(self._order(len(flat)))]

    def _order(self, dimensions: int) -> NDArray:
        assert not isinstance(self.adapt_metric, bool)
        own = np.array(self.adapt_metric, int)
        return np.concatenate([own, np.setdiff1d(np.arange(dimensions), own)])


@functools.partial(jax.jit, static_argnums=0)
def _initialise(target: _Target, coordinates: Any, key: jax.Array, position: jax.Array) -> Any:
    return target.kernel(coordinates).init(key, target.warmup, target.split(position))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _advance(target: _Target, coordinates: Any, state: Any, length: int) -> tuple[Any, dict[str, jax.Array]]:
    """Make `length` transitions."""
    kernel = target.kernel(coordinates)
    kernel.init(jax.random.PRNGKey(0), target.warmup, state.z)  # sets the kernel up; the state it gives is not used

    def one(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        state = kernel.sample(state, (), {})
        kept = {
            "position": target.join(state.z),
            "diverging": state.diverging,
            "energy": state.energy,
            "n_steps": state.num_steps,
            "acceptance_rate": state.accept_prob,
            "step_size": state.adapt_state.step_size,
        }
        return state, kept

    return jax.lax.scan(one, state, None, length)


def _lengths(total: int) -> list[int]:
    return [CHUNK] * (total // CHUNK) + ([total % CHUNK] if total % CHUNK else [])


def _bar(total: int, shown: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="sampling", unit="draw", disable=None if shown else True, file=sys.stderr)
