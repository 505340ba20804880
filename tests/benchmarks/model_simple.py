"""The benchmark's simple model: the joint law with known plateaus, six parameters, normal noise of the log error."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import model_a
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayeslaw.law import Curve, log_error

#: As far as model A has the same parameters.
NAMES = ("gamma", "phi", "psi", "knee", "log_eps_up", "sigma")
PRIORS = {name: model_a.PRIORS[name] for name in NAMES}
START = {name: model_a.MEDIANS[name] for name in NAMES}


class Rows(NamedTuple):
    """Hold log errors and their covariates, each `[rows]`."""

    log_error: Any
    log_density: Any
    depth: Any
    width: Any
    log_eps_np: Any


def make_rows(configurations: int = 76, levels: int = 28, seed: int = 0) -> Rows:
    """Draw networks at random and their errors from the model: 2,128 rows."""
    rng = np.random.default_rng(seed)
    depth = rng.choice(np.log([8, 14, 20, 26, 50, 98]), configurations)
    width = rng.choice(np.log(2.0) * np.arange(-4, 3), configurations)
    depth, width, log_eps_np = depth - depth.mean(), width - width.mean(), rng.normal(-2.2, 0.5, configurations)
    log_density = np.tile(np.log(0.8) * np.arange(levels), configurations)
    depth, width, log_eps_np = (np.repeat(part, levels) for part in (depth, width, log_eps_np))
    rows = Rows(None, log_density, depth, width, log_eps_np)
    truth = {"gamma": 1.3, "phi": 0.9, "psi": 1.2, "knee": 0.03, "log_eps_up": np.log(0.88)}
    noise = 0.05 * rng.standard_normal(len(depth))
    return rows._replace(log_error=np.asarray(mean_of(truth, rows)) + noise)


def mean_of(value: dict[str, Any], rows: Rows) -> jax.Array:
    """Compute the law."""
    log_p = jnp.log(value["knee"]) - value["phi"] * rows.depth - value["psi"] * rows.width
    return log_error(Curve(rows.log_eps_np, value["log_eps_up"], value["gamma"], log_p), rows.log_density)


def model(rows: Rows) -> None:
    """Sample the parameters and observe every row."""
    value = {name: jnp.asarray(numpyro.sample(name, prior)) for name, prior in PRIORS.items()}
    numpyro.sample("log_error", dist.Normal(mean_of(value, rows), value["sigma"]), obs=rows.log_error)
