r"""Coordinates in which the posterior is straighter and shorter-tailed, so that one metric fits all of it.

Runs inform how far the dense error falls over the dataset sizes and parameter counts that they have, and what it is in
their middle; an exponent itself goes together with the share of the error that it acts on. In the places of alpha and
of the central dense error e~ are sampled

$$\log s + \log \frac{\sinh \alpha h}{h}, \qquad
\log\tilde e + \tfrac12 \log\left(1 + 2 s (1 - s) (\cosh \alpha h - 1)\right)$$

with s the share of the error that data remove and h the standard deviation of log dataset size: of two sizes these are
the fall from one to the other, to first order in s, and the middle of their logs. Likewise beta, with the share that
parameters remove and the spread of log parameter count. The two parts of the noise on flat stretches, the binomial one
and sigma, of which one or the other may vanish, go together too: in the places of floor f and sigma are sampled

$$\tfrac12 \log(f^2 B^2 + \sigma^2), \qquad \log\sigma - \log(f B)$$

with B a typical binomial standard deviation. The logits of bounded parameters have the tails of an exponential; sampled
is z with logit = z sqrt(1 + z^2 / 4), whose tails are a Gaussian's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from bayeslaw.density import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.frame import Data


#: Covariates that spread less than this do not vary.
LEAST = 1e-6


class Ridges(NamedTuple):
    """Hold what the coordinates depend on besides the priors' ranges.

    Attributes:
        size_spread: Standard deviation of log dataset size over the configurations; 0 leaves alpha as it is.
        count_spread: That of log parameter count, for beta.
        log_binomial: Logarithm of a typical binomial standard deviation of the response.
    """

    size_spread: Any
    count_spread: Any
    log_binomial: Any


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
    size, count = (float(np.std(np.asarray(part))) for part in (data.dataset_size, data.parameters))
    return Ridges(size if size > LEAST else 0.0, count if count > LEAST else 0.0, log_binomial)


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
    for name, (share, spread) in _terms(context, values).items():
        wide, spread = spread > 0, jnp.where(spread > 0, spread, 1.0)
        x = jnp.arcsinh(jnp.exp(straight[name] + jnp.log(spread) - jnp.log(share)))
        values[name] = jnp.where(wide, jnp.log(x) - jnp.log(spread), straight[name])
        log_determinant += jnp.where(wide, jnp.log(jnp.tanh(x)) - jnp.log(x), 0.0)
        values["dense"] = values["dense"] - jnp.where(wide, _above_centre(share, x), 0.0)
    if _has_noises(context):
        total, ratio = straight["floor"], straight["sigma"]
        values["floor"] = total + 0.5 * jax.nn.log_sigmoid(-2 * ratio) - context.ridges.log_binomial
        values["sigma"] = total + 0.5 * jax.nn.log_sigmoid(2 * ratio)
    return values, log_determinant


def straighten(context: StraightContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn plain unconstrained values into straight coordinates."""
    straight = dict(values)
    for name, (share, spread) in _terms(context, values).items():
        wide, spread = spread > 0, jnp.where(spread > 0, spread, 1.0)
        x = jnp.exp(values[name]) * spread
        straight[name] = jnp.where(wide, jnp.log(share) + jnp.log(jnp.sinh(x)) - jnp.log(spread), values[name])
        straight["dense"] = straight["dense"] + jnp.where(wide, _above_centre(share, x), 0.0)
    if _has_noises(context):
        floor, sigma = values["floor"] + context.ridges.log_binomial, values["sigma"]
        straight["floor"], straight["sigma"] = 0.5 * jnp.logaddexp(2 * floor, 2 * sigma), sigma - floor
    return straight | {name: _shortened(values[name]) for name in _bounded(context, values)}


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
    for name, values in bend(context, {name: positions[..., index] for name, index in where.items()})[0].items():
        plain[..., where[name]] = values
    return plain


def _shortened(value: Any) -> Any:
    """Invert u = z sqrt(1 + z^2 / 4)."""
    return jnp.sign(value) * jnp.sqrt(2 * (jnp.sqrt(1 + value**2) - 1))


def _bounded(context: StraightContext, values: Mapping[str, Any]) -> list[str]:
    """Name the values that are logits, with tails like an exponential's."""
    priors = context.plain.priors
    return [name for name in priors if name in values and isinstance(priors[name].support, constraints.interval)]


def _terms(context: StraightContext, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Give each exponent's share of the central dense error, and the spread of what it is the exponent of."""
    priors = context.plain.priors
    if not {"alpha", "beta", "dense", "share_n", "share_c"} <= set(priors):
        return {}
    of_data, constant = (biject_to(priors[name].support)(values[name]) for name in ("share_n", "share_c"))
    terms = {
        "alpha": (of_data * (1 - constant), context.ridges.size_spread),
        "beta": ((1 - of_data) * (1 - constant), context.ridges.count_spread),
    }
    if priors["dense"].support is not constraints.positive:
        return {}
    return {name: term for name, term in terms.items() if priors[name].support is constraints.positive}


def _above_centre(share: Any, x: Any) -> Any:
    """Give how far the middle of the log errors at both ends lies above the log error at the centre."""
    return 0.5 * jnp.log1p(2 * share * (1 - share) * (jnp.cosh(x) - 1))


def _has_noises(context: StraightContext) -> bool:
    priors = context.plain.priors
    return all(name in priors and priors[name].support is constraints.positive for name in ("floor", "sigma"))


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
def straight_estimate(
    estimate: Callable[[Context, dict[str, Any]], dict[str, jax.Array]],
) -> Callable[[StraightContext, dict[str, Any]], dict[str, jax.Array]]:
    """Give moment estimates of the spreads from straight coordinates."""

    def straightened(context: StraightContext, straight: dict[str, Any]) -> dict[str, jax.Array]:
        found = estimate(context.plain, bend(context, straight)[0])
        return found | {name: _shortened(found[name]) for name in _bounded(context, found)}

    return straightened
