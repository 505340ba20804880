"""Coordinates of the dense law: falls in the places of exponents, the middle of errors, curvature all in one.

What is sampled and why is said in `bayeslaw.straight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from bayeslaw.laws import CURVATURE
from bayeslaw.ridges import StraightContext, are_positive

#: What k / gamma is sampled by is soft at 0 over this range; so what the constant's share is sampled by.
SOFTEST, SOFTEST_CONSTANT = 0.1, 0.05


def _terms(context: StraightContext, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any, Any]]:
    """Give each exponent's share of the central dense error, whether what it is the exponent of varies, and its spread.

    Where it does not vary the spread is 1, and not to be used.
    """
    spreads = _spreads(context)
    if not spreads:
        return {}
    priors = context.plain.priors
    of_data, constant = (biject_to(priors[name].support)(values[name]) for name in ("share_n", "share_c"))
    shares = {"alpha": of_data * (1 - constant), "beta": (1 - of_data) * (1 - constant)}
    return {name: (shares[name], *spread) for name, spread in spreads.items()}


def _spreads(context: StraightContext) -> dict[str, tuple[Any, Any]]:
    """Give whether what an exponent of the dense law is of varies, and its spread, else 1; only where it has shares."""
    if not {"share_n", "share_c"} <= set(context.plain.priors) or not are_positive(context, "dense"):
        return {}
    spreads = {"alpha": context.ridges.spreads["dataset_size"], "beta": context.ridges.spreads["parameters"]}
    positive = {name: spread for name, spread in spreads.items() if are_positive(context, name)}
    return {name: (spread > 0, jnp.where(spread > 0, spread, 1.0)) for name, spread in positive.items()}


def has_shares(context: StraightContext) -> bool:
    """Tell whether the dense law has all of its terms, with exponents on the range that coordinates are made for."""
    return len(_spreads(context)) == 2


def from_falls(context: StraightContext, values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Turn falls into exponents, the middle of the dense error into its centre, and the constant into its share.

    Returns:
        These, and the log determinant.
    """
    found, log_determinant = {}, jnp.asarray(0.0)
    if has_shares(context):
        found["share_c"], log_determinant = hardened(values["share_c"], SOFTEST_CONSTANT)
    for name, (share, wide, spread) in _terms(context, {**values, **found}).items():
        x = jnp.arcsinh(jnp.exp(values[name] + jnp.log(spread) - jnp.log(share)))
        found[name] = jnp.where(wide, jnp.log(x) - jnp.log(spread), values[name])
        log_determinant += jnp.where(wide, jnp.log(jnp.tanh(x)) - jnp.log(x), 0.0)
    return found | _with_centre(context, {**values, **found}, -1), log_determinant


