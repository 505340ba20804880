"""Kill a sweep of several workers with SIGKILL at random times, a hundred times, and compare its tables.

`python tests/imp_runs/kill_often.py FOLDER --kills 100`, some minutes to an hour. A third of the kills hit one worker,
a third the command alone, a third the command with all its workers. Whenever a sweep gets to its end it is begun again
in a new store. Interrupted, this goes on where it was: the kills so far are counted in FOLDER.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from imp_runs.config import load_sweep
from imp_runs.store import Store
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table

SWEEP = """
name = "killed"
[grid]
family = "cifar_resnet"
dataset = "digits"
depth = [8]
width = [1, 2]
dataset_size = [200]
replicates = 9
[protocol]
name = "killed"
epochs = 20
batch_size = 50
levels = 6
"""
KINDS = ("worker", "command", "all")


def start(sweep: Path, store: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "imp_runs.cli", "sweep", str(sweep), "--store", str(store)]
    command += ["--device", "cpu", "--workers", str(workers)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def workers_of(process: subprocess.Popen) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            if parent == process.pid and b"spawn_main" in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found


def kill(process: subprocess.Popen, kind: str, chance: random.Random) -> bool:
    """Kill something of a running command; say whether there was anything to kill."""
    workers = workers_of(process)
    if process.poll() is not None or (kind == "worker" and not workers):
        return False
    if kind == "worker":
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
    elif kind == "command":
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def main(folder: Path, kills: int, workers: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file, counted = folder / "sweep.toml", folder / "kills.json"
    file.write_text(SWEEP)
    sweep = load_sweep(file)
    run_sweep(sweep, folder / "whole", device="cpu")
    done = json.loads(counted.read_text()) if counted.exists() else {"worker": 0, "command": 0, "all": 0, "stores": 1}
    chance = random.Random(f"{seed} {done}")
    process = None
    while sum(done[kind] for kind in KINDS) < kills:
        store = folder / f"store-{done['stores']:03d}"
        if process is None or process.poll() is not None:
            if store.exists() and all(Store(store).is_whole(t.key) for t in sweep.trajectories):
                done["stores"] += 1
                continue
            process = start(file, store, workers)
            begun = time.monotonic()
            while not list(store.glob("trajectories/*/running.json")) and time.monotonic() < begun + 120:
                time.sleep(0.05)
        time.sleep(chance.expovariate(1 / 1.5))
        kind = chance.choice(KINDS)
        if kill(process, kind, chance):
            done[kind] += 1
            counted.write_text(json.dumps(done))
    if process and process.poll() is None:
        process.wait()
    run_sweep(sweep, folder / f"store-{done['stores']:03d}", workers=workers, device="cpu")
    expected = make_table(folder / "whole").drop(columns="seconds")
    for number in range(1, done["stores"] + 1):
        store = folder / f"store-{number:03d}"
        table = make_table(store).drop(columns="seconds")
        pd.testing.assert_frame_equal(table, expected, check_exact=True, obj=str(store))
        assert not list(store.rglob("*.damaged"))
    print(f"{done['worker']} workers, {done['command']} commands alone and {done['all']} with all workers killed; "
          f"{done['stores']} stores, each with the table of the uninterrupted sweep, {len(expected)} rows")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    main(chosen.folder, chosen.kills, chosen.workers, chosen.seed)
