"""NUTS in whitened coordinates, one thread per chain, chains dealt to all devices, with a cheap progress bar."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import NUTS

from bayeslaw.axes import Axes, moved, refine, value_and_gradient
from bayeslaw.compiled import jit
from bayeslaw.precision import in_float64
from bayeslaw.split_nuts import SplitNUTS, off_resonance

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Transitions per compiled call; the progress bar moves once per call.
CHUNK = 25
#: Shares of the warm-up after which its draws move and reshape the axes.
PILOTS = (0.25, 0.5)


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
    axes: Axes,
    *,
    seed: int,
    chains: int,
    warmup: int,
    draws: int,
    adapt_metric: bool = False,
    target_acceptance: float = 0.8,
    progress: bool = True,
) -> Sampled:
    """Sample a density with NUTS in the coordinates q of x = centre + axes q.

    A linear change of coordinates changes no posterior, only its shape: with the axes of a Laplace covariance it is
    nearly a unit Gaussian, along which `SplitNUTS` steps. Chains start from overdispersed draws of that Gaussian. Twice
    in the warm-up their draws move and reshape the axes (`refine`); after it they go on in step (`_in_step`). Given the
    same `potential` and shapes again, nothing is compiled.

    Args:
        potential: Negative log density of context and flat unconstrained position.
        context: What it depends on besides, a pytree of arrays.
        centre: Origin of the coordinates, `[dimensions]`.
        axes: Their axes (`bayeslaw.axes`).
        seed: Seed of everything random.
        chains: Number of chains, run on as many threads as there are cores.
        warmup: Transitions in which the step size is adapted, dropped.
        draws: Transitions kept per chain.
        adapt_metric: Also adapt a dense metric in the whitened coordinates, for few parameters or poor factors.
        target_acceptance: Mean acceptance rate that the step size aims at.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The draws and the statistics.
    """
    pilots = [] if adapt_metric else [int(share * warmup) for share in PILOTS]
    last = warmup - sum(pilots)
    target = _Target(potential, target_acceptance, last if adapt_metric else None)
    keys = jax.random.split(jax.random.PRNGKey(seed), (len(PILOTS) + 2) * chains).reshape(chains, len(PILOTS) + 2, -1)
    begin = [1.2 * jax.random.normal(own[0], (len(centre),)) for own in keys]
    with _bar(chains * (warmup + draws), progress) as bar:
        for length, own in zip(pilots, keys.swapaxes(0, 1)[2:], strict=False):
            coordinates = _on_devices(context, centre, axes, chains)
            _, piloted = _run(target, coordinates, _initial(target, coordinates, own, begin, length), length, bar)
            drawn = np.stack([part["position"] for part in piloted])
            middle, refined = refine(axes, drawn[:, length // 2 :])
            begin = [jnp.asarray(refined.back(np.asarray(moved(axes, end - middle)))) for end in drawn[:, -1]]
            centre, axes = centre + np.asarray(moved(axes, middle)), refined
        coordinates = _on_devices(context, centre, axes, chains)
        states, _ = _run(target, coordinates, _initial(target, coordinates, keys[:, 1], begin, last), last, bar)
        _, results = _run(target, coordinates, states if adapt_metric else _in_step(states), draws, bar)
    statistics = {name: np.stack([part[name] for part in results]) for name in results[0]}
    whitened = statistics.pop("position")
    statistics["tree_depth"] = np.ceil(np.log2(statistics["n_steps"] + 1)).astype(int)
    return Sampled(np.asarray(_positions(coordinates[0], whitened)), statistics)


def _on_devices(context: Any, centre: NDArray, axes: Axes, chains: int) -> list[Any]:
    """Give every chain what it is sampled with, on its device; one copy a device."""
    devices, parts = jax.local_devices(), (context, jnp.asarray(centre), jax.tree.map(jnp.asarray, axes))
    copies = [parts] if len(devices) == 1 else [jax.device_put(parts, device) for device in devices[:chains]]
    return [copies[chain % len(copies)] for chain in range(chains)]


def _in_step(states: list[Any]) -> list[Any]:
    """Give all chains the step size in their middle."""
    middle = np.exp(np.median([np.log(state.adapt_state.step_size) for state in states]))

    def with_step(state: Any) -> Any:
        step = jnp.full_like(state.adapt_state.step_size, off_resonance(middle))
        return state._replace(adapt_state=state.adapt_state._replace(step_size=step))

    return [with_step(state) for state in states]


def _initial(
    target: _Target, coordinates: list[Any], keys: jax.Array, begin: list[jax.Array], warmup: int
) -> list[Any]:
    """Make the states that chains start from."""
    return [_initialise(target, *parts, warmup) for parts in zip(coordinates, keys, begin, strict=True)]


def _run(
    target: _Target, coordinates: list[Any], states: list[Any], length: int, bar: Any
) -> tuple[list[Any], list[dict[str, NDArray]]]:
    """Run all chains, on a thread each, for a number of transitions; give their last states and what they kept."""
    first, lock = threading.Lock(), threading.Lock()

    @in_float64
    def one(own: Any, state: Any) -> tuple[Any, dict[str, NDArray]]:
        parts = []
        for i, count in enumerate(_lengths(length)):
            with first if i == 0 else contextlib.nullcontext():  # one thread compiles for all
                state, kept = _advance(target, own, state, count)
            parts.append(jax.tree.map(np.asarray, kept))
            with lock:
                bar.update(count)
        return state, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    with concurrent.futures.ThreadPoolExecutor(min(len(states), os.cpu_count() or 1)) as pool:
        last, kept = zip(*pool.map(one, coordinates, states), strict=True)
    return list(last), list(kept)


class _Target(NamedTuple):
    """Hold what transitions are compiled for.

    Attributes:
        potential: Negative log density of context and flat position.
        acceptance: Mean acceptance rate that the step size aims at.
        metric: Transitions in which a dense metric is adapted, by NumPyro's own NUTS; none for `SplitNUTS`.
    """

    potential: Callable[[Any, jax.Array], jax.Array]
    acceptance: float
    metric: int | None

    def kernel(self, potential: Callable[[jax.Array], jax.Array]) -> NUTS | SplitNUTS:
        """Make the kernel for a negative log density of coordinates."""
        if self.metric is None:
            return SplitNUTS(potential, self.acceptance)
        return NUTS(potential_fn=potential, step_size=0.5, dense_mass=True, target_accept_prob=self.acceptance)


@jit
def _positions(coordinates: Any, whitened: jax.Array) -> jax.Array:
    """Map draws `[chains, draws, dimensions]` back."""
    _, centre, axes = coordinates
    return centre + jax.lax.map(axes.move, whitened.reshape(-1, len(centre)), batch_size=64).reshape(whitened.shape)


def _initialise(target: _Target, coordinates: Any, key: jax.Array, position: jax.Array, warmup: int) -> Any:
    """Make the state that a chain starts from, with the density that the mode search has compiled.

    Its types are strong, as those of a state after a transition: for others `_advance` would be compiled once more.
    """
    value, gradient = value_and_gradient(target.potential, *coordinates, position)
    state = _state_without_density(target._replace(potential=_flat), key, position, warmup)
    return state._replace(potential_energy=value, z_grad=gradient)


def _flat(_: Any, position: jax.Array) -> jax.Array:
    return 0.0 * jnp.sum(position)


@jit(static_argnums=0)
def _state_without_density(target: _Target, key: jax.Array, position: jax.Array, warmup: Any) -> Any:
    kernel = target.kernel(lambda q: target.potential(None, q))
    state = kernel.init(key, warmup if target.metric is None else target.metric, position)
    return jax.tree.map(lambda part: jnp.asarray(part, jnp.result_type(part)), state)


@jit(static_argnums=(0, 3))
def _advance(target: _Target, coordinates: Any, state: Any, length: int) -> tuple[Any, dict[str, jax.Array]]:
    """Make `length` transitions."""
    context, centre, axes = coordinates
    kernel = target.kernel(lambda q: target.potential(context, centre + axes.move(q)))
    if target.metric is not None:  # This sets the kernel up; the state it gives is not used.
        kernel.init(jax.random.PRNGKey(0), target.metric, state.z)

    def one(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        state = kernel.sample(state, (), {})
        kept = {
            "position": state.z,
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
