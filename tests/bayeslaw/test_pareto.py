"""Size against training cost: the front by a plain search over starts, rounds and densities, and its figure."""

import dataclasses

import numpy as np
import pytest
from simulate import count_parameters, error_of, kept_by_round, saturated

from bayeslaw import BayeslawError, frontier, pareto, size_draws
from bayeslaw.plan_plots import plot_pareto

GRID = {"depths": [8, 14], "widths": [2, 4, 8], "dataset_size": 250}
EPOCHS = 20


@pytest.fixture(scope="module")
def priced(fitted):
    return dataclasses.replace(fitted, runs=fitted.runs.assign(epochs=EPOCHS))


@pytest.fixture(scope="module")
def target(fitted) -> float:
    return 2 * float(fitted.posterior["eps_np"].median())


def smallest_by_search(fit, target: float, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Look over all starts and 4,001 densities for the fewest parameters within a budget, in 200 of the draws."""
    every = {name: v.to_numpy().reshape(-1, *v.shape[2:]) for name, v in fit.posterior.data_vars.items()}
    draws = {name: v[:: len(v) // 200] for name, v in every.items()}
    configurations, sizes = fit.configurations.to_numpy().tolist(), []
    for depth, width in ((d, w) for d in GRID["depths"] for w in GRID["widths"]):
        prunable, other = count_parameters(depth, width)
        trainings = int(budget // (6 * 250 * EPOCHS * fit.frame.family.macs(float(depth), float(width))))
        kept = kept_by_round(prunable, 40)
        own = configurations.index([depth, width, 250])
        scale = draws["p_prime"] / (depth ** draws["phi"] * (width / 16) ** draws["psi"])
        scale = scale * np.exp(draws["shift_p"][:, own] - draws["chi"] * (np.log(250) - fit.frame.log_dataset_size))
        low = saturated(np.exp(draws["log_e"][:, own]), draws["eps_up"])
        density = np.geomspace(1e-4, 1.0, 4001)
        curve = (values[:, None] for values in (low, draws["eps_up"], draws["gamma"], scale))
        reached = error_of(*curve, density, draws["sharpness"][:, None]) <= target
        reached &= density >= (kept[min(trainings, 41) - 1] / prunable if trainings else np.inf)
        size = np.where(reached.any(1), density[reached.argmax(1)] * prunable + other, np.inf)
        sizes.append(size)
    return np.min(sizes, axis=0), np.argmin(sizes, axis=0)


def test_the_front_is_that_of_a_plain_search(priced, target) -> None:
    once = 6 * 250 * EPOCHS * priced.frame.family.macs(14.0, 4.0)
    draws = priced.posterior.sizes["draw"] * priced.posterior.sizes["chain"]
    budgets = np.array([0.01, 1.5, 4.5, 12.0, 200.0]) * once
    front = pareto(priced, target, budgets=budgets, **GRID)
    assert front["training_flops"].tolist() == budgets.tolist()
    for budget, row in zip(budgets, front.to_dict("records"), strict=True):
        size, best = smallest_by_search(priced, target, budget)
        any_ = np.isfinite(size)
        # 200 of the draws stand for all: five standard errors of a share, and of a median by its neighbours.
        assert abs(row["p_feasible"] - any_.mean()) < 5 * np.sqrt(0.25 / 200) + 1 / draws
        if any_.mean() > 0.2:
            low, high = np.quantile(size[any_], [0.5 - 2.5 / np.sqrt(200), 0.5 + 2.5 / np.sqrt(200)])
            assert low * 0.995 <= row["median"] <= high * 1.005
            grid = [(d, w) for d in GRID["depths"] for w in GRID["widths"]]
            wins = np.bincount(best[any_], minlength=len(grid)) / len(size)
            assert abs(wins[grid.index((row["depth"], row["width"]))] - row["p_best"]) < 5 * np.sqrt(0.25 / 200)
    assert front["p_feasible"].iloc[0] == 0
    assert np.isnan(front["median"].iloc[0])


def test_more_money_never_hurts(priced, target) -> None:
    """Along the default budgets, from one training of the cheapest start to all rounds of the dearest."""
    front = pareto(priced, target, **GRID)
    assert (np.diff(front["p_feasible"]) >= 0).all()
    rich = front[front["p_feasible"] == front["p_feasible"].iloc[-1]]
    assert (np.diff(rich["median"]) <= 1e-9).all()
    assert (front["lower"] <= front["median"]).where(front["median"].notna(), True).all()
    unlimited = size_draws(priced, target, **GRID).to_numpy()
    assert rich["median"].iloc[-1] == pytest.approx(np.median(unlimited[np.isfinite(unlimited)]))


def test_bad_questions(priced, target) -> None:
    with pytest.raises(BayeslawError, match=r"budgets = .* must be numbers of floating-point operations above 0"):
        pareto(priced, target, budgets=np.array([0.0]), **GRID)
    with pytest.raises(BayeslawError, match="at or above the high plateau"):
        pareto(priced, 0.89, **GRID)
    with pytest.raises(BayeslawError, match="needs the multiply-adds of every start"):
        pareto(priced, target, parameters=lambda depth, width: (depth * width**2, 9.0), **GRID)


def test_the_figure_names_the_starts_and_the_recommendation(priced, target, tmp_path) -> None:
    plan = priced.plan(target, **GRID)
    ax = plot_pareto(priced, plan)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["90%", "median"]
    assert labels[2].startswith("recommended")
    front = pareto(priced, target, **GRID)
    shown = front[front["p_feasible"] >= 0.5]
    line = ax.lines[0].get_xydata()
    drawn, cut = shown.iloc[: len(line)], shown.iloc[len(line) :]
    assert line == pytest.approx(drawn[["training_flops", "median"]].to_numpy())
    # What is not drawn is as what is.
    assert len(drawn) > 3
    assert cut["median"].to_numpy() == pytest.approx(float(drawn["median"].iloc[-1]), rel=2e-3)
    changes = (shown[["depth", "width"]] != shown[["depth", "width"]].shift()).any(axis=1).sum()
    assert len(ax.texts) == changes
    ax.figure.savefig(tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 5000
    with pytest.raises(BayeslawError, match="needs a plan with a target error"):
        plot_pareto(priced, priced.plan(objective="error", max_size=600, **GRID))


def test_a_front_needs_a_fit_that_passed_or_leave(priced, target, monkeypatch) -> None:
    failed = dataclasses.replace(priced, tree=priced.tree.copy(deep=True))
    failed.tree["sample_stats"]["diverging"][...] = True
    with pytest.raises(BayeslawError, match="failed its gate"):
        pareto(failed, target, **GRID)
    assert len(pareto(failed, target, allow_failed=True, **GRID))
    with pytest.raises(BayeslawError, match=r"interval = 90 must be a probability"):
        pareto(priced, target, interval=90, **GRID)


def test_a_budget_without_end_is_no_budget(priced, target) -> None:
    front = pareto(priced, target, budgets=np.array([1e18, 1e40, np.inf]), **GRID)
    assert front["median"].nunique() == 1
    assert front["p_feasible"].nunique() == 1
    plans = [priced.plan(target, max_training_flops=most, **GRID).starts for most in (np.inf, None)]
    assert plans[0]["size_median"].tolist() == plans[1]["size_median"].tolist()


def test_a_frontier_takes_one_target_and_refuses_none(priced, target) -> None:
    assert len(frontier(priced, target, **GRID)) == 1
    for wrong in ([0.0, 0.1], [[0.1]]):
        with pytest.raises(BayeslawError, match=r"targets = .* must be errors, fractions in \(0, 1\)"):
            frontier(priced, np.array(wrong), **GRID)
