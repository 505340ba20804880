"""The run table: its columns, what ties them together, and the files it is written to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import imp_runs.table
from imp_runs.errors import ImpRunsError
from imp_runs.imp import run_trajectory
from imp_runs.store import Store
from imp_runs.table import COLUMNS, make_table, recorded_sweeps, write_table

REQUIRED = """
    family dataset classes input_shape depth width dataset_size replicate subset_id level density kept prunable
    parameters nonzero kept_by_layer nonzero_macs error n_wrong n_test epochs steps status protocol_hash precision
    device versions seconds
"""
COUNTS = """
    classes depth width dataset_size replicate level kept prunable parameters nonzero nonzero_macs n_wrong n_test
    epochs steps
"""


@pytest.fixture(scope="module")
def store(toy, digits, tmp_path_factory):
    """Give a store with two mlp, and two resnet trajectories, begun in another order than the table's."""
    made = Store(tmp_path_factory.mktemp("store"), toy().protocol)
    for trajectory in (
        toy("mlp", replicate=1),
        toy("mlp", dataset_size=60),
        toy("cifar_resnet", replicate=10),
        toy("cifar_resnet", replicate=2),
    ):
        run_trajectory(trajectory, digits, made, kernels="sparse" if trajectory.replicate == 2 else "torch")
    return made


@pytest.fixture(scope="module")
def table(store):
    return make_table(store)


def test_the_columns_are_those_of_the_contract(table):
    assert tuple(table.columns) == COLUMNS
    assert set(REQUIRED.split()) <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert not table.isna().any().any()


def test_rows_are_ordered_and_one_per_trajectory_and_level(table):
    assert len(table) == 12
    assert not table.duplicated(["trajectory", "level"]).any()
    order = list(zip(table["family"], table["dataset_size"], table["replicate"], table["level"], strict=True))
    expected = [("cifar_resnet", 40, 2), ("cifar_resnet", 40, 10), ("mlp", 40, 1), ("mlp", 60, 0)]
    assert order == [(*trajectory, level) for trajectory in expected for level in (0, 1, 2)]
    assert table.index.tolist() == list(range(12))


def test_types_are_those_of_numbers_counts_and_names(table):
    for column in COUNTS.split():
        assert table[column].dtype == np.int64, column
    for column in ("density", "error", "seconds"):
        assert table[column].dtype == np.float64, column


def test_the_columns_hold_together(table):
    assert (table["density"] == table["kept"] / table["prunable"]).all()
    assert (table["error"] == table["n_wrong"] / table["n_test"]).all()
    assert (table["nonzero"] == table["kept"] + table["parameters"] - table["prunable"]).all()
    assert (table["kept_by_layer"].map(sum) == table["kept"]).all()
    assert (table["n_test"] == 797).all()
    assert (table["seconds"] > 0).all()
    assert table["error"].between(0, 1).all()
    dense = table[table["level"] == 0]
    assert (dense["density"] == 1).all()
    assert (dense["kept"] == dense["prunable"]).all()


def test_steps_count_those_of_each_level(table):
    # 40 examples make 3 batches of 16, 60 make 4; two epochs; rewinding to 1/16 of 6 or 8 steps is step 0.
    assert table.groupby("dataset_size")["steps"].agg(set).to_dict() == {40: {6}, 60: {8}}


def test_steps_after_rewinding_are_fewer(toy, digits, tmp_path):
    trajectory = toy(rewind=0.5)
    run_trajectory(trajectory, digits, Store(tmp_path, trajectory.protocol))
    assert make_table(tmp_path)["steps"].tolist() == [6, 3, 3]


def test_multiplications_of_the_mlp_are_its_kept_weights(table):
    mlp = table[table["family"] == "mlp"]
    assert (mlp["nonzero_macs"] == mlp["kept"]).all()


def test_multiplications_of_the_resnet_weigh_layers_by_their_positions(table):
    positions = [64, 64, 64, 16, 16, 16, 4, 4, 4, 1]  # ResNet-8 on 8x8, as test_imp_families counts them
    resnet = table[table["family"] == "cifar_resnet"]
    assert (resnet["kept_by_layer"].map(lambda kept: int(np.dot(kept, positions))) == resnet["nonzero_macs"]).all()
    assert (resnet.loc[resnet["level"] == 0, "nonzero_macs"] == 64 * 27 + 16 * 56 + 4 * 224 + 40).all()


def test_subsets_are_named_by_dataset_and_replicate(table):
    names = table.groupby("replicate")["subset_id"].agg(set).to_dict()
    assert all(len(ids) == 1 for ids in names.values())
    assert len({name for ids in names.values() for name in ids}) == 4


def test_provenance_names_versions_and_kernels(table):
    import torch

    for versions in table["versions"]:
        assert json.loads(versions)["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(table["precision"]) == {"float32"}
    assert table["device"].str.startswith("cpu ").all()
    libraries = table["kernels"].str.split().str[-1]
    assert (libraries[table["family"] == "mlp"] == "onednn").all()
    assert (libraries[table["replicate"] == 10] == "native").all()
    assert (libraries[table["replicate"] == 2] == "sparse").all()


def test_trajectories_under_way_are_there_as_far_as_they_got(toy, digits, tmp_path):
    class Interrupted(Exception):
        """Ends the run after its first level."""

    def interrupt(_levels):
        raise Interrupted

    store = Store(tmp_path, toy().protocol)
    with pytest.raises(Interrupted):
        run_trajectory(toy(), digits, store, progress=interrupt)
    assert make_table(store)["level"].tolist() == [0]


def test_an_empty_store_gives_an_empty_table_with_all_columns(toy, tmp_path):
    Store(tmp_path, toy().protocol)
    table = make_table(tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert table.empty


def test_parquet_gives_the_table_back(table, tmp_path):
    file = tmp_path / "new" / "runs.parquet"
    write_table(table, file)
    read = pd.read_parquet(file)
    lists = ["input_shape", "kept_by_layer"]
    for column in lists:
        read[column] = read[column].map(list)
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    assert [path.name for path in file.parent.iterdir()] == ["runs.parquet"]


def test_csv_gives_the_table_back(table, tmp_path):
    write_table(table, tmp_path / "runs.csv")
    read = pd.read_csv(tmp_path / "runs.csv", dtype={"trajectory": str, "subset_id": str, "protocol_hash": str})
    for column in ("input_shape", "kept_by_layer"):
        read[column] = read[column].map(json.loads)
    pd.testing.assert_frame_equal(read, table, check_exact=True)


def test_another_ending_is_refused_and_nothing_written(table, tmp_path):
    for name in ("runs.txt", "runs", "runs.parquet.gz"):
        with pytest.raises(ImpRunsError, match=r"can be written as .parquet or .csv"):
            write_table(table, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_cannot_be_written_leaves_the_old_file(table, tmp_path):
    file = tmp_path / "runs.parquet"
    write_table(table, file)
    before = file.read_bytes()
    with pytest.raises(pa.ArrowException):
        write_table(table.assign(status=[1, "one", [2], *["x"] * 9]), file)
    assert file.read_bytes() == before


def test_a_folder_that_is_no_store_makes_no_table(tmp_path):
    with pytest.raises(ImpRunsError, match="no store here"):
        make_table(tmp_path)


def test_recorded_sweeps_are_the_tables_shipped_with_the_package_each_beside_its_description():
    folder = Path(imp_runs.table.__file__).parent / "recorded"
    names = recorded_sweeps()
    assert names == sorted(path.stem for path in folder.glob("*.parquet"))
    assert set(names) <= {path.stem for path in folder.glob("*.toml")}