def to_falls(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn exponents into falls, the centre of the dense error into its middle, and soften the constant's share."""
    falls = {
        name: jnp.where(wide, jnp.log(share) + _log_fall(values[name], spread), values[name])
        for name, (share, wide, spread) in _terms(context, values).items()
    }
    if has_shares(context):
        falls["share_c"] = softened(values["share_c"], SOFTEST_CONSTANT)
    return falls | _with_centre(context, values, 1)


def from_shares(context: StraightContext, values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Turn the ratio and the sum of the falls into shares, given exponents, and the middle into the centre."""
    if not has_shares(context):
        return {}, 0.0
    by_data, by_parameters = falls = _unit_falls(context, values)
    shares = {"share_n": values["share_n"] - (by_data - by_parameters)}
    shares["share_c"], log_determinant = hardened(values["share_c"] + _mean_fall(context, shares["share_n"], falls))
    return shares | _with_centre(context, {**values, **shares}, -1), log_determinant


def to_shares(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn shares into the ratio and the sum of the falls, and the centre of the dense error into its middle."""
    if not has_shares(context):
        return {}
    by_data, by_parameters = falls = _unit_falls(context, values)
    shares = {"share_n": values["share_n"] + by_data - by_parameters}
    shares["share_c"] = softened(values["share_c"]) - _mean_fall(context, values["share_n"], falls)
    return shares | _with_centre(context, values, 1)


def _unit_falls(context: StraightContext, values: Mapping[str, Any]) -> list[Any]:
    """Give the logarithm of what the error of a unit share falls by, by data and by parameters."""
    spreads = _spreads(context).items()
    return [jnp.where(wide, _log_fall(values[name], spread), 0.0) for name, (wide, spread) in spreads]


def _mean_fall(context: StraightContext, share_n: Any, falls: Sequence[Any]) -> Any:
    """Give the logarithm of the mean fall of what data and parameters remove, by the plain value of the share."""
    of_data = biject_to(context.plain.priors["share_n"].support)(share_n)
    return jnp.logaddexp(jnp.log(of_data) + falls[0], jnp.log1p(-of_data) + falls[1])


def _with_centre(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Shift the centre of the dense error to the middle of its ends, or back (-1), by plain shares and exponents."""
    above = [
        jnp.where(wide, _above_centre(share, jnp.exp(values[name]) * spread), 0.0)
        for name, (share, wide, spread) in _terms(context, values).items()
    ]
    return {"dense": values["dense"] + sign * sum(above)} if above else {}


def with_curvature(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Add to the coefficients of the quadratic those that power laws make, and what it lifts to the dense error.

    Or take them away (-1): then the values are plain but for the coefficients and the dense error. Where exponents are
    other families', few runs leave the coefficients to their priors, which the sums would bend.
    """
    names = [name for name in CURVATURE if name in values]
    if not names or not has_shares(context) or context.ridges.shared is not None:
        return {}
    of_powers = _curvature_of_powers(context, values)
    found = {name: values[name] + sign * of_powers[name] for name in names}
    plain = values if sign > 0 else found
    lift = sum(context.ridges.products[name] * plain[name] for name in names)
    return found | {"dense": values["dense"] + sign * lift}


def _curvature_of_powers(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the coefficients of the quadratic that is like the power laws, by plain shares and exponents."""
    terms, spreads, slopes = _terms(context, values), context.ridges.spreads, context.ridges.count_slopes
    of_data, of_count = terms["alpha"][0], terms["beta"][0]
    beta, omega = jnp.exp(values["beta"]), values.get("omega", 0.0)
    rate = {
        "dataset_size": jnp.exp(values["alpha"]),
        "depth": beta * (slopes["depth"] + omega),
        "width": beta * slopes["width"],
    }
    found = {}
    for name, (one, two) in CURVATURE.items():
        wide = (spreads[one] > 0) & (spreads[two] > 0)
        if one == two:
            spread = jnp.where(wide, spreads[one], 1.0)
            share = of_data if one == "dataset_size" else of_count
            like = _above_centre(share, rate[one] * spread) / spread**2
        else:
            like = (-of_data if two == "dataset_size" else 1 - of_count) * of_count * rate[one] * rate[two]
        found[name] = jnp.where(wide, like, 0.0)
    return found


def lift_dense(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Add the logarithm of the high plateau to that of the central dense error, or take it away (-1)."""
    if not are_positive(context, "dense"):
        return {}
    plateau = biject_to(context.plain.priors["plateau"].support)(values["plateau"])
    return {"dense": values["dense"] + sign * jnp.log(plateau)}


def _log_fall(log_exponent: Any, spread: Any) -> Any:
    """Give log(sinh(exponent spread) / spread)."""
    x = jnp.exp(log_exponent) * spread
    return x + jnp.log(-jnp.expm1(-2 * x)) - jnp.log(2.0) - jnp.log(spread)


def softened(u: Any, softest: float = SOFTEST) -> Any:
    """Give what goes to log(1 + e^u), but for the least values."""
    share = jax.nn.softplus(u) / softest
    return softest * (share + jnp.log(-jnp.expm1(-share)))


def hardened(soft: Any, softest: float = SOFTEST) -> tuple[Any, Any]:
    """Invert it; with the log determinant."""
    share = softest * jax.nn.softplus(soft / softest)
    u = share + jnp.log(-jnp.expm1(-share))
    return u, share - u + jax.nn.log_sigmoid(soft / softest)


def _above_centre(share: Any, x: Any) -> Any:
    """Give how far the middle of the log errors at both ends lies above the log error at the centre."""
    return 0.5 * jnp.log1p(2 * share * (1 - share) * (jnp.cosh(x) - 1))
