"""Predictive densities of what is left out: against grids in plain NumPy, and the rank of a true and a wrong law."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.special
import xarray as xr
from altered import with_draws
from simulate import (
    error_of,
    log_dense_of,
    log_density_along,
    measured_spread,
    observation_of,
    saturated,
    slope_of_logit,
    spread_at,
)

import bayeslaw
from bayeslaw import BayeslawError, compare
from bayeslaw.comparison import check_fits, leave_row_out, leave_trajectory_out
from bayeslaw.run_likelihood import trajectory_log_likelihood


def draws_of(fit: bayeslaw.Fit, count: int) -> dict[str, np.ndarray]:
    """Give `count` evenly spread draws of everything, `[draws, ...]`."""
    total = fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"]
    index = np.linspace(0, total - 1, count).round().astype(int)
    return {k: v.to_numpy().reshape(total, *v.shape[2:])[index] for k, v in fit.posterior.data_vars.items()}


def log_density_of_rows(draw: dict[str, float], rows, e, effect, log_dataset_size: float) -> np.ndarray:
    """Compute the density of one trajectory's empirical logits in the paper's units; e and effect broadcast."""
    m = rows["depth"] ** draw["phi"] * (rows["width"] / 16) ** draw["psi"] * rows["density"]
    m *= np.exp(draw["chi"] * (np.log(rows["dataset_size"]) - log_dataset_size))
    p = draw["p_prime"] * np.exp(effect)
    curve = (saturated(e, draw["eps_up"]), draw["eps_up"], draw["gamma"], p, m.to_numpy(), draw["sharpness"])
    location, scale = observation_of(error_of(*curve), slope_of_logit(*curve), rows["n_test"].to_numpy(float), draw)
    wrong = rows["n_wrong"].to_numpy(float)
    response = np.log((wrong + 0.5) / (rows["n_test"] - wrong + 0.5).to_numpy())
    return log_density_along(draw, rows["density"].to_numpy(float), response, location, scale)


@pytest.fixture(scope="module")
def correlated(fitted) -> bayeslaw.Fit:
    """Give the same posterior with noise that is clearly correlated along a trajectory, and part of which lasts."""
    return with_draws(
        fitted, rho=lambda draws: 0.3 + 0.3 * draws["share_n"], lasting=lambda draws: 0.9 * draws["share_c"]
    )


def test_trajectories_are_integrated_over_their_effects(correlated) -> None:
    """For three draws and four trajectories, on a grid of 301 by 301 over six standard deviations of both effects."""
    count = 3
    computed, draws = trajectory_log_likelihood(correlated, draws=count, progress=False), draws_of(correlated, count)
    constant = correlated.tree["constant_data"].to_dataset()
    configuration = constant["configuration_of_trajectory"].to_numpy()
    covariates = correlated.frame.covariates(correlated.configurations)
    z = np.linspace(-6, 6, 301)
    for s in range(count):
        draw = {k: float(v[s]) for k, v in draws.items() if v.ndim == 1}
        for t in (0, 7, 12, 23):
            i = configuration[t]
            log_dense = log_dense_of(draw, {name: values[i] for name, values in covariates.items()})
            # The other trajectory of the configuration is one more observation of its log e, and of its shift.
            (other,) = np.flatnonzero((configuration == i) & (np.arange(24) != t))
            known = []
            for of_runs, where, about in (("log_e_run", "np", log_dense), ("effect_p", "p", 0.0)):
                sigma, tau = (spread_at(draw, f"{part}_{where}", log_dense) for part in ("sigma", "tau"))
                tau = measured_spread(draw, log_dense, draw["eps_up"], 797) if where == "np" else tau
                weights = np.array([sigma**-2, tau**-2])
                mean = weights @ [about, draws[of_runs][s, other]] / weights.sum()
                known.append(mean + np.sqrt(1 / weights.sum() + tau**2) * z)
            rows = correlated.runs[constant["trajectory_of_row"].to_numpy() == t]
            e, effect = np.exp(known[0])[:, None, None], known[1][:, None]
            log_likelihood = log_density_of_rows(draw, rows, e, effect, correlated.frame.log_dataset_size).sum(-1)
            log_prior = -0.5 * (z[:, None] ** 2 + z**2) - np.log(2 * np.pi)
            expected = scipy.special.logsumexp(log_likelihood + log_prior) + 2 * np.log(z[1] - z[0])
            assert computed[s, t] == pytest.approx(expected, abs=0.02)


def test_rows_left_out_are_those_of_plain_importance_sampling(correlated) -> None:
    """Where the weights are tame, smoothing their tail changes little: raw harmonic means are within a twentieth."""
    found, draws = leave_row_out(correlated, draws=500), draws_of(correlated, 500)
    trajectory = correlated.tree["constant_data"]["trajectory_of_row"].to_numpy()
    log_density = np.empty((500, len(correlated.runs)))
    for s in range(500):
        draw = {k: float(v[s]) for k, v in draws.items() if v.ndim == 1}
        for t in range(24):
            own = trajectory == t
            e, effect = np.exp(draws["log_e_run"][s, t]), draws["effect_p"][s, t]
            log_density[s, own] = log_density_of_rows(
                draw, correlated.runs[own], e, effect, correlated.frame.log_dataset_size
            )
    plain = np.log(500) - scipy.special.logsumexp(-log_density, axis=0)
    tame = found.pareto_k < 0.4
    assert tame.mean() > 0.8
    assert found.elpd[tame] == pytest.approx(plain[tame], abs=0.05)


@pytest.fixture(scope="module")
def wrong(fitted) -> bayeslaw.Fit:
    """Give the same posterior with psi off by 0.4 in every draw, the knee kept for the central network."""
    return with_draws(fitted, psi=lambda draws: draws["psi"] + 0.4)


@pytest.fixture(scope="module")
def comparison(fitted, wrong) -> bayeslaw.Comparison:
    return compare({"wrong": wrong, "M1": fitted}, draws=500, progress=False)


def test_the_truth_ranks_first(comparison) -> None:
    """A wrong exponent shifts the curves of the narrowest and widest networks; ten natural logs are odds of 22,000."""
    table = comparison.table
    assert table.index.tolist() == ["M1", "wrong"]
    for kind in ("lto", "loo"):
        assert table.loc["M1", f"{kind}_difference"] == 0
        assert table.loc["wrong", f"{kind}_difference"] < -10
    assert comparison.pointwise.shape == (24, 2)
    assert table.loc["M1", "lto_elpd"] == pytest.approx(comparison.pointwise["M1"].sum())
    assert table.loc["M1", "lto_elpd"] < table.loc["M1", "loo_elpd"]  # a row has the rest of its trajectory


def test_what_must_not_be_believed_is_said(fitted, comparison) -> None:
    table = comparison.table.assign(lto_bad_k=[0.2, 0.0], lto_believe=[False, True], loo_believe=True)
    said = dataclasses.replace(comparison, table=table)
    assert len(said.warnings) == 1
    assert "M1: 20.0% of the trajectories have a Pareto k-hat above the limit; do not believe" in str(said)
    assert leave_trajectory_out(fitted, draws=100, progress=False).limit == 0.5


def test_other_runs_or_one_fit_are_refused(fitted, wrong) -> None:
    with pytest.raises(BayeslawError, match="two fits or more; got 1"):
        compare({"M1": fitted})
    other = dataclasses.replace(wrong, runs=wrong.runs.iloc[1:])
    with pytest.raises(BayeslawError, match="'wrong' was fitted to other runs than 'M1'"):
        compare({"M1": fitted, "wrong": other})


def test_fits_of_other_test_examples_or_trajectories_are_refused(fitted) -> None:
    """Though networks, densities and errors are the same."""
    tree = fitted.tree.copy()
    tree["constant_data"] = xr.DataTree(tree["constant_data"].to_dataset().assign(n_test=lambda data: 2 * data.n_test))
    renamed = fitted.tree.copy()
    names = {"trajectory": [f"{name}-again" for name in fitted.posterior["trajectory"].to_numpy()]}
    renamed["posterior"] = xr.DataTree(renamed["posterior"].to_dataset().assign_coords(names))
    moved = fitted.tree.copy()
    moved["observed_data"] = xr.DataTree(moved["observed_data"].to_dataset() + 0.1)
    check_fits({"M1": fitted, "M2": dataclasses.replace(fitted)})
    for other in (tree, renamed, moved):
        with pytest.raises(BayeslawError, match="'other' was fitted to other runs than 'M1'"):
            compare({"M1": fitted, "other": dataclasses.replace(fitted, tree=other)})
