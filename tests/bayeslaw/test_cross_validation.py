"""Exact scores of what is left out: against plain integrals, and models fitted again."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from simulate import error_of, log_dense_of, log_density_along, observation_of, saturated, slope_of_logit, spread_at

import bayeslaw
from bayeslaw import BayeslawError, CrossValidation, cross_validate
from bayeslaw.cross_validation import keep, read_kept, refit
from bayeslaw.frame import CONFIGURATION
from bayeslaw.run_likelihood import new_run_log_likelihood


def draw_of(fit: bayeslaw.Fit, index: int) -> dict[str, np.ndarray]:
    """Give one draw of everything."""
    posterior = fit.posterior.isel(chain=0, draw=index)
    return {str(name): values.to_numpy() for name, values in posterior.data_vars.items()}


def first_run_of(fit: bayeslaw.Fit, **network: int) -> pd.DataFrame:
    """Take a run of the fitted table, and call it another's."""
    runs = fit.runs
    return runs[runs["trajectory"] == runs["trajectory"].iloc[0]].assign(trajectory="new", **network)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "new"])
def test_runs_that_were_not_fitted_are_integrated_over_their_effects(fitted, trained: bool) -> None:
    """On a grid of 241 by 241 over eight standard deviations of both effects, in the paper's units, for one draw."""
    rows = first_run_of(fitted) if trained else first_run_of(fitted, dataset_size=1000)
    with jax.enable_x64(True):
        computed = new_run_log_likelihood(fitted, rows, draws=1, progress=False)
    draw = draw_of(fitted, 0)
    covariates = {name: float(values[0]) for name, values in fitted.frame.covariates(rows).items()}
    dense = log_dense_of(draw, covariates)
    spread = {name: spread_at(draw, name, dense) for name in ("sigma_np", "tau_np", "sigma_p", "tau_p")}
    if trained:
        network = tuple(rows[CONFIGURATION].iloc[0])
        own = list(fitted.configurations.itertuples(index=False, name=None)).index(network)
        centre, sd = (draw["log_e"][own], draw["shift_p"][own]), (spread["tau_np"], spread["tau_p"])
    else:
        centre = dense, 0.0
        sd = tuple(np.hypot(spread[f"sigma_{where}"], spread[f"tau_{where}"]) for where in ("np", "p"))
    z = np.linspace(-8, 8, 241)
    e, shift = np.exp(centre[0] + sd[0] * z)[:, None, None], (centre[1] + sd[1] * z)[:, None]
    first = rows.iloc[0]
    m = first["depth"] ** draw["phi"] * (first["width"] / 16) ** draw["psi"] * rows["density"].to_numpy(float)
    m = m * np.exp(draw["chi"] * covariates["dataset_size"])
    curve = (
        saturated(e, draw["eps_up"]), draw["eps_up"], draw["gamma"], draw["p_prime"] * np.exp(shift), m,
        draw["sharpness"],
    )  # fmt: skip
    location, scale = observation_of(error_of(*curve), slope_of_logit(*curve), rows["n_test"].to_numpy(float), draw)
    wrong = rows["n_wrong"].to_numpy(float)
    response = np.log((wrong + 0.5) / (rows["n_test"].to_numpy(float) - wrong + 0.5))
    density = log_density_along(draw, rows["density"].to_numpy(float), response, location, scale).sum(-1)
    prior = scipy.stats.norm.logpdf(z)[:, None] + scipy.stats.norm.logpdf(z)
    expected = scipy.special.logsumexp(density + prior) + 2 * np.log(z[1] - z[0])
    assert computed.shape == (1, 1)
    assert float(computed[0, 0]) == pytest.approx(expected, abs=0.02)


