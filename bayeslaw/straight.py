r"""Coordinates in which the posterior is straighter and shorter-tailed, so that one metric fits all of it.

Runs inform how far the dense error falls over the dataset sizes and parameter counts that they have, and what it is in
their middle; an exponent itself goes together with the share of the error that it acts on. In the places of alpha and
of the central dense error e~ are sampled

$$\log s + \log \frac{\sinh \alpha h}{h}, \qquad
\log\tilde e + \tfrac12 \log\left(1 + 2 s (1 - s) (\cosh \alpha h - 1)\right)$$

with s the share of the error that data remove and h the standard deviation of log dataset size: of two sizes these are
the fall from one to the other, to first order in s, and the middle of their logs. Likewise beta, with the share that
parameters remove and the spread of log parameter count. Runs inform as well how log error curves in the covariates, and
less whether its power laws do that or the quadratic beside them: sampled are the coefficients of both together,

$$q_{nn} + \frac{1}{2 h^2} \log\left(1 + 2 s (1 - s) (\cosh \alpha h - 1)\right)$$

for dataset size, with a term of the power laws like it for depth and width, and their second derivatives for pairs. The
two parts of the noise on flat stretches, the binomial one and sigma, of which one or the other may vanish, go together
too: in the places of floor f and sigma are sampled

$$\tfrac12 \log(f^2 B^2 + \sigma^2), \qquad \log\sigma - \log(f B)$$

with B a typical binomial standard deviation. Runs inform how steeply a curve rises at most, and less whether its slope
gamma makes that or its sharpness k, which alone is left of the two as gamma grows: with a rise of L from plateau to
plateau, in their places are sampled

$$\log \left( \gamma \tanh \frac{k L}{4 \gamma} \right), \qquad
a \log \left( \exp \frac{\log(1 + k / \gamma)}{a} - 1 \right)$$

the slope in the middle of the rise, and what goes to k / gamma where that is small, but for the least values (beyond
a = 0.1). Runs tell errors, which are the high plateau times e~ where that is small: e~ is sampled by that product. The
lucks of training subsets act on what data remove, and what those of one size have in common is in the law that is
sampled, here and above (`bayeslaw.common_luck`); their spread is sampled as that of what they do to the central error,
which is s times theirs where s is not small. The logits of bounded parameters have the tails of an exponential; sampled
is z with logit = z sqrt(1 + z^2 / 4), whose tails are a Gaussian's. Only the share of the constant c, which runs
show to be small if at all, is sampled by what goes to -log(1 - c) but for the least values (below 0.05).

Where exponents are to stay as they are, since families share them, shares are sampled by the falls that they make with
them instead: with S = s_n sinh(alpha h_n) / h_n + s_m sinh(beta h_m) / h_m the fall without a constant, in the places
of the logit of s_n the log ratio of its two terms, and in the place of that of the constant c what goes to
-log(S (1 - c)) where c is not small. And the knee p', which moves along with gamma, is sampled by the middle of the
rise, log p' + L / (2 gamma).

Latent effects are sampled as `bayeslaw.centring` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from bayeslaw.centring import choose_centring, standardise, unstandardise
from bayeslaw.common_luck import in_the_law, polynomial, turned
from bayeslaw.compiled import jit
from bayeslaw.falls import (
    from_falls,
    from_shares,
    hardened,
    has_shares,
    lift_dense,
    softened,
    to_falls,
    to_shares,
    with_curvature,
)
from bayeslaw.hierarchy import groups_of, luck_of_subsets
from bayeslaw.ridges import StraightContext, are_positive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.axes import Axes
    from bayeslaw.density import Context
    from bayeslaw.frame import Data
    from bayeslaw.laplace import Estimate


#: What lucks do to an error is sampled in units of its share that data remove, as far as that is not much smaller.
SOFTEST_SHARE = 0.1


def bend(context: StraightContext, straight: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Turn straight coordinates into plain unconstrained values.

    Returns:
        The values, and the log determinant.
    """
    values, log_determinant = dict(straight), jnp.asarray(0.0)
    for name in _bounded(context, straight):
        z = straight[name]
        values[name] = z * jnp.sqrt(1 + z**2 / 4)
        log_determinant += jnp.log1p(z**2 / 2) - 0.5 * jnp.log1p(z**2 / 4)
    found, change = (from_falls if context.ridges.shared is None else from_shares)(context, values)
    values, log_determinant = values | found, log_determinant + change
    values |= with_curvature(context, values, -1)
    values |= lift_dense(context, values, -1) | _middle_of_rise(context, values, -1)
    for part in (_turned_lucks, _with_luck):
        found, change = part(context, values, -1)
        values, log_determinant = values | found, log_determinant + change
    if _is_bent_freely(context):
        log_ratio, change = hardened(straight["sharpness"])
        log_determinant += change
        values["gamma"] = straight["gamma"] - _steepness(context, log_ratio)
        values["sharpness"] = values["gamma"] + log_ratio
    if are_positive(context, "floor", "sigma"):
        total, ratio = straight["floor"], straight["sigma"]
        values["floor"] = total + 0.5 * jax.nn.log_sigmoid(-2 * ratio) - context.ridges.log_binomial
        values["sigma"] = total + 0.5 * jax.nn.log_sigmoid(2 * ratio)
    effects, log_scale = unstandardise(context.ridges.centring, *_hierarchy(context, values))
    return values | effects, log_determinant + log_scale


