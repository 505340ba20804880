"""What lucks of training subsets have in common by size, which the law itself can stand for, told apart from the rest.

Runs inform how far subsets of one size lie apart, and of what they have in common only what the law makes of it. So
lucks are turned: directions that all subsets of a size share come first, and each is sampled as far in units of the
spread as it is that, and not the runs, which says how far it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from bayeslaw.frame import Data

#: Exponents are moved by lucks as far as they are not much smaller than this.
SOFTEST_EXPONENT = 0.05
#: Degree of the polynomials in log dataset size: the law has a level, an exponent and a coefficient of its square.
DEGREE = 2


class Lucks(NamedTuple):
    """Hold how lucks are sampled.

    Attributes:
        by_size: Polynomials in log dataset size through the lucks of the runs, of degree 0, 1 and 2 at most, as weights
            of the lucks of all subsets in their coefficients, `[degrees, coefficients, subsets]`.
        axes: Directions in which independent lucks are sampled, `[subsets, directions]`: first those that all subsets
            of a size have in common.
        units: For each of them, 1 where luck is sampled in units of its spread, 0 where it is sampled as it is.
    """

    by_size: Any
    axes: Any
    units: Any


def lucks_of(data: Data) -> Lucks:
    """Look which subsets are of one size; lucks are half-way in units of their spread."""
    root, subset = np.asarray(data.luck_root), np.asarray(data.subset)
    if not len(root):
        return Lucks(np.zeros((DEGREE + 1, DEGREE + 1, 0)), root, np.zeros(0))
    seen = np.eye(len(root))[subset]  # by runs
    size = np.asarray(data.covariates["dataset_size"])[np.asarray(data.configuration)]
    sizes, of_size = np.unique(size.round(9), return_inverse=True)
    by_size = np.zeros((DEGREE + 1, DEGREE + 1, len(root)))
    for degree in range(DEGREE + 1):
        powers = np.vander(size, min(degree, len(sizes) - 1) + 1, increasing=True)
        by_size[degree, : powers.shape[1]] = np.linalg.pinv(powers) @ seen
    means = np.eye(len(sizes))[of_size].T @ seen @ root
    axes = np.linalg.qr(np.concatenate([means, np.eye(len(root))]).T)[0]
    return Lucks(by_size, axes, np.full(len(root), 0.5))


def turned(lucks: Lucks, halfway: Any, log_spread: Any, log_effect: Any, sign: int) -> tuple[Any, Any]:
    """Turn lucks half-way to units of their spread into those sampled, or back (-1).

    Args:
        lucks: How they are sampled.
        halfway: Lucks, `[..., subsets]`.
        log_spread: Log of their spread.
        log_effect: That of what they do to the central error.
        sign: 1 or -1.

    Returns:
        The lucks, and the log determinant of turning them back.
    """
    left = 1 - lucks.units
    scale, axes = jnp.exp(sign * (left * log_effect - 0.5 * log_spread)), jnp.asarray(lucks.axes)
    found = (halfway @ axes) * scale if sign > 0 else (halfway * scale) @ axes.T
    return found, jnp.sum(0.5 * log_spread - left * log_effect)


def polynomial(lucks: Lucks, of_subsets: Any, degree: int) -> tuple[Any, Any, Any]:
    """Give level, slope and curve, `[...]`, of the polynomial of a degree through lucks `[..., subsets]`."""
    coefficients = of_subsets @ jnp.asarray(lucks.by_size)[degree].T
    return coefficients[..., 0], coefficients[..., 1], coefficients[..., 2]


def in_the_law(values: Mapping[str, Any], common: tuple[Any, Any, Any], sign: int) -> tuple[dict[str, Any], Any]:
    """Put what lucks have in common into the law, or take it out (-1).

    Of u_0 + u_1 x + u_2 x^2, with x log dataset size about its centre: what data remove is multiplied by exp(u_0), the
    exponent goes to alpha - u_1 where that is not small, and s u_2 is added to the coefficient of x^2, with s the share
    of the central error that data remove, u_0 included.

    Args:
        values: Plain unconstrained ones: logs of the central dense error and of alpha, logits of the shares, the
            coefficient where the law has it.
        common: u_0, u_1 and u_2.
        sign: 1 or -1.

    Returns:
        The values, and the log determinant of taking it out.
    """
    level, slope, curve = common
    ratio, constant, whole = (values[name] for name in ("share_n", "share_c", "dense"))
    removed = whole + jax.nn.log_sigmoid(-constant)
    log_a, log_b = removed + jax.nn.log_sigmoid(ratio), removed + jax.nn.log_sigmoid(-ratio)
    log_c, moved_a = whole + jax.nn.log_sigmoid(constant), log_a + sign * level
    moved = jnp.logaddexp(moved_a, log_b)
    found = {"share_n": moved_a - log_b, "share_c": log_c - moved, "dense": jnp.logaddexp(moved, log_c)}
    found["alpha"], log_determinant = _moved_exponent(values["alpha"], -sign * slope)
    if "curvature_size" in values:
        share = jnp.exp(log_a - whole) if sign < 0 else jnp.exp(moved_a - found["dense"])
        found["curvature_size"] = values["curvature_size"] + sign * share * curve
    return found, log_determinant


def _moved_exponent(log_exponent: Any, shift: Any) -> tuple[Any, Any]:
    """Move x - softest^2 / x, which goes to the exponent x; give the log, and the log determinant."""
    exponent = jnp.exp(log_exponent)
    moved = 0.5 * (exponent - SOFTEST_EXPONENT**2 / exponent + shift)
    found = jnp.log(SOFTEST_EXPONENT) + jnp.arcsinh(moved / SOFTEST_EXPONENT)
    return found, _log_slope(log_exponent) - _log_slope(found)


def _log_slope(log_exponent: Any) -> Any:
    return jnp.logaddexp(log_exponent, 2 * jnp.log(SOFTEST_EXPONENT) - log_exponent)