def test_models_are_fitted_again_without_what_is_left_out_and_scored(fitted, tmp_path) -> None:
    """A table goes on where it stopped; a fold's score is that of the same fit made by hand."""
    settings = fitted.settings | {"draws": 200, "warmup": 100, "target_acceptance": 0.9}
    short = dataclasses.replace(fitted, settings=settings)
    path = tmp_path / "scores.csv"
    found = cross_validate({"M2": short}, folds=3, draws=50, seed=3, path=path, progress=False)
    assert found.pointwise.groupby("fold").size().tolist() == [8, 8, 8]
    assert found.table.loc["M2", "elpd"] == pytest.approx(found.pointwise["log_density"].sum())
    rows = found.pointwise[found.pointwise["fold"] == 0]
    outside = fitted.runs.merge(rows[[*CONFIGURATION, "trajectory"]], on=[*CONFIGURATION, "trajectory"])
    inside = fitted.runs[~fitted.runs["trajectory"].isin(rows["trajectory"])]
    assert len(inside) + len(outside) == len(fitted.runs)
    assert not set(map(tuple, inside[CONFIGURATION].to_numpy())) & set(map(tuple, outside[CONFIGURATION].to_numpy()))
    again = refit(short, inside, seed=3)
    assert again.structure == fitted.structure
    for name in ("priors", "chains"):
        assert again.settings[name] == fitted.settings[name]
    assert [again.settings[name] for name in ("draws", "warmup", "target_acceptance")] == [200, 100, 0.9]
    with jax.enable_x64(True):
        likelihood = new_run_log_likelihood(again, outside, draws=50, progress=False)
    expected = scipy.special.logsumexp(likelihood, axis=0) - np.log(50)
    assert rows["log_density"].to_numpy() == pytest.approx(expected, rel=1e-9)
    kept = path.read_text()
    whole = cross_validate({"M2": short}, folds=3, draws=50, seed=3, path=path, progress=False)
    assert path.read_text() == kept
    pd.testing.assert_frame_equal(whole.pointwise, found.pointwise, check_dtype=False)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]
    more = dataclasses.replace(short, settings=settings | {"draws": 250})
    fewer = dataclasses.replace(short, runs=fitted.runs.iloc[1:])
    asked = {"folds": 3, "draws": 50, "seed": 3}
    for other, changed in (
        (short, {"seed": 4}), (short, {"folds": 4}), (short, {"draws": 60}), (short, {"leave_out": "trajectories"}),
        (more, {}), (fewer, {}),
    ):  # fmt: skip
        with pytest.raises(BayeslawError, match=r"scores\.csv: holds results of other runs or other settings"):
            cross_validate({"M2": other}, **asked | changed, path=path, progress=False)
    with pytest.raises(BayeslawError, match="other settings"):
        cross_validate({"M3": short}, **asked | {"seed": 4}, path=path, progress=False)


def test_names_of_digits_stay_text_in_a_table_that_is_kept(tmp_path) -> None:
    """Whatever they look like; and a table is written whole, into a folder that is made."""
    path = tmp_path / "new" / "kept.csv"
    assert read_kept(path).empty
    table = pd.DataFrame({"fit": ["1", "NA"], "fold": 0, "trajectory": ["007", "1e5"], "log_density": [1.5, np.nan]})
    keep(table.assign(settings=["0123456789", "1e23456789"]), path)
    assert [file.name for file in path.parent.iterdir()] == ["kept.csv"]
    pd.testing.assert_frame_equal(read_kept(path).drop(columns="settings"), table, check_dtype=False)
    assert read_kept(path)["settings"].tolist() == ["0123456789", "1e23456789"]
    keep(table, path)
    with pytest.raises(BayeslawError, match=r"kept\.csv: .* or does not say of which, .*give another path"):
        read_kept(path)
    path.write_text("")
    with pytest.raises(BayeslawError, match=r"kept\.csv: not a table that can be gone on with"):
        read_kept(path)


def test_a_family_that_was_pooled_is_not_fitted_again_without_the_others(fitted) -> None:
    pooled = dataclasses.replace(fitted, settings=fitted.settings | {"pooled": ["gamma"]})
    with pytest.raises(BayeslawError, match=r"fitted together with other families.*bayeslaw\.fit\(fit\.runs\)"):
        cross_validate({"M2": fitted, "pooled": pooled})
    with pytest.raises(BayeslawError, match="fitted together with other families"):
        refit(pooled, pooled.runs, seed=0)


def test_the_table_compares_models_by_what_was_left_out_as_one() -> None:
    """Two networks of two runs each: differences are summed by network before their standard error is taken."""
    keys = {"depth": [8, 8, 14, 14], "width": 4, "dataset_size": 1000, "trajectory": ["a", "b", "c", "d"], "fold": 0}
    rows = pd.DataFrame(keys)
    made = [
        rows.assign(fit="better", log_density=[5.0, 6.0, 7.0, 8.0], mcse=0.1, passed=True),
        rows.assign(fit="worse", log_density=[4.0, 5.0, 7.0, 7.0], mcse=0.2, passed=[True, True, True, True]),
    ]
    table = CrossValidation(pd.concat(made), "configurations").table
    assert table.index.tolist() == ["better", "worse"]
    assert table["elpd"].tolist() == [26.0, 23.0]
    assert table["difference"].tolist() == [0.0, -3.0]
    # Networks differ by 2 and 1: sd .7071, times the root of 2.
    assert table.loc["worse", "difference_se"] == pytest.approx(1.0)
    assert table["mcse"].tolist() == pytest.approx([0.2, 0.4])
    assert "better" in str(CrossValidation(pd.concat(made), "configurations"))


def test_runs_without_trajectories_are_refused(fitted) -> None:
    alone = dataclasses.replace(fitted, runs=fitted.runs.drop(columns="trajectory"))
    with pytest.raises(BayeslawError, match="whole trajectories; the runs have none"):
        cross_validate({"M2": alone})
