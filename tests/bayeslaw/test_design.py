"""Which run next: values that a plain simulation confirms, batches, budgets, and sweeps that the runner takes."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from bayeslaw import BayeslawError, suggest
from bayeslaw.design import FOLDS, _Decision, _features, _nearness, _summaries, decision_regret, stops
from bayeslaw.frame import CONFIGURATION, rounds_at
from bayeslaw.sweep_file import read_sweep
from imp_runs.config import load_sweep

GRID = {"depths": [8, 14], "widths": [2, 3, 4, 8], "dataset_size": 250}
TEMPLATE = """name = "toy"
[grid]
family = "cifar_resnet"
dataset = "digits"
depth = [8]
width = [2]
dataset_size = [250]
replicates = 1
[protocol]
name = "toy"
epochs = 2
levels = 9
"""


@pytest.fixture(scope="module")
def plan(fitted):
    target = float(fitted.posterior["eps_np"].median()) * 1.3
    return fitted.plan(target, **GRID, allow_failed=True)


@pytest.fixture(scope="module")
def found(fitted, plan):
    return suggest(fitted, objective=plan, batch=3, progress=False)


def test_a_value_is_that_of_a_known_answer() -> None:
    """Two starts whose losses differ by t ~ N(.5, 1), and a run that shows t with noise of sd .5.

    E[min] given y is known in closed form: with posterior mean N(.5, 1 / sqrt(1.25)) of the difference, the value is
    E[max(-m, 0)]. 20,000 draws, five standard errors.
    """
    rng = np.random.default_rng(0)
    difference = 0.5 + rng.standard_normal(20_000)
    losses = np.column_stack([np.full(20_000, 3.0), 3.0 + difference])
    seen = (difference + 0.5 * rng.standard_normal(20_000))[:, None]
    value, mcse, narrows = _Decision(losses, 0).value([seen])
    spread = 1 / np.sqrt(1.25)
    draws = 0.5 + spread * np.random.default_rng(1).standard_normal(10**7)
    expected = np.maximum(-draws, 0).mean()
    assert abs(value - expected) < 5 * mcse
    # The run explains 1 / 1.25 of the difference's variance; the second start is best where it is negative.
    assert narrows == pytest.approx(np.sqrt(np.mean(difference < 0) / 1.25), rel=0.03)
    assert mcse < 0.01


@pytest.mark.parametrize("same", [False, True], ids=["two runs", "one run twice"])
def test_values_are_those_of_plain_least_squares(same) -> None:
    """Fold by fold, on the rows themselves, with losses of which some are a thousand times others."""
    rng = np.random.default_rng(0)
    shown = [rng.standard_normal((800, 4)) for _ in range(2)]
    shown = [shown[0], shown[0] if same else shown[1]]
    losses = 500 + shown[0] @ rng.normal(0, 30, (4, 6)) + 1e5 * (rng.random((800, 6)) < 0.02)
    decision, features = _Decision(losses, 3), _features(shown)
    differences, fall = losses - losses[:, [decision.base]], np.empty(800)
    for index in range(FOLDS):
        out = decision._fold == index
        expected = features[out] @ np.linalg.lstsq(features[~out], differences[~out], rcond=None)[0]
        fall[out] = -differences[out][np.arange(out.sum()), expected.argmin(1)]
    value, mcse, _ = decision.value(shown)
    assert value == pytest.approx(fall.mean(), rel=1e-9)
    assert mcse == pytest.approx(fall.std() / np.sqrt(800), rel=1e-9)


def test_a_run_that_shows_nothing_is_worth_nothing() -> None:
    rng = np.random.default_rng(0)
    losses, noise = rng.gamma(4.0, 1.0, (4000, 10)), rng.standard_normal((4000, 4))
    value, mcse, narrows = _Decision(losses, 0).value([noise])
    assert value < 3 * mcse
    assert narrows < 0.1 * losses.std()


def test_what_is_ranked_is_what_brings_regret_down(fitted, plan, found) -> None:
    ranked = found.ranked
    charged = np.maximum(ranked["training_flops"], ranked["training_flops"].max() / 50)
    sure = ranked["value"] > 2 * ranked["mcse"]
    assert 0 < sure.sum() < len(ranked)
    assert sure.iloc[: sure.sum()].all()
    assert ((ranked["value"] / charged)[sure].diff().dropna() <= 0).all()
    assert ((ranked["narrows"] ** 2 / charged)[~sure].diff().dropna() <= 0).all()
    assert (ranked["value"] <= found.regret + 4 * ranked["mcse"]).all()
    assert ranked["value"].iloc[0] > 3 * ranked["mcse"].iloc[0]
    assert ranked["value_per_flop"].tolist() == pytest.approx((ranked["value"] / ranked["training_flops"]).tolist())
    best, regret = decision_regret(fitted, plan)
    assert regret == pytest.approx(found.regret)
    assert plan.starts.loc[best, "regret"] == plan.starts["regret"].min()
    assert regret == pytest.approx(plan.starts["regret"].min(), rel=1e-6)


def test_runs_may_stop_earlier(fitted, plan, found) -> None:
    """Every network after a quarter, half, three quarters and all of the rounds, priced by them.

    More levels of one run cannot tell less, up to the regression's noise and what its few components miss.
    """
    ranked = found.ranked.assign(rounds=rounds_at(found.ranked["density"]))
    whole = int(rounds_at(fitted.runs["density"].min()))
    by = ranked.groupby(["depth", "width", "dataset_size"])
    assert (by["rounds"].apply(sorted).map(tuple) == tuple(np.round(whole * np.array([0.25, 0.5, 0.75, 1.0])))).all()
    shortest, longest = by["rounds"].idxmin(), by["rounds"].idxmax()
    assert (ranked["value"][longest].to_numpy() > (ranked["value"] - 4 * ranked["mcse"])[shortest].to_numpy()).all()
    cost = (ranked["training_flops"] / (ranked["rounds"] + 1)).groupby([ranked[n] for n in CONFIGURATION])
    assert cost.agg(lambda flops: flops.max() / flops.min()).to_numpy() == pytest.approx(1.0)
    assert stops(0.8) == [0.8]
    assert rounds_at(stops(0.8**3)).tolist() == [1, 2, 3]


def test_a_batch_adds_up_to_less_than_its_runs_alone(found) -> None:
    """What three runs tell together is at most the whole regret, and each is chosen for what it adds."""
    assert len(found.chosen) == 3
    pd.testing.assert_series_equal(
        found.chosen.iloc[0], found.ranked.iloc[0], check_names=False, check_index_type=False, rtol=1e-12
    )
    assert found.chosen["value"].sum() <= found.regret + 4 * found.chosen["mcse"].max()
    assert "next" in str(found)


def test_replicates_of_a_candidate_are_runs_of_the_same_network(fitted) -> None:
    """Two runs of one network are alike, since its own plateau is in both; those of two draws' seeds are not equal."""
    row = pd.DataFrame({"depth": [8.0], "width": 3.0, "dataset_size": 250.0, "density": 0.05})
    one, two = (_summaries(fitted, row, replicate, 0)[0][:, 0] for replicate in (0, 1))
    assert 0.1 < abs(np.corrcoef(one, two)[0, 1]) < 0.99


