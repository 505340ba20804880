"""The step that is exact for a unit Gaussian: what makes NUTS with it sample the right density."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.hmc_util import IntegratorState

from bayeslaw.split_nuts import RESONANCE, off_resonance, split_step


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def skewed(q: jax.Array) -> jax.Array:
    """Compute a negative log density that is no Gaussian's."""
    return 0.5 * q @ q + 0.1 * jnp.sum(jnp.exp(0.5 * q)) + 0.2 * jnp.cos(q[0] * q[1])


def state_at(potential, position, momentum) -> IntegratorState:
    value, gradient = jax.value_and_grad(potential)(position)
    return IntegratorState(position, momentum, value, gradient)


def take(potential, step: float, state: IntegratorState, times: int = 1) -> IntegratorState:
    for _ in range(times):
        state = split_step(jax.value_and_grad(potential), step, None, state)
    return state


def energy(state: IntegratorState) -> float:
    return float(state.potential_energy + 0.5 * state.r @ state.r)


START = np.array([0.4, -1.2, 0.7]), np.array([-0.3, 0.8, 1.5])


def test_a_step_back_undoes_a_step() -> None:
    there = take(skewed, 0.7, state_at(skewed, *map(jnp.asarray, START)), 5)
    back = take(skewed, -0.7, there, 5)
    assert np.asarray(back.z) == pytest.approx(np.asarray(START[0]), rel=1e-12)
    assert np.asarray(back.r) == pytest.approx(np.asarray(START[1]), rel=1e-12)


def test_a_step_keeps_volumes() -> None:
    def move(both: jax.Array) -> jax.Array:
        after = take(skewed, 0.7, state_at(skewed, both[:3], both[3:]))
        return jnp.concatenate([after.z, after.r])

    jacobian = jax.jacobian(move)(jnp.concatenate(START))
    assert float(jnp.linalg.det(jacobian)) == pytest.approx(1.0, rel=1e-12)


def test_steps_of_any_length_are_exact_for_a_unit_gaussian() -> None:
    def gaussian(q: jax.Array) -> jax.Array:
        return 0.5 * q @ q

    begin = state_at(gaussian, *map(jnp.asarray, START))
    for step in (0.1, 0.6, 1.4):
        end = take(gaussian, step, begin)
        expected = START[0] * np.cos(step) + START[1] * np.sin(step)
        assert np.asarray(end.z) == pytest.approx(np.asarray(expected), rel=1e-14)
        assert energy(end) == pytest.approx(energy(begin), rel=1e-14)


def test_the_error_of_the_energy_falls_with_the_square_of_the_step() -> None:
    """Over the same time with half the step it is a quarter; beyond 3.9 to 4.1 something is of another order."""
    begin = state_at(skewed, *map(jnp.asarray, START))
    errors = [energy(take(skewed, 0.8 / n, begin, n)) - energy(begin) for n in (64, 128, 256)]
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("step", np.geomspace(0.01, 10.0, 200).tolist())
def test_no_trajectory_ends_near_a_half_period(step: float) -> None:
    """However many doublings there are; and a step is lengthened by no more than said."""
    kept = float(off_resonance(step))
    assert kept <= 1.25 * step * (1 + 1e-12)
    for steps in (3, 7, 15, 31, 63, 127):
        assert not RESONANCE[0] + 1e-9 < steps * kept < RESONANCE[1] - 1e-9
