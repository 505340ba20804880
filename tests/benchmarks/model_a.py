"""The benchmark's model A: the paper's scale, effects on the whole curve, so that the law is computed once per cell.

152 latent plateaus under the dense law without c, 456 effects of trajectories on the whole curve, Student-t noise of
the log error with the binomial floor, 13 globals: 621 dimensions. Written for NumPyro; all samplers are given it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.scipy.special import gammaln

from bayeslaw.frame import CONFIGURATION, make_frame
from bayeslaw.law import Curve, Dense, log_dense, log_error, log_error_and_slope, saturate

CHANCE_ERROR, NU = 0.9, 4.0


class Cells(NamedTuple):
    """Hold log errors `[configurations, replicates, levels]` and what goes with them.

    Covariates are centred logs; `centre` holds what was taken from them.
    """

    log_error: Any
    log_density: Any
    depth: Any
    width: Any
    parameters: Any
    dataset_size: Any
    n_test: Any
    centre: Any


def cells_of(runs: pd.DataFrame) -> Cells:
    """Lay a table with the same replicates and levels everywhere out in cells; an error of 0 counts as half a wrong."""
    runs = runs.sort_values([*CONFIGURATION, "replicate", "level"])
    configurations = runs[CONFIGURATION].drop_duplicates()
    shape = (len(configurations), runs["replicate"].nunique(), runs["level"].nunique())
    log_error = np.log(runs["error"].clip(lower=0.5 / runs["n_test"]).to_numpy()).reshape(shape)
    log_density = np.log(runs["density"].to_numpy()).reshape(shape)[:, 0]
    frame = make_frame(runs, CHANCE_ERROR)
    centre = {name: getattr(frame, f"log_{name}") for name in frame.covariates(configurations)}
    n_test = float(runs["n_test"].iloc[0])
    return Cells(log_error, log_density, **frame.covariates(configurations), n_test=n_test, centre=centre)


PRIORS = {
    "gamma": dist.LogNormal(0.0, 0.75),
    "phi": dist.Normal(1.0, 1.0),
    "psi": dist.Normal(1.0, 1.0),
    "knee": dist.LogNormal(-3.5, 1.5),
    "log_eps_up": dist.Normal(-0.2, 0.1),
    "a": dist.LogNormal(-3.0, 1.0),
    "alpha": dist.LogNormal(-0.5, 0.5),
    "b": dist.LogNormal(-3.0, 1.0),
    "beta": dist.LogNormal(-0.6, 0.5),
    "sigma_np": dist.LogNormal(-1.6, 0.9),
    "tau": dist.LogNormal(-1.6, 0.9),
    "sigma": dist.LogNormal(-3.0, 1.0),
    "floor": dist.LogNormal(0.0, 0.25),
}
#: Their medians, unconstrained: the normals and log-normals have them for location.
MEDIANS = {name: prior.loc for name, prior in PRIORS.items()}


def model(cells: Cells) -> None:
    """Sample the parameters and observe every cell, as a user of NumPyro would write it."""
    mean, variance, effect = _means(cells)
    location = mean[:, None] + effect.reshape(*cells.log_error.shape[:2], 1)
    numpyro.sample("log_error", dist.StudentT(NU, location, jnp.sqrt(variance)[:, None]), obs=cells.log_error)


def _means(cells: Cells) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sample the parameters; give mean and variance of every cell, `[configurations, levels]`, and the effects."""
    value, curve, effect = _curves(cells)
    mean = log_error(jax.tree.map(lambda part: part[:, None] if jnp.ndim(part) else part, curve), cells.log_density)
    return mean, value["floor"] ** 2 * (jnp.exp(-mean) - 1) / cells.n_test + value["sigma"] ** 2, effect


def _curves(cells: Cells) -> tuple[dict[str, jax.Array], Curve, jax.Array]:
    """Sample the parameters; give their values, the curves of configurations and the effects of trajectories."""
    value = {name: jnp.asarray(numpyro.sample(name, prior)) for name, prior in PRIORS.items()}
    log_eps_up = value["log_eps_up"]
    centre = expected(value, cells)
    groups, replicates = len(cells.depth), cells.log_error.size // cells.log_density.size
    with numpyro.plate("configuration", groups):
        log_e = jnp.asarray(numpyro.sample("log_e", dist.Normal(centre, value["sigma_np"])))
    with numpyro.plate("trajectory", groups * replicates):
        effect = jnp.asarray(numpyro.sample("effect", dist.Normal(0.0, value["tau"])))
    log_p = jnp.log(value["knee"]) - value["phi"] * cells.depth - value["psi"] * cells.width
    return value, Curve(saturate(log_e, log_eps_up), log_eps_up, value["gamma"], log_p), effect


def quick_model(cells: Cells) -> None:
    """Be the same model, with the density of all cells and its derivatives in one pass; `cells` as `quick_cells`."""
    value, curve, effect = _curves(cells)
    log_mean, _ = log_error_and_slope(curve._replace(sharpness=2.0), cells.log_density)
    effects = effect.reshape(len(cells.depth), -1).T
    noise = {name: value[name] for name in ("floor", "sigma")}
    numpyro.factor("log_error", log_density_of_cells(log_mean, effects, noise, cells.log_error, cells.n_test))


def quick_cells(cells: Cells) -> Cells:
    """Lay cells out for `quick_model`, in float32: `[levels, replicates, configurations]` and `[levels, 1]`."""
    log_error = jnp.asarray(np.moveaxis(cells.log_error, 0, -1).swapaxes(0, 1), jnp.float32)
    log_density = jnp.asarray(np.broadcast_to(cells.log_density.T, (len(log_error), len(cells.depth))), jnp.float32)
    return cells._replace(log_error=log_error, log_density=log_density)


