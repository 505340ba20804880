"""Plans: the algebra against brute force, probabilities that are what they say, and bad questions."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import (
    count_parameters,
    error_of,
    kept_by_round,
    log_dense_of,
    observation_of,
    saturated,
    slope_of_logit,
    spread_at,
)

from bayeslaw import BayeslawError, frontier
from bayeslaw.curves import configuration_draws
from bayeslaw.law import Curve, log_m_at
from bayeslaw.measured import Recorded, middle, run_sizes
from bayeslaw.objectives import density_within
from bayeslaw.starts import rounds_of

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
    log_m = log_m + posterior["chi"] * centre["dataset_size"] - posterior["shift_p"][:, -1]
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
        (None, {}, "'size' needs target_error"),
        (0.1, {"objective": "speed"}, "objective = 'speed' must be one of size, inference, error"),
        (0.1, {"objective": "error", "max_size": 100}, "takes no target_error"),
        (None, {"objective": "error"}, "needs max_size"),
        (0.1, {"max_size": 100}, "max_size goes with objective = 'error'"),
        (None, {"objective": "error", "max_size": 3.0}, "no start can be pruned to that"),
        (None, {"objective": "error", "max_size": 500, "policy": "adaptive"}, "does not have"),
        (0.1, {"policy": "greedy"}, "policy = 'greedy' must be one of fixed, adaptive"),
        (0.1, {"validation": 100}, "a fixed density looks at nothing"),
        (0.1, {"validation": 1000, "policy": "adaptive"}, "leaves nothing of dataset_size = 1000"),
        (0.1, {"max_training_flops": 10.0}, "does not pay for one training of any start"),
        (0.1, {"objective": "inference"}, "needs runs with nonzero_macs"),
        (0.1, {"parameters": pd.DataFrame({"depth": [8], "width": [2]})}, "lacks prunable, unprunable"),
        (
            0.1,
            {"parameters": pd.DataFrame({"depth": [8], "width": [2], "prunable": [9], "unprunable": [1]})},
            "no complete row for depth 8, width 4; depth 8, width 8",
        ),
        (0.1, {"parameters": lambda depth, width: (depth,)}, "gave 1 values"),
        (0.1, {"parameters": lambda depth, width: (-depth, width)}, "must be above 0"),
        (1.5, {}, "fraction in"),
        (-0.1, {}, "fraction in"),
        (0.1, {"confidence": 1.0}, "confidence = 1.0"),
        (0.1, {"depths": []}, "at least one value"),
        (0.1, {"widths": [0]}, "width = 0"),
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


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    gamma=st.floats(0.3, 4.0),
    eps_np=st.floats(0.01, 0.5),
    rise=st.floats(1.1, 20.0),
    log_p=st.floats(-9.0, 1.0),
    where=st.floats(0.02, 0.98),
    prunable=st.integers(50, 10**7),
    unprunable=st.integers(0, 10**4),
)
def test_sizes_are_those_of_a_search_over_densities(gamma, eps_np, rise, log_p, where, prunable, unprunable) -> None:
    """The smallest size whose error is at most the target, over 100,001 densities from 1e-9 to 1, for any curve."""
    eps_up = min(rise * eps_np, 0.95)
    target = eps_np * (eps_up / eps_np) ** where
    densities = np.geomspace(1e-9, 1.0, 100_001)
    reached = densities[error_of(eps_np, eps_up, gamma, np.exp(log_p), densities) <= target]
    with jax.enable_x64(True):
        curve = Curve(np.log(eps_np), np.log(eps_up), gamma, log_p)
        log_density = np.asarray(log_m_at(curve, np.log(target)))
    density = float(density_within(log_density))
    assert np.isinf(density) == (len(reached) == 0)
    if len(reached) and reached[0] > densities[0]:
        # Neighbouring densities differ by 2 in 10,000.
        assert density * prunable + unprunable == pytest.approx(reached[0] * prunable + unprunable, rel=2.1e-4)


def dense_of(fit, draws: dict, depth: float, width: float, dataset_size: int) -> np.ndarray:
    """Compute log e of a network by the dense law, draw by draw."""
    at = fit.frame.covariates(pd.DataFrame({"depth": [depth], "width": [width], "dataset_size": [dataset_size]}))
    return log_dense_of(draws, at)


def test_every_probability_and_size_is_that_of_plain_numpy(fitted, simulated) -> None:
    """All trained starts at once, draw by draw and in the paper's units, by search over 2,000 densities: probability of
    being best, of being feasible, quantiles of the size, and the expected regret.
    """
    made, target = fitted.plan(0.15, depths=[8, 14], widths=[2, 4, 8], dataset_size=250), 0.15
    draws = {name: v.to_numpy().reshape(-1, *v.shape[2:]) for name, v in fitted.posterior.data_vars.items()}
    densities = np.geomspace(2e-3, 1.0, 2000)
    sizes = np.full((len(draws["gamma"]), len(made.starts)), np.inf)
    for i, (depth, width) in enumerate(made.starts[["depth", "width"]].itertuples(index=False)):
        own = fitted.configurations.to_numpy().tolist().index([depth, width, 250])
        e = np.exp(draws["log_e"][:, own])
        scale = draws["p_prime"] / (depth ** draws["phi"] * (width / 16) ** draws["psi"])
        by_data = draws["chi"] * (np.log(250) - fitted.frame.log_dataset_size)
        scale = scale * np.exp(draws["shift_p"][:, own] - by_data)
        curve = (saturated(e, draws["eps_up"]), draws["eps_up"], draws["gamma"], scale)
        errors = error_of(*(values[:, None] for values in curve), densities, draws["sharpness"][:, None])
        first = (errors <= target).argmax(1)
        feasible = errors[:, -1] <= target
        prunable, other = count_parameters(int(depth), int(width))
        sizes[feasible, i] = densities[first[feasible]] * prunable + other
        row = made.starts.iloc[i]
        assert row["p_feasible"] == feasible.mean()
        found = row[["size_median", "size_lower", "size_upper"]].astype(float).tolist()
        if feasible.sum() > 100:  # else the quantiles are those of a few draws at the edge
            assert found == pytest.approx(np.quantile(sizes[feasible, i], [0.5, 0.05, 0.95]).tolist(), rel=0.01)
        assert row["parameters"] == prunable + other
    none = np.isinf(sizes).all(1)
    assert made.p_none == pytest.approx(none.mean(), abs=0.002)
    best = np.bincount(sizes[~none].argmin(1), minlength=len(made.starts)) / len(sizes)
    # A miss falls back on the largest start, which is the last; two sizes may differ by the 0.3 % between densities.
    largest = sum(count_parameters(14, 8))
    fallback = np.where(np.isfinite(sizes[:, -1]), sizes[:, -1], largest)[:, None]
    regret = np.where(np.isfinite(sizes), sizes, fallback) - np.minimum(sizes.min(1, keepdims=True), fallback)
    assert made.starts["regret"].tolist() == pytest.approx(regret.mean(0).tolist(), rel=0.01, abs=2.0)
    smallest = np.minimum(sizes.min(1), fallback[:, 0]).mean()
    assert made.starts["regret_percent"].tolist() == pytest.approx(
        (100 * made.starts["regret"] / smallest).tolist(), rel=0.01
    )
    # Two starts may change places where their sizes agree to the 0.3 % between densities.
    assert made.starts["p_best"].tolist() == pytest.approx(best.tolist(), abs=0.01)


def test_the_recommended_round_is_the_deepest_that_is_sure_enough(fitted, plan, target) -> None:
    """In plain NumPy: a new run's population error at the recommended round, and one round on. Both sides have 3,000
    draws; five standard errors of their difference are 5 sqrt(2 x .9 x .1 / 3,000) = .04.
    """
    row, rng = plan.recommended, np.random.default_rng(5)
    draws = {name: v.to_numpy().reshape(-1, *v.shape[2:]) for name, v in fitted.posterior.data_vars.items()}
    depth, width = int(row["depth"]), int(row["width"])
    design = pd.DataFrame({"depth": [depth], "width": [width], "dataset_size": [1000]})
    with jax.enable_x64(True):
        log_e, shift = (effect[:, 0] for effect in configuration_draws(fitted, design, seed=8))
    normal = rng.standard_normal((2, len(log_e)))
    log_dense = dense_of(fitted, draws, depth, width, 1000)
    eps_np = saturated(np.exp(log_e + spread_at(draws, "tau_np", log_dense) * normal[0]), draws["eps_up"])
    p = draws["p_prime"] * np.exp(shift + spread_at(draws, "tau_p", log_dense) * normal[1])
    by_data = np.exp(draws["chi"] * (np.log(1000) - fitted.frame.log_dataset_size))
    prunable, _ = count_parameters(depth, width)
    kept, reached = kept_by_round(prunable, int(row["rounds"]) + 1), []
    for count in kept[-2:]:
        m = depth ** draws["phi"] * (width / 16) ** draws["psi"] * by_data * count / prunable
        curve = (eps_np, draws["eps_up"], draws["gamma"], p, m, draws["sharpness"])
        location, scale = observation_of(error_of(*curve), slope_of_logit(*curve), np.inf, draws)
        reached.append(np.mean(location + scale * rng.standard_t(draws["nu"]) <= np.log(target / (1 - target))))
    assert row["kept"] == kept[-2]
    assert reached[0] == pytest.approx(row["p_reach"], abs=0.04)
    assert reached[1] < plan.confidence + 0.04


def test_more_confidence_prunes_less(fitted, target) -> None:
    bold, careful = (fitted.plan(target, **GRID, confidence=level) for level in (0.5, 0.95))
    sure = careful.starts["p_reach"] >= 0.95
    assert sure.any()
    assert (careful.starts["rounds"] <= bold.starts["rounds"])[sure].all()
    assert careful.recommended["size"] >= bold.recommended["size"]


def test_where_no_start_is_sure_enough_nothing_is_recommended(fitted) -> None:
    """The target lies at the plateau of the smallest network, which reaches it about every other time."""
    row = fitted.configurations.iloc[0]
    target = float(fitted.posterior["eps_np"][..., 0].median()) * 1.1
    made = fitted.plan(target, depths=[row["depth"]], widths=[row["width"]], dataset_size=row["dataset_size"])
    assert made.recommended is None
    assert 0 < made.starts["p_reach"][0] < 0.9
    assert re.search(r"No start reaches error .* with probability 0\.9; the closest is depth 8, width 2", str(made))


def test_the_frontier_is_the_plans_smallest_size(fitted, target) -> None:
    """At one start the frontier's quantiles are those of the plan; with more starts it only gets smaller."""
    one = {"depths": [14], "widths": [8], "dataset_size": 250}
    front, made = frontier(fitted, np.array([target]), **one), fitted.plan(target, **one)
    expected = made.starts.loc[0, ["size_median", "size_lower", "size_upper"]].tolist()
    assert front.loc[0, ["median", "lower", "upper"]].tolist() == pytest.approx(expected)
    assert front["p_feasible"][0] == pytest.approx(1 - made.p_none)
    assert frontier(fitted, np.array([target]), **GRID | {"dataset_size": 250})["median"][0] < front["median"][0]
    # Beside it stands what the runs of that network were measured to need, by own counts too.
    own = fitted.runs.query("depth == 14 and width == 8 and dataset_size == 250")
    assert front["measured"][0] == middle(run_sizes(own, target)["size"].to_numpy())
    counts = pd.DataFrame({"depth": [14], "width": [8], "prunable": [2e3], "unprunable": [0.0]})
    sizes = 2e3 * Recorded(own).densities(target)["density"].to_numpy()
    by_own_counts = frontier(fitted, np.array([target]), **one, parameters=counts)
    assert by_own_counts["measured"][0] == pytest.approx(middle(sizes))
    nothing = frontier(fitted, np.array([1e-4]), **one)
    assert np.isnan(nothing["measured"][0])
    assert nothing["p_feasible"][0] == 0
    assert nothing["median"].isna().all()


