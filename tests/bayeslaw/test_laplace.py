"""The Laplace metric: exact for Gaussians, usable where the curvature is not, with spreads held out of the search."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeslaw.axes import WIDEST, axes_from, lay_out, refine, seeds_of, unit_axes
from bayeslaw.laplace import Laplace, laplace


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def random_covariance(size: int, seed: int) -> np.ndarray:
    """Draw a covariance with standard deviations from 0.003 to 1 and all kinds of correlations."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return (axes * np.geomspace(1e-5, 1.0, size)) @ axes.T


def covariance_of(found: Laplace) -> np.ndarray:
    factor = found.axes.dense(len(found.mode))
    return factor @ factor.T


def test_factor_of_a_gaussian_is_that_of_its_covariance() -> None:
    covariance, mean = random_covariance(6, 0), np.array([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
    precision = jnp.asarray(np.linalg.inv(covariance))

    def potential(_, values):
        x = jnp.concatenate([values["one"], values["two"][None]]) - mean
        return 0.5 * x @ precision @ x

    starts = [{"two": shift, "one": np.full(5, shift)} for shift in (0.0, 4.0)]
    found = laplace(potential, None, starts, None, {})
    # One search direction is 300 times as stiff as another: the mode is good to a thousandth of a standard deviation.
    assert np.abs(found.mode - mean).max() < 1e-3 * np.sqrt(covariance.diagonal().min())
    assert covariance_of(found) == pytest.approx(covariance, rel=1e-6, abs=1e-12)
    assert found.clipped == 0


def test_the_best_of_several_modes_is_kept() -> None:
    """Two wells of which the right one is deeper; either start alone ends in its own."""

    def potential(_, values):
        return (values["x"] ** 2 - 1) ** 2 * 20 - values["x"]

    left, right = {"x": -0.9}, {"x": 0.9}
    assert laplace(potential, None, [left], None, {}).mode[0] < 0
    for starts in ([left, right], [right, left]):
        assert laplace(potential, None, starts, None, {}).mode[0] == pytest.approx(1.0062, abs=1e-3)


def test_a_start_outside_the_domain_is_survived() -> None:
    def potential(_, values):
        x = values["x"]
        return jnp.where(x > -1, 0.5 * ((x - 1) / 0.1) ** 2, jnp.inf)

    found = laplace(potential, None, [{"x": -2.0}, {"x": 0.0}], None, {})
    assert found.mode == pytest.approx([1.0], abs=1e-6)
    assert covariance_of(found) == pytest.approx(np.array([[0.01]]), rel=1e-9)


def test_indefinite_and_flat_directions_get_the_widest_scale() -> None:
    """Search from a saddle stays there: x curves upwards, y downwards, z not at all."""

    def potential(_, values):
        x, y = values["x"], values["y"]
        return 0.5 * (x / 0.2) ** 2 + (y**2 - 1) ** 2 + 0.0 * values["z"]

    found = laplace(potential, None, [{"x": 1.0, "y": 0.0, "z": 0.3}], None, {})
    assert found.clipped == 2
    assert covariance_of(found) == pytest.approx(np.diag([0.04, WIDEST**2, WIDEST**2]), abs=1e-8)


def test_spreads_take_their_estimates_and_their_own_diagonal_entries() -> None:
    """A joint mode would shrink the effects' spread to 0, and so would the squares of effects at their mode alone.

    Measurements y with unit noise of effects x with spread exp(s): the expected squares of x settle where the marginal
    likelihood of y has its mode, at exp(2 s) = mean(y^2) - 1; given s the mode is y w with w = v / (1 + v) and
    v = exp(2 s), and w is the variance.
    """
    y = np.array([-4.0, 3.0, 5.0, -2.0])

    def potential(_, values):
        x, s = values["x"], values["s"]
        return 0.5 * jnp.sum((x - y) ** 2) + 0.5 * jnp.sum(x**2) * jnp.exp(-2 * s) + 4 * s + 50 * (values["a"] - 2) ** 2

    def estimate(_, values, variances):
        return {"s": 0.5 * jnp.log(jnp.mean(values["x"] ** 2 + variances["x"]))}

    found = laplace(
        potential, None, [{"x": np.zeros(4), "s": 0.0, "a": 0.0}], estimate, {"s": 0.3}, {"x": np.arange(4)}
    )
    variance = np.mean(y**2) - 1
    weight = variance / (1 + variance)
    # Flattened in the order of the names: a, s, x. Five rounds leave a few thousandths of the way to go.
    assert found.mode == pytest.approx([2.0, 0.5 * np.log(variance), *(y * weight)], rel=0.01)
    expected = np.diag([0.01, 0.3, *[weight] * 4])
    assert covariance_of(found) == pytest.approx(expected, rel=0.01, abs=1e-6)


GROUP = np.array([1, 0, 2, 1, 0, 1])


def arrowhead(rng: np.random.Generator) -> np.ndarray:
    """Draw a precision over names a (2), b (6), c (3): b and c in groups of unequal size, a and d shared."""
    group = np.concatenate([[-1, -1], GROUP, [0, 1, 2], [-1]])
    root = rng.normal(size=(12, 12))
    precision = root @ root.T + 12 * np.eye(12)
    apart = (group[:, None] != group) & (group[:, None] >= 0) & (group >= 0)
    return np.where(apart, 0.0, precision)


def test_axes_of_an_arrowhead_are_those_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(1)
    sizes = {"a": 2, "b": 6, "c": 3, "d": 1}
    ends = np.cumsum([0, *sizes.values()])
    positions = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(sizes)}
    layout = lay_out(positions, {"b": GROUP, "c": np.arange(3), "absent": np.arange(2)})
    seeds = seeds_of(layout, 12)
    assert seeds.shape == (3 + 4, 12)  # the largest group has three of b and one of c
    for _ in range(10):
        precision = arrowhead(rng)
        axes, clipped = axes_from(layout, seeds @ precision)
        factor = axes.dense(12)
        assert clipped == 0
        assert factor @ factor.T == pytest.approx(np.linalg.inv(precision), rel=1e-9, abs=1e-12)
        own = np.setdiff1d(np.arange(12), layout.shared)
        given_shared = np.zeros(12)
        given_shared[own] = np.linalg.inv(precision[np.ix_(own, own)]).diagonal()
        assert axes.own_variances(12) == pytest.approx(given_shared)
    assert unit_axes(layout).dense(12) == pytest.approx(np.eye(12))


def test_groups_change_neither_the_mode_nor_the_covariance() -> None:
    """Latent values b in groups, spread exp(s) held: with groups and without, the same."""
    rng = np.random.default_rng(2)
    y, group = rng.normal(size=6), jnp.asarray(GROUP)

    def potential(_, values):
        centre = values["a"] + values["c"]
        prior = 0.5 * jnp.sum((values["b"] - centre[group]) ** 2) * jnp.exp(-2 * values["s"])
        return prior + jnp.sum(jnp.cosh(values["b"] - y)) + 0.5 * jnp.sum(values["c"] ** 2) + 6 * values["s"]

    def estimate(_, values, variances):
        return {"s": 0.5 * jnp.log(jnp.mean((values["b"] - values["c"][group]) ** 2) + 0.1)}

    start = {"a": np.zeros(()), "b": np.zeros(6), "c": np.zeros(3), "s": 0.0}
    whole = laplace(potential, None, [start], estimate, {"s": 0.2})
    grouped = laplace(potential, None, [start], estimate, {"s": 0.2}, {"b": GROUP, "c": np.arange(3)})
    assert grouped.mode == pytest.approx(whole.mode, abs=1e-4)
    assert covariance_of(grouped) == pytest.approx(covariance_of(whole), rel=1e-3, abs=1e-5)


def test_axes_refined_by_draws_are_those_of_the_draws() -> None:
    """Draws of a wrongly placed and scaled Gaussian: shared entries get its mean and covariance, groups its scale."""
    rng = np.random.default_rng(3)
    positions = {"a": np.arange(2), "b": np.arange(2, 8)}
    layout = lay_out(positions, {"b": GROUP})
    precision = arrowhead(rng)[:8, :8]
    axes, _ = axes_from(layout, seeds_of(layout, 8) @ precision)
    q = rng.standard_normal((4, 500, 8))
    q[..., :2] = q[..., :2] @ np.array([[3.0, 0.5], [0.0, 0.2]]) + np.array([4.0, -2.0])
    q[..., 4] = 3.0 * q[..., 4] + 1.0
    q[..., 5] *= 0.7
    middle, refined = refine(axes, q)
    move = np.stack([np.asarray(axes.move(jnp.asarray(row - middle))) for row in q.reshape(-1, 8)])
    turned = np.stack([refined.back(row) for row in move])
    assert np.stack([np.asarray(refined.move(jnp.asarray(row))) for row in turned[:50]]) == pytest.approx(move[:50])
    # 2,000 draws: a variance is good to 3 %, a mean to .02; some of both is drawn towards what was there.
    assert np.cov(turned.T)[:2, :2] == pytest.approx(np.eye(2), abs=0.1)
    assert np.diag(np.cov(turned.T)) == pytest.approx(np.ones(8), abs=0.15)
    assert turned.mean(0) == pytest.approx(np.zeros(8), abs=0.1)


def test_axes_are_not_refined_by_chance() -> None:
    """A few draws of the Gaussian that the axes are of: hardly any of what they seem to show is taken over."""
    rng = np.random.default_rng(5)
    layout = lay_out({"a": np.arange(1), "b": np.arange(1, 301)}, {"b": np.arange(300)})
    axes, _ = axes_from(layout, seeds_of(layout, 301) @ np.eye(301))
    q = rng.standard_normal((4, 25, 301))
    middle, refined = refine(axes, q)
    assert np.sqrt(np.mean(middle[1:] ** 2)) < 0.5 * np.sqrt(np.mean(q.mean((0, 1))[1:] ** 2))
    assert np.std(np.log(refined.own_factor)) < 0.5 * np.std(0.5 * np.log(q.reshape(-1, 301).var(0))[1:])