@jax.custom_vjp
def log_density_of_cells(log_mean: Any, effects: Any, noise: dict[str, Any], log_error: Any, n_test: Any) -> jax.Array:
    """Sum the log density of log errors `[levels, replicates, configurations]`, derivatives written out."""
    return _total_and_derivatives(log_mean, effects, noise, log_error, n_test)[0]


def _total_and_derivatives(
    log_mean: Any, effects: Any, noise: dict[str, Any], log_error: Any, n_test: Any
) -> tuple[jax.Array, Any]:
    kind = log_error.dtype
    floor, sigma = (noise[name].astype(kind) for name in ("floor", "sigma"))
    binomial = (jnp.exp(-log_mean) - 1) / n_test
    precision = 1 / (floor**2 * binomial + sigma**2)
    root = jnp.sqrt(precision)
    z = (log_error - log_mean[:, None] - effects.astype(kind)) * root[:, None]
    tail = 1 + z * z / NU
    rows = -(NU + 1) / 2 * jnp.log(tail)
    by_z = -(NU + 1) * z / (NU * tail)
    replicates = log_error.shape[1]
    by_location = -by_z * root[:, None]
    by_variance = -0.5 * precision * (replicates + jnp.sum(by_z * z, axis=1))
    by_mean = jnp.sum(by_location, axis=1) - by_variance * floor**2 * (binomial + 1 / n_test)
    by_effects = _sum_of_levels(by_location)
    by_noise = {"floor": 2 * floor * _sum(by_variance * binomial), "sigma": 2 * sigma * _sum(by_variance)}
    constant = gammaln((NU + 1) / 2) - gammaln(NU / 2) - 0.5 * jnp.log(NU * jnp.pi)
    total = _sum(rows) + replicates * _sum(0.5 * jnp.log(precision)) + log_error.size * constant
    return total, (by_mean, by_effects, by_noise)


def _sum_of_levels(cells: jax.Array) -> jax.Array:
    """Sum over the first axis by a product, in float64 beyond it."""
    return jnp.tensordot(jnp.ones(len(cells), cells.dtype), cells, 1).astype(float)


def _sum(cells: jax.Array) -> jax.Array:
    of_lines = _sum_of_levels(cells).ravel()
    return jnp.ones(len(of_lines)) @ of_lines


def _forward(*arguments: Any) -> tuple[jax.Array, Any]:
    return _total_and_derivatives(*arguments)


def _backward(derivatives: Any, weight: jax.Array) -> tuple[Any, ...]:
    by_mean, by_effects, by_noise = derivatives
    scaled = {name: value * weight for name, value in by_noise.items()}
    return (by_mean * weight).astype(by_mean.dtype), by_effects * weight, scaled, None, None


log_density_of_cells.defvjp(_forward, _backward)


def expected(value: dict[str, Any], cells: Cells) -> jax.Array:
    """Compute log e by the dense law without c."""
    dense = Dense(jnp.log(value["a"]), value["alpha"], jnp.log(value["b"]), value["beta"], -700.0)
    return log_dense(dense, cells.parameters, cells.dataset_size)


def in_papers_terms(cells: Cells, values: dict[str, Any], sign: int = -1) -> dict[str, Any]:
    """Turn p', a and b of the law as the paper writes it, with m* = l^phi w^psi d, into those of centred covariates.

    All on the unconstrained scale, where it is a shear: the density is the same. With `sign` 1 the way back.
    """
    slopes = {name: jnp.exp(values[name]) for name in ("alpha", "beta")}
    turned = {
        "knee": values["phi"] * cells.centre["depth"] + values["psi"] * cells.centre["width"],
        "a": slopes["alpha"] * cells.centre["dataset_size"],
        "b": slopes["beta"] * cells.centre["parameters"],
    }
    return values | {name: values[name] + sign * shift for name, shift in turned.items()}


def start_of(cells: Cells) -> dict[str, Any]:
    """Start from the prior medians, and from plateaus as measured."""
    share = np.clip(np.exp(cells.log_error[:, :, 0].mean(1)) / CHANCE_ERROR, 1e-4, 0.98)
    log_e = np.log(share / np.sqrt(1 - share**2))
    return MEDIANS | {"log_e": log_e, "effect": np.zeros(cells.log_error[:, :, 0].size)}


def groups_of(cells: Cells) -> dict[str, Any]:
    """Name the latent values that are independent between configurations."""
    groups, replicates, _ = cells.log_error.shape
    return {"log_e": np.arange(groups), "effect": np.repeat(np.arange(groups), replicates)}


def estimate(cells: Cells, free: dict[str, Any], variances: dict[str, Any]) -> dict[str, jax.Array]:
    """Estimate both spreads by the effects' expected squares, on the unconstrained (log) scale."""
    value = free | {name: jnp.exp(free[name]) for name in ("a", "alpha", "b", "beta")}
    above = free["log_e"] - expected(value, cells)
    return {
        "sigma_np": 0.5 * jnp.log(jnp.mean(above**2 + variances["log_e"])),
        "tau": 0.5 * jnp.log(jnp.mean(free["effect"] ** 2 + variances["effect"])),
    }


def variances(cells: Cells) -> dict[str, float]:
    """Give the variances of those estimates."""
    groups, replicates, _ = cells.log_error.shape
    return {"sigma_np": 0.5 / groups, "tau": 0.5 / (groups * replicates)}
