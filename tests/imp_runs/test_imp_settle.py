"""Is the training long enough: the networks that are trained, their numbers, and a verdict that goes both ways."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from imp_runs.config import Sweep
from imp_runs.engines import run_here
from imp_runs.errors import ImpRunsError
from imp_runs.settle import REPLICATES, ROUNDS, compare_trainings, settle
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table

NETWORK = ["depth", "width", "dataset_size"]
NETWORKS = [[2, 2, 40], [2, 4, 40], [3, 2, 40], [3, 3, 40], [3, 4, 40]]


def sweep_of(toy, **changes) -> Sweep:
    grid = [(depth, width, size) for depth in (2, 3) for width in (2, 3, 4) for size in (80, 40)]
    trajectories = tuple(toy(depth=d, width=w, dataset_size=n, **changes) for d, w, n in grid)
    return Sweep("toys", trajectories, trajectories[0].protocol)


def recorded(toy, folder, epochs: int) -> pd.DataFrame:
    """Train the networks as a sweep of their own."""
    trajectories = tuple(
        toy(depth=d, width=w, dataset_size=n, replicate=r, epochs=epochs, levels=ROUNDS)
        for d, w, n in NETWORKS
        for r in range(REPLICATES)
    )
    run_sweep(Sweep("networks", trajectories, trajectories[0].protocol), folder, workers=1, device="cpu")
    return make_table(folder)


def test_corners_and_middle_at_the_smallest_size_are_trained_for_half_as_long_again_and_pruned(toy, tmp_path) -> None:
    table = settle(sweep_of(toy, epochs=3, levels=30), workers=1, device="cpu")
    assert table[NETWORK].to_numpy().tolist() == NETWORKS
    runs = {epochs: recorded(toy, tmp_path / str(epochs), epochs) for epochs in (3, 5)}
    short, long = (own[own["level"] == 0].groupby(NETWORK)["error"] for own in runs.values())
    assert table["error"].tolist() == short.mean().tolist()
    assert table["error_longer"].tolist() == long.mean().tolist()
    assert table["seed_sd"].tolist() == pytest.approx((short.var() + long.var()).div(2).pow(0.5).tolist())
    assert (table["moved"] == table["error_longer"] - table["error"]).all()
    changes = []
    for _, network in runs[3].groupby(NETWORK):
        logs = [np.log(run.sort_values("level")["n_wrong"] + 0.5).to_list() for _, run in network.groupby("replicate")]
        changes.append([np.mean(log[1:]) - log[0] for log in logs])
    assert table["pruned"].tolist() == pytest.approx(np.mean(changes, axis=1).tolist())
    error = np.sqrt(np.var(changes, axis=1, ddof=1).mean() / REPLICATES)
    assert table["pruned_se"].tolist() == pytest.approx([error] * len(NETWORKS))
    gained = table["pruned"] < -np.maximum(0.05, 2.528 * error)  # t of 20 degrees of freedom at 1 %
    assert (table["settled"] == (table["moved"].abs() <= table["seed_sd"]) & ~gained).all()


def test_a_training_that_has_only_begun_is_not_settled(toy) -> None:
    """Four epochs at a small rate are the beginning of learning."""
    training = {"epochs": 4, "batch_size": 16, "milestones": (), "decay": 1.0, "dataset_size": 400}
    begun = tuple(toy(width=width, learning_rate=0.003, **training) for width in (32, 64))
    assert not settle(Sweep("begun", begun, begun[0].protocol), workers=1, device="cpu")["settled"].any()


@pytest.mark.parametrize(("factor", "settled"), [(0.8, False), (0.97, True), (1.2, True)])
def test_networks_that_gain_when_pruned_are_not_settled_however_far_seeds_spread(factor, settled) -> None:
    """Seeds make anything from 40 to 400 mistakes of 1,000; pruning changes that of each by about the same factor."""
    rng = np.random.default_rng(0)
    wrong = np.linspace(40, 400, REPLICATES)[:, None] * factor ** (np.arange(ROUNDS + 1) > 0)
    wrong = np.round(wrong * np.exp(0.05 * rng.standard_normal(wrong.shape)))
    index = pd.MultiIndex.from_product([[8], [2], [250], range(REPLICATES), range(ROUNDS + 1)])
    short = pd.DataFrame({"n_wrong": wrong.ravel()}, index.set_names([*NETWORK, "replicate", "level"])).reset_index()
    short["error"] = short["n_wrong"] / 1000
    table = compare_trainings(short, short[short["level"] == 0]).reset_index()
    assert table["seed_sd"].item() > 0.1
    assert table["moved"].item() == 0
    assert table["pruned"].item() == pytest.approx(np.log(factor), abs=0.1)
    assert table["settled"].item() == settled


def test_grids_with_levels_of_their_own_are_pruned_as_far_as_is_judged(toy, monkeypatch) -> None:
    begun = tuple(dataclasses.replace(toy(width=width), levels=9) for width in (2, 3))
    trained: list[int] = []

    def note(work, *arguments, **settings):
        trained.extend(trajectory.last_level for trajectory, _ in work)
        return run_here(work, *arguments, **settings)

    monkeypatch.setattr("imp_runs.settle.run_here", note)
    settle(Sweep("begun", begun, begun[0].protocol), workers=1, device="cpu")
    assert set(trained) == {0, ROUNDS}


def test_a_sweep_of_several_families_is_refused(toy) -> None:
    mixed = toy(), toy("cifar_resnet")
    with pytest.raises(ImpRunsError, match=r"several \(cifar_resnet on digits, pool 1; mlp on digits, pool 1\)"):
        settle(Sweep("mixed", mixed, mixed[0].protocol), workers=1, device="cpu")
