"""How a store behaves at ten thousand trajectories of 31 levels: `python tests/benchmarks/store.py FOLDER`.

One real trajectory is run; its records are written again by the store's own writer under the names of ten thousand
others: of the first twenty level by level and durably, of the others only the one file of all levels in the end,
without fsync. `--first` makes a store of the first format, with one file per record. Every figure is measured in a
process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from imp_runs.config import Protocol, Sweep, Trajectory
from imp_runs.datasets import load_dataset
from imp_runs.imp import run_trajectory
from imp_runs.status import status_of
from imp_runs.store import FIRST, FORMAT, Store
from imp_runs.table import make_table

PROTOCOL = Protocol(name="benchmark", epochs=1, batch_size=50, levels=30)
FIRST_ONE = Trajectory("cifar_resnet", "digits", 20, 2, 200, 0, 1, PROTOCOL)


def real_records() -> list[dict]:
    """Run the first trajectory and give its records."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, PROTOCOL)
        run_trajectory(FIRST_ONE, load_dataset("digits"), store)
        return store.records(FIRST_ONE.key)


def write(store: Store, records: list[dict], trajectories: list[Trajectory], *, levels: bool) -> None:
    """Write the records under the names of trajectories, level by level and then in one file, or that file alone."""
    for trajectory in trajectories:
        mine = {"trajectory": trajectory.key, "replicate": trajectory.replicate, "subset_id": trajectory.subset_id}
        renamed = [record | mine for record in records]
        with store.locked(trajectory):
            for level, record in enumerate(renamed if levels else ()):
                store.write_record(trajectory.key, level, record)
            if not levels:
                store.records = lambda _, renamed=renamed: renamed
            store.mark_done(trajectory.key, levels=len(records) - 1, status="trained")


def fill(folder: str, number: int, first: bool) -> dict:
    records = real_records()
    trajectories = [dataclasses.replace(FIRST_ONE, replicate=replicate) for replicate in range(number)]
    store = Store(folder, PROTOCOL)
    store.format = FIRST if first else FORMAT
    some = trajectories[:20]
    began = time.perf_counter()
    write(store, records, some, levels=True)
    durable = (time.perf_counter() - began) / len(some)
    os.fsync = lambda _: None
    write(store, records, trajectories[20:], levels=first)
    store.add_sweep(Sweep("benchmark", tuple(trajectories), PROTOCOL))
    return {"seconds a trajectory, durable, level by level": durable}


def count(folder: str) -> dict:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {"files": len(files), "MB": sum(path.stat().st_size for path in files) / 1e6,
            "MB on disk": sum(path.stat().st_blocks for path in files) * 512 / 1e6}  # fmt: skip


def plan(folder: str) -> dict:
    store = Store(folder, PROTOCOL)
    return {"whole": sum(store.is_whole(key) for key in store.wanted())}


def look(folder: str) -> dict:
    status = status_of(folder)
    return {"done": len(status.done), "records": status.records}


def tabulate(folder: str) -> dict:
    table = make_table(folder)
    path = Path(tempfile.gettempdir()) / "benchmark.parquet"
    table.to_parquet(path)
    size = path.stat().st_size / 1e6
    path.unlink()
    return {"rows": len(table), "parquet MB": size}


def _measure(task: Callable, arguments: tuple, answers) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    found = task(*arguments)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put(found | {"wall s": wall, "CPU s": cpu, "peak MB": peak / 1e3, "of it imports MB": before / 1e3})


def measure(task: Callable, *arguments) -> None:
    """Run a task in a process of its own and print what it gave, its time and its memory."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_measure, args=(task, arguments, answers))
    process.start()
    found = answers.get()
    process.join()
    print(task.__name__, json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--first", action="store_true")
    chosen = parser.parse_args()
    if not Path(chosen.folder).exists():
        measure(fill, chosen.folder, chosen.trajectories, chosen.first)
    for task in (count, plan, look, tabulate):
        measure(task, chosen.folder)
