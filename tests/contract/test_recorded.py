"""Recorded sweeps are what their TOML makes, their tables are consistent, and a re-run gives the same numbers."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from bayeslaw.families import Family
from bayeslaw.runs import recorded_folder, recorded_names
from imp_runs.config import load_sweep, protocol_hash
from imp_runs.datasets import load_dataset
from imp_runs.errors import ImpRunsError
from imp_runs.sweep import run_sweep
from imp_runs.table import COLUMNS, make_table
from imp_runs.workers import default_device

NAMES = recorded_names()


def runnable(name: str) -> bool:
    """Say whether the data of a sweep are on this machine; digits always are."""
    trajectory = load_sweep(recorded_folder() / f"{name}.toml").trajectories[0]
    try:
        load_dataset(trajectory.dataset, pool=trajectory.pool)
    except ImpRunsError:
        return False
    return True


def command(name: str) -> dict[str, str]:
    """Read the options of the command that made a sweep, from the first line of its TOML file."""
    words = (recorded_folder() / f"{name}.toml").read_text().splitlines()[0].split()
    assert words[:4] == ["#", "imp-runs", "sweep", f"{name}.toml"]
    return dict(zip((word.removeprefix("--") for word in words[4::2]), words[5::2], strict=True))


RUNNABLE = [name for name in NAMES if runnable(name)]


def read(name: str) -> pd.DataFrame:
    return pd.read_parquet(recorded_folder() / f"{name}.parquet")


def test_the_embedded_default_can_be_run_anywhere() -> None:
    assert "digits_resnet" in RUNNABLE


@pytest.mark.parametrize("name", NAMES)
def test_every_trajectory_is_one_of_the_sweep(name: str) -> None:
    table, sweep = read(name), load_sweep(recorded_folder() / f"{name}.toml")
    described = {trajectory.key: trajectory for trajectory in sweep.trajectories}
    assert list(table.columns) == list(COLUMNS)
    assert set(table["trajectory"]) <= set(described)
    assert set(table["protocol_hash"]) == {protocol_hash(sweep.protocol)}
    for key, rows in table.groupby("trajectory"):
        first, trajectory = rows.iloc[0], described[str(key)]
        same = ["family", "dataset", "depth", "width", "dataset_size", "replicate"]
        assert [first[column] for column in same] == [getattr(trajectory, column) for column in same]
        assert list(rows["level"]) == list(range(len(rows)))
        assert (rows["status"].iloc[:-1] == "trained").all()
        assert len(rows) == sweep.protocol.levels + 1 or rows["status"].iloc[-1] == "exhausted"


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_consistent(name: str) -> None:
    table, sweep = read(name), load_sweep(recorded_folder() / f"{name}.toml")
    assert (table["density"] == table["kept"] / table["prunable"]).all()
    assert (table["error"] == table["n_wrong"] / table["n_test"]).all()
    assert (table["kept_by_layer"].map(np.sum) == table["kept"]).all()
    first = table.iloc[0]
    family = Family(first["family"], tuple(int(v) for v in first["input_shape"]), int(first["classes"]))
    prunable, unprunable = family.counts(table["depth"], table["width"])
    assert (table["prunable"] == prunable).all()
    assert (table["nonzero"] == table["kept"] + unprunable).all()
    assert (table["parameters"] == prunable + unprunable).all()
    for _, rows in table.groupby("trajectory"):
        kept = rows["kept"].tolist()
        assert kept[1:] == [sweep.protocol.kept_after(before) for before in kept[:-1]]


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_trajectory_run_again_gives_the_recorded_numbers(name: str, tmp_path) -> None:
    recorded, sweep = read(name), load_sweep(recorded_folder() / f"{name}.toml")
    cheapest = recorded.groupby("trajectory")["seconds"].sum().idxmin()
    chosen = tuple(trajectory for trajectory in sweep.trajectories if trajectory.key == cheapest)
    options = command(name)
    assert options.keys() <= {"store", "device", "kernels", "pack", "streams"}
    device = "cpu" if options["device"] == "cpu" else default_device()  # what was made on a GPU, where there is one
    asked = {"device": device, "kernels": options.get("kernels", "auto")}
    run_sweep(dataclasses.replace(sweep, trajectories=chosen), tmp_path / "store", workers=1, **asked)
    again = make_table(tmp_path / "store")
    there = recorded[recorded["trajectory"] == cheapest].reset_index(drop=True)
    machine = ["kernels", "versions", "device"]
    for column in again.columns.drop(["seconds", *machine, "error", "n_wrong", "kept_by_layer", "nonzero_macs"]):
        assert again[column].map(plain).tolist() == there[column].map(plain).tolist(), column
    if (again[machine] == there[machine]).all(axis=None):
        # The same arithmetic: bit for bit.
        for column in ("error", "n_wrong", "kept_by_layer", "nonzero_macs"):
            assert again[column].map(plain).tolist() == there[column].map(plain).tolist(), column
    else:
        # Other kernels, versions or processors round differently, and a pruned network is chaotic: the curve must be
        # the same one. Tables recorded before the processor was named say "cpu" alone.
        logit = np.log((again["n_wrong"] + 0.5) / (again["n_test"] - again["n_wrong"] + 0.5))
        other = np.log((there["n_wrong"] + 0.5) / (there["n_test"] - there["n_wrong"] + 0.5))
        assert np.abs(logit - other).mean() < 1.0


def plain(value: object) -> str:
    """Compare numbers and lists, whichever library holds them, by their exact values."""
    return json.dumps(np.asarray(value).tolist())
