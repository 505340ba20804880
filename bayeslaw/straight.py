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
lucks of training subsets multiply what data remove, and of what they have in common runs inform only that product: e~
and the shares of its terms, here and above, are those after the mean luck of the runs. The logits of bounded parameters
have the tails of an exponential; sampled is z with logit = z sqrt(1 + z^2 / 4), whose tails are a Gaussian's. Only the
share of the constant c, which runs show to be small if at all, is sampled by what goes to -log(1 - c) but for the least
values (below 0.05).

Where exponents are to stay as they are, since families share them, shares are sampled by the falls that they make with
them instead: with S = s_n sinh(alpha h_n) / h_n + s_m sinh(beta h_m) / h_m the fall without a constant, in the places
of the logit of s_n the log ratio of its two terms, and in the place of that of the constant c what goes to
-log(S (1 - c)) where c is not small. And the knee p', which moves along with gamma, is sampled by the middle of the
rise, log p' + L / (2 gamma).

Latent effects are sampled as `bayeslaw.centring` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from bayeslaw.centring import Centring, centred, choose_centring, standardise, unstandardise
from bayeslaw.compiled import jit
from bayeslaw.density import Context
from bayeslaw.hierarchy import groups_of, luck_of_subsets
from bayeslaw.laws import CURVATURE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.axes import Axes
    from bayeslaw.frame import Data
    from bayeslaw.laplace import Estimate


#: Covariates that spread less than this do not vary.
LEAST = 1e-6
#: What k / gamma is sampled by is soft at 0 over this range; so what the constant's share is sampled by.
SOFTEST, SOFTEST_CONSTANT = 0.1, 0.05
#: Runs that rise by less, in logs, do not show how far theirs would.
LEAST_RISE = 0.7


class Ridges(NamedTuple):
    """Hold what the coordinates depend on besides the priors' ranges.

    Attributes:
        spreads: Standard deviations of the covariates over the configurations, by name; 0 where one does not vary,
            which leaves what is the exponent of it as it is.
        log_binomial: Logarithm of a typical binomial standard deviation of the response.
        rise: By how much the log error of a typical run rises in all.
        centring: How far effects are in units of their spreads.
        products: Mean products of the covariates of the quadratic, by the name of the coefficient.
        count_slopes: By how much log parameter count rises with log depth and with log width, by their names.
        shared: `()` where exponents stay as they are, and what goes together with them is sampled given them; else
            none. It is known when the density is compiled.
    """

    spreads: Any
    log_binomial: Any
    rise: Any
    centring: Centring
    products: Any
    count_slopes: Any
    shared: tuple[()] | None = None


class StraightContext(NamedTuple):
    """Hold what the density in straight coordinates depends on besides the position.

    Attributes:
        plain: What the density itself depends on.
        ridges: What the coordinates do.
    """

    plain: Context
    ridges: Ridges


def ridges_of(data: Data) -> Ridges:
    """Look where the data have ridges."""
    measured = np.asarray(data.measured)
    response, n_test = (np.asarray(part)[measured] for part in (data.response, data.n_test))
    known = np.isfinite(n_test)
    # Of a share e of n, the variance of the logit is about 1 / (n e (1 - e)).
    variance = (1 + np.exp(response)) * (1 + np.exp(-response)) / n_test
    log_binomial = 0.5 * float(np.log(np.median(variance[known]))) if known.any() else 0.0
    covariates = {name: np.asarray(values) for name, values in data.covariates.items()}
    spreads = {name: float(np.std(values)) for name, values in covariates.items()}
    spreads = {name: spread if spread > LEAST else 0.0 for name, spread in spreads.items()}
    products = {name: float(np.mean(covariates[one] * covariates[two])) for name, (one, two) in CURVATURE.items()}
    axes = ("depth", "width")
    slopes = np.linalg.lstsq(np.stack([covariates[name] for name in axes], 1), covariates["parameters"])[0]
    count_slopes = dict(zip(axes, slopes.tolist(), strict=True))
    return Ridges(spreads, log_binomial, _rise_of(data), centred(data), products, count_slopes)