def test_same_seed_same_plan(fitted, target, plan) -> None:
    pd.testing.assert_frame_equal(fitted.plan(target, **GRID).starts, plan.starts)
    other = fitted.plan(target, **GRID, seed=1)
    assert (other.starts["size_median"] != plan.starts["size_median"]).any()


def test_counts_of_another_family_or_none(fitted, target, plan) -> None:
    """More input channels cost more; where counts are unknown, they must be given."""
    colour = dataclasses.replace(fitted.frame.family, input_shape=(3, 32, 32))
    made = fitted.plan(target, **GRID, family=colour)
    assert (made.starts["parameters"] - plan.starts["parameters"] == 18 * made.starts["width"]).all()
    unknown = dataclasses.replace(fitted.frame.family, name="vgg")
    with pytest.raises(BayeslawError, match="pass parameters="):
        fitted.plan(target, **GRID, family=unknown)


def test_parameters_driven_by_the_prior_are_noted(fitted, target) -> None:
    settings_ = fitted.settings | {"contraction": fitted.settings["contraction"] | {"phi": 0.1}}
    made = dataclasses.replace(fitted, settings=settings_).plan(target, **GRID)
    assert made.notes == ("Note: phi driven by the prior, not by the data.",)
    assert made.notes[0] in str(made)


