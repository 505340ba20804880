"""Run a toy sweep and kill it with SIGKILL at every durable step; started as a script by test_imp_crash.py.

Torch is imported once and every run is a fork, so that a kill costs milliseconds. Of the processes that fork, the
parent imports, reads the dataset and takes one step on its only thread, and two shepherds, one for every other moment,
only fork and wait. So no child inherits a thread pool or a lock that somebody holds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

import imp_runs.files
from imp_runs.config import Sweep, load_sweep
from imp_runs.datasets import Dataset
from imp_runs.imp import make_network, run_trajectory
from imp_runs.steps import choose_steps, count_wrong, make_steps
from imp_runs.store import Store
from imp_runs.train import subset

SHEPHERDS = 2


class Killer:
    """Count the moments before, within and after every durable call, and die at one of them."""

    def __init__(self, target: int | None = None) -> None:
        self.target = target
        self.moments: list[str] = []

    def install(self) -> None:
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._around(getattr(os, name)))
        imp_runs.files.open = self._open  # type: ignore[attr-defined]

    def moment(self, name: str) -> None:
        if len(self.moments) == self.target:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moments.append(name)

    def _around(self, call: Callable) -> Callable:
        def wrapped(*arguments, **options):
            what = " ".join([call.__name__, *(Path(a).name for a in arguments if not isinstance(a, int))])
            self.moment(f"before {what}")
            result = call(*arguments, **options)
            self.moment(f"after {what}")
            return result

        return wrapped

    def _open(self, path: Path, mode: str, **options):
        file = open(path, mode, **options)  # noqa: SIM115 - closed by the context manager that stands in for it
        write = file.write

        class HalfWritten:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name: str):
                return getattr(file, name)

            def write(halves, content: bytes) -> None:
                write(content[: len(content) // 2])
                file.flush()
                self.moment(f"within {path.name}")
                write(content[len(content) // 2 :])

        return HalfWritten()


def run(sweep: Sweep, dataset: Dataset, folder: Path) -> None:
    """Run what a store lacks, one trajectory after the other."""
    store = Store(folder, sweep.protocol)
    for trajectory in sweep.trajectories:
        run_trajectory(trajectory, dataset, store)


def fork(task: Callable[[], None]) -> int:
    """Run a task in a forked child and give the child's id."""
    child = os.fork()
    if child:
        return child
    try:
        task()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def status(child: int) -> int:
    """Wait for a child and give its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_dataset(path: Path) -> Dataset:
    tensors = safetensors.torch.load_file(path)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return Dataset("digits", 10, *(tensors[name] for name in names))


def load_kernels(sweep: Sweep, dataset: Dataset) -> None:
    """Load what the first step and the first test of every child would load or compile."""
    trajectory = sweep.trajectories[0]
    network = make_network(trajectory, dataset, torch.device("cpu"))
    steps = make_steps(choose_steps(trajectory, network), network, trajectory.protocol, dataset.input_shape)
    examples = subset(dataset, trajectory)
    steps.step(examples.images, examples.labels, 0.1)
    count_wrong(steps, dataset)


def main(sweep_file: Path, dataset_file: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    sweep, dataset = load_sweep(sweep_file), read_dataset(dataset_file)
    load_kernels(sweep, dataset)

    def dry() -> None:
        killer = Killer()
        killer.install()
        run(sweep, dataset, folder / "whole")
        (folder / "moments.json").write_text(json.dumps(killer.moments))

    if status(fork(dry)):
        raise SystemExit("the uninterrupted run failed")
    targets = range(len(json.loads((folder / "moments.json").read_text())))

    def killed(target: int) -> None:
        Killer(target).install()
        run(sweep, dataset, folder / f"{target:03d}")

    def shepherd(mine: range) -> None:
        for target in mine:
            first = status(fork(lambda target=target: killed(target)))
            again = status(fork(lambda target=target: run(sweep, dataset, folder / f"{target:03d}")))
            (folder / f"{target:03d}.json").write_text(json.dumps([first, again]))

    shepherds = [fork(lambda first=first: shepherd(targets[first::SHEPHERDS])) for first in range(SHEPHERDS)]
    raise SystemExit(max(status(child) for child in shepherds))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
