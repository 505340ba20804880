"""Plans: the algebra against brute force, probabilities that are what they say, and bad questions."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from bayeslaw import BayeslawError, frontier
from bayeslaw.plan import rounds_of

GRID = {"depths": [8, 14], "widths": [2, 4, 8, 16], "dataset_size": 1000}


@pytest.fixture(scope="module")
def target(fitted) -> float:
    """Choose an error between the plateaus of most starts."""
    return 2 * float(fitted.posterior["eps_np"].median())


@pytest.fixture(scope="module")
def plan(fitted, target):
    return fitted.plan(target, **GRID)


def test_probabilities_add_up(plan) -> None:
    assert plan.starts["p_best"].sum() + plan.p_none == pytest.approx(1.0)
    for name in ("p_best", "p_feasible", "p_reach"):
        assert plan.starts[name].between(0, 1).all()


def test_sizes_are_kept_and_unprunable_after_whole_rounds(fitted, plan) -> None:
    prunable, unprunable = fitted.frame.family.counts(plan.starts["depth"], plan.starts["width"])
    for i, row in plan.starts.iterrows():
        kept = rounds_of(prunable[i])[int(row["rounds"])]
        assert row["size"] == kept + unprunable[i]
        assert row["density"] == pytest.approx(kept / prunable[i])


def test_rounds_count_as_the_runner_does() -> None:
    kept = rounds_of(347).tolist()
    assert kept[:4] == [347, 278, 223, 179]
    assert kept[-1] == 4
    assert all(after == before - before // 5 for before, after in itertools.pairwise(kept))


def test_the_recommended_start_reaches_the_target(fitted, plan, target) -> None:
    """New runs at the recommended round, predicted without the planner: at most the target as often as promised.

    The planner's own draws and these are independent; with 3,000 draws each a difference of 0.04 is 5 standard errors.
    """
    row = plan.recommended
    assert row is not None
    assert row["p_reach"] >= plan.confidence
    design = pd.DataFrame([row[["depth", "width", "dataset_size", "density"]].astype(float)]).assign(n_test=np.inf)
    draws = fitted.predict(design, kind="run", seed=11, return_draws=True).to_numpy()
    assert (draws <= target).mean() == pytest.approx(row["p_reach"], abs=0.04)
    smaller = plan.starts[plan.starts["p_reach"] >= plan.confidence]
    assert row["size"] == smaller["size"].min()


def test_closed_form_against_a_fine_grid(fitted, target) -> None:
    """The smallest size of a trained start, per draw, against a search over 4,000 densities."""
    row = fitted.configurations.iloc[-1]
    grid = {"depths": [row["depth"]], "widths": [row["width"]], "dataset_size": row["dataset_size"]}
    made = fitted.plan(target, **grid)
    posterior = {k: v.to_numpy().reshape(-1, *v.shape[2:]) for k, v in fitted.posterior.data_vars.items()}
    density = np.geomspace(1e-4, 1.0, 4000)
    centre = fitted.frame.covariates(pd.DataFrame([row]))
    log_m = posterior["phi"] * centre["depth"] + posterior["psi"] * centre["width"]
    prunable, unprunable = fitted.frame.family.counts(row["depth"], row["width"])
    sizes = []
    for i in range(0, len(log_m), 7):
        knee = posterior["knee"][i] * np.exp(-log_m[i])
        low, high, gamma = posterior["eps_np"][i, -1], posterior["eps_up"][i], posterior["gamma"][i]
        upper = knee * (high / low) ** (1 / gamma)
        error = low * ((density**2 + upper**2) / (density**2 + knee**2)) ** (gamma / 2)
        reached = density[error <= target]
        sizes.append(reached[0] * prunable + unprunable if len(reached) else np.nan)
    assert made.starts["size_median"][0] == pytest.approx(np.nanmedian(sizes), rel=0.02)


def test_own_counts_are_used(fitted, plan, target) -> None:
    made = fitted.plan(target, **GRID, parameters=lambda depth, width: (1000.0 * width * depth, 7.0))
    assert (made.starts["parameters"] == 1000 * made.starts["width"] * made.starts["depth"] + 7).all()
    assert (made.starts["size"] != plan.starts["size"]).any()


def test_frontier_falls_with_error(fitted, target) -> None:
    front = frontier(fitted, np.array([target, 1.5 * target]), **GRID)
    assert (front["lower"] <= front["median"]).all()
    assert (front["median"] <= front["upper"]).all()
    assert front["median"][1] < front["median"][0]


def test_out_of_reach_says_how_close_one_gets(fitted) -> None:
    with pytest.raises(BayeslawError, match=r"out of reach: the closest start is depth .* with probability 0\.000"):
        fitted.plan(1e-5, **GRID)


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [
        (0.95, {}, "high plateau"),
        (1.5, {}, "fraction in"),
        (-0.1, {}, "fraction in"),
        (0.1, {"confidence": 1.0}, "confidence = 1.0"),
        (0.1, {"depths": []}, "at least one value"),
        (0.1, {"widths": [0]}, "width 0"),
        (0.1, {"dataset_size": 0}, "dataset_size = 0"),
        (0.1, {"depths": [10]}, "no depth 10"),
    ],
)
def test_bad_questions_get_one_clear_answer(fitted, error, change, words) -> None:
    with pytest.raises(BayeslawError, match=words):
        fitted.plan(error, **(GRID | change))


def test_a_fit_that_failed_its_gate_does_not_become_a_plan(fitted, target) -> None:
    tree = fitted.tree.copy(deep=True)
    tree["sample_stats"]["diverging"][0, 0] = True
    broken = dataclasses.replace(fitted, tree=tree)
    with pytest.raises(BayeslawError, match=r"divergences = 1 .*allow_failed=True"):
        broken.plan(target, **GRID)
    made = broken.plan(target, **GRID, allow_failed=True)
    assert "failed its gate" in made.notes[0]


def test_a_start_far_away_is_said_to_extrapolate(fitted, target) -> None:
    made = fitted.plan(target, depths=[56], widths=[64], dataset_size=1000)
    assert any("outside what was fitted" in note for note in made.notes)


def test_the_plan_reads_as_advice(plan) -> None:
    text = str(plan)
    assert "Start from depth" in text
    assert f"{plan.recommended['size']:,.0f} non-zero parameters" in text
