"""The run table: what is valid comes through unchanged, what is not comes back at once, by row and column."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import math
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from bayeslaw import runs as runs_module
from bayeslaw.errors import BayeslawError, RunTableError
from bayeslaw.runs import COLUMNS, families, load_recorded, load_runs, recorded_names

pytestmark = pytest.mark.filterwarnings("error")

NUMBER, PRESENT, FINITE = "a number", "present in every row", "finite"
COUNT, POSITIVE_COUNT = "a whole number from 0 to 2**53", "a whole number from 1 to 2**53"
CONSTANT = "constant within a trajectory"
BY_COUNT = "n_wrong / n_test to within half a test example"
UNLIKE, UNLIKE_ANY = "unlike the others of its trajectory", "unlike those of every other row"

#: Names that a careless reader of CSV files takes for a number, a missing value or two fields.
AWKWARD = [
    "digits",
    "NA",
    "None",
    "nan",
    "007",
    "1e5",
    "1234567890123456",
    "a,b",
    'say "x"',
    "Größe",
    " padded ",
    "a\nb",
]
names = st.sampled_from(AWKWARD)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)


def full_table(trajectories: int = 3, levels: int = 8) -> pd.DataFrame:
    """A table with all the columns that have rules, as our own runner would write it."""
    rows = []
    for run in range(trajectories):
        for level in range(levels):
            kept = int(10_000 * 0.8**level)
            rows.append(
                {
                    "trajectory": f"run-{run}",
                    "family": "cifar_resnet",
                    "dataset": "digits",
                    "classes": 10,
                    "chance_error": 0.9,
                    "input_shape": np.array([1, 8, 8]),
                    "depth": 8 + 6 * run,
                    "width": 4,
                    "dataset_size": 1000,
                    "replicate": run,
                    "level": level,
                    "density": kept / 10_000,
                    "kept": kept,
                    "prunable": 10_000,
                    "parameters": 10_100,
                    "nonzero": kept + 100,
                    "kept_by_layer": np.array([kept - 5, 5]),
                    "error": (40 + level) / 500,
                    "n_wrong": 40 + level,
                    "n_test": 500,
                    "status": "trained",
                    "note": f"row {run}.{level}",
                }
            )
    return pd.DataFrame(rows)


def foreign_table(rows: int = 6) -> pd.DataFrame:
    """The least that a foreign table must have."""
    errors = np.linspace(0.1, 0.4, rows)
    density = 0.8 ** np.arange(rows)
    return pd.DataFrame({"depth": 8, "width": 4, "dataset_size": 1000, "density": density, "error": errors})


@st.composite
def valid_tables(draw: st.DrawFn) -> pd.DataFrame:
    """Any valid table: with or without keys, levels, counts and names."""
    key = draw(st.sampled_from(["trajectory", "replicate", "both", "none"]))
    with_level, with_names, counts = (
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(["", "n_test", "both"])),
    )
    whole = draw(st.booleans())
    sizes = st.integers(1, 10**6) if whole else st.floats(0.01, 1e6)
    rows: list[dict[str, Any]] = []
    for run in range(draw(st.integers(1, 4))):
        shared: dict[str, Any] = {"depth": draw(sizes), "width": draw(sizes), "dataset_size": draw(sizes)}
        if key in ("trajectory", "both"):
            shared["trajectory"] = f"{draw(names)}{run}"
        if key in ("replicate", "both"):
            shared["replicate"] = run
        if with_names:
            shared |= {"family": draw(names), "dataset": draw(names), "classes": draw(st.integers(2, 1000))}
        first = draw(st.floats(1e-9, 1))
        for level in range(draw(st.integers(1, 4))):
            row = shared | {"density": first * 0.8**level, "note": f"{run}/{level}", "seconds": draw(st.floats(0, 1e3))}
            if with_level:
                row["level"] = level
            if counts:
                row["n_test"] = draw(st.integers(1, 10**6))
                wrong = draw(st.integers(0, row["n_test"]))
                row |= {"error": wrong / row["n_test"]} | ({"n_wrong": wrong} if counts == "both" else {})
            else:
                row["error"] = draw(fractions)
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.reindex(columns=draw(st.permutations(list(table.columns))))


def faults_of(table: Any, **arguments: Any) -> RunTableError:
    with pytest.raises(RunTableError) as caught:
        load_runs(table, **arguments)
    return caught.value


def found(error: RunTableError) -> set[tuple[Any, str, str]]:
    faults = error.faults
    return {
        (None if pd.isna(row) else int(row), column, rule) for row, column, _, rule in faults.itertuples(index=False)
    }


# Valid tables


@settings(deadline=None, max_examples=30)
@given(valid_tables())
def test_valid_tables_round_trip_through_files_and_loading(table: pd.DataFrame) -> None:
    before = table.copy(deep=True)
    loaded = load_runs(table)
    assert_frame_equal(table, before)
    assert_frame_equal(load_runs(loaded), loaded)
    with tempfile.TemporaryDirectory() as folder:
        for source in (table, loaded):
            parquet, csv = Path(folder) / "runs.parquet", Path(folder) / "runs.csv"
            source.to_parquet(parquet, index=False)
            source.to_csv(csv, index=False)
            assert_frame_equal(load_runs(parquet), loaded)
            assert_frame_equal(load_runs(str(csv)), loaded)


@settings(deadline=None, max_examples=40)
@given(valid_tables(), st.randoms(use_true_random=False))
def test_shuffling_rows_changes_their_order_and_nothing_else(table: pd.DataFrame, random: Any) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    assert_frame_equal(load_runs(table.iloc[order]), load_runs(table).iloc[order].reset_index(drop=True))


@settings(deadline=None, max_examples=40)
@given(valid_tables())
def test_canonical_types(table: pd.DataFrame) -> None:
    loaded = load_runs(table)
    assert isinstance(loaded.index, pd.RangeIndex)
    assert len(loaded) == len(table)
    assert set(table.columns) <= set(loaded.columns)
    known = [name for name in loaded if name in COLUMNS]
    assert known == [name for name in COLUMNS if name in loaded]
    assert list(loaded)[: len(known)] == known
    for column in {"density", "error", "chance_error"} & set(loaded):
        assert loaded[column].dtype == np.float64
    for column in ("depth", "width", "dataset_size"):
        whole = bool((table[column] % 1 == 0).all())
        assert loaded[column].dtype == (np.int64 if whole else np.float64)
    for column in {"level", "classes", "n_test", "n_wrong", "replicate"} & set(loaded):
        assert loaded[column].dtype == np.int64
    for column in {"trajectory", "family", "dataset"} & set(loaded):
        assert isinstance(loaded[column].dtype, pd.StringDtype)
    assert ("trajectory" in loaded) == bool({"trajectory", "replicate"} & set(table))
    assert ("chance_error" in loaded) == ("classes" in table)
    assert ("n_wrong" in loaded) == ("n_test" in table)


def test_our_own_table_passes_untouched() -> None:
    table = full_table()
    loaded = load_runs(table)
    assert_frame_equal(loaded, table, check_dtype=False)
    assert all(a is b for a, b in zip(loaded["kept_by_layer"], table["kept_by_layer"], strict=True))


def test_array_columns_pass_through_parquet(tmp_path: Path) -> None:
    table = full_table()
    table.to_parquet(tmp_path / "runs.parquet")
    loaded = load_runs(tmp_path / "runs.parquet")
    for column in ("input_shape", "kept_by_layer"):
        assert [list(cell) for cell in loaded[column]] == [list(cell) for cell in table[column]]


def test_what_the_caller_does_to_the_result_leaves_the_source_alone() -> None:
    table = foreign_table()
    loaded = load_runs(table)
    loaded.loc[0, "error"] = 0.9
    assert list(table["error"]) == list(foreign_table()["error"])


def test_columns_are_mapped() -> None:
    table = foreign_table().rename(columns={"error": "test_err", "width": "channels"})
    loaded = load_runs(table, columns={"error": "test_err", "width": "channels", "depth": "depth"})
    assert_frame_equal(loaded, load_runs(foreign_table()))


def test_columns_may_swap_names() -> None:
    table = foreign_table().rename(columns={"depth": "width", "width": "depth"})
    loaded = load_runs(table, columns={"depth": "width", "width": "depth"})
    assert set(loaded["depth"]) == {8}
    assert set(loaded["width"]) == {4}


def test_a_mapped_key_of_a_csv_file_stays_text(tmp_path: Path) -> None:
    foreign_table(2).assign(run=["0012345678901234", "12e4567890123456"]).to_csv(tmp_path / "runs.csv", index=False)
    loaded = load_runs(tmp_path / "runs.csv", columns={"trajectory": "run"})
    assert list(loaded["trajectory"]) == ["0012345678901234", "12e4567890123456"]


def test_named_index_levels_become_columns() -> None:
    table = foreign_table().assign(trajectory="a").set_index(["trajectory", "density"])
    assert_frame_equal(load_runs(table), load_runs(foreign_table().assign(trajectory="a")))
    assert_frame_equal(load_runs(foreign_table().set_axis(list("uvwxyz"))), load_runs(foreign_table()))


@pytest.mark.parametrize("dtype", ["str", "object", "category", "Float64", "float32", "double[pyarrow]"])
def test_numbers_come_in_any_type(dtype: str) -> None:
    table = foreign_table(2).assign(error=[0.25, 0.5], density=[1.0, 0.5], classes=10)
    converted = table.astype({"error": dtype, "density": dtype, "depth": dtype, "classes": dtype})
    assert_frame_equal(load_runs(converted), load_runs(table))


@pytest.mark.parametrize(
    "keys", [[3, 4], [3.0, 4.0], ["3", "4"], pd.Categorical(["3", "4"]), pd.array([3, 4], "Int64")]
)
def test_keys_come_in_any_type(keys: Any) -> None:
    loaded = load_runs(foreign_table(2).assign(trajectory=keys, replicate=keys))
    assert list(loaded["trajectory"]) == ["3", "4"]
    assert list(loaded["replicate"]) == [3, 4]
    assert loaded["replicate"].dtype == np.int64


def test_replicates_may_be_names() -> None:
    loaded = load_runs(foreign_table(2).assign(replicate=["a/b", "007"]))
    assert list(loaded["replicate"]) == ["a/b", "007"]
    assert next(iter(loaded["trajectory"])) == "unknown/unknown/depth=8/width=4/dataset_size=1000/replicate=a%2Fb"


# What is completed


def test_trajectories_follow_from_the_replicates() -> None:
    table = full_table().drop(columns="trajectory")
    loaded = load_runs(table)
    assert len(set(loaded["trajectory"])) == len(set(zip(loaded["trajectory"], loaded["replicate"], strict=True))) == 3
    alone = load_runs(table.query("replicate == 2").astype({"depth": float}))
    assert set(alone["trajectory"]) == {"cifar_resnet/digits/depth=20/width=4/dataset_size=1000/replicate=2"}
    assert set(alone["trajectory"]) < set(loaded["trajectory"])


def test_different_runs_never_share_a_name() -> None:
    table = foreign_table(2).assign(family=["a/b", "a"], dataset=["c", "b/c"], replicate=0)
    assert len(set(load_runs(table)["trajectory"])) == 2


def test_without_keys_there_are_no_trajectories() -> None:
    assert "trajectory" not in load_runs(foreign_table())


def test_names_are_unknown_where_absent() -> None:
    loaded = load_runs(foreign_table())
    assert set(loaded["family"]) == set(loaded["dataset"]) == {"unknown"}


def test_n_test_fills_and_counts() -> None:
    loaded = load_runs(foreign_table(), n_test=797)
    assert set(loaded["n_test"]) == {797}
    assert list(loaded["n_wrong"]) == [round(error * 797) for error in loaded["error"]]
    assert list(loaded["error"]) == list(foreign_table()["error"])


def test_what_the_table_says_goes_before_the_arguments() -> None:
    loaded = load_runs(full_table(), n_test=10_000, chance_error=0.5)
    assert set(loaded["n_test"]) == {500}
    assert set(loaded["chance_error"]) == {0.9}


def test_arguments_fill_gaps() -> None:
    table = foreign_table(3).assign(n_test=[10_000, math.nan, 500], chance_error=[0.9, math.nan, math.nan])
    numpy: dict[str, Any] = {"n_test": np.int64(100), "chance_error": np.float32(0.5)}
    loaded = load_runs(table, **numpy)
    assert list(loaded["n_test"]) == [10_000, 100, 500]
    assert list(loaded["chance_error"]) == [0.9, 0.5, 0.5]


def test_chance_error_follows_from_classes() -> None:
    assert "chance_error" not in load_runs(foreign_table())
    assert list(load_runs(foreign_table(2).assign(classes=[10, 4]))["chance_error"]) == [0.9, 0.75]
    assert set(load_runs(foreign_table().assign(classes=10), chance_error=0.8)["chance_error"]) == {0.8}


def test_error_follows_from_counts() -> None:
    table = full_table().drop(columns="error")
    assert list(load_runs(table)["error"]) == list(full_table()["error"])
    assert list(load_runs(table.drop(columns="n_test"), n_test=1000)["error"]) == list(table["n_wrong"] / 1000)


def test_density_follows_from_counts() -> None:
    assert list(load_runs(full_table().drop(columns="density"))["density"]) == list(full_table()["density"])


def test_optional_columns_without_a_value_count_as_absent() -> None:
    empty = foreign_table().assign(**dict.fromkeys(["trajectory", "family", "n_test", "classes", "level"]))
    assert_frame_equal(load_runs(empty), load_runs(foreign_table()))


def test_no_error_at_all_is_data_where_n_test_is_known() -> None:
    table = foreign_table(3).assign(error=[0.0, 0.1, 1.0])
    loaded = load_runs(table, n_test=50)
    assert list(loaded["n_wrong"]) == [0, 5, 50]
    assert list(load_runs(table.assign(n_test=50))["error"]) == [0, 0.1, 1]
    error = faults_of(table)
    assert found(error) == {
        (0, "error", "above 0 unless n_test is known: pass n_test="),
        (2, "error", "below 1 unless n_test is known: pass n_test="),
    }
    assert "Pass n_test=, the number of test examples" in str(error)


def test_diverged_rows_are_left_out_with_a_warning() -> None:
    table = full_table()
    gone = [3, 4, 17]
    table.loc[gone, "status"] = "diverged"
    table.loc[gone, "error"] = np.nan
    with pytest.warns(
        UserWarning, match=r"left out 3 rows with the status 'diverged', of 2 trajectories: run-0; run-2"
    ):
        loaded = load_runs(table)
    assert list(loaded["note"]) == list(table["note"].drop(gone))
    assert_frame_equal(load_runs(loaded), loaded)
    with pytest.warns(UserWarning, match=r"left out 1 row .* of 1 trajectory: .*depth=8, .*replicate=0"):
        load_runs(table.drop(columns="trajectory").drop([4, 17]))


def test_rows_are_counted_with_the_diverged_ones() -> None:
    table = full_table()
    table.loc[0, "status"] = "diverged"
    table.loc[5, "error"] = 1.5
    assert found(faults_of(table)) == {(5, "error", "in [0, 1]")}


# Faults


@dataclasses.dataclass(frozen=True)
class Plant:
    """A value that does not belong in a column, and the rule that says so."""

    column: str
    value: Any
    rule: str


PLANTS = [
    *[Plant(column, value, "above 0") for column in ("depth", "width", "dataset_size") for value in (0, -3, -0.5)],
    *[Plant(column, 99, CONSTANT) for column in ("depth", "width", "dataset_size")],
    *[Plant(column, "other", CONSTANT) for column in ("family", "dataset")],
    *[Plant("density", value, "in (0, 1]") for value in (0.0, -0.2, 1.0001, 80)],
    *[Plant("error", value, "in [0, 1]") for value in (-0.1, 1.7, 50)],
    *[Plant("chance_error", value, "in (0, 1)") for value in (0, 1, 1.5, -1)],
    *[Plant("error", 0.9, BY_COUNT), Plant("n_wrong", 400, BY_COUNT), Plant("n_test", 1000, BY_COUNT)],
    *[Plant("n_test", value, POSITIVE_COUNT) for value in (0, -1, 499.5)],
    *[Plant("classes", value, "a whole number from 2 to 2**53") for value in (1, 2.5)],
    *[Plant(c, v, COUNT) for c in ("n_wrong", "kept", "prunable", "parameters", "nonzero", "level") for v in (-1, 3.5)],
    Plant("parameters", 1e300, COUNT),
    Plant("n_wrong", 501, "at most n_test"),
    Plant("kept", 10_001, "at most prunable"),
    *[Plant(column, math.inf, FINITE) for column in ("depth", "density", "error", "n_test", "kept", "level")],
    *[Plant(column, -math.inf, FINITE) for column in ("width", "error")],
    *[
        Plant(c, v, PRESENT)
        for c in ("depth", "density", "error", "n_wrong", "level", "classes")
        for v in (None, math.nan)
    ],
    *[Plant(column, value, PRESENT) for column in ("trajectory", "family", "replicate") for value in (None, "", "  ")],
    *[Plant(c, v, NUMBER) for c in ("depth", "error", "n_test") for v in ("abc", "", "0.1%", True, 1j, [0.1])],
]


@st.composite
def planted(draw: st.DrawFn) -> tuple[pd.DataFrame, list[tuple[int, Plant]]]:
    """A valid table with one to three faults in it, in different rows."""
    table = full_table().astype(object)
    rows = draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=3, unique=True))
    plants = [(row, draw(st.sampled_from(PLANTS))) for row in rows]
    for row, plant in plants:
        table.at[row, plant.column] = plant.value
    return table, plants


def expected(plants: list[tuple[int, Plant]]) -> set[tuple[int, str, str]]:
    return {(row, "error" if plant.rule == BY_COUNT else plant.column, plant.rule) for row, plant in plants}


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_each_fault_is_found(plant: Plant) -> None:
    table = full_table().astype(object)
    table.at[13, plant.column] = plant.value
    before = table.copy(deep=True)
    error = faults_of(table)
    assert found(error) == expected([(13, plant)])
    assert_frame_equal(table, before)
    message = str(error)
    assert message.startswith("the run table: 1 fault (rows are counted from 0")
    assert f"- {error.faults['column'][0]} must be {plant.rule}; 1 fault: row 13: " in message
    assert "What to do:\n- " in message


@settings(deadline=None, max_examples=80)
@given(planted())
def test_several_faults_are_reported_at_once(case: tuple[pd.DataFrame, list[tuple[int, Plant]]]) -> None:
    table, plants = case
    error = faults_of(table)
    assert found(error) == expected(plants)
    assert str(error).startswith(f"the run table: {len(plants)} fault")
    assert list(error.faults.columns) == ["row", "column", "value", "rule"]
    assert error.faults["row"].is_monotonic_increasing


@settings(deadline=None, max_examples=30)
@given(planted(), st.permutations(range(24)))
def test_faults_move_with_their_rows(case: tuple[pd.DataFrame, list[tuple[int, Plant]]], order: list[int]) -> None:
    table, _ = case
    moved = {(order[row], column, rule) for row, column, rule in found(faults_of(table.iloc[order]))}
    assert moved == found(faults_of(table))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([1.7, -0.1, 2.0]), min_size=0, max_size=20), st.sampled_from(["csv", "parquet"]))
def test_faults_of_files_are_those_of_their_rows(values: list[float], kind: str) -> None:
    table = pd.concat([foreign_table(2), foreign_table(len(values)).assign(error=values)], ignore_index=True)
    table = table.assign(replicate=range(len(table)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"runs.{kind}"
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
        if not values:
            assert len(load_runs(path)) == 2
            return
        error = faults_of(path)
    assert found(error) == {(row + 2, "error", "in [0, 1]") for row in range(len(values))}
    assert list(error.faults["value"]) == values
    assert str(error).startswith(f"{path}: {len(values)} fault")


def test_the_message_groups_and_shortens() -> None:
    table = full_table()
    table.loc[2:9, "error"] = [1.7, -0.1, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0]
    table.loc[5, "width"] = 0
    error = faults_of(table.rename(columns={"error": "test_err"}), columns={"error": "test_err"})
    assert str(error) == (
        "the run table: 9 faults (rows are counted from 0, the header not among them).\n"
        "\n"
        "- width must be above 0; 1 fault: row 5: 0.\n"
        "- error (your 'test_err') must be in [0, 1]; 8 faults: row 2: 1.7, row 3: -0.1, row 4: 2.5, row 5: 3.0, "
        "row 6: 4.0, and 3 more.\n"
        "\n"
        "What to do:\n"
        "- Correct these values, or leave the rows out.\n"
        "- error is a fraction, 1 - accuracy: divide percentages by 100.\n"
        "- All faults are in the table `faults` of this exception: row, column, value, rule."
    )
    assert len(error.faults) == 9
    assert list(error.faults.loc[error.faults["row"] == 5, "column"]) == ["width", "error"]


def test_missing_columns_come_with_the_faults_of_the_others() -> None:
    table = foreign_table().drop(columns=["depth", "error"]).assign(layers=8, width=-4)
    error = faults_of(table.rename(columns={"width": "channels"}), columns={"width": "channels"})
    whole = {(None, name, "a column of the table") for name in ("depth", "error")}
    assert found(error) == whole | {(row, "width", "above 0") for row in range(6)}
    message = str(error)
    assert "- depth must be a column of the table: it is missing." in message
    assert 'load_runs(source, columns={"depth": "<your column>", "error": "<your column>"})' in message
    assert "the table has 'channels', 'dataset_size', 'density', 'layers'" in message


def test_what_follows_from_a_fault_is_no_fault_of_its_own() -> None:
    table = full_table().drop(columns=["density", "error", "chance_error", "trajectory"]).astype(object)
    table.at[1, "n_wrong"] = "many"
    table.at[2, "kept"] = 10_001
    table.at[3, "prunable"] = -1
    table.at[4, "classes"] = 0
    table.at[5, "replicate"] = None
    table.at[6, "depth"] = 0
    assert found(faults_of(table)) == {
        (1, "n_wrong", NUMBER),
        (2, "kept", "at most prunable"),
        (3, "prunable", COUNT),
        (4, "classes", "a whole number from 2 to 2**53"),
        (5, "replicate", PRESENT),
        (6, "depth", "above 0"),
    }


@pytest.mark.parametrize(("kept", "prunable"), [(0, 100), (0, 0)])
def test_derived_density_is_checked(kept: int, prunable: int) -> None:
    table = full_table().drop(columns="density")
    table.loc[4, ["kept", "prunable"]] = [kept, prunable]
    assert found(faults_of(table)) == {(4, "density", "in (0, 1]")}


def test_repeated_levels() -> None:
    table = full_table()
    table = pd.concat([table, table.iloc[[2, 2]].assign(density=0.5)])
    error = faults_of(table)
    assert found(error) == {(24, "level", UNLIKE), (25, "level", UNLIKE)}
    assert list(error.faults["value"]) == ["2 as in row 2"] * 2
    assert "Drop the repeated rows" in str(error)


@pytest.mark.parametrize("key", ["trajectory", "replicate"])
def test_repeated_densities_where_there_is_no_level(key: str) -> None:
    table = full_table().drop(columns=["level", *{"trajectory", "replicate"} - {key}])
    error = faults_of(pd.concat([table.iloc[[7]].assign(error=0.1, n_wrong=50), table]))
    assert found(error) == {(8, "density", UNLIKE)}
    assert list(error.faults["value"]) == ["0.2097 as in row 0"]


def test_repeated_rows_where_there_is_no_trajectory() -> None:
    table = full_table().drop(columns=["trajectory", "replicate"])
    assert len(load_runs(pd.concat([table, table.assign(note="again")]))) == 48
    error = faults_of(pd.concat([table, table.iloc[[3]]]))
    assert found(error) == {(24, "(all columns)", UNLIKE_ANY)}
    assert list(error.faults["value"]) == ["as in row 3"]
    assert 'add a column "trajectory" or "replicate"' in str(error)


def test_rows_that_differ_in_an_array_are_not_repeated() -> None:
    table = foreign_table(1).loc[[0, 0, 0]]
    table["kept_by_layer"] = pd.Series([np.array([1, 2]), np.array([1, 3]), np.array([1, 2])], index=table.index)
    assert found(faults_of(table)) == {(2, "(all columns)", UNLIKE_ANY)}


def test_seeds_taken_for_trajectories_are_explained() -> None:
    table = full_table().assign(trajectory=0)
    assert 'columns={"replicate": "<your column>"}' in str(faults_of(table))


def test_the_odd_one_out_of_a_trajectory_is_named_even_where_it_comes_first() -> None:
    table = full_table()
    table.loc[0, "depth"] = 20
    error = faults_of(table)
    assert found(error) == {(0, "depth", CONSTANT)}
    assert list(error.faults["value"]) == [20]


def test_the_exception_travels_between_processes() -> None:
    error = faults_of(foreign_table().assign(error=2.0))
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert_frame_equal(copy.faults, error.faults)
    assert isinstance(copy, BayeslawError)
    assert isinstance(copy, ValueError)


# Tables that are none


@pytest.mark.parametrize(
    "table", [foreign_table().iloc[:0], full_table().iloc[:0], pd.DataFrame()], ids=["", "full", "bare"]
)
def test_an_empty_table(table: pd.DataFrame) -> None:
    error = faults_of(table)
    assert str(error) == "the run table: no rows to fit; a run table has one row per (trajectory, level)."
    assert found(error) == {(None, "(all columns)", "filled in one row or more")}


def test_a_table_of_diverged_rows() -> None:
    assert "no rows to fit (all have the status 'diverged')" in str(faults_of(full_table().assign(status="diverged")))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_truncated_parquet_file(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.parquet"
        full_table().to_parquet(path)
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(BayeslawError) as caught:
            load_runs(path)
    assert str(caught.value).startswith(f"{path}: not a readable Parquet file (")
    assert "truncated or only half copied: write or copy it again" in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.sampled_from(["csv", "parquet"]))
def test_garbage_is_refused_with_the_path(content: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"runs.{kind}"
        path.write_bytes(content)
        with pytest.raises(BayeslawError) as caught:
            load_runs(path)
    assert str(path) in str(caught.value)


CSV = "depth,width,dataset_size,density,error\n8,4,1000,1.0,0.1\n8,4,1000,0.8,0.2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; write the table again, with a header line"),
        (b"\n\n", "the file is empty"),
        (CSV.splitlines()[0].encode(), "no rows to fit"),
        (CSV.encode("utf-16"), "not a readable CSV file ('utf-8' codec"),
        (CSV.replace(",", ";").replace(".", ",").encode(), "the fields are separated by ';'"),
        (CSV.replace(",", ";").encode(), "the fields are separated by ';'; separate them by commas"),
        (CSV.replace(",", "\t").encode(), r"the fields are separated by '\t'"),
        (CSV.replace("0.1\n", "0.1,7\n").replace("0.2", "0.2,7").encode(), "more fields than the header has names (5)"),
        (CSV.replace("0.2\n", "0.2,7\n").encode(), "not a readable CSV file (Error tokenizing data"),
        (CSV.replace("0.2\n", '"0.2\n').encode(), "not a readable CSV file (Error tokenizing data"),
        (CSV.replace("0.8,0.2\n", "0.8").encode(), "error must be present in every row; 1 fault: row 1: missing"),
        (CSV.replace("0.8,0.2", "80%,20%").encode(), "density must be a number; 1 fault: row 1: 80%"),
        (CSV.replace("density", "error").encode(), "more than one column is named 'error'; rename or drop"),
        (CSV.replace(",", " ,").encode(), "'depth ', 'width '"),
    ],
)  # fmt: skip
def test_a_garbled_csv_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(BayeslawError) as caught:
        load_runs(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda t: t, lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: "\n" + t]
)
def test_a_csv_file_from_elsewhere(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "RUNS.CSV"
    path.write_bytes(change(CSV).encode())
    assert list(load_runs(path)["error"]) == [0.1, 0.2]


def test_missing_files_and_unknown_endings(tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        with pytest.raises(BayeslawError, match=rf"nowhere\.{ending}: no such file; give the path of the table's file"):
            load_runs(tmp_path / f"nowhere.{ending}")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(BayeslawError, match=r"folder\.parquet: is a folder; give the path"):
        load_runs(tmp_path / "folder.parquet")
    for name in ("runs.xlsx", "runs", "runs.csv.gz", ""):
        with pytest.raises(BayeslawError, match=r"read from \.parquet or \.csv; save it as one of these"):
            load_runs(tmp_path / name)


@pytest.mark.parametrize(
    "source", [None, 3, {"depth": [8]}, [1, 2], np.zeros((2, 2)), foreign_table()["error"]], ids=repr
)
def test_what_is_no_table(source: Any) -> None:
    with pytest.raises(
        BayeslawError, match=r"path to a \.parquet or \.csv file or a pandas DataFrame; got \w+\. Turn it"
    ):
        load_runs(source)


def test_repeated_and_stacked_column_names() -> None:
    table = foreign_table()
    with pytest.raises(BayeslawError, match="more than one column is named 'error'; rename or drop the others"):
        load_runs(pd.concat([table, table[["error"]]], axis=1))
    with pytest.raises(BayeslawError, match="the columns have 2 levels of names; flatten them to one"):
        load_runs(pd.concat({"a": table}, axis=1))


# Arguments


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"error": "err"}, "the table has no column 'err'; it has 'depth', 'width'"),
        ({"eror": "error"}, "'eror' is none of our names, which are 'trajectory', 'family'"),
        ({"err": "error"}, 'the mapping goes from our name to yours: {"error": "err"}'),
        ({"width": "depth"}, "the table already has a column 'width' of its own; drop or rename that"),
        ({"level": "depth", "kept": "depth"}, "'depth' is mapped to more than one name"),
    ],
)
def test_a_mapping_that_does_not_fit(columns: dict[str, str], message: str) -> None:
    with pytest.raises(BayeslawError) as caught:
        load_runs(foreign_table(), columns=columns)
    assert str(caught.value).startswith("the run table: columns= does not fit the table: ")
    assert message in str(caught.value)


def test_all_that_is_wrong_with_a_mapping_is_said_at_once() -> None:
    with pytest.raises(BayeslawError, match=r"'eror' is none .* no column 'err', 'layers'"):
        load_runs(foreign_table(), columns={"eror": "err", "depth": "layers"})


def test_a_mapping_that_is_none() -> None:
    columns: Any = ["error"]
    with pytest.raises(BayeslawError, match=r"columns= maps our names to yours, .* got list"):
        load_runs(foreign_table(), columns=columns)


@pytest.mark.parametrize("n_test", [0, -1, 2.5, 100.0, True, "100", math.nan])
def test_n_test_out_of_range(n_test: Any) -> None:
    with pytest.raises(BayeslawError, match=r"n_test= is the number of test examples, a whole number from 1 up; got"):
        load_runs(foreign_table(), n_test=n_test)


@pytest.mark.parametrize("chance_error", [0, 1, 90, -0.1, True, "0.9", math.nan])
def test_chance_error_out_of_range(chance_error: Any) -> None:
    with pytest.raises(BayeslawError, match=r"chance_error= is the error of guessing, in \(0, 1\), such as 0\.9"):
        load_runs(foreign_table(), chance_error=chance_error)


# Families and recorded sweeps


def test_families() -> None:
    table = foreign_table(4).assign(family=["b", "a", "b", "b"], dataset=["x", "y", "w", "x"])
    assert families(load_runs(table)) == [("a", "y"), ("b", "w"), ("b", "x")]
    assert families(load_runs(foreign_table())) == [("unknown", "unknown")]
    with pytest.raises(BayeslawError, match="no column 'family', 'dataset'; pass it through load_runs first"):
        families(foreign_table())


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `imp_runs` with a folder of recorded sweeps, in place of the real one."""
    folder = tmp_path / "imp_runs" / "recorded"
    folder.mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("imp_runs", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "imp_runs")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "imp_runs" else None)
    return folder


