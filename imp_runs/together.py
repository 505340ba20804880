"""A sweep run by processes that `torchrun` started together: one trajectory after the other, each by all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imp_runs.config import Sweep, Trajectory, check_sizes
from imp_runs.errors import ImpRunsError
from imp_runs.life import Life, asked_to_stop, stopping_on_signals
from imp_runs.store import Checkpoint, Store
from imp_runs.workers import KERNELS, checked_device, checked_kernels, steady

if TYPE_CHECKING:
    import torch


#: Steps after which processes tell each other whether they were asked to stop: each waits for the others then.
ASKED_EVERY = 10


def started_together() -> bool:
    """Say whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Follower(Store):
    """Be a store for all processes but the first: what is there is read, and nothing is written."""

    @contextlib.contextmanager
    def locked(self, trajectory: Trajectory) -> Iterator[None]:
        """Leave the lock to the first process."""
        yield

    def life(self, key: str) -> Life:
        """Leave signs of life to the first process."""
        return Life(None)

    def mend(self, key: str) -> list[str]:
        """Leave mending to the first process."""
        return []

    def write_record(self, key: str, level: int, record: dict[str, Any]) -> None:
        """Leave records to the first process."""

    def write_checkpoint(self, key: str, checkpoint: Checkpoint, *, pending: bool = False) -> None:
        """Leave checkpoints to the first process."""

    def drop_checkpoints(self, key: str, *, below: int) -> None:
        """Leave them to the first process."""

    def mark_done(self, key: str, *, levels: int, status: str) -> None:
        """Leave the end to the first process."""


def run_together(
    sweep: Sweep,
    store: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str | None = None,
    kernels: str = "auto",
) -> int:
    """Run the trajectories that a store lacks, in every process that `torchrun` started, together.

    Args:
        sweep: What to run.
        store: Folder of the store, seen by all processes; the first one writes.
        data_dir: Where the dataset lies.
        device: `"cpu"`, or `"cuda"`, one GPU per process; default CUDA when there is one.
        kernels: `"auto"` or `"torch"`: it is PyTorch that computes.

    Returns:
        How many they were.

    Raises:
        ImpRunsError: The store holds another protocol, the dataset is missing, or a trajectory failed; `torchrun` then
            ends all processes, and started again they go on at the level that was not finished.
        StoppedError: A process was asked to stop (`imp_runs.life`); a checkpoint is written, from which all go on.
    """
    if checked_kernels(kernels) == "sparse":
        raise ImpRunsError("kernels 'sparse' are for one process alone; without --kernels PyTorch computes.")
    os.environ.update(KERNELS | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})  # before PyTorch is loaded
    import torch
    from torch import distributed

    from imp_runs.distributed import group
    from imp_runs.imp import run_trajectory
    from imp_runs.workers import dataset_of

    where = _prepare(checked_device(device))
    with stopping_on_signals(), group("nccl" if where.type == "cuda" else "gloo"):
        opened = (Follower if distributed.get_rank() else Store)(store, sweep.protocol)
        missing = _agreed([t for t in sweep.trajectories if not opened.is_whole(t.key)])
        check_sizes(missing)
        for trajectory in missing:
            if opened.folder(trajectory.key).exists():
                opened.mend(trajectory.key)
            distributed.all_reduce(torch.zeros(1, device=where))  # all go on from what is left then
            dataset = dataset_of(trajectory.dataset, trajectory.pool, data_dir)
            run_trajectory(trajectory, dataset, opened, device=where, kernels="torch", stop=_Wish(where))
            distributed.all_reduce(torch.zeros(1, device=where))  # nobody goes on before the first has written all
        return len(missing)


class _Wish:
    """Ask every few times whether any of the processes was asked to stop, so that all of them end at the same step.

    Args:
        device: Where the processes talk to each other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._calls = device, 0

    def __call__(self) -> bool:
        from imp_runs.distributed import total

        self._calls += 1
        return self._calls % ASKED_EVERY == 0 and total(int(asked_to_stop()), self._device) > 0


def _prepare(device: str) -> torch.device:
    """Set PyTorch up as workers do; give the device of this process."""
    import torch

    steady()
    if device == "cpu":
        return torch.device("cpu")
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


def _agreed(missing: Sequence[Trajectory]) -> list[Trajectory]:
    """Give what the first process finds missing."""
    from torch import distributed

    told: list[Any] = [list(missing)]
    distributed.broadcast_object_list(told, 0)
    return told[0]
