"""A small sweep of half a minute, and its table as one uninterrupted process makes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from imp_runs.config import Sweep, load_sweep
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table

SWEEP = """
name = "engines"
[grid]
family = "cifar_resnet"
dataset = "digits"
depth = [8]
width = [1]
dataset_size = [500]
replicates = 6
[protocol]
name = "engines"
epochs = 60
batch_size = 50
levels = 5
"""


@dataclass(frozen=True)
class Whole:
    """Hold the sweep, its file, and the table of a run without interruption."""

    file: Path
    sweep: Sweep
    table: pd.DataFrame

    def assert_same(self, store: Path) -> None:
        """Compare the table of another store, in every column but `seconds`, bit for bit."""
        table = make_table(store).drop(columns="seconds")
        pd.testing.assert_frame_equal(table, self.table.drop(columns="seconds"), check_exact=True)

    def assert_stacked(self, store: Path, size: int) -> None:
        """Compare the table of runs in stacks, whose errors differ by rounding, in what does not."""
        table = make_table(store)
        assert table["kernels"].str.endswith(f"stack of {size}").all()
        same = ["trajectory", "level", "kept", "density", "n_test", "steps", "status"]
        pd.testing.assert_frame_equal(table[same], self.table[same], check_exact=True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sweep.toml").write_text(SWEEP)
    sweep = load_sweep(folder / "sweep.toml")
    run_sweep(sweep, folder / "store", device="cpu")
    return Whole(folder / "sweep.toml", sweep, make_table(folder / "store"))


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} not within {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture
def wait() -> Callable[[Callable[[], bool], float, str], None]:
    return until
