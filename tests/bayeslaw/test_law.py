"""The law against its 50-digit complex form, and the properties that planning and sampling lean on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import law_oracle as oracle
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from bayeslaw.law import (
    Curve,
    Dense,
    log_dense,
    log_error,
    log_error_and_slope,
    log_m_at,
    log_m_star,
    log_slope,
    saturate,
)

error_of = jax.jit(log_error)
slope_of = jax.jit(log_slope)
inverse_of = jax.jit(log_m_at)
dense_of = jax.jit(log_dense)
saturated_of = jax.jit(saturate)
gradient_of = jax.jit(jax.grad(log_error, argnums=(0, 1)))
dense_gradient_of = jax.jit(jax.grad(lambda *arguments: saturate(log_dense(*arguments), -0.1)))
inverse_gradient_of = jax.jit(jax.grad(log_m_at, argnums=(0, 1)))

thorough = settings(deadline=None, derandomize=True, max_examples=200)
slow_oracle = settings(deadline=None, derandomize=True, max_examples=60)

#: One rounding of a float64.
ULP = float(np.finfo(np.float64).eps)


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    """Compute in float64 unless a test says otherwise."""
    with jax.enable_x64(True):
        yield


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Draw evenly in the logarithm, ends included."""
    return st.floats(np.log10(low), np.log10(high)).map(lambda x: float(np.clip(10.0**x, low, high)))


@st.composite
def curves(draw: st.DrawFn, smallest_gap: float = 1e-9) -> Curve:
    """Draw curves from flat (plateaus nearly equal) to e^10 high, with slopes from 0.02 to 5."""
    log_eps_up = draw(st.floats(-3.0, -1e-3))
    log_eps_np = log_eps_up - draw(powers(smallest_gap, 10.0))
    return Curve(log_eps_np, log_eps_up, draw(powers(0.02, 5.0)), draw(st.floats(-27.0, 3.0)))


log_densities = st.floats(float(np.log(1e-12)), 0.0)
log_invariants = st.floats(float(np.log(1e-12)), 12.0)
shares = st.one_of(st.floats(0.01, 0.99), powers(1e-6, 0.5), powers(1e-6, 0.5).map(lambda x: 1 - x))


@thorough
@given(curves(), log_invariants)
def test_error_is_the_modulus_of_the_complex_form(curve: Curve, log_m: float) -> None:
    expected = mp.log(oracle.error(*curve[:4], log_m))
    assert abs(mpf(float(error_of(curve, log_m))) - expected) <= 1e-12 * abs(expected)


@thorough
@given(curves(), st.floats(2, 110), powers(2**-4, 2**6), log_densities, st.floats(-1, 3), st.floats(-1, 3))
def test_joint_form_is_the_single_one_in_m_star(
    curve: Curve, depth: float, width: float, log_density: float, phi: float, psi: float
) -> None:
    log_depth, log_width = float(np.log(depth)), float(np.log(width))
    value = error_of(curve, log_m_star(log_depth, log_width, log_density, phi, psi))
    expected = mp.log(oracle.joint_error(*curve[:4], log_depth, log_width, log_density, phi, psi))
    assert abs(mpf(float(value)) - expected) <= 1e-12 * abs(expected)


@thorough
@given(curves(), log_invariants)
def test_error_lies_between_the_plateaus(curve: Curve, log_m: float) -> None:
    assert curve.log_eps_np <= float(error_of(curve, log_m)) <= curve.log_eps_up


@thorough
@given(curves(), st.lists(log_invariants, min_size=16, max_size=16))
def test_error_falls_as_m_grows(curve: Curve, log_m: list[float]) -> None:
    values = np.asarray(error_of(curve, np.sort(log_m)))
    # What two neighbours may be out of order by is the rounding of the result.
    assert np.all(np.diff(values) <= 4 * ULP * np.abs(values[:-1]))


@thorough
@given(curves())
def test_limits_are_the_plateaus(curve: Curve) -> None:
    log_a = curve.log_p + (curve.log_eps_up - curve.log_eps_np) / curve.gamma
    assert float(error_of(curve, curve.log_p - 40)) == curve.log_eps_up
    assert float(error_of(curve, log_a + 40)) == curve.log_eps_np
    assert float(error_of(curve, -jnp.inf)) == curve.log_eps_up
    assert float(error_of(curve, jnp.inf)) == curve.log_eps_np


