"""Two real processes that train one network together, against the same network trained by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from parallel_driver import NETWORKS, trained

from imp_runs.store import Store
from imp_runs.table import make_table

#: Relative, in double precision: sums run in another order, and every step and layer multiplies their roundings (in
#: single precision five steps of ResNet-50 multiply them to 4 %).
ONE_STEP, FIVE_STEPS = 1e-10, 1e-6

SWEEP = """
name = "pictures"
[grid]
family = "imagenet_resnet"
dataset = "imagenet"
pool = 7
depth = [18]
width = [4]
dataset_size = [46]
replicates = 2
[protocol]
name = "paper_imagenet"
epochs = 4
batch_size = 16
learning_rate = 0.05
rewind = 0.2
warmup = 0.2
levels = 1
"""


def start(*arguments: str, processes: int = 2) -> subprocess.Popen:
    """Start processes with `torchrun`, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IMP_RUNS_READERS": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], text=True, env=environment, **pipes)


def together(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    """Start processes, and wait for their end."""
    running = start(*arguments, processes=processes)
    output, error = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, output, error)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture
def single_precision_afterwards():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, torch.Tensor]:
    file = tmp_path_factory.mktemp("parallel") / "results.pt"
    done = together(str(Path(__file__).with_name("parallel_driver.py")), str(file))
    assert done.returncode == 0, done.stderr
    return torch.load(file, weights_only=True)


@pytest.mark.usefixtures("single_precision_afterwards")
@pytest.mark.parametrize(("family", "depth", "width"), NETWORKS)
def test_steps_of_two_processes_are_those_of_one(shared, family, depth, width):
    alone = trained(family, depth, width)
    for name, expected in alone.items():
        allowed = ONE_STEP if name == "gradients" else FIVE_STEPS
        if len(expected):  # an mlp has no batch-norm statistics
            assert distance(shared[f"{family}-{depth}.{name}"], expected) <= allowed, name
    # The tolerance would tell a batch norm over shares, or gradients of other weights, from this.
    other = trained(family, depth, width, batches=(6, 4, 9, 1))
    assert distance(other["values"], alone["values"]) > 100 * FIVE_STEPS
    assert distance(other["gradients"], alone["gradients"]) > 100 * ONE_STEP


def test_a_sweep_of_two_processes_is_that_of_one(pictures, tmp_path):
    """The whole command, twice, in double precision: tables are equal in all that was measured.

    In single precision they cannot be: pruning and batch norms over few examples multiply the last bit, and one process
    with other CPU kernels got 17 wrong of 24 where it had got 13.
    """
    file = tmp_path / "pictures.toml"
    file.write_text(SWEEP)
    driver, options = str(Path(__file__).with_name("double_sweep.py")), ["--device", "cpu", "--data-dir", str(pictures)]
    for processes, times in ((2, 2), (1, 1)):  # the second time it finds nothing missing
        for _ in range(times):
            arguments = [driver, "sweep", str(file), "--store", str(tmp_path / str(processes)), *options]
            done = together(*arguments, processes=processes)
            assert done.returncode == 0, done.stderr
    table, alone = make_table(tmp_path / "2"), make_table(tmp_path / "1")
    assert len(table) == 4
    assert set(table["kernels"]) == {f"{alone['kernels'][0]} x 2 processes"}
    pd.testing.assert_frame_equal(
        table.drop(columns=["kernels", "seconds"]), alone.drop(columns=["kernels", "seconds"]), check_exact=True
    )
    assert alone["n_wrong"].nunique() > 1  # so that their agreement says something
    assert all(Store(tmp_path / "2").is_done(key) for key in table["trajectory"])


LONG = """
name = "long"
[grid]
family = "mlp"
dataset = "digits"
depth = [2]
width = [8]
dataset_size = [400]
replicates = 1
[protocol]
epochs = 40
batch_size = 10
levels = 0
"""


def test_processes_that_are_told_to_end_keep_where_they_are(tmp_path):
    """All at the same step, and what comes out is what would have come out."""
    file = tmp_path / "long.toml"
    file.write_text(LONG)
    stopped, whole = (
        ["-m", "imp_runs.cli", "sweep", str(file), "--device", "cpu", "--store", str(tmp_path / name)]
        for name in ("stopped", "whole")
    )
    running, end = start(*stopped), time.monotonic() + 120
    while not list(tmp_path.glob("stopped/trajectories/*/running.json")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "of level 0; the next start goes on there" in error
    (key,) = Store(tmp_path / "stopped").keys()
    checkpoint = Store(tmp_path / "stopped").read_checkpoint(key)
    assert checkpoint is not None
    assert checkpoint.inside is not None
    assert 0 < checkpoint.inside.step < 40 * 40
    assert not list(tmp_path.glob("stopped/trajectories/*/running.json"))
    for arguments in (stopped, whole):
        done = together(*arguments)
        assert done.returncode == 0, done.stderr
    tables = [make_table(tmp_path / name).drop(columns="seconds") for name in ("stopped", "whole")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_sparse_kernels_are_refused_for_several_processes(whole, tmp_path):
    arguments = ["sweep", str(whole.file), "--store", str(tmp_path / "store"), "--kernels", "sparse"]
    done = together("-m", "imp_runs.cli", *arguments, processes=1)
    assert done.returncode != 0
    assert "error: kernels 'sparse' are for one process alone" in done.stderr
