"""What only a GPU can show, each said and checked: run on one, `python tests/imp_runs/on_gpu.py`.

1. Networks side by side in a CUDA graph give the table of the plain loop, one network at a time, bit for bit. (Not in
   tensorfloat32, for which cuDNN's choice depends on where tensors lie.)
2. Our own convolutions are those of double precision but for float32's rounding.
3. Stacks give it but for rounding: over paired seeds the mean difference of wrong test images is within four of its
   standard errors at every level (stated in advance, as on a CPU).
4. What was interrupted inside a level goes on to the same table, bit for bit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from convolution_driver import ROUNDED, neighbours_change_bits, worst_error

from imp_runs.config import Protocol, Trajectory
from imp_runs.datasets import Dataset, load_dataset
from imp_runs.errors import StoppedError
from imp_runs.imp import run_trajectory
from imp_runs.pack import run_pack
from imp_runs.packing import Way
from imp_runs.store import Store
from imp_runs.table import make_table
from imp_runs.workers import pinned, steady

SHORT = Protocol(name="short", epochs=3, batch_size=16, levels=3, rewind=0.3)
SEEDS = 40


def toy(family: str, depth: int, width: int, replicate: int, protocol: Protocol = SHORT) -> Trajectory:
    return Trajectory(family, "digits", depth, width, 90, replicate, 1, protocol)


def table_of(
    trajectories: Sequence[Trajectory], run: Callable[[Store], object], without: Sequence[str] = ("seconds", "kernels")
) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), trajectories[0].protocol)
        run(store)
        return make_table(store).drop(columns=list(without))


def one_by_one(trajectories: Sequence[Trajectory], dataset: Dataset) -> pd.DataFrame:
    def run(store: Store) -> None:
        for trajectory in trajectories:
            run_trajectory(trajectory, dataset, store, device="cuda", kernels="torch")

    return table_of(trajectories, run)


def side_by_side(dataset: Dataset, precision: str) -> str:
    """Compare with the plain loop."""
    kinds = [("cifar_resnet", 8, 1), ("cifar_resnet", 14, 3), ("mlp", 3, 8)]
    protocol = replace(SHORT, precision=precision)
    trajectories = [toy(*kind, replicate, protocol) for kind in kinds for replicate in range(2)]
    packed = table_of(trajectories, lambda store: run_pack(trajectories, dataset, store, Way(1, 8), device="cuda"))
    pd.testing.assert_frame_equal(packed, one_by_one(trajectories, dataset), check_exact=True)
    return f"{len(packed)} rows equal"


def convolutions() -> str:
    """Compare with double precision."""
    worst = worst_error("cuda")
    assert worst < ROUNDED, worst
    assert not neighbours_change_bits("cuda")
    return f"relative error at most {worst:.1e}"


def stacks(dataset: Dataset) -> str:
    """Compare over many seeds."""
    trajectories = [toy("cifar_resnet", 8, 2, replicate) for replicate in range(SEEDS)]
    packed = table_of(trajectories, lambda store: run_pack(trajectories, dataset, store, Way(20, 2), device="cuda"))
    beside = table_of(trajectories, lambda store: run_pack(trajectories, dataset, store, Way(1, 40), device="cuda"))
    difference = (packed["n_wrong"] - beside["n_wrong"]).groupby(beside["level"])
    mean, error = difference.mean(), difference.std() / np.sqrt(SEEDS)
    assert (mean.abs() <= 4 * error).all(), pd.DataFrame({"mean": mean, "error": error})
    return f"mean differences {mean.round(2).tolist()} +- {error.round(2).tolist()} images"


def interrupted(dataset: Dataset) -> str:
    """Stop in the middle, go on, compare."""
    trajectories = [toy("cifar_resnet", depth, 2, replicate) for depth in (8, 14) for replicate in range(3)]

    def run(store: Store) -> None:
        calls = iter(range(10**6))
        try:
            run_pack(trajectories, dataset, store, Way(3, 2), device="cuda", stop=lambda: next(calls) >= 150)
        except StoppedError:
            assert list(store.path.rglob("checkpoint-*-*.json"))
        else:
            raise AssertionError("was not stopped")
        run_pack(trajectories, dataset, store, Way(3, 2), device="cuda")

    whole = table_of(
        trajectories, lambda store: run_pack(trajectories, dataset, store, Way(3, 2), device="cuda"), ["seconds"]
    )
    pd.testing.assert_frame_equal(table_of(trajectories, run, ["seconds"]), whole, check_exact=True)
    return f"{len(whole)} rows equal"


def main() -> int:
    steady()
    dataset, failed = load_dataset("digits"), 0
    assert isinstance(dataset, Dataset)
    checks = {
        "side by side, float32": lambda: side_by_side(dataset, "float32"),
        "side by side, bfloat16": lambda: side_by_side(dataset, "bfloat16"),
        "convolutions": convolutions,
        "stacks": lambda: stacks(dataset),
        "interrupted": lambda: interrupted(dataset),
    }
    for name, check in checks.items():
        try:
            print(f"{name}: {check()}", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED\n{type(error).__name__}: {error}", flush=True)
    return failed


if __name__ == "__main__":
    with pinned("cuda"):
        sys.exit(main())