@thorough
@given(curves(smallest_gap=0.1), st.floats(0.0, 1.0))
def test_between_the_knees_it_is_a_power_law_without_eps_np(curve: Curve, share: float) -> None:
    span = (curve.log_eps_up - curve.log_eps_np) / curve.gamma
    power_law = curve.log_eps_up - curve.gamma * share * span
    departure = 0.5 * curve.gamma * (np.exp(-2 * share * span) + np.exp(-2 * (1 - share) * span))
    assert abs(float(error_of(curve, curve.log_p + share * span)) - power_law) <= departure + 1e-12


@thorough
@given(curves(), log_invariants)
def test_slope_is_the_gradient_and_stays_in_its_interval(curve: Curve, log_m: float) -> None:
    slope = float(slope_of(curve, log_m))
    assert -curve.gamma <= slope <= 0
    assert slope == pytest.approx(float(gradient_of(curve, log_m)[1]), rel=0, abs=1e-14 * max(1, curve.gamma))


@slow_oracle
@given(curves(), log_invariants)
def test_slope_is_the_oracles(curve: Curve, log_m: float) -> None:
    difference = mpf(float(slope_of(curve, log_m))) - oracle.log_slope(*curve[:4], log_m)
    assert abs(difference) <= 1e-13 * max(1, curve.gamma)


@slow_oracle
@given(curves(), log_invariants)
def test_gradients_by_the_curve_are_the_oracles(curve: Curve, log_m: float) -> None:
    step = mpf(10) ** -15
    gradients = gradient_of(curve, log_m)[0]
    for position, gradient in enumerate(gradients[:4]):
        with mp.workdps(oracle.DIGITS):
            shifted = [
                mp.log(oracle.error(*[mpf(v) + sign * step * (i == position) for i, v in enumerate(curve[:4])], log_m))
                for sign in (1, -1)
            ]
            expected = (shifted[0] - shifted[1]) / (2 * step)
        assert abs(mpf(float(gradient)) - expected) <= 1e-12 * max(1, abs(expected), curve.gamma, 1 / curve.gamma)


@thorough
@given(curves(), st.one_of(log_invariants, st.floats(-2000, 2000)))
def test_gradients_are_finite(curve: Curve, log_m: float) -> None:
    assert np.isfinite([float(g) for g in jax.tree.leaves(gradient_of(curve, log_m))]).all()


def test_gradient_is_whole_where_the_plateaus_are_equally_near() -> None:
    curve = Curve(-2.0, 0.0, 1.0, 0.0)
    assert float(gradient_of(curve, 1.0)[1]) == pytest.approx(float(slope_of(curve, 1.0)), rel=1e-15)


@jax.jit
def both_and_derivatives(curve: Curve, log_m: float):
    """Compute values, derivatives and one second derivative of error and slope, apart or together."""

    def of(together: bool):
        def both(curve, log_m):
            if together:
                return jnp.stack(log_error_and_slope(curve, log_m))
            return jnp.stack([log_error(curve, log_m), log_slope(curve, log_m)])

        def gradient_of_slope(curve, log_m):
            return jax.grad(lambda *arguments: both(*arguments)[1], argnums=(0, 1))(curve, log_m)

        tangent = (jax.tree.map(jnp.ones_like, curve), 1.0)
        second = jax.jvp(gradient_of_slope, (curve, log_m), tangent)[1]
        return both(curve, log_m), jax.jacobian(both, argnums=(0, 1))(curve, log_m), second

    return of(False), of(True)


@thorough
@given(curves(1e-3), log_invariants, st.floats(0.8, 5.0))
def test_error_and_slope_together_are_those_apart_with_their_derivatives(
    curve: Curve, log_m: float, sharpness: float
) -> None:
    curve = Curve(*map(jnp.asarray, curve[:4]), jnp.asarray(sharpness))
    assume(curve.gamma > 0.05)
    apart, together = both_and_derivatives(curve, log_m)
    for slow, fast in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        # Departures are differences of numbers of size 1, over a slope of .05 in second derivatives.
        assert np.asarray(fast) == pytest.approx(np.asarray(slow), rel=1e-8, abs=1e-9)


@settings(slow_oracle, max_examples=40)
@given(curves(), shares)
def test_inverse_is_the_root(curve: Curve, share: float) -> None:
    log_target = curve.log_eps_np + share * (curve.log_eps_up - curve.log_eps_np)
    assume(curve.log_eps_np < log_target < curve.log_eps_up)
    expected = oracle.log_density_at(*curve[:4], log_target)
    assert abs(mpf(float(inverse_of(curve, log_target))) - expected) <= 1e-12 * max(1, abs(expected))


