"""Plans looked up in recorded runs: how small runs ended, what is hidden, and what is laid beside it."""

import numpy as np
import pandas as pd
import pytest
import scipy.special
from simulate import Truth, count_parameters, error_of, simulate

from bayeslaw import BayeslawError, evaluate_plans
from bayeslaw.measured import crossing, middle, run_sizes, smoothed, start_sizes
from bayeslaw.plan_evaluation import _around, _full_grid, _near, _new_recordings, _quantiles_of, _resampled
from bayeslaw.promise_plots import plot_looked_up
from bayeslaw.runs import load_runs

STARTS = {"depths": [8, 14], "widths": [2, 4, 8], "dataset_size": 250}


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    """Give nine networks at two dataset sizes, two runs each."""
    return load_runs(simulate(Truth(), depths=(8, 14, 20), dataset_sizes=(1000, 250), seed=5).runs)


@pytest.fixture(scope="module")
def evaluation(recorded):
    """Ask for one target at each dataset size."""
    return evaluate_plans(recorded, factors=[2.0], draws=100, progress=False)


def test_logits_are_smoothed_by_the_min_max_formula() -> None:
    """Isotonic regression is max over starts of min over ends of the mean between (Barlow and Brunk 1972)."""
    logits = np.random.default_rng(0).standard_normal((20, 9)).cumsum(1)
    for own, found in zip(logits, smoothed(logits), strict=True):
        expected = [
            max(min(own[j : k + 1].mean() for k in range(i, 9)) for j in range(i + 1)) for i in range(9)
        ]  # fmt: skip
        assert found.tolist() == pytest.approx(expected)


def test_a_smooth_run_is_measured_where_the_law_says() -> None:
    """Runs of the law without noise, rounded to counts of 10^7 examples, against its own inverse by a fine search."""
    rows, truth = [], {}
    for depth, width in ((8, 4), (14, 2)):
        prunable, other = count_parameters(depth, width)
        density = 0.8 ** np.arange(30)
        curve = (0.05, 0.9, 1.2, 0.02, density * width**1.1 / 4)
        rows.append(pd.DataFrame({"depth": depth, "width": width, "density": density, "error": error_of(*curve)}))
        fine = np.geomspace(1e-3, 1, 200_001)
        within = fine[error_of(*curve[:4], fine * width**1.1 / 4) <= 0.2]
        truth[depth] = within.min() * prunable + other
    table = pd.concat(rows).assign(
        family="cifar_resnet", dataset="digits", classes=10, input_shape="1,8,8", dataset_size=100, n_test=10**7,
        replicate=0, level=list(range(30)) * 2,
    )  # fmt: skip
    sizes = run_sizes(load_runs(table), 0.2).set_index("depth")["size"]
    for depth, size in truth.items():
        assert sizes[depth] == pytest.approx(size, rel=0.005)


def test_targets_that_are_missed_and_targets_never_left() -> None:
    logits, log_density = np.array([-2.0, -1.0, -1.5, 1.0]), np.log(0.8) * np.arange(4)
    assert crossing(logits, log_density, scipy.special.expit(-2.5)) == np.inf
    assert crossing(logits, log_density, scipy.special.expit(2.0)) == log_density[-1]
    assert crossing(logits, log_density, scipy.special.expit(-2.0)) == pytest.approx(0.0, abs=1e-9)
    # The two levels in between are smoothed to -1.25.
    assert crossing(logits, log_density, scipy.special.expit(-1.25)) == pytest.approx(log_density[2], abs=1e-9)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([3.0, 100.0, 5.0], 5.0), ([4.0, 9.0], 6.0), ([4.0, np.inf], np.inf), ([2.0, 8.0, np.inf], 8.0), ([7.0], 7.0)],
)
def test_the_middle_run_is_the_typical_one(sizes, expected) -> None:
    assert middle(np.array(sizes)) == pytest.approx(expected)
    assert middle(np.array([sizes, sizes]), axis=1) == pytest.approx([expected] * 2)


def test_a_network_and_its_neighbours_are_hidden(recorded) -> None:
    assert set(_around(recorded, 14, 4)) == {(14, 4), (8, 4), (20, 4), (14, 2), (14, 8)}
    assert set(_around(recorded, 8, 2)) == {(8, 2), (14, 2), (8, 4)}


def test_networks_that_were_not_recorded_are_not_planned_with() -> None:
    every = pd.MultiIndex.from_product([(8, 14), (2, 4, 8)])
    assert _full_grid(every) == {"depths": [8, 14], "widths": [2, 4, 8]}
    assert _full_grid(every.drop((14, 8))) == {"depths": [8, 14], "widths": [2, 4]}


def test_recordings_made_again_spread_like_new_ones() -> None:
    """The mean of two normals has sd s / sqrt(2), which resampling the two would show as half of its square."""
    rng, spreads = np.random.default_rng(0), []
    for seed in range(300):
        values = np.exp(0.3 * rng.standard_normal(2))
        table = pd.DataFrame({"depth": 8, "width": 2, "size": values})
        spreads.append(np.log(_resampled(table, seed)[(8, 2)]).var())
    # Mean of 300 variances of two values: five standard errors of sqrt(2 / 300).
    assert np.mean(spreads) == pytest.approx(0.3**2 / 2, rel=5 * np.sqrt(2 / 300))


