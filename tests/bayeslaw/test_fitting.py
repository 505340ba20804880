"""The posterior: against quadrature, against known constants, what it says about itself, and saved and loaded."""

from __future__ import annotations

import json

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import xarray as xr
from simulate import CONFIGURATION, Reference, Truth, simulate

import bayeslaw
from bayeslaw.errors import BayeslawError
from bayeslaw.runs import load_runs

#: How far a posterior mean or standard deviation may lie from quadrature, in Monte Carlo standard errors (ArviZ). Fixed
#: before the seeds were drawn; of the 26 comparisons below one in 600 repetitions would exceed it by chance.
STANDARD_ERRORS = 4.0
#: Spread, on the unconstrained scale, of the priors that hold a parameter where it is.
PINNED = 1e-3


def pinned(**values: float) -> dict[str, dist.Distribution]:
    """Make priors that leave no freedom worth speaking of."""
    priors: dict[str, dist.Distribution] = {}
    for name, value in values.items():
        if name in ("phi", "psi"):
            priors[name] = dist.Normal(value, PINNED)
        elif name == "plateau":
            weight = value * (1 - value) / (value * (1 - value) * PINNED) ** 2
            priors[name] = dist.Beta(value * weight, (1 - value) * weight)
        else:
            priors[name] = dist.LogNormal(np.log(value), PINNED)
    return priors


def assert_moments(draws: np.ndarray, mean: float, sd: float) -> None:
    """Compare mean and standard deviation of `[chains, draws]` with those of quadrature."""
    assert abs(draws.mean() - mean) < STANDARD_ERRORS * az.mcse(draws, method="mean")
    assert abs(draws.std() - sd) < STANDARD_ERRORS * az.mcse(draws, method="sd")


def moments(weight: np.ndarray, grid: np.ndarray) -> tuple[float, float]:
    """Compute mean and standard deviation of a density on an even grid that holds all of it."""
    weight = weight / weight.sum()
    assert weight[[0, -1]].max() < 1e-4 * weight.max()
    mean = float(weight @ grid)
    return mean, float(np.sqrt(weight @ (grid - mean) ** 2))


CONSTANTS = {
    "gamma": 1.3, "phi": 0.9, "psi": 1.2, "knee": 0.016, "plateau": 0.975, "a": 0.06, "alpha": 0.6, "b": 0.05,
    "beta": 0.5, "c": 0.01, "sigma": 0.05, "kappa": 0.1, "floor": 1.0, "nu": 8.0,
}  # fmt: skip


def test_posterior_of_the_law_is_that_of_quadrature() -> None:
    """Few configurations (standardised effects, adapted metric): gamma, phi and psi are free, all else pinned."""
    truth, sizes = Truth(sigma_np=1e-9, tau_np=1e-9, tau_p=1e-9), (1000,)
    runs = simulate(truth, widths=(2, 8), dataset_sizes=sizes, replicates=1, levels=range(30), seed=3).runs
    table = runs.drop(columns="replicate")
    constants = {name: value for name, value in CONSTANTS.items() if name not in ("gamma", "phi", "psi")}
    priors = pinned(**constants, spread_np=1e-3)
    assert jnp.ones(1).dtype == jnp.float32
    with pytest.warns(UserWarning) as caught:
        fit = bayeslaw.fit(table, priors=priors, seed=4, chains=2, draws=1500)
    assert [str(warning.message).split()[0] for warning in caught] == ["dataset_size", "The"]
    assert fit.settings["metric"] == "adapted"
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32

    reference = Reference(load_runs(table))

    def log_density(free: np.ndarray) -> np.ndarray:
        """Compute the log density of (log gamma, phi, psi), `[..., 3]`."""
        log_gamma, phi, psi = (free[..., i, None] for i in range(3))
        value = constants | {"gamma": np.exp(log_gamma), "phi": phi, "psi": psi}
        log_e = reference.log_dense(value)
        rows = reference.log_likelihood_of_rows(value, log_e, np.zeros(len(log_e)))
        prior = scipy.stats.norm.logpdf(free, [0.0, 1.0, 1.0], [0.75, 1.0, 1.0])
        return rows.sum(-1) + prior.sum(-1)

    start = np.array([np.log(1.3), 0.9, 1.2])
    best = scipy.optimize.minimize(lambda x: -log_density(x), start, method="BFGS")
    axes = [x + 6 * np.sqrt(v) * np.linspace(-1, 1, 33) for x, v in zip(best.x, np.diag(best.hess_inv), strict=True)]
    logs = np.stack([log_density(np.stack(np.meshgrid(x, *axes[1:], indexing="ij"), -1)[0]) for x in axes[0][:, None]])
    weight = np.exp(logs - logs.max())
    draws = fit.posterior
    drawn = (np.log(draws["gamma"]), draws["phi"], draws["psi"])
    for i, values in enumerate(drawn):
        assert_moments(values.to_numpy(), *moments(weight.sum(tuple({0, 1, 2} - {i})), axes[i]))
    for name, value in constants.items():
        assert draws[name].to_numpy() == pytest.approx(value, abs=6 * PINNED * max(value, 1.0)), name


