"""Whatever goes wrong is said, costs its own trajectory only, and is mended by the next start."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imp_runs.config import load_sweep
from imp_runs.engines import GRACE
from imp_runs.errors import ImpRunsError, StoppedError
from imp_runs.files import sealed
from imp_runs.imp import run_trajectory
from imp_runs.status import status_of
from imp_runs.store import Store
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table
from imp_runs.work import Settings, work

CPU = Settings(device="cpu")


def start(sweep: Path, store: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "imp_runs.cli", "sweep", str(sweep), "--store", str(store)]
    command += ["--device", "cpu", "--workers", str(workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, start_new_session=True, text=True, **pipes)


def records_of(store, trajectory):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in store.records(trajectory.key)]


def finish(process, seconds=120):
    output, error = process.communicate(timeout=seconds)
    return process.returncode, output, error


# --- stopping inside a level ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kernels", "settings"),
    [
        ("mlp", "torch", {"rewind": 0.4}),
        ("mlp", "sparse", {"rewind": 0.0}),
        ("cifar_resnet", "torch", {"rewind": 0.4, "augmentation": "flip_crop"}),
        ("cifar_resnet", "sparse", {"rewind": 0.4, "augmentation": "flip_crop", "levels": 1}),
    ],
)
def test_a_run_stopped_after_every_few_steps_gives_the_records_of_one_that_was_not(
    toy, digits, tmp_path, family, kernels, settings
):
    trajectory = toy(family, dataset_size=60, **settings)
    whole, stopped = (Store(tmp_path / name, trajectory.protocol) for name in ("whole", "stopped"))
    run_trajectory(trajectory, digits, whole, kernels=kernels)
    starts = 0
    while not stopped.is_done(trajectory.key):
        steps = iter(range(3))
        with contextlib.suppress(StoppedError):
            run_trajectory(trajectory, digits, stopped, kernels=kernels, stop=lambda steps=steps: next(steps) == 2)
        starts += 1
        inside = list(stopped.folder(trajectory.key).glob("checkpoint-*-*.json"))
        assert len(inside) == (not stopped.is_done(trajectory.key))
    assert starts > 1 + trajectory.protocol.levels  # inside levels, not between them
    assert records_of(stopped, trajectory) == records_of(whole, trajectory)


def test_a_damaged_checkpoint_inside_a_level_costs_that_level_only(toy, digits, tmp_path):
    trajectory = toy(dataset_size=60)
    store = Store(tmp_path / "store", trajectory.protocol)
    whole = Store(tmp_path / "whole", trajectory.protocol)
    run_trajectory(trajectory, digits, whole)
    steps = iter(range(100))
    with pytest.raises(StoppedError, match="stopped at step 3 of level 1"):
        run_trajectory(trajectory, digits, store, stop=lambda: next(steps) == trajectory.protocol.steps(60) + 2)
    (inside,) = store.folder(trajectory.key).glob("checkpoint-001-*.safetensors")
    content = bytearray(inside.read_bytes())
    content[-3] ^= 16
    inside.write_bytes(content)
    level = (store.folder(trajectory.key) / "level-000.json").stat().st_mtime_ns
    checkpoint = store.folder(trajectory.key) / "checkpoint-001.safetensors"
    assert checkpoint.exists()
    begun = []
    (mended,) = run_trajectory(trajectory, digits, store, progress=begun.append)
    assert "corrupt checkpoint" in mended
    assert len(begun) == trajectory.protocol.levels  # levels 1 and 2, not 0
    assert level is not None
    assert records_of(store, trajectory) == records_of(whole, trajectory)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_sigterm_writes_checkpoints_inside_the_level_within_ten_seconds(tmp_path, asked):
    file, store = tmp_path / "long.toml", tmp_path / "store"
    text = """
name = "long"
[grid]
family = "cifar_resnet"
dataset = "digits"
depth = [8]
width = [1]
dataset_size = [1000]
replicates = 1
[protocol]
epochs = {epochs}
levels = 0
"""
    file.write_text(text.format(epochs=2000))
    process = start(file, store, 1)
    end = time.monotonic() + 120
    while not list(store.glob("trajectories/*/running.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(3.0)
    sent = time.monotonic()
    process.send_signal(asked)
    code, output, error = finish(process)
    assert time.monotonic() - sent < GRACE
    assert (code, output, error) == (128 + asked, "", "stopped; the same command goes on where it was\n")
    (key,) = Store(store).keys()
    checkpoint = Store(store).read_checkpoint(key)
    assert checkpoint is not None
    assert checkpoint.inside is not None
    assert 0 < checkpoint.inside.step < 2000 * 16
    assert not list(store.glob("trajectories/*/running.json"))
    assert [t.key for t in status_of(store).waiting] == [key]


# --- processes that die, and that are in each other's way -------------------------------------------------------------


def workers_of(process) -> list[int]:
    """List the worker processes of a command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == process.pid and b"spawn_main" in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found