@jit
def straighten(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn plain unconstrained values into straight coordinates."""
    effects = standardise(context.ridges.centring, *_hierarchy(context, values))
    values = {**values, **_with_luck(context, values, 1)[0]}
    straight = {**values, **(to_falls if context.ridges.shared is None else to_shares)(context, values)}
    straight |= _turned_lucks(context, values, 1)[0]
    straight |= with_curvature(context, {**values, "dense": straight["dense"]}, 1)
    straight |= lift_dense(context, {**values, "dense": straight["dense"]}, 1) | _middle_of_rise(context, values, 1)
    if _is_bent_freely(context):
        log_ratio = values["sharpness"] - values["gamma"]
        straight["sharpness"] = softened(log_ratio)
        straight["gamma"] = values["gamma"] + _steepness(context, log_ratio)
    if are_positive(context, "floor", "sigma"):
        floor, sigma = values["floor"] + context.ridges.log_binomial, values["sigma"]
        straight["floor"], straight["sigma"] = 0.5 * jnp.logaddexp(2 * floor, 2 * sigma), sigma - floor
    return _shorten(context, straight | effects)


@jit
def _bent(context: StraightContext, straight: Mapping[str, Any]) -> dict[str, Any]:
    return bend(context, straight)[0]


def bent_positions(context: StraightContext, where: Mapping[str, NDArray], positions: NDArray) -> NDArray:
    """Turn flat straight coordinates into flat plain values.

    Args:
        context: What the coordinates depend on.
        where: Where the entries of every value are in the flat position.
        positions: `[..., dimensions]`.

    Returns:
        Plain values, `[..., dimensions]`.
    """
    plain = np.array(positions)
    named = {name: positions[..., np.atleast_1d(index)] for name, index in where.items()}
    for name, values in _bent(context, named).items():
        plain[..., np.atleast_1d(where[name])] = values
    return plain


def recentre(
    context: StraightContext, where: Mapping[str, NDArray], mode: NDArray, axes: Axes
) -> tuple[StraightContext, dict[str, Any]]:
    """Choose how far effects are in units of their spreads, from how wide they are.

    Args:
        context: Coordinates in which effects are as they are.
        where: Where the entries of every value are in the flat position, which may hold other things too.
        mode: Where the posterior is, `[dimensions]`.
        axes: Coordinates about it in which it is round.

    Returns:
        The coordinates to sample in, and the same place in them.
    """
    values = _bent(context, {name: mode[index] for name, index in where.items()})
    centring = choose_centring(*_hierarchy(context, values), axes, where, len(mode))
    ridges = context.ridges._replace(centring=jax.tree.map(jnp.asarray, centring))
    if "luck_halfway" in where:
        spread = biject_to(context.plain.priors["spread_subset"].support)(mode[where["spread_subset"]])
        variance = _variances_of_shared(axes, where["luck_halfway"]) / np.asarray(spread)  # in units of the spread
        ridges = ridges._replace(lucks=ridges.lucks._replace(units=jnp.asarray(np.minimum(variance, 1.0))))
    chosen = context._replace(ridges=ridges)
    return chosen, straighten(chosen, values)


def _variances_of_shared(axes: Axes, positions: NDArray) -> NDArray:
    """Give the variances of shared entries at these positions."""
    places = np.searchsorted(np.asarray(axes.shared), positions)
    return (np.asarray(axes.shared_factor)[places] ** 2).sum(1)


def straight_spreads(
    context: StraightContext, values: Mapping[str, Any], spreads: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Turn plain unconstrained spreads into straight coordinates, where all values are these."""
    found = _shorten(context, spreads)
    if "spread_subset" in found:
        found["spread_subset"] += _acting(context, {**values, **_with_luck(context, values, 1)[0]})
    return found


def _shorten(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the tails of those values that are logits, inverting u = z sqrt(1 + z^2 / 4), and keep the others."""

    def shortened(value: Any) -> Any:
        return jnp.sign(value) * jnp.sqrt(2 * (jnp.sqrt(1 + value**2) - 1))

    return {**values, **{name: shortened(values[name]) for name in _bounded(context, values)}}


def _hierarchy(context: StraightContext, values: Mapping[str, Any]) -> tuple[Data, dict[str, Any], dict[str, Any]]:
    """Give the data, the parameters and the effects, by plain values."""
    priors, data = context.plain.priors, context.plain.data
    value = {name: biject_to(prior.support)(values[name]) for name, prior in priors.items() if name in values}
    if "luck_halfway" in values:
        value["luck_halfway"] = values["luck_halfway"]
    return data, value, {name: values[name] for name in groups_of(data) if name in values}


def _bounded(context: StraightContext, values: Mapping[str, Any]) -> list[str]:
    """Name the values that are logits, with tails like an exponential's."""
    priors = context.plain.priors
    softened = ("share_c",) if has_shares(context) else ()
    logits = [name for name in priors if isinstance(priors[name].support, constraints.interval)]
    return [name for name in logits if name in values and name not in softened]


def _with_luck(context: StraightContext, values: Mapping[str, Any], sign: int) -> tuple[dict[str, Any], Any]:
    """Put what lucks have in common into the law (`in_the_law`), or take it out (-1), with the determinant of that."""
    if "luck_halfway" not in values or not has_shares(context):
        return {}, 0.0
    spread = biject_to(context.plain.priors["spread_subset"].support)(values["spread_subset"])
    lucks = luck_of_subsets({"spread_subset": spread, "luck_halfway": values["luck_halfway"]}, context.plain.data)
    degree = 0 if context.ridges.shared is not None else 2 if "curvature_size" in values else 1
    level, slope, curve = polynomial(context.ridges.lucks, lucks, degree)
    shape = jnp.shape(values["dense"])
    return in_the_law(values, (level.reshape(shape), slope.reshape(shape), curve.reshape(shape)), sign)


def _turned_lucks(context: StraightContext, values: Mapping[str, Any], sign: int) -> tuple[dict[str, Any], Any]:
    """Turn lucks and their spread into what is sampled, or back (-1), with the log determinant of that.

    The spread is sampled as that of what lucks do to the central error.
    """
    if "luck_halfway" not in values:
        return {}, 0.0
    acting, own = _acting(context, values), values["spread_subset"]
    own = own if sign > 0 else own - acting
    log_spread = jnp.log(biject_to(context.plain.priors["spread_subset"].support)(own))
    halfway, change = turned(context.ridges.lucks, values["luck_halfway"], log_spread, log_spread + acting, sign)
    return {"luck_halfway": halfway, "spread_subset": own + acting if sign > 0 else own}, change


def _acting(context: StraightContext, values: Mapping[str, Any]) -> Any:
    """Give the log of the share of the central error that lucks act on, where that is not small.

    All values are plain, with what lucks have in common in the law.
    """
    if not has_shares(context) or not are_positive(context, "spread_subset"):
        return 0.0
    log_share = jax.nn.log_sigmoid(values["share_n"]) + jax.nn.log_sigmoid(-values["share_c"])
    return jnp.logaddexp(log_share, jnp.log(SOFTEST_SHARE))


def _steepness(context: StraightContext, log_ratio: Any) -> Any:
    """Give the logarithm of the slope in the middle of the rise, in units of gamma, by log(sharpness / gamma)."""
    return jnp.log(jnp.tanh(0.25 * context.ridges.rise * jnp.exp(log_ratio)))


def _middle_of_rise(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Shift the knee to the middle of the rise, or back (-1), where gamma is shared."""
    if context.ridges.shared is None or not are_positive(context, "gamma", "knee"):
        return {}
    return {"knee": values["knee"] + sign * 0.5 * context.ridges.rise * jnp.exp(-values["gamma"])}


def _is_bent_freely(context: StraightContext) -> bool:
    """Tell whether slope and sharpness are both free, and sampled together."""
    return context.ridges.shared is None and are_positive(context, "gamma", "sharpness")


@functools.cache
def straight_potential(
    potential: Callable[[Context, dict[str, Any]], jax.Array],
) -> Callable[[StraightContext, dict[str, Any]], jax.Array]:
    """Give a negative log density of straight coordinates from that of plain unconstrained values."""

    def straightened(context: StraightContext, straight: dict[str, Any]) -> jax.Array:
        values, log_determinant = bend(context, straight)
        return potential(context.plain, values) - log_determinant

    return straightened


@functools.cache
def straight_estimate(estimate: Estimate) -> Estimate:
    """Give estimates of the spreads from straight coordinates with effects as they are, and from variances in them."""

    def straightened(
        context: StraightContext, straight: dict[str, Any], variances: dict[str, Any]
    ) -> dict[str, jax.Array]:
        values = bend(context, straight)[0]
        return straight_spreads(context, values, estimate(context.plain, values, variances))

    return straightened