@pytest.mark.parametrize(
    ("change", "driven"),
    [
        ({"widths": [8], "dataset_size": 250}, ""),
        ({"widths": [8]}, "alpha "),
        ({"widths": [6], "dataset_size": 250}, "beta "),
        ({"widths": [6]}, "beta, alpha "),
    ],
)
def test_plateaus_of_untrained_networks_that_the_prior_drives_are_noted(fitted, target, change, driven) -> None:
    """What was trained has a plateau of its own, whatever drives the exponents of the dense law."""
    of_prior = {"alpha": 0.1, "beta": 0.1}
    told = {"contraction": fitted.settings["contraction"] | of_prior, "shift": fitted.settings["shift"] | of_prior}
    prior = dataclasses.replace(fitted, settings=fitted.settings | told)
    made = prior.plan(target, **(GRID | change))
    assert [note for note in made.notes if "driven" in note] == [
        f"Note: {driven}driven by the prior, not by the data." for _ in range(bool(driven))
    ]


def test_out_of_reach_within_a_budget_speaks_of_what_it_pays_for(fitted) -> None:
    """The smallest network alone can be trained, and misses."""
    index = fitted.configurations.to_numpy().tolist().index([8, 2, 250])
    target = 0.6 * float(fitted.posterior["eps_np"][..., index].quantile(0.01))
    costs = fitted.frame.family.macs(8, 2) * 6 * 250
    with pytest.raises(BayeslawError, match=r"depth 8, width 2, .* or more data, or more max_training_flops"):
        fitted.plan(target, max_training_flops=1.5 * float(costs), **GRID | {"dataset_size": 250})