def test_a_trajectory_whose_process_dies_is_begun_again_or_marked_and_the_others_go_on(whole, tmp_path):
    """The second trajectory of the sweep is made to kill its process, as the kernel does when memory is short."""
    sweep, store = load_sweep(whole.file), tmp_path / "store"
    deadly = sweep.trajectories[1]
    opened = Store(store, sweep.protocol)
    opened.folder(deadly.key).mkdir()
    # A fifo blocks who opens it: the process waits there, and is killed there.
    config = opened.folder(deadly.key) / "config.json"
    os.mkfifo(config)
    process = start(whole.file, store, 1)
    killed: set[int] = set()
    end = time.monotonic() + 240
    while process.poll() is None:
        assert time.monotonic() < end
        kill_reader(process, config, killed)
        time.sleep(0.1)
    code, _, error = finish(process)
    assert (code, len(killed)) == (2, 3)
    assert "1 of 24 trajectories failed, the others are done" in error
    assert "its process was killed by SIGKILL, 3 times" in error
    failed = opened.folder(deadly.key) / "failed.json"
    assert f"(open {failed})" in error
    config.unlink()
    status = status_of(store)
    assert len(status.done) == 23
    run_sweep(sweep, store, workers=1, device="cpu")
    assert not failed.exists()
    whole.assert_same(store)


def kill_reader(process, fifo: Path, killed: set[int]) -> None:
    """Kill the worker that has opened a fifo to read it, if there is one."""
    try:
        writing = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads
        return
    try:
        while process.poll() is None:  # as long as this end is open the reader waits for more
            for pid in set(workers_of(process)) - killed:
                with contextlib.suppress(OSError):
                    if str(fifo) in [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
                        return
            time.sleep(0.1)
    finally:
        os.close(writing)


def test_two_sweeps_on_one_store_at_once_make_one_table_which_can_be_read_all_the_while(whole, tmp_path):
    store = tmp_path / "store"
    first, second = start(whole.file, store, 1), start(whole.file, store, 1)
    seen = [(0, 0)]
    while first.poll() is None or second.poll() is None:
        time.sleep(0.1)
        if (store / "store.json").exists():
            seen.append((len(make_table(store)), len(status_of(store).done)))
    assert seen == sorted(seen)
    assert len({rows for rows, _ in seen}) > 3  # it was read in between, too
    for code, _, error in (finish(first, 240), finish(second, 240)):
        assert code == 0 or "another process is running this trajectory" in error
    run_sweep(load_sweep(whole.file), store, workers=1, device="cpu")
    whole.assert_same(store)
    assert not list(store.rglob("*.tmp"))
    assert not list(store.rglob("*.damaged"))


# --- disks ------------------------------------------------------------------------------------------------------------


class Disk:
    """A disk of its own for a store: a small tmpfs, or where mounting is not allowed, limits of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.mounted = self._mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path))

    def _mount(self, *options: str) -> bool:
        return subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0

    def full(self) -> tuple[list[str], str]:
        """Leave room for some records; give what the command is to be started with, and what the system will say."""
        if not self.mounted:
            return ["prlimit", "--fsize=900"], "File too large"
        (self.path / "ballast").write_bytes(bytes(2 * 1024 * 1024 - 160 * 1024))
        return [], "No space left on device"

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def read_only(self) -> str:
        if self.mounted:
            assert self._mount("-o", "remount,ro", str(self.path))
            return "Read-only file system"
        for path in [self.path, *self.path.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return "Permission denied"

    def writable(self) -> None:
        if self.mounted:
            assert self._mount("-o", "remount,rw", str(self.path))
        for path in [self.path, *self.path.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)

    def remove(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


def test_a_full_disk_is_said_and_the_next_start_goes_on(whole, disk):
    store = disk.path / "store"
    Store(store, load_sweep(whole.file).protocol)
    prefix, said = disk.full()
    command = [*prefix, sys.executable, "-m", "imp_runs.cli", "sweep", str(whole.file), "--store", str(store)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--workers", "1"], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    make_table(store)  # what is there is whole
    disk.free()
    run_sweep(load_sweep(whole.file), store, workers=1, device="cpu")
    whole.assert_same(store)
    assert not list(store.rglob("*.damaged"))


def test_a_read_only_store_is_said_read_and_continued_once_it_can_be_written(toy, digits, disk):
    trajectory, other = toy(), toy(replicate=1)
    store = Store(disk.path / "store", trajectory.protocol)
    run_trajectory(trajectory, digits, store)
    said = disk.read_only()
    if os.geteuid() == 0 and not disk.mounted:
        pytest.fail("root can write everywhere and may not mount here: run this test as another user")
    outcome = work(other, store.path, CPU)
    assert outcome.state == "failed"
    assert said in outcome.reason
    assert work(trajectory, store.path, CPU).state == "done"
    assert len(make_table(store)) == 3
    assert len(status_of(store).done) == 1
    disk.writable()
    assert work(other, store.path, CPU).state == "done"
    assert len(make_table(store)) == 6


# --- data, memory, arithmetic -----------------------------------------------------------------------------------------


def write_fashion_mnist(folder: Path) -> None:
    """Write a made-up Fashion-MNIST of 60 and 20 images in its own format."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, examples in (("train", 60), ("t10k", 20)):
        pixels = torch.randint(0, 256, (examples, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(examples, dtype=torch.uint8) % 10
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, examples, 28, 28) + pixels.numpy().tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, examples) + labels.numpy().tobytes())


