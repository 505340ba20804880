"""What is left out, who counts as one, and what a coverage is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from simulate import Truth, simulate

from bayeslaw import BayeslawError, load_runs
from bayeslaw.calibration import LEVELS, Evaluation, _coverage, evaluate, fold_of, pit_share
from bayeslaw.diagnostics import Diagnosis
from bayeslaw.frame import CONFIGURATION, is_dead


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return load_runs(simulate(Truth(), levels=(0, 5, 10)).runs)


def test_every_configuration_is_left_out_once_and_whole(runs) -> None:
    fold = fold_of(runs, "configurations", 5, 0)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert (runs.assign(fold=fold).groupby(CONFIGURATION)["fold"].nunique() == 1).all()


def test_every_trajectory_is_left_out_once_and_whole(runs) -> None:
    fold = fold_of(runs, "trajectories", 6, 0)
    by_trajectory = runs.assign(fold=fold).groupby([*CONFIGURATION, "trajectory"])["fold"]
    assert (by_trajectory.nunique() == 1).all()
    assert by_trajectory.first().value_counts().tolist() == [4] * 6


def test_the_largest_are_the_larger_networks_and_the_most_data(runs) -> None:
    """Of six networks the two with most parameters, and all at the larger dataset size, are predicted."""
    fold = fold_of(runs, "largest", 2, 0)
    kept = runs[fold < 0]
    assert set(kept["dataset_size"]) == {250}
    sizes = runs.drop_duplicates(["depth", "width"]).set_index(["depth", "width"])["parameters"]
    assert set(map(tuple, kept[["depth", "width"]].drop_duplicates().to_numpy())) == set(sizes.nsmallest(4).index)
    one_size = runs[runs["dataset_size"] == 250]
    assert set(one_size[fold_of(one_size, "largest", 2, 0) < 0]["dataset_size"]) == {250}


@pytest.mark.parametrize(
    ("leave_out", "folds", "says"),
    [
        ("runs", 5, "must be one of configurations, trajectories, largest"),
        ("configurations", 13, "from 2 to the 12 configurations"),
        ("trajectories", 1, "from 2 to the 24 trajectories"),
    ],
)
def test_bad_questions_are_refused(runs, leave_out: str, folds: int, says: str) -> None:
    with pytest.raises(BayeslawError, match=says):
        fold_of(runs, leave_out, folds, 0)


def test_networks_of_one_size_have_no_largest(runs) -> None:
    with pytest.raises(BayeslawError, match="several sizes"):
        fold_of(runs[(runs["depth"] == 8) & (runs["width"] == 4)], "largest", 2, 0)


def test_coverage_counts_what_lies_inside_and_leaves_out_a_method_that_failed(runs) -> None:
    rows = runs[[*CONFIGURATION, "trajectory", "density", "error"]].copy()
    inside = np.arange(len(rows)) % 4 != 0
    for level in LEVELS:
        rows[f"posterior_lower_{level}"] = rows["error"] * np.where(inside, 0.5, 2.0)
        rows[f"posterior_upper_{level}"] = rows["error"] * np.where(inside, 2.0, 8.0)
        rows[f"least_squares_lower_{level}"] = rows[f"least_squares_upper_{level}"] = np.nan
    rows["posterior_below"], rows["posterior_not_above"] = np.where(inside, 0.5, 0.1), np.where(inside, 0.6, 0.4)
    by_draw = np.array([np.linspace(0.3, 0.7, 101), np.linspace(0.8, 1.0, 101)])
    table = _coverage(rows, by_draw, "trajectories", 0)
    assert table["method"].tolist() == ["posterior", "posterior"]
    assert table["coverage"].tolist() == pytest.approx([inside.mean()] * 2)
    assert (table["lower"] <= table["coverage"]).all() and (table["coverage"] <= table["upper"]).all()
    assert table["log_width"].tolist() == pytest.approx([np.log(4.0)] * 2)
    # Of the ranges of the others, .1 to .4, a half lies within .25 to .75, and all within .05 to .95.
    assert table["pit"].tolist() == pytest.approx([(1 + inside.mean()) / 2, 1.0])
    assert (table["pit_lower"] <= table["pit"]).all() and (table["pit"] <= table["pit_upper"]).all()
    assert table[["expected_lower", "expected_upper"]].to_numpy() == pytest.approx(
        np.array([[0.32, 0.68], [0.81, 0.99]])
    )


def test_ties_are_split_where_predictions_are_counts() -> None:
    """Counts with a mean of 4, by a predictive distribution that is right: closed intervals hold too much, ranges of
    the transform what they say, within 4 standard errors.
    """
    rng, predicted = np.random.default_rng(0), scipy.stats.binom(20, 0.2)
    measured = predicted.rvs(20_000, random_state=rng)
    for level in (0.5, 0.9):
        shares = pit_share(predicted.cdf(measured - 1), predicted.cdf(measured), level)
        assert abs(shares.mean() - level) < 4 * shares.std() / np.sqrt(len(shares))
        lower, upper = predicted.ppf([(1 - level) / 2, (1 + level) / 2])
        assert np.mean((measured >= lower) & (measured <= upper)) > level + 0.03
    continuous = rng.random(20_000)
    shares = pit_share(continuous, continuous, 0.5)
    assert set(shares) == {0.0, 1.0}
    assert abs(shares.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(shares))


def test_rows_of_dead_networks_are_told_apart_in_any_order(runs) -> None:
    rows = runs[[*CONFIGURATION, "trajectory", "density"]].assign(error=np.linspace(0.2, 0.8, len(runs)))
    (_, dead), (_, working), *_ = rows.groupby([*CONFIGURATION, "trajectory"])
    last, first = dead.nsmallest(2, "density").index, working.nlargest(2, "density").index
    rows.loc[last, "error"] = 0.9  # dies, then stays dead
    rows.loc[first, "error"] = 0.1  # the same error twice, but of a network that works
    for order in (rows, rows.sample(frac=1, random_state=0)):
        assert set(order.index[is_dead(order, 0.9)]) == set(last)


def test_a_table_without_test_examples_or_unpruned_runs_is_evaluated() -> None:
    """Least squares, which needs what is unpruned, is left out; the posterior is not."""
    bare = load_runs(simulate(Truth(), levels=range(1, 30, 2)).runs).drop(columns=["n_test", "n_wrong"])
    outside = (bare["depth"] == 14) & (bare["width"] == bare["width"].max())
    found = evaluate(bare[~outside], law="joint", later=bare[outside], repetitions=2, draws=50)
    assert found.deviation["method"].tolist() == ["posterior", "seeds alone"]
    assert found.coverage["method"].unique().tolist() == ["posterior"]
    assert "n_test" not in found.rows
    assert len(found.rows) == outside.sum()


@pytest.mark.parametrize("leave_out", ["trajectories", "configurations"])
def test_a_table_without_trajectories_is_refused_before_anything_is_fitted(runs, leave_out: str) -> None:
    bare = runs.drop(columns="trajectory")
    with pytest.raises(BayeslawError, match="scores whole trajectories, and runs has no column trajectory"):
        evaluate(bare, leave_out=leave_out)
    with pytest.raises(BayeslawError, match="later has no column trajectory"):
        evaluate(runs, later=bare)


def test_it_says_which_fit_failed_its_gate_and_why() -> None:
    def verdict(value: float) -> Diagnosis:
        row = {"value": value, "required": "<= 1.01", "passed": value <= 1.01, "parameter": "tau_p", "remedy": "look"}
        return Diagnosis(pd.DataFrame([row], index=pd.Index(["r_hat"], name="rule")))

    gates = {"fold 1": verdict(1.004), "fold 2": verdict(1.03), "whole table": verdict(1.002)}
    rows = pd.DataFrame({"depth": [8], "width": [2], "dataset_size": [1000], "extrapolation": [0.0]})
    scores = pd.DataFrame({"log_density": [12.0, -2.0], "mcse": [0.3, 0.4]})
    evaluation = Evaluation(pd.DataFrame(), pd.DataFrame(), rows, scores, gates, "configurations")
    assert "density of 2 trajectories left out: 10.0 (Monte Carlo error 0.5)" in str(evaluation)
    assert evaluation.passed == pytest.approx(2 / 3)
    last = str(evaluation).splitlines()[-2:]
    assert last == ["fits that passed the gate: 67%", "fold 2: r_hat = 1.03 (tau_p), required <= 1.01: look"]