def test_widths_between_whole_ones_have_whole_budgets(fitted, target) -> None:
    """The count of weights of a width like 4.3 is no whole number; a budget for one training pays for one."""
    priced = dataclasses.replace(fitted, runs=fitted.runs.assign(epochs=1))
    for width in (4.3, 4.6):
        once = 6 * 1000 * float(fitted.frame.family.macs(8.0, width))
        plan = priced.plan(0.5, depths=[8], widths=[width], dataset_size=1000, max_training_flops=1.5 * once)
        assert plan.starts["p_feasible"].item() == pytest.approx(1.0)
        assert plan.starts["density"].item() <= 1.0  # of whole weights
        assert plan.starts["density"].item() == pytest.approx(1.0, abs=0.5 / plan.starts["prunable"].item())


def test_multiply_adds_that_are_not_known_are_asked_for(fitted, target) -> None:
    counts = {"parameters": lambda depth, width: (100.0 * depth * width**2, 10.0 * width)}
    with pytest.raises(BayeslawError, match="objective = 'inference' needs the multiply-adds of every start"):
        fitted.plan(target, objective="inference", **counts, **GRID)
    table = fitted.plan(target, **counts, **GRID).starts[["depth", "width", "prunable", "unprunable", "macs"]]
    assert table["macs"].isna().all()
    assert len(fitted.plan(target, parameters=table, **GRID).starts) == len(table)  # as a plan gives it


def test_a_test_set_of_unknown_size_is_said_where_it_is_stopped_on(fitted, target) -> None:
    unknown = dataclasses.replace(fitted, runs=fitted.runs.drop(columns=["n_test", "n_wrong"], errors="ignore"))
    note = "the fitted runs have no n_test"
    assert any(note in said for said in unknown.plan(target, policy="adaptive", **GRID).notes)
    for known in (fitted.plan(target, policy="adaptive", **GRID), unknown.plan(target, **GRID)):
        assert not any(note in said for said in known.notes)