def _rise_of(data: Data) -> float:
    """Give the median over the trajectories of how far log error rises."""
    measured = np.asarray(data.measured)
    log_error = -np.log1p(np.exp(-np.asarray(data.response)))
    low, high = np.full((2, len(data.configuration)), [[np.inf], [-np.inf]])
    np.minimum.at(low, np.asarray(data.trajectory), np.where(measured, log_error, np.inf).min(0))
    np.maximum.at(high, np.asarray(data.trajectory), np.where(measured, log_error, -np.inf).max(0))
    return max(float(np.median(high - low)), LEAST_RISE)


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
    found, change = (_from_falls if context.ridges.shared is None else _from_shares)(context, values)
    values, log_determinant = values | found, log_determinant + change
    values |= _curve(context, values, -1)
    values |= _lift_dense(context, values, -1) | _middle_of_rise(context, values, -1)
    values |= _with_luck(context, values, -1)
    if _is_bent_freely(context):
        log_ratio, change = _hardened(straight["sharpness"])
        log_determinant += change
        values["gamma"] = straight["gamma"] - _steepness(context, log_ratio)
        values["sharpness"] = values["gamma"] + log_ratio
    if _are_positive(context, "floor", "sigma"):
        total, ratio = straight["floor"], straight["sigma"]
        values["floor"] = total + 0.5 * jax.nn.log_sigmoid(-2 * ratio) - context.ridges.log_binomial
        values["sigma"] = total + 0.5 * jax.nn.log_sigmoid(2 * ratio)
    effects, log_scale = unstandardise(context.ridges.centring, *_hierarchy(context, values))
    return values | effects, log_determinant + log_scale


