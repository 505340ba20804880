"""Test quantities of measured and replicated runs: by plain loops, usual for the model's own runs, and planted."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from bayeslaw import BayeslawError, Fit
from bayeslaw.predictive_checks import EARLY


@pytest.fixture(scope="module")
def table(fitted) -> pd.DataFrame:
    return fitted.predictive_check()


def planted(fitted, change) -> Fit:
    """Give the fit other measured errors, as if the chains had been told these."""
    runs = fitted.runs.copy()
    logit = np.log((runs["error"] * runs["n_test"] + 0.5) / ((1 - runs["error"]) * runs["n_test"] + 0.5))
    share = 1 / (1 + np.exp(-(logit + change(runs))))
    return dataclasses.replace(fitted, runs=runs.assign(error=(share * runs["n_test"]).round() / runs["n_test"]))


def test_measured_quantities_are_those_of_plain_loops(fitted, table) -> None:
    early, steepest, last, by_level = [], [], [], {}
    for (*network, _), run in fitted.runs.groupby(["depth", "width", "dataset_size", "trajectory"]):
        run = run.sort_values("level")
        wrong, n_test = run["error"].to_numpy() * run["n_test"].to_numpy(), run["n_test"].to_numpy()
        share = (wrong + 0.5) / (n_test + 1)
        first = (run["level"] >= 1) & (run["level"] <= EARLY)
        early.append(np.mean(np.log(share[first])) - np.log(share[0]))
        steepest.append(np.max(np.diff(np.log(share / (1 - share)))))
        last.append(run["error"].iloc[-1])
        for level, value in zip(run["level"], share, strict=True):
            by_level.setdefault((*network, level), []).append(np.log(value))
    seeds = [np.std(values, ddof=1) for values in by_level.values() if len(values) > 1]
    measured = [np.mean(values) for values in (early, steepest, last, seeds)]
    assert table["measured"].to_list() == pytest.approx(measured)


def test_runs_of_the_model_itself_are_nothing_unusual(table) -> None:
    """Four quantities, each beyond a tail of .002 by chance once in 60 tables."""
    assert table.index.to_list() == ["early_change", "steepest", "last", "seeds"]
    assert table["p_value"].between(0.002, 0.998).all()
    assert (table["lower"] <= table["median"]).all()
    assert (table["median"] <= table["upper"]).all()


def test_what_the_model_cannot_do_is_seen(fitted, table) -> None:
    """Errors that first fall by a fifth, and networks that die at once."""
    dips = planted(fitted, lambda runs: np.where(runs["level"].between(1, EARLY), -0.2, 0.0)).predictive_check()
    assert dips["p_value"]["early_change"] > 0.998
    assert dips["measured"]["last"] == table["measured"]["last"]
    dies = planted(fitted, lambda runs: np.where(runs["level"] > runs["level"].max() / 2, 3.0, 0.0)).predictive_check()
    assert dies["p_value"]["steepest"] < 0.002


def test_without_trajectories_or_counts(fitted) -> None:
    """What needs replicates is absent."""
    bare = dataclasses.replace(fitted, runs=fitted.runs.drop(columns=["trajectory", "n_test"]).query("error > 0"))
    assert bare.predictive_check().index.to_list() == ["early_change", "steepest", "last"]


def test_nothing_to_compare_with_and_bad_intervals_are_refused(fitted) -> None:
    with pytest.raises(BayeslawError, match=r"no run of cifar_resnet.* was fitted"):
        dataclasses.replace(fitted, runs=fitted.runs.iloc[:0]).predictive_check()
    with pytest.raises(BayeslawError, match=r"interval = 1 must be in \(0, 1\)"):
        fitted.predictive_check(interval=1)
