"""Is the training long enough? Half as many epochs again must move the unpruned error by less than seeds spread."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from imp_runs.config import Protocol, Sweep, Trajectory
from imp_runs.engines import run_here
from imp_runs.store import Store
from imp_runs.sweep import raise_failures
from imp_runs.table import make_table
from imp_runs.work import Settings
from imp_runs.workers import checked_device, checked_kernels

if TYPE_CHECKING:
    import pandas as pd

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
    with tempfile.TemporaryDirectory() as folder:
        stores = {training: Store(Path(folder) / str(training.epochs), training) for training in (protocol, longer)}
        work = [(corner, store) for training, store in stores.items() for corner in _corners(sweep, training)]
        settings = Settings(data_dir, checked_device(device), checked_kernels(kernels))
        raise_failures(work, run_here(work, sweep.name, settings, workers=workers, download=download))
        short, long = (
            make_table(store).groupby(["depth", "width", "dataset_size"])["error"] for store in stores.values()
        )
    table = short.mean().to_frame("error")
    table["error_longer"] = long.mean()
    table["moved"] = table["error_longer"] - table["error"]
    table["seed_sd"] = ((short.var() + long.var()) / 2) ** 0.5
    table["settled"] = table["moved"].abs() <= table["seed_sd"]
    return table.reset_index()


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
