"""The judge of plans: promises that are kept pass, those that are not are found; and the truth is looked up rightly."""

import numpy as np
import pandas as pd
import pytest
from simulate import error_of, saturated

from bayeslaw import BayeslawError
from bayeslaw.check_models import model_named
from bayeslaw.checking import KEPT
from bayeslaw.plan_checking import (
    DATASET_SIZE,
    DEPTHS,
    TARGET_ERROR,
    WIDTHS,
    Truth,
    _rank,
    _regrets,
    check_plans,
    judge_plans,
)
from bayeslaw.promise_plots import plot_reliability
from bayeslaw.simulation import simulate
from bayeslaw.starts import make_starts

STARTS = len(DEPTHS) * len(WIDTHS)


def promised_worlds(rng: np.random.Generator, count: int, distort=lambda p: p) -> pd.DataFrame:
    """Make worlds whose probabilities come true as often as `distort` of them says, starts of a world together."""
    columns = {"size": rng.integers(0, KEPT + 1, count), "expected_regret": rng.gamma(1.0, 100.0, count)}
    columns["realised_regret"] = columns["expected_regret"] * rng.gamma(0.5, 2.0, count)
    for promise, came in (("best", "is_best"), ("feasible", "is_feasible"), ("reach", "has_reached")):
        chance, shared = rng.beta(0.7, 0.7, (STARTS, count)), rng.random(count)
        for i in range(STARTS):
            columns[f"{promise}_{i}"] = chance[i]
            columns[f"{came}_{i}"] = (shared < distort(chance[i])).astype(float)
    return pd.DataFrame(columns)


def test_promises_that_are_kept_pass() -> None:
    """Twenty checks of 100 worlds at the family-wise level of 1 %: three rejected have a chance of .001."""
    rejected = [judge_plans(promised_worlds(np.random.default_rng(seed), 100)).rejected for seed in range(20)]
    assert sum(rejected) <= 2


@pytest.mark.parametrize(
    ("distort", "row"),
    [
        (lambda p: np.clip(p + 0.1, 0, 1), "P(reach)"),
        (lambda p: 0.5 + 0.6 * (p - 0.5), "P(feasible), tilted"),
        (lambda p: np.where(p > 0.5, 1.0, 0.0), "P(best), tilted"),
    ],
    ids=["too modest", "too sure", "too unsure"],
)
def test_promises_that_are_not_kept_are_found(distort, row: str) -> None:
    judged = judge_plans(promised_worlds(np.random.default_rng(0), 500, distort))
    assert judged.table.loc[row, "rejected"]
    assert not judged.table.loc["optimal size", "rejected"]
    assert "REJECTED" in str(judged)


def test_sizes_and_regrets_that_are_off_are_found() -> None:
    worlds = promised_worlds(np.random.default_rng(0), 500)
    shifted = worlds.assign(size=np.minimum(worlds["size"] + 10, KEPT), realised_regret=2.0 * worlds["realised_regret"])
    judged = judge_plans(shifted)
    assert judged.table.loc[["optimal size", "regret"], "rejected"].all()
    narrow = judge_plans(worlds.assign(size=(0.4 * worlds["size"] + 30).astype(int)))
    assert narrow.coverage["coverage"].tolist() == [1.0, 1.0]


def test_the_figure_shows_every_kind(tmp_path) -> None:
    judged = judge_plans(promised_worlds(np.random.default_rng(0), 100))
    figure = plot_reliability(judged.reliability)
    assert [ax.get_title() for ax in figure.axes] == ["P(best)", "P(feasible)", "P(reach)"]
    figure.savefig(tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5000


def test_ranks_and_regrets_by_hand() -> None:
    rng = np.random.default_rng(0)
    draws = np.concatenate([np.arange(50.0), np.full(50, np.inf)])
    assert _rank(draws, 20.5, rng) == 21
    assert {_rank(draws, np.inf, rng) for _ in range(2000)} == set(range(50, 101))
    value = np.array([[3.0, 5.0, 9.0], [np.inf, 4.0, 8.0], [3.0, np.inf, np.inf]])
    found = _regrets(value, np.array([np.inf, 6.0, np.inf]), np.array([10.0, 20.0, 30.0]))
    # Losses: 3 5 9; 8 4 8; 3 30 30. The first start costs 14/3; regret (0 + 4 + 0) / 3. True losses: 30 6 30.
    assert found == {"expected_regret": pytest.approx(4 / 3), "realised_regret": 24.0}


def test_truths_are_those_of_the_law() -> None:
    """Sizes by the law in the paper's units, and the share of new runs that reach the target by plain draws."""
    model, rng = model_named("hierarchical"), np.random.default_rng(3)
    value = {name: float(np.asarray(prior.mean)) for name, prior in model.priors.items()}
    starts = make_starts(DEPTHS, WIDTHS, DATASET_SIZE)
    made = simulate(model.design, value, rng)
    truth = Truth(model.design, made, starts, TARGET_ERROR, rng)
    sizes = truth.sizes(np.full(STARTS, 1e6), np.full(STARTS, 10.0))
    at = model.design.covariates(starts.to_numpy(float))
    own = model.design.configurations.index((8, 4, 50_000))
    eps_up = 0.9 * value["plateau"]
    log_m = value["phi"] * at["depth"][0] + value["psi"] * at["width"][0] + value["chi"] * at["dataset_size"][0]
    density = np.geomspace(1e-6, 1, 200_001)
    curve = (saturated(np.exp(made.log_e[own]), eps_up), eps_up, value["gamma"])
    curve = (*curve, value["knee"] * np.exp(made.shift_p[own]))
    reached = density[error_of(*curve, density * np.exp(log_m), value["sharpness"]) <= TARGET_ERROR]
    assert sizes[0] == pytest.approx(reached[0] * 1e6 + 10, rel=1e-3)
    errors = np.array([truth.new_errors(np.full(STARTS, 0.1)) for _ in range(400)])
    assert (errors.std(0) > 0).all()
    assert ((errors > 0) & (errors < 1)).all()


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(BayeslawError, match="worlds = 1 must be from 2"):
        check_plans(worlds=1)
