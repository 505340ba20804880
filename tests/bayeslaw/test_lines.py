"""The log density of all rows together against that of single rows, derivatives and precision included."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_lines import PlainLines

from bayeslaw.law import Curve
from bayeslaw.laws import law_named
from bayeslaw.lines import LineNoise, Places, after, before

LENGTH, LINES = 7, 12
PARTS = [
    ("floor", "sigma", "kappa", "noise_power", "nu", "rho", "dies", "dies_power"),
    ("floor", "sigma", "kappa", "nu"),
    ("sigma", "kappa", "rho"),
    ("sigma",),
]
LAW = law_named("sharpness")


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def rows(n_test: float) -> tuple[Places, np.ndarray]:
    """Make runs of up to two lines, some unfinished: the third line goes on where the second ends."""
    rng = np.random.default_rng(0)
    log_density = -0.223 * (np.arange(LENGTH)[:, None] + np.where(np.arange(LINES) % 3 == 2, LENGTH, 0.0))
    gap = np.where(rng.random((LENGTH, LINES)) < 0.2, 2.0, 1.0)
    gap[0, np.arange(LINES) % 3 != 2] = np.inf
    measured = np.arange(LENGTH)[:, None] < np.where(np.arange(LINES) % 3 == 2, 4, LENGTH)
    known = np.where(rng.random((LENGTH, LINES)) < 0.8, n_test, np.inf)
    at_risk, died = measured & (rng.random((LENGTH, LINES)) < 0.9), rng.random((LENGTH, LINES)) < 0.1
    rows = log_density, known, gap, measured & ~(at_risk & died), at_risk, -0.1
    return Places(*map(jnp.asarray, rows)), rng.uniform(-3.0, 2.0, (LENGTH, LINES))


def parameters(names: tuple[str, ...]) -> dict:
    rng = np.random.default_rng(1)
    noise = {"floor": 0.8, "sigma": 0.05, "kappa": 0.2, "noise_power": 0.7, "nu": 3.5, "rho": 0.6}
    noise |= {"dies": 0.7, "dies_power": 5.0}
    curve = Curve(rng.uniform(-3, -1, LINES), -0.11, 1.3, rng.uniform(-2, 0, LINES), 2.4)
    return jax.tree.map(jnp.asarray, {"curve": curve, "noise": {name: noise[name] for name in names}})


def fast(value: dict, places: Places, response) -> jax.Array:
    return LineNoise(LAW, value["curve"], places, value["noise"]).log_prob(jnp.asarray(response))


def slow(value: dict, places: Places, response) -> jax.Array:
    return PlainLines(LAW, value["curve"], places, value["noise"]).log_prob(jnp.asarray(response))


@pytest.mark.parametrize("names", PARTS, ids="-".join)
@pytest.mark.parametrize("n_test", [800.0, np.inf])
def test_log_density_and_derivatives_are_those_of_single_rows(names: tuple[str, ...], n_test: float) -> None:
    places, response = rows(n_test)
    value = parameters(names)
    expected, computed = (jax.jit(jax.value_and_grad(f))(value, places, response) for f in (slow, fast))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(computed), strict=True):
        assert np.asarray(other) == pytest.approx(np.asarray(one), rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("names", PARTS, ids="-".join)
def test_float32_rows_change_the_log_density_by_less_than_a_thousandth_a_row(names: tuple[str, ...]) -> None:
    """Of draws around the truth, whose rows matter to a few hundredths of a natural log at most all together."""
    places, _ = rows(800.0)
    value = parameters(names)
    response = LineNoise(LAW, value["curve"], places, value["noise"]).sample(jax.random.PRNGKey(0))
    single = Places(*(part.astype(jnp.float32) for part in places[:3]), *places[3:])
    exact, rounded = (
        jax.value_and_grad(fast)(value, where, own)
        for where, own in ((places, response), (single, response.astype(jnp.float32)))
    )
    assert float(rounded[0]) == pytest.approx(float(exact[0]), abs=1e-4 * LENGTH * LINES)
    for one, other in zip(jax.tree.leaves(exact[1]), jax.tree.leaves(rounded[1]), strict=True):
        assert other.dtype == jnp.float64
        assert np.asarray(other) == pytest.approx(np.asarray(one), rel=1e-3, abs=1e-3 * np.abs(one).max())


def test_the_row_before_the_first_of_a_line_is_the_last_of_the_line_before() -> None:
    values = jnp.arange(6.0).reshape(2, 3).T  # lines [0, 1, 2] and [3, 4, 5]
    assert before(values)[:, 1].tolist() == [2.0, 3.0, 4.0]
    assert after(values)[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_draws_are_those_of_single_rows() -> None:
    places, _ = rows(800.0)
    value = parameters(PARTS[0])
    together = LineNoise(LAW, value["curve"], places, value["noise"])
    assert together.event_shape == (LENGTH, LINES)
    rows_of = PlainLines(LAW, value["curve"], places, value["noise"]).rows
    expected = rows_of.sample(jax.random.PRNGKey(3)).T
    assert np.asarray(together.sample(jax.random.PRNGKey(3))) == pytest.approx(np.asarray(expected))
