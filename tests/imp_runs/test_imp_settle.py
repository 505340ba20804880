"""Is the training long enough: the corners that are trained, their numbers, and a verdict that goes both ways."""

import pandas as pd
import pytest

from imp_runs.config import Sweep
from imp_runs.settle import REPLICATES, settle
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table

CORNERS = [[2, 2, 40], [2, 4, 40], [3, 2, 40], [3, 4, 40]]


def sweep_of(toy, **changes) -> Sweep:
    grid = [(depth, width, size) for depth in (2, 3) for width in (2, 3, 4) for size in (80, 40)]
    trajectories = tuple(toy(depth=d, width=w, dataset_size=n, **changes) for d, w, n in grid)
    return Sweep("toys", trajectories, trajectories[0].protocol)


def unpruned_errors(toy, folder, epochs: int) -> pd.Series:
    """Train the corners as a sweep of their own, and give their errors by (depth, width, dataset_size)."""
    trajectories = tuple(
        toy(depth=d, width=w, dataset_size=n, replicate=r, epochs=epochs, levels=1)
        for d, w, n in CORNERS
        for r in range(REPLICATES)
    )
    run_sweep(Sweep("corners", trajectories, trajectories[0].protocol), folder, workers=1, device="cpu")
    table = make_table(folder)
    return table[table["level"] == 0].set_index(["depth", "width", "dataset_size"])["error"]


def test_the_corners_at_the_smallest_size_are_trained_for_half_as_long_again(toy, tmp_path) -> None:
    table = settle(sweep_of(toy, epochs=3, levels=30), workers=1, device="cpu")
    assert table[["depth", "width", "dataset_size"]].to_numpy().tolist() == CORNERS
    short, long = (unpruned_errors(toy, tmp_path / str(epochs), epochs) for epochs in (3, 5))
    by_corner = [errors.groupby(level=[0, 1, 2]) for errors in (short, long)]
    assert table["error"].tolist() == by_corner[0].mean().tolist()
    assert table["error_longer"].tolist() == by_corner[1].mean().tolist()
    seeds = (by_corner[0].var() + by_corner[1].var()).div(2).pow(0.5)
    assert table["seed_sd"].tolist() == pytest.approx(seeds.tolist())
    assert (table["moved"] == table["error_longer"] - table["error"]).all()
    assert (table["settled"] == (table["moved"].abs() <= table["seed_sd"])).all()


def test_a_training_that_has_only_begun_is_not_settled(toy) -> None:
    """Four epochs at a small rate are the beginning of learning."""
    training = {"epochs": 4, "batch_size": 16, "milestones": (), "decay": 1.0, "dataset_size": 400}
    begun = tuple(toy(width=width, learning_rate=0.003, **training) for width in (32, 64))
    assert not settle(Sweep("begun", begun, begun[0].protocol), workers=1, device="cpu")["settled"].any()
