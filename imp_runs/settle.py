"""Is the training long enough? Neither half as many epochs again nor the first pruning may lower the error."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from imp_runs.config import Protocol, Sweep, Trajectory
from imp_runs.engines import run_here
from imp_runs.errors import ImpRunsError
from imp_runs.store import Store
from imp_runs.sweep import raise_failures
from imp_runs.table import make_table
from imp_runs.work import Settings
from imp_runs.workers import checked_device, checked_kernels

#: Columns that name a network.
NETWORK = ["depth", "width", "dataset_size"]
#: Replicates trained, whatever the sweep has: a spread needs some.
REPLICATES = 5
#: Pruning rounds after which an undertrained network has gained.
ROUNDS = 3
#: A mean log error that falls by less than this is no gain to speak of.
SMALL = 0.05
#: Probability of calling a gain what is chance, for one network.
LEVEL = 0.01


def settle(
    sweep: Sweep,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    workers: int | None = None,
    device: str | None = None,
    kernels: str = "auto",
) -> pd.DataFrame:
    """Train networks at the smallest dataset size for the sweep's epochs and for half as many again, and prune them.

    Undertrained networks first gain from pruning, since every round trains them on, which is not what the law is about.
    Seeds of tiny networks may spread too widely for the longer training to show that; the gain shows it run by run.

    Args:
        sweep: The sweep; the corners of its grid in depth and width and the network in its middle are trained, with
            five replicates.
        data_dir: Where the dataset lies.
        download: Fetch missing dataset files.
        workers: Number of processes.
        device: `"cpu"` or `"cuda"`.
        kernels: `"torch"`, `"sparse"` (on a CPU) or `"auto"`.

    Returns:
        One row per network: `depth`, `width`, `dataset_size`, mean unpruned `error` and `error_longer`, `moved` (their
        difference), `seed_sd` (of single seeds, the mean of both trainings' variances), `pruned` (how far the mean log
        error of the first three rounds of pruning lies above that of the unpruned network) with its standard error
        `pruned_se`, pooled over networks, and `settled`: the longer training moves the error by no more than seeds
        spread, and pruning does not lower it, by a t-test at 1 %.

    Raises:
        ImpRunsError: The sweep has several families or datasets, the dataset is missing, or a training failed.
    """
    protocol = dataclasses.replace(sweep.protocol, levels=ROUNDS)
    longer = dataclasses.replace(protocol, epochs=-(-3 * protocol.epochs // 2), levels=0)
    with tempfile.TemporaryDirectory() as folder:
        stores = {training: Store(Path(folder) / str(training.epochs), training) for training in (protocol, longer)}
        work = [(trained, store) for training, store in stores.items() for trained in _networks(sweep, training)]
        settings = Settings(data_dir, checked_device(device), checked_kernels(kernels))
        raise_failures(work, run_here(work, sweep.name, settings, workers=workers, download=download))
        short, long = (make_table(store) for store in stores.values())
    return compare_trainings(short, long).reset_index()


def compare_trainings(short: pd.DataFrame, long: pd.DataFrame) -> pd.DataFrame:
    """Judge trainings by network.

    Args:
        short: Run table of the sweep's training, pruned.
        long: That of the longer one.

    Returns:
        What `settle` returns, by network.
    """
    unpruned, longer = (runs[runs["level"] == 0].groupby(NETWORK)["error"] for runs in (short, long))
    table = unpruned.mean().to_frame("error")
    table["error_longer"] = longer.mean()
    table["moved"] = table["error_longer"] - table["error"]
    table["seed_sd"] = ((unpruned.var() + longer.var()) / 2) ** 0.5
    pruned = _change_when_pruned(short).groupby(NETWORK)
    freedom = int((pruned.count() - 1).sum())
    table["pruned"] = pruned.mean()
    table["pruned_se"] = (pruned.var().mean() / pruned.count()) ** 0.5
    gained = table["pruned"] < -np.maximum(SMALL, stats.t.isf(LEVEL, freedom) * table["pruned_se"])
    table["settled"] = (table["moved"].abs() <= table["seed_sd"]) & ~gained
    return table


def _change_when_pruned(runs: pd.DataFrame) -> pd.Series:
    """Give by network and replicate the mean log error of pruned levels less that of level 0."""
    runs = runs.assign(log_error=np.log(runs["n_wrong"] + 0.5))
    levels = runs.pivot_table("log_error", index=[*NETWORK, "replicate"], columns="level")
    return levels.drop(columns=0).mean(axis=1) - levels[0]


def _networks(sweep: Sweep, protocol: Protocol) -> tuple[Trajectory, ...]:
    """List the replicates of the corners of the grid and of its middle.

    Raises:
        ImpRunsError: The sweep has several families or datasets.
    """
    kinds = sorted({f"{t.family} on {t.dataset}, pool {t.pool}" for t in sweep.trajectories})
    if len(kinds) > 1:
        raise ImpRunsError(
            f"{sweep.name}: settle looks at one grid in depth and width, and this sweep has several "
            f"({'; '.join(kinds)}); give it a file with the grids of one of them."
        )
    size = min(t.dataset_size for t in sweep.trajectories)
    depths, widths = (sorted({getattr(t, axis) for t in sweep.trajectories}) for axis in ("depth", "width"))
    corners = set(itertools.product((depths[0], depths[-1]), (widths[0], widths[-1])))
    chosen = corners | {(depths[len(depths) // 2], widths[len(widths) // 2])}
    return tuple(
        dataclasses.replace(
            sweep.trajectories[0],
            depth=depth,
            width=width,
            dataset_size=size,
            replicate=replicate,
            protocol=protocol,
            levels=None,
        )
        for (depth, width), replicate in itertools.product(sorted(chosen), range(REPLICATES))
    )