def test_new_recordings_of_a_trained_network_end_where_the_plan_says(fitted, simulated) -> None:
    """The middle of a plan's typical run and of new recordings agree within what seeds do to two runs."""
    target = 2 * float(fitted.posterior["eps_np"].median())
    plan = fitted.plan(target, **STARTS, allow_failed=True).starts.set_index(["depth", "width"])
    own = fitted.runs[fitted.runs["dataset_size"] == 250]
    compared = 0
    for network, recording in _new_recordings(fitted, own, 0).items():
        sizes = recording.sizes(target)
        low, high = np.quantile(sizes, [0.05, 0.95], method="lower")
        if plan.loc[network, "p_feasible"] < 0.95 or not np.isfinite(high):
            continue
        compared += 1
        assert np.log(np.median(sizes) / plan.loc[network, "size_median"]) == pytest.approx(0.0, abs=0.1)
        assert np.log(high / low) > np.log(plan.loc[network, "size_upper"] / plan.loc[network, "size_lower"])
    assert compared >= 2


def test_optima_are_looked_up(evaluation, recorded) -> None:
    """Every number of a question by plain means."""
    questions = evaluation.questions
    assert questions["dataset_size"].tolist() == [250, 1000]
    for _, row in questions.iterrows():
        own = recorded[recorded["dataset_size"] == row["dataset_size"]]
        unpruned = own[own["density"] == 1].groupby(["depth", "width"])["error"].mean()
        assert row["target_error"] == pytest.approx(2 * unpruned.min())
        sizes = start_sizes(own, row["target_error"]).set_index(["depth", "width"])
        assert (sizes["runs"] == 2).all()
        assert row["best_size"] == sizes["size"].min()
        assert sizes.loc[(row["best_depth"], row["best_width"]), "size"] == row["best_size"]
        assert row["off"] == pytest.approx(row["planned_size"] / row["best_size"] - 1)
        assert row["regret"] == pytest.approx(sizes.loc[(row["depth"], row["width"]), "size"] / row["best_size"] - 1)
        assert row["regret"] >= 0
        assert row["lower_90"] <= row["lower_50"] <= row["median"] <= row["upper_50"] <= row["upper_90"]
        assert row["inside_90"] == (row["lower_90"] <= row["best_size"] <= row["upper_90"])
        # What is measured as the optimum is never more than what visible networks showed.
        hidden = _around(recorded, row["best_depth"], row["best_width"])
        assert row["upper_90"] <= sizes["size"][~sizes.index.isin(hidden)].min()
        assert 0 < row["near_by_seeds"] <= 1
    told = str(evaluation)
    assert "hidden networks" in told
    assert "fits that passed the gate" in told


def test_hidden_networks_are_looked_up(evaluation, recorded) -> None:
    questions, starts = evaluation.questions, evaluation.starts
    expected = sum(len(_around(recorded, q.best_depth, q.best_width)) for q in questions.itertuples())
    assert len(starts) == expected
    assert (starts["asked"] == (starts["p_finite"] >= 0.5)).all()
    coverage = evaluation.coverage.set_index("of")
    asked = starts[starts["asked"]]
    assert coverage.loc["hidden networks", "count"] == len(asked)
    assert coverage.loc["hidden networks", "in_90"] == asked["inside_90"].mean()
    assert coverage.loc["hidden networks", "near"] == (asked["off"].abs() <= 0.25).mean()
    assert coverage.loc["optimum", "in_50"] == questions["inside_50"].mean()
    assert len(evaluation.gates) == len(questions[["best_depth", "best_width"]].drop_duplicates())


def test_tables_and_figure_are_written(evaluation, tmp_path) -> None:
    ax = plot_looked_up(evaluation)
    shown = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o")
    starts = evaluation.starts
    assert shown == (starts["asked"] & np.isfinite(starts["size"])).sum()
    folder = evaluation.save(tmp_path / "new")
    assert (folder / "sizes.png").stat().st_size > 5000
    for name in ("questions", "starts", "coverage"):
        written = pd.read_csv(folder / f"{name}.csv")
        pd.testing.assert_frame_equal(written, getattr(evaluation, name), check_dtype=False, rtol=1e-5)


def test_draws_that_miss_are_infinite_and_counted() -> None:
    draws = np.concatenate([np.arange(1.0, 61.0), np.full(40, np.inf)])
    found = _quantiles_of(draws, np.inf)
    assert (found["lower_90"], found["upper_90"], found["upper_50"]) == (5.0, np.inf, np.inf)
    assert (found["inside_50"], found["inside_90"]) == (True, True)
    assert not _quantiles_of(draws, 2.0)["inside_90"]
    assert _near(np.array([70.0, 80.0, 125.0, np.inf]), 100.0) == 0.5


def test_tables_that_cannot_be_asked(simulated, recorded) -> None:
    with pytest.raises(BayeslawError, match="too few networks are left to fit; 8 are needed"):
        evaluate_plans(load_runs(simulated.runs), progress=False)
    with pytest.raises(BayeslawError, match="no recorded network reaches such a target below"):
        evaluate_plans(recorded, factors=[50.0], progress=False)
    with pytest.raises(BayeslawError, match="no trajectory column"):
        run_sizes(recorded.drop(columns="trajectory"), 0.2)
