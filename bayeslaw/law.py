r"""The law of pruned error and the dense law above it, in logs, as pure JAX functions.

All functions take and return natural logarithms, broadcast over any shapes and compute in the precision they are
given; the package calls them in float64 (`bayeslaw.precision`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

#: Exponents of e beyond this are cut off; a curve that has them departs from no plateau.
_LARGEST = 700.0
_LARGEST_OF_FLOAT32 = 80.0


class Curve(NamedTuple):
    """Hold what fixes one error curve, all of one broadcastable shape.

    Attributes:
        log_eps_np: Logarithm of the low plateau, the error of the unpruned network.
        log_eps_up: Logarithm of the high plateau, above `log_eps_np`.
        gamma: Slope of the power-law region, positive.
        log_p: Logarithm of where the curve meets the high plateau, in units of the `log_m` it is used with.
        sharpness: How sharply the curve bends at both knees, positive; 2 in the paper.
    """

    log_eps_np: ArrayLike
    log_eps_up: ArrayLike
    gamma: ArrayLike
    log_p: ArrayLike
    sharpness: ArrayLike = 2.0


def log_m_star(log_depth: ArrayLike, log_width: ArrayLike, log_density: ArrayLike, phi: ArrayLike, psi: ArrayLike):
    """Compute log m* = phi log l + psi log w + log d, the invariant of depth, width and density.

    Args:
        log_depth: Logarithm of the number of weight layers.
        log_width: Logarithm of the width, in whatever unit `p_prime` is wanted in.
        log_density: Logarithm of the fraction of prunable weights kept.
        phi: Exponent of depth.
        psi: Exponent of width.

    Returns:
        Logarithm of the invariant, broadcast.

    Source:
        Rosenfeld et al., ICML 2021, section 4, equation (2).
    """
    return phi * log_depth + psi * log_width + log_density


def log_error(curve: Curve, log_m: ArrayLike) -> Array:
    r"""Compute the log error of a pruned network.

    $$\epsilon = \epsilon_{np} \left[ \frac{m^2 + p^2 (\epsilon_{up}/\epsilon_{np})^{2/\gamma}}{m^2 + p^2}
    \right]^{\gamma/2}$$

    With log m = log density it is the law of a single network, with log m* and log p' the joint law. Rises
    monotonically from `log_eps_np` to `log_eps_up` as m falls. A sharpness k other than 2 stands for every 2 in it.

    Args:
        curve: Plateaus, slope and knee.
        log_m: Logarithm of density, or of the invariant m*.

    Returns:
        Logarithm of the error, broadcast.

    Source:
        Rosenfeld et al., ICML 2021, equations (1) and (2); the modulus of the complex form, derived as
        |d - jA| / |d - jp| = sqrt(d^2 + A^2) / sqrt(d^2 + p^2) with A = p (eps_up / eps_np)^(1/gamma). Free sharpness:
        Caballero et al., arXiv 2210.14891, of whose two-break law it is the case of one sharpness.

    Example:
        >>> curve = Curve(jnp.log(0.1), jnp.log(0.9), 1.0, jnp.log(0.01))
        >>> [round(float(jnp.exp(log_error(curve, jnp.log(d)))), 3) for d in (1.0, 0.03, 1e-6)]
        [0.1, 0.3, 0.9]
    """
    log_eps_np, log_eps_up, gamma, _, sharpness = map(jnp.asarray, curve)
    near_up, inner, outer = _to_nearer_plateau(curve, log_m)
    departure = gamma / sharpness * (jax.nn.softplus(inner) - jax.nn.softplus(outer))
    return jnp.where(near_up, log_eps_up - departure, log_eps_np + departure)


def _to_nearer_plateau(curve: Curve, log_m: ArrayLike) -> tuple[Array, Array, Array]:
    """Measure m from the knee of the nearer plateau.

    Mirrored about the middle of the power law, x -> u - x with x = log(m / p) and u = log(A / p), the curve departs
    from the low plateau exactly as it does from the high one. Counting from the nearer keeps rounding from carrying
    the error past either.

    Returns:
        Whether the high plateau is nearer, and the logarithmic distances beyond its own and the other knee, times the
        sharpness.
    """
    log_eps_np, log_eps_up, gamma, log_p, sharpness = map(jnp.asarray, curve)
    span = (log_eps_up - log_eps_np) / gamma
    from_up = log_m - log_p
    near_up = jnp.less(from_up, span - from_up)
    # Not jnp.minimum, which halves the gradient where the two are equal.
    nearer = jnp.where(near_up, from_up, span - from_up)
    return near_up, sharpness * nearer, sharpness * (nearer - span)


def log_slope(curve: Curve, log_m: ArrayLike) -> Array:
    r"""Compute the local slope d log error / d log m, between -gamma and 0.

    Args:
        curve: Plateaus, slope and knee.
        log_m: Logarithm of density, or of the invariant m*.

    Returns:
        The slope, broadcast.

    Source:
        Derivative of `log_error`: gamma (m^2 / (m^2 + A^2) - m^2 / (m^2 + p^2)).
    """
    _, inner, outer = _to_nearer_plateau(curve, log_m)
    return jnp.asarray(curve.gamma) * (jax.nn.sigmoid(outer) - jax.nn.sigmoid(inner))


@jax.custom_vjp
def log_error_and_slope(curve: Curve, log_m: Array) -> tuple[Array, Array]:
    """Compute `log_error` and `log_slope` together, for likelihoods: the same numbers at a fraction of the cost.

    Exponentials and quotients are shared, by both and by their derivatives, which are written out. Computes in the
    precision of `log_m`, but sums derivatives in that of the curve. Departures from a plateau are good to rounding of
    the error itself, not of the departure.

    Args:
        curve: Plateaus, slope and knee; numbers, or arrays of the last axis of `log_m`.
        log_m: Logarithm of density, or of the invariant m*.

    Returns:
        Logarithm of the error, and d log error / d log m, shaped as `log_m`.
    """
    return _error_and_slope(curve, log_m)[:2]


def _error_and_slope(curve: Curve, log_m: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    log_eps_np, log_eps_up, gamma, log_p, sharpness = (jnp.asarray(part).astype(log_m.dtype) for part in curve)
    near_up, inner, outer = _to_nearer_plateau(Curve(log_eps_np, log_eps_up, gamma, log_p, sharpness), log_m)
    inner = jnp.minimum(inner, _LARGEST if log_m.dtype == jnp.float64 else _LARGEST_OF_FLOAT32)
    up, down = jnp.exp(inner), jnp.exp(outer)
    outside_up, outside_down = 1 / (1 + up), 1 / (1 + down)
    departure = gamma / sharpness * jnp.log((1 + up) * outside_down)
    beyond_up, beyond_down = 1 - outside_up, down * outside_down
    value = jnp.where(near_up, log_eps_up - departure, log_eps_np + departure)
    parts = (near_up, inner, outer, departure, beyond_up, beyond_down, outside_up, outside_down)
    return value, -gamma * (beyond_up - beyond_down), parts


def _error_and_slope_forward(curve: Curve, log_m: Array) -> Any:
    value, slope, parts = _error_and_slope(curve, log_m)
    return (value, slope), (curve, slope, parts)


def _error_and_slope_backward(kept: Any, weights: tuple[Array, Array]) -> tuple[Curve, Array]:
    curve, slope, parts = kept
    near_up, inner, outer, departure, beyond_up, beyond_down, outside_up, outside_down = parts
    of_value, of_slope = weights
    gamma, sharpness = (jnp.asarray(part).astype(slope.dtype) for part in (curve.gamma, curve.sharpness))
    sign, steep = jnp.where(near_up, 1, -1).astype(slope.dtype), gamma * sharpness
    change_up, change_down = beyond_up * outside_up, beyond_down * outside_down
    along_m = of_value * slope - of_slope * sign * steep * (change_up - change_down)
    along_span = -of_value * sign * gamma * jnp.where(near_up, beyond_down, beyond_up)
    along_span = along_span - of_slope * steep * jnp.where(near_up, change_down, change_up)
    by_gamma = (of_slope * slope - of_value * sign * departure) / gamma
    by_sharpness = of_value * sign * (departure - gamma / sharpness * (inner * beyond_up - outer * beyond_down))
    by_sharpness = by_sharpness / sharpness - of_slope * gamma / sharpness * (inner * change_up - outer * change_down)
    # The span is (log eps_up - log eps_np) / gamma.
    whole = [jnp.asarray(part) for part in curve]
    log_eps_np, log_eps_up, slope_at_most = whole[:3]
    lines = jnp.broadcast_shapes(*(part.shape for part in whole), slope.shape[1:])
    of_span, near, every = (_along_lines(v, lines) for v in (along_span, jnp.where(near_up, of_value, 0.0), of_value))
    by_span = of_span / slope_at_most
    span = (log_eps_up - log_eps_np) / slope_at_most
    derivatives = Curve(
        every - near - by_span,
        near + by_span,
        _along_lines(by_gamma, lines) - by_span * span,
        -_along_lines(along_m, lines),
        _along_lines(by_sharpness, lines),
    )
    totals = (
        _total(jnp.asarray(own), part.shape).astype(part.dtype) for own, part in zip(derivatives, whole, strict=True)
    )
    return Curve(*totals), along_m


log_error_and_slope.defvjp(_error_and_slope_forward, _error_and_slope_backward)


def _along_lines(values: Array, lines: Any) -> Array:
    """Sum `[length, *lines]` over its first axis, by a product, which runs in parallel; in float64."""
    if values.ndim == len(lines):
        return values.astype(jnp.float64)
    return (jnp.ones(len(values), values.dtype) @ values).astype(jnp.float64)


def _total(values: Array, shape: Any) -> Array:
    """Sum to a shape that broadcasts to that of the values: all of it, or nothing."""
    return values if values.shape == shape else (jnp.ones(values.size) @ values.ravel()).reshape(shape)


def log_m_at(curve: Curve, log_target: ArrayLike) -> Array:
    r"""Invert the law: the log m at which the error is the target.

    $$m(\epsilon_k) = p \sqrt{\frac{\epsilon_{up}^{2/\gamma} - \epsilon_k^{2/\gamma}}
    {\epsilon_k^{2/\gamma} - \epsilon_{np}^{2/\gamma}}}$$

    Args:
        curve: Plateaus, slope and knee.
        log_target: Logarithm of the wanted error.

    Returns:
        The log m, broadcast; `inf` where the target is at or below the low plateau (no density reaches it), `-inf`
        where it is at or above the high plateau (every density does).

    Source:
        Rosenfeld et al., ICML 2021, section 6; solved from `log_error`.
    """
    log_eps_np, log_eps_up, gamma, log_p, k = map(jnp.asarray, curve)
    above = (log_eps_up - log_target) / gamma
    below = (log_target - log_eps_np) / gamma
    inside = (above > 0) & (below > 0)
    up, down = jnp.where(inside, above, 1.0), jnp.where(inside, below, 1.0)
    # log(e^{ku} - 1) written as ku + log(1 - e^{-ku}); the factor eps_k^{k/gamma} cancels.
    log_ratio = k * up + jnp.log(jnp.expm1(-k * up) / jnp.expm1(-k * down))
    solved = log_p + log_ratio / k
    return jnp.where(inside, solved, jnp.where(below <= 0, jnp.inf, -jnp.inf))


class Dense(NamedTuple):
    """Hold the constants of the dense law, all of one broadcastable shape.

    Attributes:
        log_a: Logarithm of the dataset-size term at the reference size.
        alpha: Exponent of dataset size.
        log_b: Logarithm of the parameter-count term at the reference count.
        beta: Exponent of parameter count.
        log_c: Logarithm of what neither data nor parameters remove.
    """

    log_a: ArrayLike
    alpha: ArrayLike
    log_b: ArrayLike
    beta: ArrayLike
    log_c: ArrayLike


def log_dense(dense: Dense, log_parameters: ArrayLike, log_dataset_size: ArrayLike) -> Array:
    r"""Compute log e~ of the dense law, e~ = a n^-alpha + b m^-beta + c.

    Args:
        dense: The constants.
        log_parameters: Logarithm of the parameter count (or of another measure of capacity), relative to its reference.
        log_dataset_size: Logarithm of the dataset size, relative to its reference.

    Returns:
        Logarithm of e~, broadcast.

    Source:
        Rosenfeld et al., ICLR 2020 (arXiv 1909.12673), equation (4).
    """
    log_a, alpha, log_b, beta, log_c = map(jnp.asarray, dense)
    terms = jnp.logaddexp(log_a - alpha * log_dataset_size, log_b - beta * log_parameters)
    return jnp.logaddexp(terms, log_c)


def saturate(log_dense_error: ArrayLike, log_eps_up: ArrayLike) -> Array:
    r"""Bend e~ towards the high plateau: eps_np = eps_up e~ / sqrt(e~^2 + 1), below eps_up whatever e~ is.

    Args:
        log_dense_error: Logarithm of e~, with discrepancies added to it.
        log_eps_up: Logarithm of the high plateau, which plays the part of the random-guess error.

    Returns:
        Logarithm of eps_np, broadcast.

    Source:
        Rosenfeld et al., ICLR 2020, equation (5), with eta = 1.
    """
    return jnp.asarray(log_eps_up) - 0.5 * jax.nn.softplus(-2 * jnp.asarray(log_dense_error))
