"""SIGKILL at every durable step of a toy sweep, and of a whole `imp-runs sweep`: the table comes out the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import safetensors.torch

from imp_runs.config import load_sweep
from imp_runs.store import Store
from imp_runs.table import make_table

SWEEP = """
name = "toy"
[grid]
family = "mlp"
dataset = "digits"
depth = [2]
width = [2]
dataset_size = [40]
replicates = 1
[protocol]
name = "toy"
epochs = 1
batch_size = 20
levels = 2
"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def test_a_sweep_killed_at_any_durable_step_and_run_again_gives_the_same_table(digits, tmp_path):
    sweep, dataset, folder = tmp_path / "sweep.toml", tmp_path / "digits.safetensors", tmp_path / "stores"
    sweep.write_text(SWEEP)
    tensors = ("train_images", "train_labels", "test_images", "test_labels")
    safetensors.torch.save_file({name: getattr(digits, name) for name in tensors}, dataset)
    folder.mkdir()
    driver = [sys.executable, str(Path(__file__).with_name("crash_driver.py")), str(sweep), str(dataset), str(folder)]
    # Without a CUDA device autograd keeps no threads, so forks are safe.
    environment = {**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")

    moments = json.loads((folder / "moments.json").read_text())
    # Eleven files are written (the store's, the configuration, three records, two checkpoints of two files, all records
    # in one, the end), each with a moment half-way through and one before and after fsync, rename and fsync of the
    # folder; the three records, both checkpoints, two files each, and the sign of life are removed again; and there is
    # no failure to remove, which is tried.
    assert len(moments) == 11 * (1 + 2 * 3) + 2 * (3 + 2 * 2 + 1) + 1
    for name in (
        "store.json",
        "config.json",
        *(f"level-00{level}.json" for level in (0, 1, 2)),
        *(f"checkpoint-00{level}.{ending}" for level in (1, 2) for ending in ("safetensors", "json")),
        "records.jsonl",
        "done.json",
    ):
        assert f"within .{name}.tmp" in moments
        assert {f"before replace .{name}.tmp {name}", f"after replace .{name}.tmp {name}"} <= set(moments)

    expected = make_table(folder / "whole").drop(columns="seconds")
    assert expected["level"].tolist() == [0, 1, 2]
    (trajectory,) = load_sweep(sweep).trajectories
    for target, moment in enumerate(moments):
        killed, again = json.loads((folder / f"{target:03d}.json").read_text())
        assert (killed, again) == (-signal.SIGKILL, 0), moment
        table = make_table(folder / f"{target:03d}").drop(columns="seconds")
        pd.testing.assert_frame_equal(table, expected, check_exact=True, obj=moment)
        assert Store(folder / f"{target:03d}").is_done(trajectory.key), moment


def start(sweep: Path, store: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "imp_runs.cli", "sweep", str(sweep), "--store", str(store)]
    command += ["--device", "cpu", "--workers", str(workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, start_new_session=True, text=True, **pipes)


def records(store: Path) -> int:
    """Count records, whether a trajectory is done, is under way, or is just being put into one file."""
    count = 0
    for folder in store.glob("trajectories/*"):
        done = (folder / "done.json").exists()
        count += 3 if done else len(list(folder.glob("level-*.json")))
    return count


def killed_mid_run(sweep: Path, store: Path, workers: int, kill: Callable[[int, int], None]) -> int:
    """Start the command, kill it once it has written three records more, and count the records it leaves."""
    before, process, end = records(store), start(sweep, store, workers), time.monotonic() + 120
    try:
        while records(store) < before + 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "no records in two minutes"
            time.sleep(0.002)
        kill(process.pid, signal.SIGKILL)
        # The workers hold the other ends of both pipes: this returns only when the last of them is gone.
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # which is as it should be
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return records(store)


def test_a_killed_command_leaves_no_worker_and_its_sweep_goes_on_to_the_same_table(whole, tmp_path):
    store = tmp_path / "store"
    first = killed_mid_run(whole.file, store, 2, os.kill)
    second = killed_mid_run(whole.file, store, 1, os.killpg)
    assert 3 <= first < second < len(whole.table)
    time.sleep(0.5)
    assert records(store) == second  # nobody goes on writing

    process = start(whole.file, store, 1)
    output = process.communicate(timeout=300)
    # Not a terminal: no progress bar, and nothing else on stderr.
    assert (process.returncode, *output) == (0, f"toys: 24 trajectories are in {store}\n", "")
    whole.assert_same(store)
