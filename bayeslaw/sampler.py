"""NUTS in whitened coordinates, one thread per chain, chains dealt to all devices, with a cheap progress bar."""

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

from bayeslaw.axes import Axes, moved, refine, value_and_gradient
from bayeslaw.precision import in_float64
from bayeslaw.split_nuts import SplitNUTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Transitions per compiled call; the progress bar moves once per call.
CHUNK = 25
#: Lengths of a trajectory of 2^k - 1 steps, in standard deviations, that are made as long as the second.
RESONANCE = (2.6, 4.2)
#: By how much steps are lengthened at most for that; else there are twice as many, shorter ones.
LENGTHENED = 1.25


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
    nearly a unit Gaussian, along which `SplitNUTS` steps. Chains start from overdispersed draws of that Gaussian. After
    half of the warm-up their draws move and reshape the axes (`refine`); after it they go on in step (`_in_step`).
    Given the same `potential` and shapes again, nothing is compiled.

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
    pilot = 0 if adapt_metric else warmup // 2
    target = _Target(potential, _Adaptation(warmup - pilot, adapt_metric, target_acceptance))
    keys = jax.random.split(jax.random.PRNGKey(seed), 3 * chains).reshape(chains, 3, -1)
    begin = [1.2 * jax.random.normal(own[0], (len(centre),)) for own in keys]
    with _bar(chains * (warmup + draws), progress) as bar:
        if pilot:
            coordinates = _on_devices(context, centre, axes, chains)
            states = _initial(target, coordinates, keys[:, 1], begin)
            _, piloted = _run(target, coordinates, states, warmup - pilot, bar)
            drawn = np.stack([part["position"] for part in piloted])
            middle, refined = refine(axes, drawn[:, drawn.shape[1] // 2 :])
            begin = [jnp.asarray(refined.back(np.asarray(moved(axes, last - middle)))) for last in drawn[:, -1]]
            centre, axes = centre + np.asarray(moved(axes, middle)), refined
        coordinates = _on_devices(context, centre, axes, chains)
        states = _initial(target, coordinates, keys[:, 2], begin)
        states, _ = _run(target, coordinates, states, warmup - pilot, bar)
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
    """Give all chains the step size in their middle, and keep it off resonance.

    In coordinates in which the posterior is a unit Gaussian, NUTS takes 2^k - 1 steps until they are longer than half a
    period, pi. Just short of it the next doubling ends where it began, goes unnoticed as a U-turn, and trees grow many
    times too deep; a slightly longer step stops at half the leapfrogs and moves as far, a much longer one would miss
    what is narrow.
    """
    step = float(np.exp(np.median([np.log(state.adapt_state.step_size) for state in states])))
    for leapfrogs in (2**depth - 1 for depth in range(1, 10)):
        if RESONANCE[0] < leapfrogs * step < RESONANCE[1]:
            longer = RESONANCE[1] / leapfrogs
            step = longer if longer <= LENGTHENED * step else RESONANCE[1] / (2 * leapfrogs + 1)
            break

    def with_step(state: Any) -> Any:
        adapted = state.adapt_state
        return state._replace(adapt_state=adapted._replace(step_size=jnp.full_like(adapted.step_size, step)))

    return [with_step(state) for state in states]


def _initial(target: _Target, coordinates: list[Any], keys: jax.Array, begin: list[jax.Array]) -> list[Any]:
    return [_initialise(target, *parts) for parts in zip(coordinates, keys, begin, strict=True)]


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


class _Adaptation(NamedTuple):
    """Hold how a kernel adapts.

    Attributes:
        warmup: Transitions in which it does.
        metric: Whether a dense metric is adapted too.
        acceptance: Mean acceptance rate that the step size aims at.
    """

    warmup: int
    metric: bool
    acceptance: float

    def kernel(self, potential: Callable[[jax.Array], jax.Array]) -> NUTS | SplitNUTS:
        """Make the kernel for a negative log density of coordinates."""
        if not self.metric:
            return SplitNUTS(potential, self.acceptance)
        return NUTS(potential_fn=potential, step_size=0.5, dense_mass=True, target_accept_prob=self.acceptance)


class _Target(NamedTuple):
    """Hold what a compiled transition is made for."""

    potential: Callable[[Any, jax.Array], jax.Array]
    adaptation: _Adaptation


@jax.jit
def _positions(coordinates: Any, whitened: jax.Array) -> jax.Array:
    """Map draws `[chains, draws, dimensions]` back."""
    _, centre, axes = coordinates
    return centre + jax.lax.map(axes.move, whitened.reshape(-1, len(centre)), batch_size=64).reshape(whitened.shape)


def _initialise(target: _Target, coordinates: Any, key: jax.Array, position: jax.Array) -> Any:
    """Make the state that a chain starts from, with the density that the mode search has compiled."""
    value, gradient = value_and_gradient(target.potential, *coordinates, position)
    state = _state_without_density(target.adaptation, key, position)
    return state._replace(potential_energy=value, z_grad=gradient)


@functools.partial(jax.jit, static_argnums=0)
def _state_without_density(adaptation: _Adaptation, key: jax.Array, position: jax.Array) -> Any:
    return adaptation.kernel(lambda q: 0.0 * jnp.sum(q)).init(key, adaptation.warmup, position)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _advance(target: _Target, coordinates: Any, state: Any, length: int) -> tuple[Any, dict[str, jax.Array]]:
    """Make `length` transitions."""
    context, centre, axes = coordinates
    kernel = target.adaptation.kernel(lambda q: target.potential(context, centre + axes.move(q)))
    # This sets the kernel up; the state it gives is not used.
    kernel.init(jax.random.PRNGKey(0), target.adaptation.warmup, state.z)

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
