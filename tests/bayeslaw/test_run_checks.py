"""The shape of inputs in a run table: how it may be written, and what comes back where it is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayeslaw.errors import BayeslawError, RunTableError
from bayeslaw.frame import check_one_family, make_frame
from bayeslaw.run_checks import SHAPE
from bayeslaw.runs import load_runs


def table_with(shapes: list[Any], **columns: Any) -> pd.DataFrame:
    """Give a run of as many levels as there are shapes."""
    levels = np.arange(len(shapes))
    table = {"family": "mlp", "dataset": "digits", "classes": 10, "depth": 3, "width": 8, "dataset_size": 100}
    table |= {"density": 0.8**levels, "error": 0.1 + 0.01 * levels} | columns
    return pd.DataFrame(table).assign(input_shape=pd.Series(shapes, dtype=object))


def test_a_shape_is_one_number_or_several_however_they_are_written() -> None:
    for written in ("1,8,8", "[1 8 8]", (1, 8, 8), [1.0, 8.0, 8.0], np.array([1, 8, 8])):
        runs = load_runs(table_with([written, "1, 8, 8"]))
        assert make_frame(runs, 0.9).family.input_shape == (1, 8, 8)
    for written in (64, 64.0, np.int64(64), "64"):
        runs = load_runs(table_with([written] * 2))
        assert make_frame(runs, 0.9).family.input_shape == (64,)
        assert make_frame(runs, 0.9).family.is_exact


@pytest.mark.parametrize(
    ("shapes", "faults"),
    [
        (["1x8x8", "1,8,8", "1,8,8"], {(0, SHAPE)}),
        (["1,8,8", 0, -64], {(1, SHAPE), (2, SHAPE)}),
        (["1,8,8", (1, 8.5), "()"], {(1, SHAPE), (2, SHAPE)}),
        ([None, "1,8,8", np.nan], {(0, "present in every row"), (2, "present in every row")}),
        (["1,8,8", "[1, 8, 8]", "3,32,32"], {(2, "constant within a family and dataset")}),
    ],
    ids=["text", "low", "fractions", "gaps", "several"],
)
def test_what_is_no_shape_comes_back_with_the_other_faults(shapes: list[Any], faults: set[tuple[int, str]]) -> None:
    with pytest.raises(RunTableError, match=r"- input_shape must be .*row \d") as caught:
        load_runs(table_with(shapes, width=[8, 8, -8]))
    found = caught.value.faults
    own = found[found["column"] == "input_shape"]
    assert set(zip(own["row"], own["rule"], strict=True)) == faults
    assert (found["column"] == "width").sum() == 1


def test_other_families_and_datasets_have_shapes_of_their_own() -> None:
    load_runs(table_with(["1,8,8", "3,32,32"], dataset=["digits", "cifar"]))
    load_runs(table_with(["1,8,8", "64"], family=["cifar_resnet", "mlp"]))
    with pytest.raises(BayeslawError, match="input_shape = '1x8x8' must be whole numbers from 1 up"):
        make_frame(table_with(["1x8x8"]), 0.9)


def test_a_family_has_one_number_of_classes_and_one_error_of_guessing() -> None:
    several = load_runs(table_with([64, 64]).assign(classes=[10, 4]))
    with pytest.raises(BayeslawError, match=r"classes must be constant .*, and mlp/digits has 10, 4; correct it"):
        check_one_family(several)
    several = load_runs(table_with([64, 64]).assign(chance_error=[0.9, 0.75]))
    with pytest.raises(BayeslawError, match=r"chance_error must be constant .*, and mlp/digits has 0\.9, 0\.75"):
        check_one_family(several)
