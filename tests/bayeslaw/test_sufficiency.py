"""How many runs suffice: a table of fits that is gone on with, but not with fits of something else."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from simulate import Truth, simulate

from bayeslaw import BayeslawError, load_runs
from bayeslaw.sufficiency import learning_curve

KEPT = Path(__file__).parents[1] / "benchmarks" / "sufficiency" / "digits_resnet.csv"


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return load_runs(simulate(Truth(), levels=(0, 8, 16, 24)).runs)


def test_a_table_goes_on_with_the_same_runs_and_settings_alone(runs, tmp_path) -> None:
    path = tmp_path / "new" / "curve.csv"
    asked = {"counts": (3,), "law": "joint", "draws": 50, "path": path}
    found = learning_curve(runs, repetitions=1, **asked)
    assert found["configurations"].tolist() == [3]
    assert "settings" not in found
    assert [file.name for file in path.parent.iterdir()] == ["curve.csv"]
    kept = path.read_text()
    pd.testing.assert_frame_equal(learning_curve(runs, repetitions=1, **asked), found)
    assert path.read_text() == kept
    for table, changed in (
        (runs, {"seed": 1}),
        (runs, {"law": "sharpness"}),
        (runs, {"draws": 60}),
        (runs.iloc[1:], {}),
        (runs, {"path": KEPT}),
    ):
        with pytest.raises(BayeslawError, match=r"\.csv: holds results of other runs or other settings"):
            learning_curve(table, repetitions=2, **asked | changed)