def test_a_vanished_dataset_fails_its_own_trajectories_until_it_is_back(whole, tmp_path):
    file, store, data = tmp_path / "two.toml", tmp_path / "store", tmp_path / "data"
    data.mkdir()
    first = whole.file.read_text().replace("replicates = 12", "replicates = 1").replace("[grid]", "[[grid]]")
    grid, protocol = first.split("[protocol]")
    second = "[[grid]]" + grid.split("[[grid]]")[1].replace('"digits"', '"fashion_mnist"\npool = 4')
    file.write_text(f"{grid}{second}[protocol]{protocol}")
    sweep = load_sweep(file)
    with pytest.raises(ImpRunsError, match="2 of 4 trajectories failed, the others are done") as caught:
        run_sweep(sweep, store, workers=1, device="cpu", data_dir=data)
    assert "dataset 'fashion_mnist' could not be read" in str(caught.value)
    status = status_of(store)
    assert (len(status.done), len(status.failed), status.waiting) == (2, 2, ())
    for trajectory, reason in status.failed.items():
        failed = Store(store).folder(trajectory.key) / "failed.json"
        assert "could not be read" in reason
        assert f"(open {failed})" in reason
        assert str(trajectory) in failed.read_text()
        assert f"failed: {trajectory}: dataset 'fashion_mnist'" in str(status)
    write_fashion_mnist(data)
    run_sweep(sweep, store, workers=1, device="cpu", data_dir=data)
    assert len(status_of(store).done) == 4
    assert set(make_table(store)["dataset"]) == {"digits", "fashion_mnist"}
    assert not list(store.rglob("failed.json"))


def test_out_of_memory_is_said_and_the_process_goes_on(toy, tmp_path):
    huge = toy(depth=3, width=2_000_000)  # a layer of 16 TB
    store = Store(tmp_path, huge.protocol)
    outcome = work(huge, tmp_path, CPU)
    assert outcome.state == "failed"
    assert outcome.reason.startswith("out of memory (")
    assert "run fewer workers at once" in outcome.reason
    assert "Traceback" in (store.folder(huge.key) / "failed.json").read_text()
    other = toy()
    assert work(other, tmp_path, CPU).state == "done"
    assert list(status_of(store).failed) == [huge]


def test_a_loss_that_is_not_finite_ends_its_trajectory_with_the_reason(toy, tmp_path):
    wild = toy(learning_rate=1e25)
    assert work(wild, tmp_path, CPU).state == "done"
    status = status_of(tmp_path)
    assert status.diverged == (wild,)
    assert re.search(rf"diverged: {wild}: the loss was not finite.* smaller learning_rate", str(status))
    assert (status.records, status.levels) == (1, 1)


