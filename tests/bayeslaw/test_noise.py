"""The noise's written-out derivatives against those of NumPyro's Student t."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslaw.noise import LogitNoise, location_and_scale


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def slow(log_mean, slope, noise, response, n_test):
    location, scale = location_and_scale(log_mean, slope, n_test, noise)
    return dist.StudentT(noise["nu"], location, scale).log_prob(response)


def fast(log_mean, slope, noise, response, n_test):
    return LogitNoise(log_mean, slope, n_test, noise).log_prob(response)


def derivatives(function):
    gradient = jax.grad(function, argnums=(0, 1, 2))

    def every(log_mean, slope, noise, response, n_test):
        inputs = (log_mean, slope, noise)
        tangent = jax.tree.map(jnp.ones_like, inputs)
        second = jax.jvp(lambda *inputs: gradient(*inputs, response, n_test), inputs, tangent)[1]
        return function(*inputs, response, n_test), gradient(*inputs, response, n_test), second

    return jax.jit(every)


EVERY = derivatives(slow), derivatives(fast)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.floats(np.log(1e-3), np.log(0.98)),
    st.floats(-5, 0),
    st.floats(-8, 8),
    st.sampled_from([np.inf, 100.0, 797.0, 10_000.0]),
    st.fixed_dictionaries(
        {
            "floor": st.floats(0.3, 3),
            "sigma": st.floats(0.01, 1),
            "kappa": st.floats(0.01, 1),
            "noise_power": st.floats(0.0, 2.0),
            "nu": st.floats(1.0, 60.0),
        }
    ),
)
def test_log_density_and_its_derivatives_are_those_of_students_t(
    log_mean: float, slope: float, response: float, n_test: float, noise: dict[str, float]
) -> None:
    noise_of = {name: jnp.asarray(value) for name, value in noise.items()}
    expected, computed = (every(log_mean, slope, noise_of, response, n_test) for every in EVERY)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(computed), strict=True):
        assert float(other) == pytest.approx(float(one), rel=1e-8, abs=1e-8)


def test_parts_that_are_absent_are_nought() -> None:
    log_mean, slope, response = jnp.log(jnp.array([0.01, 0.3])), jnp.array([-0.1, -2.0]), jnp.array([-4.0, -1.0])
    noise = {"sigma": 0.1, "nu": 4.0}
    for n_test in (np.inf, 500.0):
        computed = fast(log_mean, slope, noise, response, n_test)
        expected = slow(log_mean, slope, noise, response, n_test)
        assert computed == pytest.approx(np.asarray(expected), rel=1e-12)


def test_the_jitter_grows_with_a_power_of_the_error_and_is_kappa_where_it_is_a_half() -> None:
    noise, error = {"sigma": 0.0, "kappa": 0.2}, np.array([0.1, 0.5, 0.8])
    plain, grown = (
        np.asarray(location_and_scale(jnp.log(error), -1.5, np.inf, noise | power)[1])
        for power in ({}, {"noise_power": 0.7})
    )
    assert plain == pytest.approx(0.2 * 1.5 / (1 - error))
    assert grown / plain == pytest.approx((error / 0.5) ** 0.7)


def test_draws_have_the_location_and_scale() -> None:
    noise = {"sigma": 0.1, "kappa": 0.2, "floor": 1.0, "nu": 50.0}
    measured = LogitNoise(jnp.log(0.1), jnp.asarray(-1.0), 1000.0, noise)
    location, scale = location_and_scale(jnp.log(0.1), -1.0, 1000.0, noise)
    drawn = np.asarray(measured.sample(jax.random.PRNGKey(0), (20_000,)))
    assert abs(drawn.mean() - float(location)) < 5 * float(scale) / np.sqrt(20_000)
    # Its variance is nu / (nu - 2) that of the scale; its own standard error is about a percent of it.
    assert drawn.var() == pytest.approx(float(scale) ** 2 * 50 / 48, rel=0.05)


def test_noise_is_correlated_along_the_rows() -> None:
    rng, rho = np.random.default_rng(0), 0.6
    log_mean, slope, n_test = np.log(rng.uniform(0.05, 0.5, 12)), -rng.uniform(0, 2, 12), 500.0
    response, gap = rng.standard_normal(12), np.array([np.inf, 1, 1, 2.5, 1, np.inf, 1, 3, 1, 1, 1, 1])
    noise = {"sigma": 0.2, "kappa": 0.1, "noise_power": 0.6, "floor": 0.8, "nu": 5.0}
    location, scale = (np.asarray(part) for part in location_and_scale(log_mean, slope, n_test, noise))
    residual, expected = (response - location) / scale, []
    for row in range(12):
        share = 0.0 if np.isinf(gap[row]) else rho ** gap[row]
        centre, rest = share * residual[row - 1], np.sqrt(1 - share**2)
        expected.append(scipy.stats.t.logpdf(residual[row], 5.0, centre, rest) - np.log(scale[row]))
    computed = LogitNoise(jnp.asarray(log_mean), jnp.asarray(slope), n_test, noise | {"rho": rho}, gap).log_prob(
        response
    )
    assert np.asarray(computed) == pytest.approx(np.array(expected), rel=1e-10)
    plain = LogitNoise(jnp.asarray(log_mean), jnp.asarray(slope), n_test, noise, gap).log_prob(response)
    assert np.asarray(plain)[[0, 5]] == pytest.approx(np.array(expected)[[0, 5]], rel=1e-10)


def test_draws_are_correlated_as_the_density_says() -> None:
    noise, gap = {"sigma": 0.3, "nu": 30.0, "rho": 0.5}, np.array([np.inf, 1.0, 2.0, np.inf])
    measured = LogitNoise(jnp.full(4, jnp.log(0.2)), jnp.zeros(4), np.inf, noise, gap)
    drawn = np.corrcoef(np.asarray(measured.sample(jax.random.PRNGKey(1), (40_000,))).T)
    # Standard error of a correlation from 40,000 draws: below .005.
    expected = [0.5, 0.25, 0.125, 0.0, 0.0, 0.0]
    found = [drawn[0, 1], drawn[1, 2], drawn[0, 2], drawn[0, 3], drawn[1, 3], drawn[2, 3]]
    assert found == pytest.approx(expected, abs=0.025)


def test_normal_noise_is_normal() -> None:
    noise = {"sigma": 0.1, "kappa": 0.2, "floor": 1.0}
    log_mean, slope, response = jnp.log(jnp.array([0.05, 0.4])), jnp.array([-0.2, -1.0]), jnp.array([-2.5, 0.1])
    location, scale = location_and_scale(log_mean, slope, 900.0, noise)
    computed = LogitNoise(log_mean, slope, 900.0, noise).log_prob(response)
    assert np.asarray(computed) == pytest.approx(scipy.stats.norm.logpdf(response, location, scale), rel=1e-10)