@jit
def straighten(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn plain unconstrained values into straight coordinates."""
    effects = standardise(context.ridges.centring, *_hierarchy(context, values))
    values = {**values, **_with_luck(context, values, 1)}
    straight = {**values, **(_to_falls if context.ridges.shared is None else _to_shares)(context, values)}
    straight |= _curve(context, {**values, "dense": straight["dense"]}, 1)
    straight |= _lift_dense(context, {**values, "dense": straight["dense"]}, 1) | _middle_of_rise(context, values, 1)
    if _is_bent_freely(context):
        log_ratio = values["sharpness"] - values["gamma"]
        straight["sharpness"] = _softened(log_ratio)
        straight["gamma"] = values["gamma"] + _steepness(context, log_ratio)
    if _are_positive(context, "floor", "sigma"):
        floor, sigma = values["floor"] + context.ridges.log_binomial, values["sigma"]
        straight["floor"], straight["sigma"] = 0.5 * jnp.logaddexp(2 * floor, 2 * sigma), sigma - floor
    return shorten(context, straight | effects)


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
    chosen = context._replace(ridges=context.ridges._replace(centring=jax.tree.map(jnp.asarray, centring)))
    return chosen, straighten(chosen, values)


def shorten(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
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
    softened = ("share_c",) if _has_shares(context) else ()
    logits = [name for name in priors if isinstance(priors[name].support, constraints.interval)]
    return [name for name in logits if name in values and name not in softened]


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
    if not {"share_n", "share_c"} <= set(context.plain.priors) or not _are_positive(context, "dense"):
        return {}
    spreads = {"alpha": context.ridges.spreads["dataset_size"], "beta": context.ridges.spreads["parameters"]}
    positive = {name: spread for name, spread in spreads.items() if _are_positive(context, name)}
    return {name: (spread > 0, jnp.where(spread > 0, spread, 1.0)) for name, spread in positive.items()}


def _has_shares(context: StraightContext) -> bool:
    """Tell whether the dense law has all of its terms, with exponents on the range that coordinates are made for."""
    return len(_spreads(context)) == 2


def _from_falls(context: StraightContext, values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Turn falls into exponents, the middle of the dense error into its centre, and the constant into its share.

    Returns:
        These, and the log determinant.
    """
    found, log_determinant = {}, jnp.asarray(0.0)
    if _has_shares(context):
        found["share_c"], log_determinant = _hardened(values["share_c"], SOFTEST_CONSTANT)
    for name, (share, wide, spread) in _terms(context, {**values, **found}).items():
        x = jnp.arcsinh(jnp.exp(values[name] + jnp.log(spread) - jnp.log(share)))
        found[name] = jnp.where(wide, jnp.log(x) - jnp.log(spread), values[name])
        log_determinant += jnp.where(wide, jnp.log(jnp.tanh(x)) - jnp.log(x), 0.0)
    return found | _with_centre(context, {**values, **found}, -1), log_determinant


def _to_falls(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn exponents into falls, the centre of the dense error into its middle, and soften the constant's share."""
    falls = {
        name: jnp.where(wide, jnp.log(share) + _log_fall(values[name], spread), values[name])
        for name, (share, wide, spread) in _terms(context, values).items()
    }
    if _has_shares(context):
        falls["share_c"] = _softened(values["share_c"], SOFTEST_CONSTANT)
    return falls | _with_centre(context, values, 1)


def _from_shares(context: StraightContext, values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Turn the ratio and the sum of the falls into shares, given exponents, and the middle into the centre."""
    if not _has_shares(context):
        return {}, 0.0
    by_data, by_parameters = falls = _unit_falls(context, values)
    shares = {"share_n": values["share_n"] - (by_data - by_parameters)}
    shares["share_c"], log_determinant = _hardened(values["share_c"] + _mean_fall(context, shares["share_n"], falls))
    return shares | _with_centre(context, {**values, **shares}, -1), log_determinant


def _to_shares(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn shares into the ratio and the sum of the falls, and the centre of the dense error into its middle."""
    if not _has_shares(context):
        return {}
    by_data, by_parameters = falls = _unit_falls(context, values)
    shares = {"share_n": values["share_n"] + by_data - by_parameters}
    shares["share_c"] = _softened(values["share_c"]) - _mean_fall(context, values["share_n"], falls)
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


def _with_luck(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Multiply what data remove by exp(mean luck of the runs), or divide it by that (-1); all values are plain.

    Between the logs of the three terms and what they are sampled as, the determinant is 1.
    """
    if "luck_halfway" not in values or not _has_shares(context):
        return {}
    data, spread = context.plain.data, biject_to(context.plain.priors["spread_subset"].support)(values["spread_subset"])
    lucks = luck_of_subsets({"spread_subset": spread, "luck_halfway": values["luck_halfway"]}, data)
    lift = jnp.mean(lucks[..., data.subset], axis=-1).reshape(jnp.shape(values["dense"]))
    ratio, constant, whole = (values[name] for name in ("share_n", "share_c", "dense"))
    removed = whole + jax.nn.log_sigmoid(-constant)
    log_a, log_b = removed + jax.nn.log_sigmoid(ratio) + sign * lift, removed + jax.nn.log_sigmoid(-ratio)
    log_c, removed = whole + jax.nn.log_sigmoid(constant), jnp.logaddexp(log_a, log_b)
    return {"share_n": log_a - log_b, "share_c": log_c - removed, "dense": jnp.logaddexp(removed, log_c)}


def _curve(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Add to the coefficients of the quadratic those that power laws make, and what it lifts to the dense error.

    Or take them away (-1): then the values are plain but for the coefficients and the dense error. Where exponents are
    other families', few runs leave the coefficients to their priors, which the sums would bend.
    """
    names = [name for name in CURVATURE if name in values]
    if not names or not _has_shares(context) or context.ridges.shared is not None:
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


def _lift_dense(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Add the logarithm of the high plateau to that of the central dense error, or take it away (-1)."""
    if not _are_positive(context, "dense"):
        return {}
    plateau = biject_to(context.plain.priors["plateau"].support)(values["plateau"])
    return {"dense": values["dense"] + sign * jnp.log(plateau)}


def _log_fall(log_exponent: Any, spread: Any) -> Any:
    """Give log(sinh(exponent spread) / spread)."""
    x = jnp.exp(log_exponent) * spread
    return x + jnp.log(-jnp.expm1(-2 * x)) - jnp.log(2.0) - jnp.log(spread)


def _softened(u: Any, softest: float = SOFTEST) -> Any:
    """Give what goes to log(1 + e^u), but for the least values."""
    share = jax.nn.softplus(u) / softest
    return softest * (share + jnp.log(-jnp.expm1(-share)))


def _hardened(soft: Any, softest: float = SOFTEST) -> tuple[Any, Any]:
    """Invert it; with the log determinant."""
    share = softest * jax.nn.softplus(soft / softest)
    u = share + jnp.log(-jnp.expm1(-share))
    return u, share - u + jax.nn.log_sigmoid(soft / softest)


def _above_centre(share: Any, x: Any) -> Any:
    """Give how far the middle of the log errors at both ends lies above the log error at the centre."""
    return 0.5 * jnp.log1p(2 * share * (1 - share) * (jnp.cosh(x) - 1))


def _steepness(context: StraightContext, log_ratio: Any) -> Any:
    """Give the logarithm of the slope in the middle of the rise, in units of gamma, by log(sharpness / gamma)."""
    return jnp.log(jnp.tanh(0.25 * context.ridges.rise * jnp.exp(log_ratio)))


def _middle_of_rise(context: StraightContext, values: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Shift the knee to the middle of the rise, or back (-1), where gamma is shared."""
    if context.ridges.shared is None or not _are_positive(context, "gamma", "knee"):
        return {}
    return {"knee": values["knee"] + sign * 0.5 * context.ridges.rise * jnp.exp(-values["gamma"])}


def _is_bent_freely(context: StraightContext) -> bool:
    """Tell whether slope and sharpness are both free, and sampled together."""
    return context.ridges.shared is None and _are_positive(context, "gamma", "sharpness")


def _are_positive(context: StraightContext, *names: str) -> bool:
    """Tell whether there are such parameters, with all positive numbers for their range."""
    priors = context.plain.priors
    return all(name in priors and priors[name].support is constraints.positive for name in names)


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
        return shorten(context, estimate(context.plain, bend(context, straight)[0], variances))

    return straightened