# --- nothing executable, nothing outside ------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_executable_is_loaded_from_a_store(toy, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trajectory = toy()
    store = Store(tmp_path / "store", trajectory.protocol)
    finished = []

    def interrupt(levels):
        finished.append(levels)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trajectory(trajectory, digits, store, progress=interrupt)
    folder, bomb = store.folder(trajectory.key), pickle.dumps(Bomb())
    (folder / "checkpoint-001.safetensors").write_bytes(bomb)
    summary = {"level": 1, "bytes": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    (folder / "checkpoint-001.json").write_bytes(sealed(summary))
    (mended,) = run_trajectory(trajectory, digits, store)
    assert "corrupt checkpoint" in mended
    assert not (tmp_path / "exploded").exists()
    sources = Path(sys.modules["imp_runs.store"].__file__ or "").parent.glob("*.py")
    loads = re.compile(r"\bpickle\b|(?<!safetensors\.)torch\.load\b|(?<!\.)\beval\(|\bexec\(")
    loading = [path.name for path in sources if loads.search(path.read_text())]
    assert loading == []


def test_no_link_leads_out_of_a_store(toy, digits, tmp_path):
    trajectory = toy()
    store, outside = Store(tmp_path / "store", trajectory.protocol), tmp_path / "outside"
    outside.mkdir()
    folder = store.path / "trajectories" / trajectory.key
    folder.symlink_to(outside)
    assert store.keys() == []
    with pytest.raises(ImpRunsError, match="a link, which may point outside the store"):
        run_trajectory(trajectory, digits, store)
    folder.unlink()
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    (folder / ".config.json.tmp").symlink_to(tmp_path / "precious")
    outcome = work(trajectory, store.path, CPU)
    assert outcome.state == "failed"
    assert (tmp_path / "precious").read_text() == "mine"
    assert list(outside.iterdir()) == []
    assert work(trajectory, store.path, CPU).state == "done"  # the link went with the failed attempt


def test_a_sweep_of_a_store_names_no_foreign_folder(toy, tmp_path):
    trajectory = toy()
    store = Store(tmp_path / "store", trajectory.protocol)
    row = {k: v for k, v in dataclasses.asdict(trajectory).items() if k != "protocol"}
    (store.path / "sweeps").mkdir()
    content = sealed({"name": "bad", "trajectories": [{"key": "../../elsewhere", **row}]})
    (store.path / "sweeps" / "0123456789abcdef.json").write_bytes(content)
    with pytest.raises(ImpRunsError, match="must be 16 hexadecimal digits"):
        status_of(store)


def test_ten_thousand_trajectories_are_planned_in_seconds(whole, tmp_path):
    text = whole.file.read_text().replace("replicates = 12", "replicates = 5000")
    (tmp_path / "many.toml").write_text(text)
    cpu = time.process_time()
    sweep = load_sweep(tmp_path / "many.toml")
    store = Store(tmp_path / "store", sweep.protocol)
    missing = [t for t in sweep.trajectories if not store.is_whole(t.key)]
    store.add_sweep(sweep)
    status = status_of(store)
    taken = time.process_time() - cpu
    assert len(missing) == len(status.waiting) == 10_000
    assert taken < 10, taken


def test_a_run_stopped_between_test_batches_has_only_the_test_left(toy, digits, tmp_path):
    """Testing takes long where test sets and networks are large; here two batches of a doubled test set."""
    images, labels = (torch.cat([part, part]) for part in (digits.test_images, digits.test_labels))
    larger = dataclasses.replace(digits, test_images=images, test_labels=labels)
    trajectory = toy(dataset_size=60)
    whole, stopped = (Store(tmp_path / name, trajectory.protocol) for name in ("whole", "stopped"))
    run_trajectory(trajectory, larger, whole)
    steps, asked = trajectory.protocol.steps(60), iter(range(10**6))
    with pytest.raises(StoppedError, match=f"stopped at step {steps} of level 0"):
        run_trajectory(trajectory, larger, stopped, stop=lambda: next(asked) == steps)
    checkpoint = stopped.read_checkpoint(trajectory.key)
    assert checkpoint is not None
    assert checkpoint.inside is not None
    assert (checkpoint.level, checkpoint.inside.step) == (0, steps)
    run_trajectory(trajectory, larger, stopped)
    assert records_of(stopped, trajectory) == records_of(whole, trajectory)
