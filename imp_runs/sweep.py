"""Run what a sweep lacks."""

from __future__ import annotations

import concurrent.futures
import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imp_runs.config import Sweep, Trajectory, check_sizes
from imp_runs.errors import ImpRunsError
from imp_runs.store import Store
from imp_runs.together import run_together, started_together
from imp_runs.workers import (
    checked_device,
    checked_kernels,
    dataset_of,
    default_workers,
    fetch,
    report,
    started,
)


def run_sweep(
    sweep: Sweep,
    store: str | Path,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    workers: int | None = None,
    device: str | None = None,
    kernels: str = "auto",
) -> None:
    """Run the trajectories of a sweep that a store lacks.

    Args:
        sweep: What to run.
        store: Folder of the store; made if it is not there.
        data_dir: Where the dataset lies.
        download: Fetch missing dataset files.
        workers: Number of processes; default one per core on a CPU, one on a GPU. Processes that `torchrun` started
            run every trajectory together instead.
        device: `"cpu"` or `"cuda"`; default CUDA when there is one.
        kernels: `"torch"`, `"sparse"` (on a CPU, skipping pruned weights) or `"auto"`, the faster of them.

    Raises:
        ImpRunsError: The store holds another protocol, the dataset is missing, or trajectories failed (all are named;
            the others have run).
    """
    if started_together():
        run_together(sweep, store, data_dir=data_dir, device=device, kernels=kernels)
        return
    opened = Store(store, sweep.protocol)
    missing = [(trajectory, opened) for trajectory in sweep.trajectories if not opened.is_done(trajectory.key)]
    if missing:
        run_trajectories(
            missing, sweep.name, data_dir=data_dir, download=download, workers=workers, device=device, kernels=kernels
        )


def run_trajectories(
    missing: Sequence[tuple[Trajectory, Store]],
    name: str,
    *,
    data_dir: str | Path | None,
    download: bool,
    workers: int | None,
    device: str | None,
    kernels: str,
) -> None:
    """Run trajectories of one dataset, each into its store.

    Args:
        missing: Trajectories, one or more, and the stores that they go to.
        name: What the progress bar calls them.
        data_dir: As in `run_sweep`, like all that follow.
        download: Fetch missing dataset files.
        workers: Number of processes.
        device: Where it is computed.
        kernels: What computes.

    Raises:
        ImpRunsError: As `run_sweep` does.
    """
    device, kernels = checked_device(device), checked_kernels(kernels)
    check_sizes(trajectory for trajectory, _ in missing)
    workers = workers or default_workers(device)
    levels = sum(t.protocol.levels + 1 - _levels_done(store, t) for t, store in missing)
    with started(min(workers, len(missing)), device) as (pool, finished):
        fetch(pool, missing[0][0], data_dir, download)
        futures = {pool.submit(_work, t, store.path, data_dir, device, kernels): t for t, store in missing}
        _follow(futures, finished, levels, name)
    failures = [f"{t}: {future.exception()}" for future, t in futures.items() if future.exception()]
    if failures:
        raise ImpRunsError(
            f"{len(failures)} of {len(missing)} trajectories failed, the others are done:\n" + "\n".join(failures)
        )


def _levels_done(store: Store, trajectory: Trajectory) -> int:
    return len(list(store.folder(trajectory.key).glob("level-*.json")))


def _follow(futures: dict[Any, Trajectory], finished: Any, levels: int, name: str) -> None:
    from tqdm import tqdm

    with tqdm(total=levels, desc=name, unit="level", disable=None, smoothing=0.05, file=sys.stderr) as bar:
        waiting = set(futures)
        while waiting:
            _, waiting = concurrent.futures.wait(waiting, timeout=0.5)
            bar.update(min(_drain(finished), levels - bar.n))


def _drain(finished: Any) -> int:
    """Add up what workers have reported so far."""
    total = 0
    while True:
        try:
            total += finished.get_nowait()
        except queue.Empty:
            return total


def _work(trajectory: Trajectory, store: Path, data_dir: str | Path | None, device: str, kernels: str) -> None:
    from imp_runs.imp import run_trajectory

    dataset = dataset_of(trajectory.dataset, trajectory.pool, data_dir)
    opened = Store(store, trajectory.protocol)
    run_trajectory(trajectory, dataset, opened, device=device, kernels=kernels, progress=report)
