"""Is the training long enough? Half as many epochs again must move the unpruned error by less than seeds spread."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from imp_runs.config import Protocol, Sweep, Trajectory, check_sizes
from imp_runs.store import Store
from imp_runs.workers import checked_device, checked_kernels, dataset_of, default_workers, fetch, started

#: Replicates trained, whatever the sweep has: a spread needs some.
REPLICATES = 3


def settle(
    sweep: Sweep,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    workers: int | None = None,
    device: str | None = None,
    kernels: str = "auto",
) -> pd.DataFrame:
    """Train the corners of a sweep at its smallest dataset size, unpruned, for its epochs and for half as many again.

    Undertrained networks first gain from pruning, which is not what the law is about.

    Args:
        sweep: The sweep; its smallest and largest depth and width are trained, with three replicates.
        data_dir: Where the dataset lies.
        download: Fetch missing dataset files.
        workers: Number of processes.
        device: `"cpu"` or `"cuda"`.
        kernels: `"torch"`, `"sparse"` (on a CPU) or `"auto"`.

    Returns:
        One row per corner: `depth`, `width`, `dataset_size`, mean unpruned `error` and `error_longer`, `moved` (their
        difference), `seed_sd` (of single seeds, the mean of both trainings' variances) and `settled`.
    """
    protocol = dataclasses.replace(sweep.protocol, levels=0)
    longer = dataclasses.replace(protocol, epochs=-(-3 * protocol.epochs // 2))
    corners = [*_corners(sweep, protocol), *_corners(sweep, longer)]
    device, kernels = checked_device(device), checked_kernels(kernels)
    check_sizes(corners)
    with started(min(workers or default_workers(device), len(corners)), device) as (pool, _):
        fetch(pool, corners[0], data_dir, download)
        trainings = [pool.submit(_train, corner, data_dir, device, kernels) for corner in corners]
        errors = [one.result() for one in tqdm(trainings, sweep.name, unit="training", disable=None, file=sys.stderr)]
    rows = [(t.depth, t.width, t.dataset_size, t.protocol.epochs, e) for t, e in zip(corners, errors, strict=True)]
    trained = pd.DataFrame(rows, columns=["depth", "width", "dataset_size", "epochs", "error"]).set_index("epochs")
    short, long = (
        trained.loc[training.epochs].groupby(["depth", "width", "dataset_size"])["error"]
        for training in (protocol, longer)
    )
    table = short.mean().to_frame("error")
    table["error_longer"] = long.mean()
    table["moved"] = table["error_longer"] - table["error"]
    table["seed_sd"] = ((short.var() + long.var()) / 2) ** 0.5
    table["settled"] = table["moved"].abs() <= table["seed_sd"]
    return table.reset_index()


def _train(trajectory: Trajectory, data_dir: str | Path | None, device: str, kernels: str) -> float:
    """Train an unpruned network, and give its error."""
    from imp_runs.imp import run_trajectory

    dataset = dataset_of(trajectory.dataset, trajectory.pool, data_dir)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, trajectory.protocol)
        run_trajectory(trajectory, dataset, store, device=device, kernels=kernels)
        return float(store.records(trajectory.key)[0]["error"])


def _corners(sweep: Sweep, protocol: Protocol) -> tuple[Trajectory, ...]:
    size = min(t.dataset_size for t in sweep.trajectories)
    depths, widths = ([getattr(t, axis) for t in sweep.trajectories] for axis in ("depth", "width"))
    corners = itertools.product({min(depths), max(depths)}, {min(widths), max(widths)}, range(REPLICATES))
    return tuple(
        dataclasses.replace(
            sweep.trajectories[0], depth=depth, width=width, dataset_size=size, replicate=replicate, protocol=protocol
        )
        for depth, width, replicate in sorted(corners)
    )
