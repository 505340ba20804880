"""The priors of the joint law: every default with what it means and where it comes from, and how a fit keeps them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpyro.distributions as dist

from bayeslaw.errors import BayeslawError
from bayeslaw.laws import CURVATURE, law_named

if TYPE_CHECKING:
    import pandas as pd
    from numpyro.distributions import Distribution

#: Distributions that a fit's file can hold: continuous, univariate, made again from the arguments they were made of.
STORABLE = (
    "AsymmetricLaplace", "Beta", "Cauchy", "Chi2", "Exponential", "FoldedDistribution", "Gamma", "Gompertz", "Gumbel",
    "HalfCauchy", "HalfNormal", "InverseGamma", "Kumaraswamy", "Laplace", "LeftTruncatedDistribution",
    "LogNormal", "LogUniform", "Logistic", "Normal", "Pareto", "RightTruncatedDistribution", "SoftLaplace", "StudentT",
    "TwoSidedTruncatedDistribution", "Uniform", "Weibull",
)  # fmt: skip


#: Exponents: what families have in common, and `fit(pool="family")` pools. Those of `ON_LINE` spread between families
#: on the whole line, all others as factors.
EXPONENTS = ("gamma", "phi", "psi", "alpha", "beta", "sparse_exponent")
ON_LINE = ("phi", "psi")
BETWEEN = "between_"
POOLS = ("family",)


@dataclass(frozen=True)
class Prior:
    """Hold a prior with its meaning and its source.

    Attributes:
        distribution: Any univariate NumPyro distribution on the parameter's range.
        meaning: What the parameter is, with its unit.
        source: Why the default is what it is.
    """

    distribution: Distribution
    meaning: str
    source: str


def default_priors(law: str = "sharpness", *, pool: str | None = None) -> dict[str, Prior]:
    """Make the default priors of a law, by parameter name.

    Args:
        law: Name of the law, as in `bayeslaw.fit`.
        pool: Likewise. With `"family"` the exponents' priors are those of the population's centre, and there is a
            spread between families, `between_phi` and so on, for each of them.

    Returns:
        The priors; the names are those of `Fit.posterior`.

    Example:
        >>> sorted(default_priors())[:4]
        ['alpha', 'beta', 'born_dead', 'born_power']
    """
    asked = law_named(law)
    paper, dense = "Rosenfeld et al. 2021: order of magnitude only", "Rosenfeld et al. 2020, WRN on CIFAR-10, widened"
    grown, narrowed = "weak; bad networks jitter most", "weak: -.3 to 1.3; networks of one channel jitter most"
    small = "seeds of small runs spread by 5 to 35 %; keeps off 0 (Chung et al. 2013)"
    both = "weak: .1 to .9; keeps off 0 and 1, where funnels are"
    priors = {
        "gamma": Prior(dist.LogNormal(0.0, 0.75), "slope of the power-law region", paper),
        "phi": Prior(dist.Normal(1.0, 1.0), "exponent of depth in m*", f"{paper}; negative values allowed"),
        "psi": Prior(dist.Normal(1.0, 1.0), "exponent of width in m*", f"{paper}; negative values allowed"),
        "chi": Prior(dist.Normal(0.0, 0.3), "exponent of dataset size in m*", "0 in Rosenfeld et al. 2021; weak"),
        "knee": Prior(
            dist.LogNormal(-3.5, 1.5), "density at which the central network meets the high plateau", "weak: .002 to .6"
        ),
        "plateau": Prior(dist.Beta(8.0, 1.0), "eps_up as a share of the random-guess error", "near random guessing"),
        "dense": Prior(dist.LogNormal(-2.0, 1.0), "e~ of the dense law at the central network and size", dense),
        "share_c": Prior(dist.Beta(1.0, 4.0), "share of it that neither data nor parameters remove (c)", "weak"),
        "share_n": Prior(dist.Uniform(0.0, 1.0), "share of the rest that data remove (a), not parameters (b)", "flat"),
        "alpha": Prior(dist.LogNormal(-0.5, 0.5), "exponent of dataset size (.66 there)", dense),
        "beta": Prior(dist.LogNormal(-0.6, 0.5), "exponent of parameter count (.53 there)", dense),
        "omega": Prior(
            dist.Normal(0.0, 1.0), "exponent of depth in the dense law, beside parameter count", "0 there; weak"
        ),
        **{
            name: Prior(
                dist.Normal(0.0, 0.05),
                f"curvature of log e~ in log {' and log '.join(dict.fromkeys(between))}",
                "weak: by 5 % a factor of e away; 0 there",
            )
            for name, between in CURVATURE.items()
        },
        "spread_np": Prior(dist.LogNormal(-1.6, 0.9), "spread of eps_np around the dense law (log)", small),
        "share_np": Prior(
            dist.Beta(2.0, 2.0), "share of that variance that is the configuration's, not the seed's", both
        ),
        "spread_subset": Prior(
            dist.LogNormal(-2.3, 0.7), "spread between training subsets of what data remove (log)", "weak: .03 to .4"
        ),
        "spread_p": Prior(dist.LogNormal(-1.6, 0.8), "spread of runs in p' (log, sideways)", small),
        "share_p": Prior(
            dist.Beta(2.0, 2.0), "share of that variance that is the configuration's, not the seed's", both
        ),
        "growth_np": Prior(dist.Normal(0.0, 1.0), "exponent of the dense error in the spreads of eps_np", grown),
        "growth_p": Prior(dist.Normal(0.0, 1.0), "exponent of the dense error in the spread of p'", grown),
        "narrow_np": Prior(dist.Normal(0.5, 0.5), "exponent of width, falling, in the spreads of eps_np", narrowed),
        "narrow_p": Prior(dist.Normal(0.5, 0.5), "exponent of width, falling, in the spread of p'", narrowed),
        "sigma": Prior(dist.LogNormal(-3.0, 1.0), "jitter of single levels where the error is a half (logit)", small),
        "kappa": Prior(dist.LogNormal(-1.6, 0.8), "sideways jitter of single levels there (log m*)", small),
        "noise_power": Prior(
            dist.LogNormal(-0.7, 0.8),
            "exponent of the error in both",
            "weak: .1 to 2; networks jitter most as they die",
        ),
        "floor": Prior(dist.LogNormal(0.0, 0.25), "factor on the binomial noise of the test set", "shared examples"),
        "lasting": Prior(
            dist.Beta(1.0, 4.0),
            "share of that noise's variance that lasts through a run: examples it keeps getting wrong",
            "weak: 0 to .5",
        ),
        "nu": Prior(dist.Gamma(2.0, 0.1), "degrees of freedom of the noise", "Juarez and Steel 2010"),
        "rho": Prior(
            dist.Beta(2.0, 2.0), "correlation of the noise from one round of 20 % to the next", "weak: .5 +- .22"
        ),
        "dies": Prior(dist.Uniform(0.0, 1.0), "probability of dying by a level where the curve is at guessing", "flat"),
        "dies_power": Prior(
            dist.LogNormal(2.3, 0.7), "exponent of the error, as a share of guessing, in it", "weak: 3 to 30"
        ),
        "stays": Prior(dist.Uniform(0.0, 1.0), "probability that a dead network stays dead for a level", "flat"),
        "born_dead": Prior(
            dist.LogNormal(-6.0, 2.0), "odds that a network of the central width is dead unpruned", "weak: 10^-4 to .1"
        ),
        "born_power": Prior(
            dist.Normal(1.5, 1.0),
            "exponent of width in them, falling",
            "weak; 3 of 48 networks of one channel, no wider",
        ),
    }
    own = {
        "sharpness": Prior(
            dist.LogNormal(math.log(2.0), 0.4), "sharpness of both knees", "2 in Rosenfeld et al. 2021; .9 to 4.4"
        ),
        "dip": Prior(
            dist.HalfNormal(0.1), "depth of the dip where pruning begins (log)", "up to .12 in short trainings"
        ),
        "dip_rounds": Prior(
            dist.LogNormal(math.log(3.0), 0.5), "rounds of 20 % to where the dip is deepest", "weak: 1 to 8"
        ),
        "sparse_share": Prior(
            dist.Uniform(0.0, 1.0), "a_S / (a_S + c_S), share of the parameter term that sparsity changes", "flat"
        ),
        "sparse_exponent": Prior(
            dist.LogNormal(-0.4, 0.5), "exponent of density (b_S)", "Frantar et al. 2023, widened"
        ),
    }
    kept = {name: prior for name, prior in priors.items() if name not in asked.without}
    kept |= {name: own[name] for name in asked.own}
    if "sharpness" in kept:
        # A slope much beyond 3 would make the region that it is the slope of narrower than the bends at its ends: there
        # the sharpness says how abruptly networks die, as a large slope has to where it is not free.
        kept["gamma"] = Prior(dist.LogNormal(0.0, 0.5), priors["gamma"].meaning, f"{paper}; .4 to 2.7")
    return kept if pool is None else kept | {f"between_{name}": _between(name) for name in EXPONENTS if name in kept}


def exponents_of(law: str) -> tuple[str, ...]:
    """List the exponents that a law has, those that families share when they are pooled.

    Example:
        >>> exponents_of("sparse")
        ('alpha', 'beta', 'sparse_exponent')
    """
    return tuple(name for name in EXPONENTS if name in default_priors(law))


def _between(name: str) -> Prior:
    """Make the prior of an exponent's spread between families.

    It vanishes at 0, where families could not differ, and has a normal tail: where the runs bound an exponent from
    below only, a heavier one lets it and its spread run away together. An exponent's prior, centre and spread together,
    stays near that of a fit of one family.
    """
    what, wide = (name, ".09 to .7") if name in ON_LINE else (f"log {name}", "factors of 1.1 to 2")
    source = f"weak: {wide}; keeps off 0 (Chung et al. 2013)"
    return Prior(dist.Weibull(0.4, 2.0), f"spread of {what} between families", source)


def resolve_priors(
    priors: Mapping[str, Distribution] | None, *, law: str = "sharpness", pool: str | None = None
) -> dict[str, Prior]:
    """Put the user's distributions in place of defaults.

    Args:
        priors: NumPyro distributions by parameter name; all others keep their default.
        law: Name of the law whose defaults are meant.
        pool: What is pooled, as in `bayeslaw.fit`.

    Returns:
        The priors by name.

    Raises:
        BayeslawError: A name is unknown, or a value is no continuous univariate distribution within the parameter's
            range.

    Example:
        >>> resolve_priors({"phi": dist.Normal(0.7, 0.2)})["phi"].source
        'given by the user'
    """
    resolved = default_priors(law, pool=pool)
    faults = []
    for name, given in (priors or {}).items():
        if name not in resolved:
            faults.append(f"unknown parameter {name!r}; allowed: {', '.join(resolved)}")
        elif fault := _fault_of(given, resolved[name].distribution.support):
            faults.append(f"{name}: {type(given).__name__} {fault}")
        else:
            resolved[name] = Prior(given, resolved[name].meaning, "given by the user")
    if faults:
        raise BayeslawError("priors: " + "; ".join(faults) + ".")
    return resolved


def _fault_of(given: object, allowed: Any) -> str:
    """Say why what was given is no prior for a parameter of this range; nothing where it is one."""
    if not isinstance(given, dist.Distribution) or given.batch_shape or given.event_shape:
        return "is no univariate NumPyro distribution"
    support: Any = given.support
    if support.is_discrete or isinstance(given, dist.Delta):
        return "has no density; hold a parameter by a narrow continuous distribution"
    try:
        ends = dist.biject_to(support)(jnp.array([-30.0, 30.0]))
    except NotImplementedError:
        return "has a range that NumPyro cannot sample on"
    if bool(allowed(ends).all()):
        return ""
    bounds = "in [0, 1]" if hasattr(allowed, "upper_bound") else "above 0"
    return f"reaches outside the parameter's range, which is {bounds}; truncate it, or take one of that range"


def describe_prior(prior: Prior) -> str:
    """Write a prior's distribution with its arguments.

    Example:
        >>> describe_prior(Prior(dist.TruncatedNormal(0.7, 0.2, low=0.0), "exponent of depth", "weak"))
        'LeftTruncatedDistribution(base_dist=Normal(loc=0.7, scale=0.2), low=0)'
    """
    return _text(prior.distribution)


def _text(given: Any) -> str:
    if not isinstance(given, dist.Distribution):
        return f"{float(given):g}"
    inner = ", ".join(f"{name}={_text(value)}" for name, value in _arguments(given).items() if value is not None)
    return f"{type(given).__name__}({inner})"


def _arguments(given: Distribution) -> dict[str, Any]:
    """Give what a distribution was made of; nothing for an argument that it does not keep as one number."""
    if type(given).__name__ not in STORABLE:
        return {name: _number(getattr(given, name, None)) for name in given.arg_constraints}
    names = inspect.signature(type(given)).parameters
    values = {name: getattr(given, name, None) for name in names if name != "validate_args"}
    return {k: v if isinstance(v, dist.Distribution) else _number(v) for k, v in values.items()}


def _number(value: Any) -> float | None:
    return float(value) if value is not None and jnp.ndim(value) == 0 else None


# How a fit keeps its priors


def store_prior(prior: Prior) -> dict[str, Any] | None:
    """Turn a prior into names and numbers that JSON can hold.

    Args:
        prior: The prior.

    Returns:
        `distribution`, `arguments` (numbers, or another distribution in the same form) and `source`; nothing where the
        distribution is none of `STORABLE`.

    Example:
        >>> store_prior(Prior(dist.Normal(1.0, 0.5), "exponent of depth", "weak"))
        {'distribution': 'Normal', 'arguments': {'loc': 1.0, 'scale': 0.5}, 'source': 'weak'}
    """
    stored = _stored(prior.distribution)
    return None if stored is None else stored | {"source": prior.source}


def _stored(given: Distribution) -> dict[str, Any] | None:
    name = type(given).__name__
    if name not in STORABLE or type(given) is not getattr(dist, name):
        return None
    arguments = {k: _stored(v) if isinstance(v, dist.Distribution) else v for k, v in _arguments(given).items()}
    return None if None in arguments.values() else {"distribution": name, "arguments": arguments}


def restore_priors(
    stored: Mapping[str, Any], *, law: str = "sharpness", given: Mapping[str, Distribution] | None = None
) -> dict[str, Prior]:
    """Make priors again from what `store_prior` gave.

    Args:
        stored: What was stored, by parameter name; nothing where a distribution could not be.
        law: Name of the law.
        given: Distributions of those that could not be stored, by parameter name.

    Returns:
        The priors by name.

    Raises:
        BayeslawError: A prior could not be stored and is not given.
    """
    given = given or {}
    if lost := [name for name, entry in stored.items() if entry is None and name not in given]:
        raise BayeslawError(
            f"the prior of {', '.join(lost)} is a distribution that a fit cannot keep; pass it again, "
            f"priors={{{lost[0]!r}: ...}}, or fit with one of {', '.join(STORABLE)}."
        )
    meanings = resolve_priors({name: given[name] for name, entry in stored.items() if entry is None}, law=law)
    return {
        name: meanings[name] if entry is None else Prior(_restored(entry), meanings[name].meaning, entry["source"])
        for name, entry in stored.items()
    }


def _restored(entry: Mapping[str, Any]) -> Distribution:
    name = entry["distribution"]
    if name not in STORABLE:
        raise BayeslawError(f"a prior is a {name}, which is none of {', '.join(STORABLE)}; fit again.")
    arguments = {k: _restored(v) if isinstance(v, Mapping) else v for k, v in entry["arguments"].items()}
    return getattr(dist, name)(**arguments)


def prior_table(priors: Mapping[str, Prior] | None = None) -> pd.DataFrame:
    """List priors as a table with distribution, meaning and source, one row per parameter."""
    import pandas as pd

    rows = {
        name: {"prior": describe_prior(prior), "meaning": prior.meaning, "source": prior.source}
        for name, prior in (priors or default_priors()).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")
