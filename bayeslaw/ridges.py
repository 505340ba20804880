"""What straight coordinates depend on besides the position: where the data have ridges (`bayeslaw.straight`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpyro.distributions import constraints

from bayeslaw.centring import Centring, centred
from bayeslaw.common_luck import Lucks, lucks_of
from bayeslaw.density import Context
from bayeslaw.laws import CURVATURE

if TYPE_CHECKING:
    from bayeslaw.frame import Data

#: Covariates that spread less than this do not vary.
LEAST = 1e-6
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
        lucks: How lucks are sampled.
        shared: `()` where exponents stay as they are, and what goes together with them is sampled given them; else
            none. It is known when the density is compiled.
    """

    spreads: Any
    log_binomial: Any
    rise: Any
    centring: Centring
    products: Any
    count_slopes: Any
    lucks: Lucks
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
    return Ridges(spreads, log_binomial, _rise_of(data), centred(data), products, count_slopes, lucks_of(data))


def _rise_of(data: Data) -> float:
    """Give the median over the trajectories of how far log error rises."""
    measured = np.asarray(data.measured)
    log_error = -np.log1p(np.exp(-np.asarray(data.response)))
    low, high = np.full((2, len(data.configuration)), [[np.inf], [-np.inf]])
    np.minimum.at(low, np.asarray(data.trajectory), np.where(measured, log_error, np.inf).min(0))
    np.maximum.at(high, np.asarray(data.trajectory), np.where(measured, log_error, -np.inf).max(0))
    return max(float(np.median(high - low)), LEAST_RISE)


def are_positive(context: StraightContext, *names: str) -> bool:
    """Tell whether there are such parameters, with all positive numbers for their range."""
    priors = context.plain.priors
    return all(name in priors and priors[name].support is constraints.positive for name in names)