@thorough
@given(curves(), shares)
def test_error_of_the_inverse_is_the_target(curve: Curve, share: float) -> None:
    log_target = curve.log_eps_np + share * (curve.log_eps_up - curve.log_eps_np)
    log_m = inverse_of(curve, log_target)
    assert float(error_of(curve, log_m)) == pytest.approx(log_target, rel=0, abs=1e-13)


@slow_oracle
@given(curves(smallest_gap=1e-3), powers(0.5, 8.0), log_invariants)
def test_free_sharpness_is_the_oracles(curve: Curve, sharpness: float, log_m: float) -> None:
    """Error, slope and the gradient by the sharpness; 2 gives the complex form back."""
    step, sharp = mpf(10) ** -15, curve._replace(sharpness=sharpness)
    with mp.workdps(oracle.DIGITS):

        def log_error_at(log_m: mpf, sharpness: mpf) -> mpf:
            return mp.log(oracle.error_of_sharpness(*curve[:4], sharpness, log_m))

        expected = log_error_at(mpf(log_m), mpf(sharpness))
        slope = (log_error_at(log_m + step, mpf(sharpness)) - log_error_at(log_m - step, mpf(sharpness))) / (2 * step)
        by_sharpness = [log_error_at(mpf(log_m), sharpness + sign * step) for sign in (1, -1)]
        gradient = (by_sharpness[0] - by_sharpness[1]) / (2 * step)
        complex_form = mp.log(oracle.error(*curve[:4], log_m))
        assert abs(log_error_at(mpf(log_m), mpf(2)) - complex_form) < mpf(10) ** -40 * abs(complex_form)
    assert abs(mpf(float(error_of(sharp, log_m))) - expected) <= 1e-12 * abs(expected)
    assert abs(mpf(float(slope_of(sharp, log_m))) - slope) <= 1e-12 * max(1, curve.gamma)
    computed = float(gradient_of(sharp, log_m)[0].sharpness)
    assert abs(mpf(computed) - gradient) <= 1e-11 * max(1, curve.gamma, 1 / curve.gamma)


@thorough
@given(curves(smallest_gap=0.01), powers(0.5, 8.0), shares)
def test_inverse_with_free_sharpness_is_m(curve: Curve, sharpness: float, share: float) -> None:
    sharp = curve._replace(sharpness=sharpness)
    log_m = curve.log_p + share * (curve.log_eps_up - curve.log_eps_np) / curve.gamma
    slope = abs(float(slope_of(sharp, log_m)))
    back = float(inverse_of(sharp, error_of(sharp, log_m)))
    if slope > 1e-12:  # else the target is a plateau to the last digit
        assert abs(back - log_m) <= 1e-12 * max(1, abs(log_m)) + 1e-13 / slope


@thorough
@given(curves(smallest_gap=0.01), shares)
def test_inverse_of_the_error_is_m(curve: Curve, share: float) -> None:
    span = (curve.log_eps_up - curve.log_eps_np) / curve.gamma
    log_m = curve.log_p + share * span
    slope = abs(float(slope_of(curve, log_m)))
    back = float(inverse_of(curve, error_of(curve, log_m)))
    # The target is rounded, and the inverse divides that by the slope.
    assert abs(back - log_m) <= 1e-13 * max(1, abs(log_m)) + 1e-14 / slope


@thorough
@given(curves(), st.floats(0, 5))
def test_targets_off_the_curve_say_so(curve: Curve, beyond: float) -> None:
    assert float(inverse_of(curve, curve.log_eps_np - beyond)) == np.inf
    assert float(inverse_of(curve, curve.log_eps_up + beyond)) == -np.inf
    for target in (curve.log_eps_np - beyond, curve.log_eps_up + beyond):
        gradients = jax.tree.leaves(inverse_gradient_of(curve, target))
        assert [float(g) for g in gradients] == [0.0] * 6


@thorough
@given(curves(), shares)
def test_gradients_of_the_inverse_are_those_of_an_inverse(curve: Curve, share: float) -> None:
    log_target = curve.log_eps_np + share * (curve.log_eps_up - curve.log_eps_np)
    assume(curve.log_eps_np < log_target < curve.log_eps_up)
    by_curve, by_target = inverse_gradient_of(curve, log_target)
    assert np.isfinite([float(g) for g in (*by_curve, by_target)]).all()
    assert float(by_curve.log_p) == 1
    if share * (1 - share) >= 1e-4 and curve.log_eps_up - curve.log_eps_np > 1e-3:
        slope = float(slope_of(curve, inverse_of(curve, log_target)))
        assert float(by_target) * slope == pytest.approx(1, rel=1e-7)