def test_recorded_sweeps_are_read_from_the_package_folder(recorded: Path) -> None:
    assert recorded_names() == []
    with pytest.raises(BayeslawError, match=r"no recorded sweep is named 'toy'; there are none in .*recorded"):
        load_recorded("toy")
    for name in ("toy", "a_2", "Not-A-Name"):
        full_table().to_parquet(recorded / f"{name}.parquet")
    (recorded / "toy.toml").touch()
    assert recorded_names() == ["a_2", "toy"]
    assert_frame_equal(load_recorded("toy"), load_runs(full_table()))


@pytest.mark.parametrize("name", ["nothing", "", "../toy", "toy.parquet", "TOY", "Not-A-Name", "a/../toy"])
def test_unknown_recorded_sweeps_list_the_known(recorded: Path, name: str) -> None:
    for stem in ("toy", "Not-A-Name"):
        full_table().to_parquet(recorded / f"{stem}.parquet")
    full_table().to_parquet(recorded.parent / "toy.parquet")
    with pytest.raises(BayeslawError) as caught:
        load_recorded(name)
    assert str(caught.value) == f"no recorded sweep is named {name!r}; there are 'toy'."


def test_missing_package_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (recorded_names, lambda: load_recorded("digits_resnet")):
        with pytest.raises(BayeslawError, match=r"recorded sweeps.* install again: pip install"):
            call()


