"""What is checked by simulation: models, small and hierarchical, the priors of their truths, and planted faults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpyro.distributions as dist

from bayeslaw.errors import BayeslawError
from bayeslaw.laws import CURVATURE
from bayeslaw.simulation import Design, Fault

#: What can be wrong on purpose, to see it rejected.
FAULTS = {"none": Fault(), "noise": Fault(noise=1.1), "gamma": Fault(gamma=1.05), "double": Fault(copies=2)}


@dataclass(frozen=True)
class Model:
    """Say what is simulated, how it is fitted and what is ranked.

    Attributes:
        name: What `check(model=...)` calls it.
        title: What it is.
        design: Networks and densities; the same in every data set, so that nothing is compiled twice.
        priors: Of the parameters the model has, by name: what the truth is drawn from and what `fit` is given. They are
            narrower than the defaults, so that tables look like tables of pruning runs.
        settings: Arguments of `fit`.
        predictions: (network, density) of each mean error that is ranked, by name; the density is not in the table.
        effects: Whether effects of the first configuration and trajectory are ranked.
        repetitions: Data sets of the full check.
    """

    name: str
    title: str
    design: Design
    priors: dict[str, Any]
    settings: dict[str, Any]
    predictions: dict[str, tuple[tuple[int, int, int], float]]
    effects: bool
    repetitions: int


def _law_priors() -> dict[str, Any]:
    return {
        "gamma": dist.LogNormal(0.1, 0.25),
        "knee": dist.LogNormal(math.log(0.02), 0.3),
        "plateau": dist.Beta(40.0, 4.0),
        "dense": dist.LogNormal(math.log(0.1), 0.3),
        "sigma": dist.LogNormal(math.log(0.05), 0.3),
    }


def _hierarchy_priors() -> dict[str, Any]:
    return _law_priors() | {
        "phi": dist.Normal(0.8, 0.3),
        "psi": dist.Normal(1.1, 0.3),
        "chi": dist.Normal(0.0, 0.2),
        "share_c": dist.Beta(2.0, 8.0),
        "share_n": dist.Beta(3.0, 3.0),
        "alpha": dist.LogNormal(-0.5, 0.3),
        "beta": dist.LogNormal(-0.6, 0.3),
        "omega": dist.Normal(0.0, 0.5),
        **{name: dist.Normal(0.0, 0.05) for name in CURVATURE},
        "spread_np": dist.LogNormal(math.log(0.2), 0.3),
        "share_np": dist.Beta(4.0, 4.0),
        "spread_p": dist.LogNormal(math.log(0.2), 0.3),
        "share_p": dist.Beta(4.0, 4.0),
        "kappa": dist.LogNormal(math.log(0.1), 0.3),
        "noise_power": dist.LogNormal(math.log(0.5), 0.3),
        "floor": dist.LogNormal(0.0, 0.15),
        "nu": dist.Gamma(20.0, 2.0),
        "sharpness": dist.LogNormal(math.log(2.5), 0.2),
        "rho": dist.Beta(6.0, 4.0),
        "dies": dist.Beta(4.0, 4.0),
        "dies_power": dist.LogNormal(2.3, 0.3),
        "stays": dist.Beta(8.0, 2.0),
        "born_dead": dist.LogNormal(-3.0, 0.5),
        "born_power": dist.Normal(1.0, 0.5),
    }


def models() -> dict[str, Model]:
    """Make the models that can be checked, by name.

    `single` is equation (1) with normal noise, five parameters. `few` is the default model on three networks, which
    takes the fall-back (standardised effects, adapted metric). `hierarchical` is the default model on twelve networks
    with two replicates each, on two training subsets of either size, and with spreads that grow with the error: centred
    effects and the Laplace metric.
    """
    few = ((8, 8, 12_500), (14, 16, 50_000), (20, 4, 50_000))
    many = tuple((depth, width, size) for depth in (8, 20) for width in (4, 8, 16) for size in (12_500, 50_000))
    new = (26, 32, 25_000)
    growth = {f"{name}_{where}": dist.Normal(0.0, 0.3) for name in ("growth", "narrow") for where in ("np", "p")}
    made = [
        Model(
            "single", "equation (1), one run",
            Design(((20, 16, 50_000),), 1, tuple(0.8 ** np.arange(28))),
            _law_priors(), {"law": "single", "noise": "normal", "steep": False, "correlated": False},
            {"prediction": ((20, 16, 50_000), 0.02)}, False, 1000,
        ),
        Model(
            "few", "the default model, three networks",
            Design(few, 2, tuple(0.8 ** np.arange(0, 28, 4)), n_test=10_000),
            _hierarchy_priors(), {"deaths": True},
            {"prediction": (few[0], 0.02), "prediction_new": (new, 0.02)}, True, 1000,
        ),
        Model(
            "hierarchical", "the default model, twelve networks",
            Design(many, 2, tuple(0.8 ** np.arange(0, 28, 3)), n_test=10_000, subsets=True),
            _hierarchy_priors()
            | growth
            | {"spread_subset": dist.LogNormal(math.log(0.1), 0.5), "lasting": dist.Beta(2.0, 8.0)},
            {"growth": True, "deaths": True},
            {"prediction": (many[0], 0.02), "prediction_new": (new, 0.02)}, True, 200,
        ),
    ]  # fmt: skip
    return {model.name: model for model in made}


def model_named(name: str) -> Model:
    """Look a model up.

    Raises:
        BayeslawError: There is no such model.

    Example:
        >>> model_named("single").title
        'equation (1), one run'
    """
    known = models()
    if name not in known:
        raise BayeslawError(f"model = {name!r} must be one of {', '.join(known)}.")
    return known[name]


def fault_named(fault: str | Fault) -> Fault:
    """Look a fault up, or take one as it is.

    Raises:
        BayeslawError: There is no such fault.

    Example:
        >>> describe_fault(fault_named("gamma"))
        'gamma x 1.05'
    """
    if isinstance(fault, Fault):
        return fault
    if fault not in FAULTS:
        raise BayeslawError(f"fault = {fault!r} must be one of {', '.join(FAULTS)}.")
    return FAULTS[fault]


def describe_fault(fault: Fault) -> str:
    """Say what is wrong on purpose."""
    parts = [f"noise scale x {fault.noise:g}"] if fault.noise != 1 else []
    parts += [f"gamma x {fault.gamma:g}"] if fault.gamma != 1 else []
    parts += [f"likelihood counted {fault.copies} times"] if fault.copies != 1 else []
    return ", ".join(parts) or "none"