def test_float32_is_finite_and_right_at_a_slope_of_a_twentieth() -> None:
    log_m = np.linspace(np.log(1e-12), 0, 57)
    gradients_of = jax.vmap(gradient_of, (None, 0))
    for values in itertools.product((-6.0, -3.0, -0.5), (-0.1,), (0.05,), (-9.0, -4.0, -1.0)):
        wide = np.asarray(error_of(Curve(*values), log_m))
        with jax.enable_x64(False):
            curve = Curve(*(jnp.float32(v) for v in values))
            narrow = error_of(curve, jnp.asarray(log_m, jnp.float32))
            gradients = jax.tree.leaves(gradients_of(curve, jnp.asarray(log_m, jnp.float32)))
        assert narrow.dtype == jnp.float32
        assert np.isfinite(narrow).all()
        assert all(np.isfinite(g).all() for g in gradients)
        np.testing.assert_allclose(np.asarray(narrow), wide, rtol=2e-6)


def test_float32_inverse_is_finite_with_finite_gradients() -> None:
    with jax.enable_x64(False):
        curve = Curve(*(jnp.float32(v) for v in (-3.0, -0.1, 0.05, -4.0)))
        targets = jnp.asarray(np.linspace(-4, 0, 81), jnp.float32)
        values = np.asarray(inverse_of(curve, targets))
        gradients = jax.tree.leaves(jax.vmap(inverse_gradient_of, (None, 0))(curve, targets))
    inside = (np.asarray(targets) > np.float32(-3.0)) & (np.asarray(targets) < np.float32(-0.1))
    assert np.isfinite(values[inside]).all()
    assert np.isinf(values[~inside]).all()
    assert all(np.isfinite(g).all() for g in gradients)


def test_arguments_broadcast() -> None:
    curve = Curve(np.full((3, 1), -2.0), -0.1, np.ones(4), np.zeros((2, 1, 1)))
    assert error_of(curve, 0.5).shape == slope_of(curve, 0.5).shape == inverse_of(curve, -1.0).shape == (2, 3, 4)
    assert error_of(curve, 0.5).dtype == jnp.float64


# The dense law

exponents = st.floats(0.0, 3.0)
coefficients = st.floats(-15.0, 5.0)
log_sizes = st.floats(-12.0, 12.0)
denses = st.builds(Dense, coefficients, exponents, coefficients, exponents, coefficients)


@thorough
@given(denses, log_sizes, log_sizes, st.floats(-3.0, -1e-3))
def test_dense_law_is_the_papers(dense: Dense, log_parameters: float, log_size: float, log_eps_up: float) -> None:
    expected = oracle.dense_error(*dense, log_parameters, log_size)
    value = float(dense_of(dense, log_parameters, log_size))
    assert abs(mpf(value) - mp.log(expected)) <= 1e-12 * max(1, abs(mp.log(expected)))
    bent = mp.log(oracle.saturated(expected, log_eps_up))
    assert abs(mpf(float(saturated_of(value, log_eps_up))) - bent) <= 1e-12 * abs(bent)


@thorough
@given(st.floats(-2000, 2000), st.floats(-3.0, 0.0, allow_subnormal=False))
def test_dense_law_stays_below_the_high_plateau(log_dense_error: float, log_eps_up: float) -> None:
    log_eps_np = float(saturated_of(log_dense_error, log_eps_up))
    assert log_eps_np <= log_eps_up
    if log_dense_error <= 15:  # Beyond, the difference e^-2x / 2 is lost in rounding.
        assert log_eps_np < log_eps_up


@thorough
@given(denses, log_sizes, log_sizes, st.floats(0.0, 5.0))
def test_dense_law_falls_with_parameters_and_data(
    dense: Dense, log_parameters: float, log_size: float, more: float
) -> None:
    here = float(dense_of(dense, log_parameters, log_size))
    rounding = 1e-14 * max(1, abs(here))
    assert float(dense_of(dense, log_parameters + more, log_size)) <= here + rounding
    assert float(dense_of(dense, log_parameters, log_size + more)) <= here + rounding
    assert here >= max(dense.log_c, -1e9) - rounding


@thorough
@given(denses, log_sizes, log_sizes, st.booleans())
def test_dense_gradients_are_finite_even_without_a_floor(
    dense: Dense, log_parameters: float, log_size: float, has_floor: bool
) -> None:
    dense = dense if has_floor else dense._replace(log_c=-np.inf)
    gradients = dense_gradient_of(dense, log_parameters, log_size)
    assert np.isfinite([float(g) for g in gradients]).all()
