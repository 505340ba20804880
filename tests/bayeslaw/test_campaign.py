"""Campaigns replayed from a simulated sweep: they end for a reason, go on where they stopped, and are not mixed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from simulate import Truth, simulate

from bayeslaw import BayeslawError, Replay, autopilot
from bayeslaw.campaign import (
    INITIAL,
    _first,
    _for_a_round,
    _line,
    _paid,
    _plan,
    _row,
    _spread,
    _why_end,
    add_runs,
    prices,
)
from bayeslaw.design import stops
from bayeslaw.frame import rounds_at
from bayeslaw.plan_plots import plot_campaign
from bayeslaw.runs import load_runs
from bayeslaw.starts import make_starts

STARTS = {"depths": [8, 14], "widths": [2, 4, 8], "dataset_size": 1000}


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    """Give twelve networks, two runs each."""
    return load_runs(simulate(Truth(), depths=(8, 14), widths=(2, 4, 8), dataset_sizes=(1000, 250), seed=3).runs)


@pytest.fixture(scope="module")
def flown(recorded, tmp_path_factory):
    """Fly until the budget is spent, which is in the second round."""
    folder, said = tmp_path_factory.mktemp("campaign"), []
    campaign = autopilot(
        Replay(recorded), folder, target_error=0.15, dataset_sizes=[250], tolerance=1e-6, budget=4.5e10, batch=2,
        draws=100, say=said.append, density=0.8**27, **STARTS,
    )  # fmt: skip
    return campaign, folder, said


def test_a_campaign_tells_every_round_and_why_it_ended(flown, recorded) -> None:
    campaign, folder, said = flown
    history = campaign.history
    assert campaign.reason in said[-1]
    assert campaign.reason.startswith("ended: ")
    assert len(said) == len(history) + 1
    assert all(line.startswith(f"round {i + 1}: ") for i, line in enumerate(said[:-1]))
    assert (history["runs"].diff().dropna() > 0).all()
    assert (history["training_flops"].diff().dropna() > 0).all()
    assert history["training_flops"].iloc[-1] <= 4.5e10
    assert (history["training_flops"].pct_change().dropna() <= 1).all()  # no round costs more than all before
    # Runs are the recorded ones, none twice, each as far as it was recorded down to where runs may stop.
    names = campaign.runs["trajectory"].unique()
    assert set(names) <= set(recorded["trajectory"])
    for name in names:
        rounds, there = (rounds_at(t.loc[t["trajectory"] == name, "density"]) for t in (campaign.runs, recorded))
        assert rounds.tolist() in [there[there <= stop].tolist() for stop in rounds_at(stops(0.8**27))]
    assert len(names) == history["runs"].iloc[-1]
    assert pd.read_parquet(folder / "runs.parquet").shape[0] == len(campaign.runs)


def test_it_goes_on_where_it_stopped(flown, recorded) -> None:
    """The same folder again: nothing is run twice, the last round is made again, with the same outcome."""
    campaign, folder, _ = flown
    again = autopilot(
        Replay(recorded), folder, target_error=0.15, dataset_sizes=[250], tolerance=1e-6, budget=4.5e10, batch=2,
        draws=100, say=lambda _: None, density=0.8**27, **STARTS,
    )  # fmt: skip
    pd.testing.assert_frame_equal(again.history, campaign.history)
    assert len(again.runs) == len(campaign.runs)


def test_another_campaign_is_not_mixed_in(flown, recorded) -> None:
    _, folder, _ = flown
    with pytest.raises(BayeslawError, match=r"holds another campaign \(target_error = 0\.15\)"):
        autopilot(
            Replay(recorded), folder, target_error=0.2, dataset_sizes=[250], tolerance=1e-6, batch=2, density=0.8**27,
            **STARTS,
        )  # fmt: skip
    assert json.loads((folder / "campaign.json").read_text())["target_error"] == 0.15


def test_replays_give_each_trajectory_once(recorded) -> None:
    runner, networks = Replay(recorded), recorded[["depth", "width", "dataset_size"]].drop_duplicates()
    networks = networks.assign(density=recorded["density"].min())
    first = runner.run(networks, pd.DataFrame())
    second = runner.run(networks, first)
    assert set(first["trajectory"]).isdisjoint(second["trajectory"])
    assert len(first) + len(second) == len(recorded)
    assert runner.available(networks, pd.concat([first, second])).empty
    assert runner.available(networks, first)["most"].tolist() == [1] * len(networks)


def test_replays_stop_where_they_are_told(recorded) -> None:
    """Two runs of one network, one down to half of the rounds; each costs by the rounds that it went."""
    runner, about = Replay(recorded), Replay(recorded).describe().iloc[0]
    chosen = pd.DataFrame({"depth": [8, 8], "width": [2, 2], "dataset_size": [1000, 1000], "density": [0.8**12, 1.0]})
    runs = runner.run(chosen, pd.DataFrame())
    lasts = runs.groupby("trajectory")["density"].min()
    assert sorted(rounds_at(lasts)) == [0, 12]
    assert len(runs) == 1 + 7  # every second level was recorded
    cost = prices(about, chosen)
    assert cost[0] == pytest.approx(13 * cost[1])
    assert rounds_at(about["density"]) == rounds_at(recorded["density"]).max()


def test_a_round_costs_at_most_what_was_spent(recorded) -> None:
    """But the cheapest run can always be had, and the budget is never passed."""
    about = Replay(recorded).describe().iloc[0]
    left = pd.DataFrame({"depth": [8, 14], "width": [2, 8], "dataset_size": [250, 1000], "density": [0.5, 0.05]})
    cheap, dear = prices(about, left)
    assert _for_a_round(2 * cheap, left, about, None) == 2 * cheap
    assert cheap < _for_a_round(cheap / 9, left, about, None) < 1.001 * cheap
    assert _for_a_round(dear, left, about, 3 * cheap) == 3 * cheap


def test_without_a_decision_the_cheaper_half_is_run(recorded) -> None:
    """As far down as it goes, spread over costs, each network once."""
    candidates = make_starts([8, 14], [2, 4, 8], [250, 1000]).merge(pd.DataFrame({"density": [0.05, 0.5]}), how="cross")
    about = Replay(recorded).describe().iloc[0]
    chosen = _spread(candidates, about, 4, np.random.default_rng(0))
    cost = np.sort(prices(about, candidates[candidates["density"] == 0.05]))
    assert len(chosen.drop_duplicates(["depth", "width", "dataset_size"])) == 4
    assert (chosen["density"] == 0.05).all()
    own = prices(about, chosen)
    assert (np.diff(own) > 0).all()
    assert own.max() <= cost[7]


@pytest.mark.parametrize(
    ("change", "words"), [({"choose": "greedy"}, "'suggest' or 'random'"), ({"batch": 0}, "at least 1")]
)
def test_bad_settings_are_refused(recorded, tmp_path, change, words) -> None:
    with pytest.raises(BayeslawError, match=words):
        autopilot(Replay(recorded), tmp_path, target_error=0.15, **STARTS, **change)


def test_the_first_runs_keep_to_the_budget(recorded) -> None:
    """Half of what they would cost pays for the cheaper ones of them, a millionth for none."""
    candidates = make_starts([8, 14], [2, 4, 8], [250, 1000]).assign(density=0.8**27)
    about = Replay(recorded).describe().iloc[0]

    def cost_of(runs: pd.DataFrame) -> float:
        return float(prices(about, runs).sum())

    free = _first(Replay(recorded), candidates, about, None, 0)
    kept = _first(Replay(recorded), candidates, about, cost_of(free) / 2, 0)
    assert len(free) == INITIAL
    assert 0 < len(kept) < INITIAL
    assert cost_of(kept) <= cost_of(free) / 2
    pd.testing.assert_frame_equal(kept, free.iloc[: len(kept)])
    with pytest.raises(BayeslawError, match="does not pay for a first run; the cheapest takes"):
        _first(Replay(recorded), candidates, about, cost_of(free) / 1e6, 0)


def test_figure_of_regret_against_cost(flown, tmp_path) -> None:
    history = flown[0].history
    ax = plot_campaign(pd.concat([history.assign(campaign="one"), history.assign(campaign="two")]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert ax.get_xlabel().startswith("training")
    ax.figure.savefig(tmp_path / "campaign.png")
    assert (tmp_path / "campaign.png").stat().st_size > 5000


def test_a_target_out_of_reach_ends_a_campaign_or_goes_on_at_random(fitted) -> None:
    """A fit past its gate is believed, one that failed is not; either way the round is told."""
    assert _plan(fitted, 1e-4, [8, 14], [2, 4], 1000, 0) is None
    about = fitted.runs.iloc[0]
    lasts = fitted.runs.loc[fitted.runs.groupby("trajectory")["density"].idxmin()]
    row = _row(fitted, None, fitted.runs, about, 0)
    assert row["runs"] == 24
    assert row["training_flops"] == pytest.approx(prices(about, lasts).sum())
    assert "by this fit no start reaches the target" in _line(row, 1)
    assert "no start reaches the target" in _why_end(row | {"passed": True}, 10.0, lasts, about, None)
    assert _why_end(row | {"passed": False}, 10.0, lasts, about, None) == ""


def test_whatever_chooses_keeps_to_what_a_round_may_cost(recorded, tmp_path) -> None:
    """At random too: no round costs more than all before it, and the budget is never passed."""
    random = autopilot(
        Replay(recorded), tmp_path, target_error=0.15, dataset_sizes=[250], tolerance=1e-6, budget=4.5e10, batch=2,
        draws=100, say=lambda _: None, density=0.8**27, choose="random", **STARTS,
    )  # fmt: skip
    spent = random.history["training_flops"]
    assert len(spent) > 1
    assert (spent.pct_change().dropna() <= 1).all()
    assert spent.iloc[-1] <= 4.5e10


def test_candidates_are_taken_in_their_order_while_they_are_paid_for(recorded) -> None:
    about = Replay(recorded).describe().iloc[0]
    candidates = pd.DataFrame({"depth": 8, "width": [8, 2, 4], "dataset_size": 1000, "density": 1.0})
    dear, cheap, middle = prices(about, candidates)
    assert _paid(candidates, about, dear + cheap)["width"].tolist() == [8, 2]
    assert _paid(candidates, about, cheap + middle)["width"].tolist() == [2, 4]
    assert _paid(candidates, about, cheap / 2).empty


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_error": 10.0}, r"target_error = 10\.0 must be a fraction"),
        ({"target_error": 0.95}, r"0\.95 is not below the error of guessing, 0\.9"),
        ({"density": 10.0}, r"density = 10 must be a fraction of weights kept"),
        ({"density": 0.0}, r"density = 0 must be a fraction of weights kept"),
        ({"depths": [9]}, r"cifar_resnet has no depth 9"),
        ({"widths": [0, 2]}, r"width = 0.*must be above 0"),
        ({"widths": [3]}, r"the runner has none of these networks"),
    ],
)
def test_a_question_that_cannot_be_asked_claims_no_folder(recorded, tmp_path, change, words) -> None:
    """What is wrong is said before anything is run, and the corrected campaign may have the folder."""
    asked = {"target_error": 0.15} | STARTS | change
    with pytest.raises(BayeslawError, match=words):
        autopilot(Replay(recorded), tmp_path / "campaign", **asked)
    assert "widths" in change or not (tmp_path / "campaign").exists()
    assert not (tmp_path / "campaign" / "runs.parquet").exists()


def test_what_cannot_be_replayed_or_added_is_said(recorded, tmp_path) -> None:
    with pytest.raises(BayeslawError, match="the table has no trajectory"):
        Replay(recorded.drop(columns=["trajectory", "replicate"]))
    with pytest.raises(BayeslawError, match="gave no level that can be fitted"):
        add_runs(tmp_path, recorded, recorded.iloc[:0])


def test_a_campaign_that_was_killed_while_it_wrote_goes_on(flown, recorded, tmp_path) -> None:
    """Files are written beside the old ones, which stay until the new ones are whole."""
    campaign, folder, _ = flown
    for name in ("campaign.json", "history.csv"):
        assert not list(folder.glob(f".{name}*"))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("campaign.json", "history.csv"):
        (copy / f".{name}.part").write_text("")
    again = autopilot(
        Replay(recorded), copy, target_error=0.15, dataset_sizes=[250], tolerance=1e-6, budget=4.5e10, batch=2,
        draws=100, say=lambda _: None, density=0.8**27, **STARTS,
    )  # fmt: skip
    pd.testing.assert_frame_equal(again.history, campaign.history)
