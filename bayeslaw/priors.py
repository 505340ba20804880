"""The priors of the joint law: every default with what it means and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpyro.distributions as dist

from bayeslaw.errors import BayeslawError
from bayeslaw.laws import law_named

if TYPE_CHECKING:
    import pandas as pd
    from numpyro.distributions import Distribution


#: Exponents: what families have in common, and `fit(pool="family")` pools. Those of `ON_LINE` spread between families
#: on the whole line, all others as factors.
EXPONENTS = ("gamma", "phi", "psi", "alpha", "beta", "sparse_exponent")
ON_LINE = ("phi", "psi")
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


def default_priors(law: str = "joint", *, pool: str | None = None) -> dict[str, Prior]:
    """Make the default priors of a law, by parameter name.

    Args:
        law: Name of the law, as in `bayeslaw.fit`.
        pool: Likewise. With `"family"` the exponents' priors are those of the population's centre, and there is a
            spread between families, `between_phi` and so on, for each of them.

    Returns:
        The priors; the names are those of `Fit.posterior`.

    Example:
        >>> sorted(default_priors())[:4]
        ['alpha', 'beta', 'dense', 'floor']
    """
    asked = law_named(law)
    paper, dense = "Rosenfeld et al. 2021: order of magnitude only", "Rosenfeld et al. 2020, WRN on CIFAR-10, widened"
    grown = "weak; small networks jitter most"
    small = "seeds of small runs spread by 5 to 35 %; keeps off 0 (Chung et al. 2013)"
    priors = {
        "gamma": Prior(dist.LogNormal(0.0, 0.75), "slope of the power-law region", paper),
        "phi": Prior(dist.Normal(1.0, 1.0), "exponent of depth in m*", f"{paper}; negative values allowed"),
        "psi": Prior(dist.Normal(1.0, 1.0), "exponent of width in m*", f"{paper}; negative values allowed"),
        "knee": Prior(
            dist.LogNormal(-3.5, 1.5), "density at which the central network meets the high plateau", "weak: .002 to .6"
        ),
        "plateau": Prior(dist.Beta(8.0, 1.0), "eps_up as a share of the random-guess error", "near random guessing"),
        "dense": Prior(dist.LogNormal(-2.0, 1.0), "e~ of the dense law at the central network and size", dense),
        "share_c": Prior(dist.Beta(1.0, 4.0), "share of it that neither data nor parameters remove (c)", "weak"),
        "share_n": Prior(dist.Uniform(0.0, 1.0), "share of the rest that data remove (a), not parameters (b)", "flat"),
        "alpha": Prior(dist.LogNormal(-0.5, 0.5), "exponent of dataset size (.66 there)", dense),
        "beta": Prior(dist.LogNormal(-0.6, 0.5), "exponent of parameter count (.53 there)", dense),
        "spread_np": Prior(dist.LogNormal(-1.6, 0.9), "spread of eps_np around the dense law (log)", small),
        "share_np": Prior(
            dist.Uniform(0.0, 1.0), "share of that variance that belongs to the configuration, not the seed", "flat"
        ),
        "tau_p": Prior(dist.LogNormal(-1.6, 0.8), "spread of trajectories in p' (log, sideways)", small),
        "growth_np": Prior(dist.Normal(0.0, 0.5), "exponent of the dense error in the spreads of eps_np", grown),
        "growth_p": Prior(dist.Normal(0.0, 0.5), "exponent of the dense error in the spread of p'", grown),
        "sigma": Prior(dist.LogNormal(-3.0, 1.0), "jitter of single levels (logit)", small),
        "kappa": Prior(dist.LogNormal(-1.6, 0.8), "sideways jitter of single levels (log m*)", small),
        "floor": Prior(dist.LogNormal(0.0, 0.25), "factor on the binomial noise of the test set", "shared examples"),
        "nu": Prior(dist.Gamma(2.0, 0.1), "degrees of freedom of the noise", "Juarez and Steel 2010"),
    }
    own = {
        "sharpness": Prior(
            dist.LogNormal(math.log(2.0), 0.4), "sharpness of both knees", "2 in Rosenfeld et al. 2021; .9 to 4.4"
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
    priors: Mapping[str, Distribution] | None, *, law: str = "joint", pool: str | None = None
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
    ends = dist.biject_to(support)(jnp.array([-30.0, 30.0]))
    if bool(allowed(ends).all()):
        return ""
    bounds = "in [0, 1]" if hasattr(allowed, "upper_bound") else "above 0"
    return f"reaches outside the parameter's range, which is {bounds}; truncate it, or take one of that range"


def describe_prior(prior: Prior) -> str:
    """Write a prior's distribution with its arguments."""
    given = prior.distribution
    arguments = {name: getattr(given, name, None) for name in given.arg_constraints}
    inner = ", ".join(f"{name}={float(value):g}" for name, value in arguments.items() if value is not None)
    return f"{type(given).__name__}({inner})"


def prior_table(priors: Mapping[str, Prior] | None = None) -> pd.DataFrame:
    """List priors as a table with distribution, meaning and source, one row per parameter."""
    import pandas as pd

    rows = {
        name: {"prior": describe_prior(prior), "meaning": prior.meaning, "source": prior.source}
        for name, prior in (priors or default_priors()).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")