def test_the_recorded_sweeps_that_are_shipped_are_valid() -> None:
    shipped = recorded_names()
    folder = Path(runs_module.__file__).parents[1] / "imp_runs" / "recorded"
    assert shipped == sorted(path.stem for path in folder.glob("*.parquet"))
    for name in shipped:
        table = load_recorded(name)
        assert {"trajectory", "level", "n_test", "n_wrong", "chance_error"} <= set(table)
        assert_frame_equal(load_runs(table), table)
    with pytest.raises(BayeslawError, match="no recorded sweep is named 'no_such_sweep'; there are "):
        load_recorded("no_such_sweep")


def test_the_table_is_read_without_jax_and_without_the_runner() -> None:
    code = """
import sys
from bayeslaw.runs import recorded_names
recorded_names()
print({"imp_runs", "jax", "torch"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_of_trajectories_that_one_seed_made_the_longest_is_kept() -> None:
    """A run that was to stop early and was run again in full later is one run."""

    def run(name: str, levels: int, replicate: int = 0) -> pd.DataFrame:
        return pd.DataFrame({
            "trajectory": name, "family": "mlp", "dataset": "digits", "depth": 2, "width": 8, "dataset_size": 100,
            "replicate": replicate, "protocol_hash": "one", "density": 0.8 ** np.arange(levels), "error": 0.1,
        })  # fmt: skip

    table = pd.concat([run("short", 3), run("long", 7), run("other", 3, replicate=1)])
    with pytest.warns(UserWarning, match="1 of 3 trajectories repeat another one of the same network, replicate"):
        runs = load_runs(table, n_test=100, chance_error=0.9)
    assert runs.groupby("trajectory").size().to_dict() == {"long": 7, "other": 3}
    for other in ({"protocol_hash": "two"}, {"width": 16}, {"dataset_size": 200}):
        runs = load_runs(pd.concat([run("short", 3).assign(**other), run("long", 7)]), n_test=100, chance_error=0.9)
        assert runs["trajectory"].nunique() == 2
    unnamed = table.drop(columns="protocol_hash")  # of another runner, whose seeds are its own
    assert load_runs(unnamed, n_test=100, chance_error=0.9)["trajectory"].nunique() == 3