def test_posterior_of_the_spreads_is_that_of_quadrature() -> None:
    """Production path (centred effects, Laplace metric): the three spreads are free, the 16 trajectories' 32 effects
    are integrated out on grids, all else is pinned. Also compared: log e of every configuration.
    """
    truth = Truth(sigma_np=0.25, tau_np=0.2, tau_p=0.2)
    simulated = simulate(truth, widths=(2, 8), levels=(0, 4, 8, 12, 16, 20, 24, 28), seed=5)
    priors = pinned(**CONSTANTS) | {
        "spread_np": dist.LogNormal(-1.2, 0.5),
        "share_np": dist.Beta(3.0, 3.0),
        "tau_p": dist.LogNormal(-1.6, 0.5),
    }
    fit = bayeslaw.fit(simulated.runs, priors=priors, seed=6, chains=2, draws=2000)
    assert fit.settings["metric"] == "laplace"

    reference = Reference(load_runs(simulated.runs))
    value = {name: np.array([v]) for name, v in CONSTANTS.items()}
    centre = reference.log_dense(value)
    log_e = np.linspace(-1.5, 1.5, 151)
    effect = np.linspace(-1.2, 1.2, 121)
    every = np.ones(len(reference.trajectories))
    # Log likelihood of every trajectory, `[log_e, effect, trajectories]`; log_e counts from its configuration's centre.
    origin = centre[reference.configuration]
    rows = np.stack([reference.log_likelihood_of_rows(value, origin + x * every, effect[:, None] * every) for x in log_e])
    by_trajectory = np.zeros((*rows.shape[:2], len(every)))
    np.add.at(by_trajectory, (slice(None), slice(None), reference.trajectory), rows)
    likelihood = np.exp(by_trajectory - by_trajectory.max((0, 1)))

    log_spread, logit_share, log_tau = np.linspace(-3, 0.2, 33), np.linspace(-5, 5, 31), np.linspace(-3.4, 0.2, 37)
    sideways = scipy.stats.norm.pdf(effect[:, None], 0, np.exp(log_tau))
    marginal = np.einsum("ext,xk->tke", likelihood, sideways)  # [trajectory, tau_p, log_e]
    spread, share = np.exp(log_spread)[:, None, None, None], scipy.special.expit(logit_share)[:, None, None]
    sigma, tau = spread * np.sqrt(share), spread * np.sqrt(1 - share)
    mean, half = (log_e[:, None] + log_e) / 2, (log_e[:, None] - log_e) / 2
    # Two exchangeable trajectories: their mean and half their difference are independent normals.
    pair = scipy.stats.norm.pdf(mean, 0, np.sqrt(sigma**2 + tau**2 / 2)) * scipy.stats.norm.pdf(half, 0, tau / np.sqrt(2))
    slope = (sigma**2 / (sigma**2 + tau**2 / 2))[:, :, 0, 0]  # of log e_i's conditional mean in `mean`
    log_prior = (
        scipy.stats.norm.logpdf(log_spread, -1.2, 0.5)[:, None, None]
        + (3 * np.log(share * (1 - share)))[None, :, 0]
        + scipy.stats.norm.logpdf(log_tau, -1.6, 0.5)
    )
    evidence, first = [], []
    for i in range(len(reference.configurations)):
        one, two = marginal[reference.configuration == i]
        joint = np.einsum("ka,kb->kab", one, two)
        evidence.append(np.einsum("shab,kab->shk", pair, joint, optimize=True))
        first.append(np.einsum("shab,kab,ab->shk", pair, joint, mean, optimize=True) * slope[..., None] / evidence[-1])
    logs = log_prior + np.log(evidence).sum(0)
    weight = np.exp(logs - logs.max())

    draws = fit.posterior
    assert_moments(np.log(draws["spread_np"]).to_numpy(), *moments(weight.sum((1, 2)), log_spread))
    assert_moments(scipy.special.logit(draws["share_np"].to_numpy()), *moments(weight.sum((0, 2)), logit_share))
    assert_moments(np.log(draws["tau_p"]).to_numpy(), *moments(weight.sum((0, 1)), log_tau))
    for i in range(len(reference.configurations)):
        drawn = draws["log_e"][..., i].to_numpy()
        expected = centre[i] + (weight * first[i]).sum() / weight.sum()
        assert abs(drawn.mean() - expected) < STANDARD_ERRORS * az.mcse(drawn, method="mean")
