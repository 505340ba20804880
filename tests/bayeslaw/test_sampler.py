"""NUTS in whitened coordinates: right moments whatever the coordinates, and draws that depend on the seed alone.

Monte Carlo means and standard deviations may lie 5 of their standard errors (ArviZ) from the truth; that and the seeds
were fixed before anything was drawn.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeslaw.axes import dense_axes
from bayeslaw.laplace import laplace
from bayeslaw.sampler import Sampled, sample
from bayeslaw.split_nuts import RESONANCE

STANDARD_ERRORS = 5.0


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def assert_moments(draws: np.ndarray, mean: float, sd: float) -> None:
    """Compare mean and standard deviation of `[chains, draws]` with the truth."""
    assert abs(draws.mean() - mean) < STANDARD_ERRORS * az.mcse(draws, method="mean")
    assert abs(draws.std() - sd) < STANDARD_ERRORS * az.mcse(draws, method="sd")


MEAN = np.array([1.0, -2.0, 30.0])
SD = np.array([1.0, 0.1, 5.0])
CORRELATION = np.array([[1.0, 0.95, -0.5], [0.95, 1.0, -0.4], [-0.5, -0.4, 1.0]])
PRECISION = np.linalg.inv(CORRELATION * np.outer(SD, SD))


def gaussian(_: None, x: jax.Array) -> jax.Array:
    return 0.5 * (x - MEAN) @ PRECISION @ (x - MEAN)


def draw_gaussian(**changes) -> Sampled:
    settings = {"seed": 0, "chains": 2, "warmup": 200, "draws": 500, "progress": False} | changes
    factor = np.linalg.cholesky(np.linalg.inv(PRECISION))
    return sample(gaussian, None, MEAN, dense_axes(factor), **settings)


@pytest.mark.parametrize("coordinates", ["its own", "poor"])
def test_moments_of_a_correlated_gaussian_in_any_coordinates(coordinates: str) -> None:
    """With the factor of its covariance, and in axis-parallel coordinates about a wrong centre, adapting the metric."""
    if coordinates == "its own":
        sampled = draw_gaussian(draws=2000)
        assert sampled.statistics["n_steps"].mean() < 8  # nearly round: a few leapfrogs a draw
    else:
        factor = np.diag([0.5, 0.5, 2.0])
        sampled = sample(
            gaussian,
            None,
            MEAN + SD,
            dense_axes(factor),
            seed=1,
            chains=2,
            warmup=600,
            draws=2000,
            adapt_metric=True,
            progress=False,
        )  # fmt: skip
    assert sampled.positions.shape == (2, 2000, 3)
    assert sampled.positions.dtype == np.float64
    for i in range(3):
        assert_moments(sampled.positions[..., i], MEAN[i], SD[i])
    x, y = sampled.positions[..., 0] - MEAN[0], sampled.positions[..., 1] - MEAN[1]
    assert_moments((x * y) / (SD[0] * SD[1]), 0.95, np.sqrt(1 + 0.95**2))
    assert not sampled.statistics["diverging"].any()


def test_moments_of_a_banana_from_its_laplace_factor() -> None:
    """With x ~ N(0, 1) and y | x ~ N(x^2, 0.5^2), y has mean 1 and variance 2.25; the factor is blind to the bend."""

    def potential(_, values):
        x, y = values["x"], values["y"]
        return 0.5 * x**2 + 0.5 * ((y - x**2) / 0.5) ** 2

    found = laplace(potential, None, [{"x": 1.0, "y": 0.0}], None, {})
    # The curvature changes along the bend, so it is as exact as the mode is; a thousandth of it is plenty for a metric.
    assert found.axes.dense(2) @ found.axes.dense(2).T == pytest.approx(np.diag([1.0, 0.25]), abs=1e-3)
    sampled = sample(
        lambda _, q: potential(None, {"x": q[0], "y": q[1]}), None, found.mode, found.axes, seed=2, chains=4,
        warmup=300, draws=2500, target_acceptance=0.95, progress=False,
    )  # fmt: skip
    assert_moments(sampled.positions[..., 0], 0.0, 1.0)
    assert_moments(sampled.positions[..., 1], 1.0, np.sqrt(2.25))


def test_an_indefinite_hessian_leaves_the_draws_right() -> None:
    """The search stops on the saddle between two wells; E y^2 and the sd of y^2 are those of quadrature."""

    def potential(_, values):
        return 0.5 * (values["x"] / 0.2) ** 2 + (values["y"] ** 2 - 1) ** 2

    found = laplace(potential, None, [{"x": 1.0, "y": 0.0}], None, {})
    assert found.clipped == 1
    sampled = sample(
        lambda _, q: potential(None, {"x": q[0], "y": q[1]}), None, found.mode, found.axes, seed=3, chains=2,
        warmup=300, draws=2500, progress=False,
    )  # fmt: skip
    y = np.linspace(-4, 4, 4001)
    weight = np.exp(-((y**2 - 1) ** 2))
    mean, second = (np.sum(weight * y**k) / weight.sum() for k in (2, 4))
    assert_moments(sampled.positions[..., 1] ** 2, mean, np.sqrt(second - mean**2))
    assert_moments(sampled.positions[..., 0], 0.0, 0.2)


def assert_same(one: Sampled, other: Sampled) -> None:
    """Compare all draws and statistics bit for bit."""
    np.testing.assert_array_equal(one.positions, other.positions)
    assert one.statistics.keys() == other.statistics.keys()
    for name in one.statistics:
        np.testing.assert_array_equal(one.statistics[name], other.statistics[name])


def test_draws_depend_on_the_seed_alone(monkeypatch) -> None:
    """Same seed, same draws, also with one chain after the other; chains and seeds differ from each other."""
    first = draw_gaussian()
    assert_same(first, draw_gaussian(progress=True))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert_same(first, draw_gaussian())
    other = draw_gaussian(seed=1)
    assert not np.isin(other.positions, first.positions).any()
    assert not np.isin(first.positions[0], first.positions[1]).any()


def test_statistics_are_one_per_kept_draw() -> None:
    """Also where the numbers are no multiples of the chunk that is compiled; the step size stays once adapted."""
    sampled = draw_gaussian(chains=3, warmup=60, draws=70)
    names = {"diverging", "energy", "n_steps", "acceptance_rate", "step_size", "tree_depth"}
    assert sampled.statistics.keys() == names
    assert all(values.shape == (3, 70) for values in sampled.statistics.values())
    assert (np.ptp(sampled.statistics["step_size"], axis=1) == 0).all()
    steps, depth = sampled.statistics["n_steps"], sampled.statistics["tree_depth"]
    assert ((2.0 ** (depth - 1) <= steps) & (steps < 2.0**depth)).all()
    assert ((sampled.statistics["acceptance_rate"] > 0) & (sampled.statistics["acceptance_rate"] <= 1)).all()
    assert (
        sampled.statistics["energy"] > np.asarray(jax.vmap(jax.vmap(lambda x: gaussian(None, x)))(sampled.positions))
    ).all()


def test_a_higher_target_acceptance_takes_smaller_steps() -> None:
    """Of a density with tails that no Gaussian has; of a Gaussian every step is accepted."""

    def heavy(_, q):
        return jnp.sum(2.5 * jnp.log1p(q**2 / 4))

    def draw(target: float) -> Sampled:
        return sample(
            heavy, None, np.zeros(50), dense_axes(np.eye(50)), seed=5, chains=2, warmup=200, draws=200,
            target_acceptance=target, progress=False,
        )  # fmt: skip

    eager, careful = (draw(target) for target in (0.6, 0.97))
    assert careful.statistics["step_size"].max() < eager.statistics["step_size"].min()
    assert careful.statistics["acceptance_rate"].mean() > eager.statistics["acceptance_rate"].mean()


def test_chains_keep_in_step_and_off_resonance() -> None:
    """With mildly heavy tails in 400 dimensions steps are as long as those of real fits: no tree is ever too deep."""
    sampled = sample(
        lambda _, x: jnp.sum(5.5 * jnp.log1p(x**2 / 10)), None, np.zeros(400), dense_axes(np.eye(400)), seed=4,
        chains=3, warmup=200, draws=100, target_acceptance=0.9, progress=False,
    )  # fmt: skip
    (step,) = np.unique(sampled.statistics["step_size"])
    (steps,) = np.unique(sampled.statistics["n_steps"])
    assert RESONANCE[1] - 1e-9 <= steps * step < 2 * np.pi
    assert steps in (7, 15)


def test_no_bar_where_standard_error_is_no_terminal(capfd) -> None:
    draw_gaussian(warmup=50, draws=50, progress=True)
    assert capfd.readouterr() == ("", "")


DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from bayeslaw import sampler
from test_sampler import draw_gaussian
seen, advance = set(), sampler._advance
def watched(target, coordinates, state, count):
    state, kept = advance(target, coordinates, state, count)
    seen.update(state.z.devices())
    return state, kept
sampler._advance = watched
with jax.enable_x64(True):
    np.save(sys.argv[2], draw_gaussian(chains=3, draws=100).positions)
assert seen == set(jax.devices()), seen
assert len(seen) == 2
"""


def test_chains_are_dealt_to_all_devices(tmp_path) -> None:
    """Two devices of the CPU in a process of its own: each samples, and the draws are those of one device."""
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    file = tmp_path / "draws.npy"
    command = [sys.executable, "-c", DEVICES, str(Path(__file__).parent), str(file)]
    subprocess.run(command, env=flags, check=True)
    np.testing.assert_allclose(np.load(file), draw_gaussian(chains=3, draws=100).positions, rtol=1e-9)