def test_where_nothing_tells_the_start_itself_is_run(fitted, plan) -> None:
    """The nearest candidate on the log scale comes first."""
    base = int(np.argmin(plan.starts.sort_values("regret")["regret"].to_numpy()))
    start = plan.starts.sort_values("regret")[["depth", "width", "dataset_size"]].iloc[base]
    table = pd.DataFrame([start * [1, 4, 1], start, start * [1, 2, 1]]).reset_index(drop=True)
    near = _nearness(plan, base, table)
    assert near.tolist() == pytest.approx([1 / (1 + np.log(4)), 1.0, 1 / (1 + np.log(2))])


def test_budgets_and_bad_questions(fitted, plan, found) -> None:
    cheapest = found.ranked["training_flops"].min()
    little = suggest(fitted, objective=plan, batch=5, budget=2.5 * cheapest, progress=False)
    assert little.chosen["training_flops"].sum() <= 2.5 * cheapest
    assert "the budget pays" in little.notes[0]
    with pytest.raises(BayeslawError, match="pays for none of the candidates; the cheapest takes"):
        suggest(fitted, objective=plan, budget=cheapest / 2, progress=False)
    with pytest.raises(BayeslawError, match="batch = 0 must be at least 1"):
        suggest(fitted, objective=plan, batch=0, progress=False)
    with pytest.raises(BayeslawError, match="designs lack width"):
        suggest(fitted, pd.DataFrame({"depth": [8], "dataset_size": [250]}), objective=plan, progress=False)


