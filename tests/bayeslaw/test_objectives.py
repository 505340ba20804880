"""Other objectives, budgets and policies than the fewest parameters at a density fixed in advance."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.special
from altered import with_draws
from simulate import count_parameters, error_of, kept_by_round, saturated

from bayeslaw import BayeslawError, width_grid
from bayeslaw.objectives import Question
from bayeslaw.plan import judge_starts
from bayeslaw.plan_plots import plot_frontier, plot_reach, plot_regret
from bayeslaw.policies import GUARDS, Runs, adaptive, new_runs_of
from bayeslaw.starts import Costs, costs_of, make_starts

GRID = {"depths": [8, 14], "widths": [2, 4, 8], "dataset_size": 250}


@pytest.fixture(scope="module")
def target(fitted) -> float:
    return 2 * float(fitted.posterior["eps_np"].median())


@pytest.fixture(scope="module")
def with_macs(fitted):
    """Give the fit run tables that say what multiply-adds were left: layers pruned alike, but for a factor of 1.2."""
    runs = fitted.runs
    whole = fitted.frame.family.macs(runs["depth"], runs["width"])
    left = np.minimum(1.2 * runs["density"], 1.0) * whole
    return dataclasses.replace(fitted, runs=runs.assign(nonzero_macs=left, epochs=20))


def curve_of(fit, depth: float, width: float, density: np.ndarray) -> np.ndarray:
    """Compute the errors of a trained network by plain NumPy, `[draws, densities]`."""
    draws = {name: v.to_numpy().reshape(-1, *v.shape[2:]) for name, v in fit.posterior.data_vars.items()}
    own = fit.configurations.to_numpy().tolist().index([depth, width, 250])
    scale = draws["p_prime"] / (depth ** draws["phi"] * (width / 16) ** draws["psi"])
    scale = scale * np.exp(draws["shift_p"][:, own] - draws["chi"] * (np.log(250) - fit.frame.log_dataset_size))
    low = saturated(np.exp(draws["log_e"][:, own]), draws["eps_up"])
    curve = (values[:, None] for values in (low, draws["eps_up"], draws["gamma"], scale))
    return error_of(*curve, density, draws["sharpness"][:, None])


def test_least_error_within_a_number_of_parameters(fitted) -> None:
    made = fitted.plan(objective="error", max_size=600, **GRID)
    for i, row in made.starts.iterrows():
        prunable, other = count_parameters(int(row["depth"]), int(row["width"]))
        density = min((600 - other) / prunable, 1.0)
        errors = curve_of(fitted, row["depth"], row["width"], np.array([density]))[:, 0]
        found = row[["error_median", "error_lower", "error_upper"]].tolist()
        assert found == pytest.approx(np.quantile(errors, [0.5, 0.05, 0.95]).tolist(), rel=1e-6), i
        assert row["size"] == next(kept for kept in kept_by_round(prunable, 40) if kept + other <= 600) + other
        assert row["run_lower"] < row["run_median"] < row["run_upper"]
    assert made.recommended is not None
    assert made.recommended["error_median"] == made.starts["error_median"].min()
    assert "90 % of new runs" in str(made)
    legend = plot_frontier(fitted, made).get_legend()
    assert legend is not None
    assert "at most 600 parameters" in [text.get_text() for text in legend.get_texts()]


def test_fewest_multiply_adds_follow_from_what_runs_were_left(with_macs, target) -> None:
    """Where layers are pruned alike, multiply-adds are 1.2 times their share by density."""
    made, by_size = with_macs.plan(target, objective="inference", **GRID), with_macs.plan(target, **GRID)
    for name in ("median", "lower", "upper"):
        density = (by_size.starts[f"size_{name}"] - by_size.starts["unprunable"]) / by_size.starts["prunable"]
        whole = with_macs.frame.family.macs(by_size.starts["depth"], by_size.starts["width"])
        share = made.starts[f"inference_{name}"] / whole
        assert share.to_numpy() == pytest.approx(np.minimum(1.2 * density, 1.0).to_numpy(), rel=0.02)
    assert made.recommended is not None
    sure = made.starts[made.starts["p_reach"] >= 0.9]
    assert made.recommended["inference"] == sure["inference"].min()
    assert "multiply-adds" in str(made)


def test_a_training_budget_ends_the_pruning(with_macs, target) -> None:
    """At most six trainings of depth 14, width 4: five rounds, whatever the error still allowed."""
    once = 6 * 250 * 20 * with_macs.frame.family.macs(14, 4)
    free = with_macs.plan(target, **GRID)
    made = with_macs.plan(target, max_training_flops=6.5 * once, **GRID)
    row = made.starts.set_index(["depth", "width"]).loc[(14, 4)]
    prunable, other = count_parameters(14, 4)
    sparsest = kept_by_round(prunable, 5)[-1] + other
    assert row["rounds"] <= 5
    assert row["size_lower"] == pytest.approx(max(free.starts["size_lower"][4], sparsest))
    assert row["training_flops"] == pytest.approx((row["rounds"] + 1) * once)
    assert (made.starts["training_flops"].dropna() <= 6.5 * once).all()
    # Depth 14, width 8 costs more than three times as much: two trainings are not paid for beyond.
    assert made.starts["rounds"].iloc[-1] <= 1
    with pytest.raises(BayeslawError, match="a training budget needs the multiply-adds of every start"):
        with_macs.plan(target, max_training_flops=1e15, parameters=lambda depth, width: (depth * width**2, 9.0), **GRID)


def test_more_data_can_be_weighed_against_more_width(fitted, target) -> None:
    made = fitted.plan(target, **GRID | {"dataset_size": [250, 1000]})
    assert made.starts["dataset_size"].tolist() == [250, 1000] * 6
    alone = fitted.plan(target, **GRID)
    own = made.starts.query("dataset_size == 250").reset_index(drop=True)
    assert own["size_median"].tolist() == alone.starts["size_median"].tolist()
    assert "n = " in str(made)


def test_the_adaptive_policy_is_a_plain_loop_over_rounds() -> None:
    """Runs drawn at random, each walked round by round: prune while the measured error is at most the mark."""
    rng, question = np.random.default_rng(0), Question(target_error=0.2, policy="adaptive")
    kept = np.array([100, 80, 64, 52, 42])
    population = scipy.special.logit(0.2) + np.linspace(-1.5, 1.5, 5) + 0.5 * rng.standard_normal((2000, 5))
    runs = Runs(kept, population, population + 0.3 * rng.standard_normal((2000, 5)))
    starts = pd.DataFrame({"depth": [8.0], "width": [2.0], "dataset_size": [250.0]})
    costs = Costs(np.array([100.0]), np.array([7.0]), np.array([1.0]), np.array([1.0]))
    row = adaptive(question, starts, [runs], costs).iloc[0]
    tried = []
    for guard in GUARDS:
        mark, sizes, reached, trainings = scipy.special.logit(0.2) - guard, [], [], []
        for own, measured in zip(runs.population, runs.measured, strict=True):
            level = 0
            while level < 5 and measured[level] <= mark:
                level += 1
            sizes.append(kept[max(level - 1, 0)] + 7)
            reached.append(level > 0 and own[level - 1] <= scipy.special.logit(0.2))
            trainings.append(min(level + 1, 5))
        tried.append((np.mean(reached), scipy.special.expit(mark), np.mean(sizes), np.mean(trainings)))
        if np.mean(reached) >= 0.9:
            break
    best = max(tried, key=lambda found: found[0])
    assert row[["p_reach", "stop_at", "size_mean", "trainings"]].tolist() == pytest.approx(best)


@pytest.mark.parametrize("lasting", [0.0, 0.5])
def test_what_is_measured_is_the_population_error_and_the_noise_of_the_examples(fitted, lasting: float) -> None:
    """Its variance against the binomial's times the inferred factor, within 5 standard errors; fewer examples, more.

    What lasts of it is the same at all rounds: their correlation is no less.
    """
    if lasting:
        fitted = with_draws(fitted, lasting=lambda draws: lasting + 0 * draws["floor"])
    starts = make_starts([14], [8], 250)
    costs = costs_of(fitted, starts)
    optimism = []
    for validation in (100, 1000):
        question = Question(target_error=0.2, policy="adaptive", validation=validation)
        (runs,) = new_runs_of(fitted, question, starts, costs, 0)
        share = scipy.special.expit(runs.population[:, :8])
        floor = fitted.posterior["floor"].to_numpy().reshape(-1, 1)
        expected = (floor**2 + lasting) * (1 / (validation * share + 0.5) + 1 / (validation * (1 - share) + 0.5))
        noise = (runs.measured - runs.population)[:, :8] / np.sqrt(expected)
        ratio = (noise**2).mean(0)
        assert (noise[:, :1] * noise).mean(0).min() > lasting / (lasting + (floor**2).mean()) - 5 / np.sqrt(len(share))
        assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / len(share))
        optimism.append(adaptive(question, starts, [runs], costs)["optimism"][0])
    assert optimism[0] > optimism[1] > 0


def test_adaptive_plans_promise_the_population_error(fitted, target) -> None:
    made, free = fitted.plan(target, policy="adaptive", **GRID), fitted.plan(target, **GRID)
    row = made.recommended
    assert row is not None
    assert row["p_reach"] >= 0.9
    assert row["stop_at"] <= target * (1 + 1e-12)
    assert row["run_lower"] <= row["size"] <= row["run_upper"]
    assert made.starts["size_median"].tolist() == free.starts["size_median"].tolist()
    assert "keep the last good level" in str(made)
    held = fitted.plan(target, policy="adaptive", validation=50, **GRID)
    assert (held.starts["dataset_size"] == 200).all()
    assert "50 training examples are held out" in held.notes[0]


def test_judgements_do_not_depend_on_how_starts_are_dealt(fitted, target, monkeypatch) -> None:
    starts = make_starts([8, 14], width_grid(2, 16, per_octave=2), [250, 500])
    costs = costs_of(fitted, starts)
    whole = judge_starts(fitted, Question(target_error=target), starts, costs, 0)
    monkeypatch.setattr("bayeslaw.plan.BLOCK", 3)
    dealt = judge_starts(fitted, Question(target_error=target), starts, costs, 0)
    pd.testing.assert_frame_equal(whole[0], dealt[0])
    assert whole[1] == dealt[1]


def test_width_grids() -> None:
    assert width_grid(4, 64).tolist() == pytest.approx((4 * 2 ** (np.arange(33) / 8)).tolist())
    for ends in ((0, 4), (4, 4), (8, 4)):
        with pytest.raises(BayeslawError, match="widths run from above 0"):
            width_grid(*ends)


def test_own_tables_of_counts_are_used(fitted, target) -> None:
    table = make_starts(GRID["depths"], GRID["widths"], 250).drop(columns="dataset_size")
    table = table.assign(prunable=10 * table["depth"] * table["width"] ** 2, unprunable=3, macs=1e4)
    made = fitted.plan(target, parameters=table.sample(frac=1, random_state=0), **GRID)
    assert (made.starts["parameters"] == 10 * made.starts["depth"] * made.starts["width"] ** 2 + 3).all()
    assert made.starts["training_flops"].notna().any()


def test_figures_of_regret_and_reach(fitted, target, tmp_path) -> None:
    made = fitted.plan(target, **GRID)
    ax = plot_regret(made)
    assert len(ax.patches) == len(made.starts)
    assert [round(bar.get_width(), 6) for bar in ax.patches] == sorted(made.starts["regret_percent"].round(6))
    assert ax.get_yticklabels()[0].get_text().startswith("depth")
    heat = plot_reach(made)
    shown = np.asarray(heat.collections[0].get_array()).ravel()
    assert shown.tolist() == made.starts["p_feasible"].tolist()
    for name, axes in (("regret", ax), ("reach", heat)):
        axes.figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert axes.get_xlabel()
        assert axes.get_title()