def test_no_more_runs_are_chosen_than_there_can_be(fitted, plan) -> None:
    """Four runs of three networks, of which one can be run twice."""
    table = pd.DataFrame({"depth": [8, 8, 14], "width": [2, 4, 4], "dataset_size": 250, "most": [1, 1, 2]})
    chosen = suggest(fitted, table, objective=plan, batch=4, progress=False).chosen
    counts = chosen[["depth", "width"]].astype(int).value_counts().to_dict()
    assert counts == {(8, 2): 1, (8, 4): 1, (14, 4): 2}
    assert len(suggest(fitted, table, objective=plan, batch=9, progress=False).chosen) == 4


def test_a_suggestion_becomes_a_sweep_of_new_replicates(fitted, found, tmp_path) -> None:
    template = tmp_path / "template.toml"
    template.write_text(TEMPLATE)
    path = found.to_sweep(tmp_path / "new" / "next.toml", template=template, runs=fitted.runs)
    sweep = load_sweep(path)
    wanted = found.chosen[["depth", "width", "dataset_size"]].astype(int).value_counts().to_dict()
    made = pd.DataFrame([(t.depth, t.width, t.dataset_size) for t in sweep.trajectories]).value_counts().to_dict()
    assert made == wanted
    rounds = found.chosen.assign(rounds=rounds_at(found.chosen["density"])).astype(int)
    asked = sorted(rounds[["depth", "width", "dataset_size", "rounds"]].itertuples(index=False, name=None))
    assert sorted((t.depth, t.width, t.dataset_size, t.last_level) for t in sweep.trajectories) == asked
    assert sweep.protocol == load_sweep(template).protocol  # so that it goes into the template's store
    assert sweep.protocol.epochs == 2
    there = fitted.runs.groupby(["depth", "width", "dataset_size"])["replicate"].max()
    for network, own in itertools.groupby(sweep.trajectories, lambda t: (t.depth, t.width, t.dataset_size)):
        assert min(t.replicate for t in own) >= there.get(network, -1) + 1
    new = [(t.depth, t.width, t.dataset_size, t.replicate) for t in sweep.trajectories]
    trained = fitted.runs[["depth", "width", "dataset_size", "replicate"]].itertuples(index=False, name=None)
    assert set(new).isdisjoint(trained)
    with pytest.raises(BayeslawError, match="not a readable sweep"):
        read_sweep(tmp_path / "nothing.toml")
    half = found.chosen.assign(width=2.5)
    with pytest.raises(BayeslawError, match=r"width 2\.5.* is no network that can be trained"):
        dataclasses.replace(found, chosen=half).to_sweep(tmp_path / "x.toml", template=template)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ('dataset = "digits"', 'dataset = "fashion_mnist"', "cifar_resnet on fashion_mnist, but the fit is of"),
        ('family = "cifar_resnet"', 'family = "mlp"', "sweeps mlp on digits, .* of cifar_resnet on digits"),
    ],
)
def test_a_template_of_other_networks_or_data_is_refused(found, tmp_path, ours, theirs, words) -> None:
    template = tmp_path / "template.toml"
    template.write_text(TEMPLATE.replace(ours, theirs))
    with pytest.raises(BayeslawError, match=words):
        found.to_sweep(tmp_path / "next.toml", template=template)
    assert not (tmp_path / "next.toml").exists()
