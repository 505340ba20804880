"""What a sweep will cost, and what it would with plain PyTorch, from a few real steps at some densities."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from imp_runs.config import Sweep, Trajectory, check_sizes
from imp_runs.files import place
from imp_runs.store import Store
from imp_runs.workers import checked_device, checked_kernels, dataset_of, default_workers, fetch, started

if TYPE_CHECKING:
    import pandas as pd

#: Densities at which the cost of a step is measured for an estimate.
PROBED = (1.0, 0.5, 0.2, 0.05, 0.005)


@dataclass(frozen=True)
class Estimate:
    """Say what a sweep will cost: trajectories in all and to run, training steps, and seconds with the workers."""

    trajectories: int
    missing: int
    steps: int
    seconds: float


def estimate(
    sweep: Sweep,
    store: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    workers: int | None = None,
    device: str | None = None,
    kernels: str = "auto",
) -> Estimate:
    """Estimate what `run_sweep` would cost by timing a few real steps of every (depth, width).

    Args:
        sweep: What would be run.
        store: Folder of the store; what is done there is not counted.
        data_dir: Where the dataset lies.
        download: Fetch missing dataset files.
        workers: Number of processes.
        device: Where it would be computed.
        kernels: What would compute it.

    Returns:
        The estimate; `seconds` is wall time with the workers, single-process step times divided by their number.
    """
    opened = Store(store, sweep.protocol) if store and (place(store) / "store.json").exists() else None
    missing = [t for t in sweep.trajectories if not (opened and opened.is_done(t.key))]
    device, kernels = checked_device(device), checked_kernels(kernels)
    if not missing:
        return Estimate(len(sweep.trajectories), 0, 0, 0.0)
    check_sizes(missing)
    with started(device) as pool:
        fetch(pool, missing, data_dir, download)
        costs = pool.submit(costs_of, missing, data_dir, device, kernels).result()
    steps, seconds = sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)
    return Estimate(len(sweep.trajectories), len(missing), steps, seconds / (workers or default_workers(device)))


def bench(
    sweep: Sweep,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str | None = None,
    kernels: str = "auto",
) -> pd.DataFrame:
    """Compare what computes a sweep's trajectories with the plain PyTorch loop, side by side in one process.

    Args:
        sweep: Its networks are timed, each at its largest dataset size.
        data_dir: Where the dataset lies.
        download: Fetch missing dataset files.
        device: Where it is computed; on a CPU with one thread.
        kernels: What is compared with `"torch"`.

    Returns:
        One row per network: `depth`, `width`, `dataset_size`; for whole trajectories of all levels on one process
        `torch_per_hour`, `per_hour` and their ratio `speedup`; and `examples_per_second` in training.
    """
    import pandas as pd

    largest = max(t.dataset_size for t in sweep.trajectories)
    chosen = [t for t in sweep.trajectories if t.dataset_size == largest and t.replicate == 0]
    device, kernels = checked_device(device), checked_kernels(kernels)
    check_sizes(chosen)
    rows = []
    with started(device) as pool:
        fetch(pool, chosen, data_dir, download)
        for t in tqdm(chosen, "bench", unit="network", disable=None, file=sys.stderr):
            (steps, plain), (_, seconds) = (
                pool.submit(costs_of, [t], data_dir, device, which).result()[0] for which in ("torch", kernels)
            )
            rows.append({
                "depth": t.depth,
                "width": t.width,
                "dataset_size": largest,
                "torch_per_hour": 3600 / plain,
                "per_hour": 3600 / seconds,
                "speedup": plain / seconds,
                "examples_per_second": steps / t.protocol.steps_per_epoch(largest) * largest / seconds,
            })  # fmt: skip
    return pd.DataFrame(rows)


def costs_of(
    trajectories: list[Trajectory], data_dir: str | Path | None, device: str, kernels: str
) -> list[tuple[int, float]]:
    """Give steps and seconds of every trajectory, from timed steps and a timed evaluation of each network."""
    networks = {(t.family, t.depth, t.width): t for t in trajectories}
    timed = {key: _time_network(t, data_dir, device, kernels) for key, t in networks.items()}
    costs = []
    for trajectory in trajectories:
        prunable, probed = timed[trajectory.family, trajectory.depth, trajectory.width]
        protocol, kept = trajectory.protocol, [prunable]
        while len(kept) <= protocol.levels and 0 < protocol.kept_after(kept[-1]) < kept[-1]:
            kept.append(protocol.kept_after(kept[-1]))
        first = protocol.steps(trajectory.dataset_size)
        steps = np.full(len(kept), first - int(protocol.rewind * first))
        steps[0] = first
        step_seconds, test_seconds = (np.interp(-np.log(kept), *probed[[0, row]]) for row in (1, 2))
        costs.append((int(steps.sum()), float(steps @ step_seconds + test_seconds.sum())))
    return costs


def _time_network(
    trajectory: Trajectory, data_dir: str | Path | None, device: str, kernels: str
) -> tuple[int, np.ndarray]:
    """Time a few real steps and a test of a network at some densities.

    Returns:
        Its prunable weights, and minus the logarithm of the kept ones, seconds per step and seconds per test,
        `[3, densities]`.
    """
    import torch

    from imp_runs.imp import make_network
    from imp_runs.prune import prune
    from imp_runs.steps import choose_kernels, choose_steps, count_wrong, make_steps
    from imp_runs.train import subset, train

    dataset = dataset_of(trajectory.dataset, trajectory.pool, data_dir).to(torch.device(device))
    choose_kernels(trajectory, dataset)
    size = min(4 * trajectory.protocol.batch_size, len(dataset.train_labels))
    protocol = dataclasses.replace(trajectory.protocol, epochs=2)
    short = dataclasses.replace(trajectory, dataset_size=size, protocol=protocol)
    examples = subset(dataset, short)
    network, probed = make_network(trajectory, dataset, torch.device(device)), []
    fresh, whole = network.state(), torch.ones_like(network.mask)
    for density in PROBED:
        network.rewind(fresh, whole)
        kept = max(int(density * network.prunable), 1)
        network.rewind(fresh, prune(network.weights, whole, kept))
        chosen = choose_steps(trajectory, network, kernels)
        steps = make_steps(chosen, network, protocol, dataset.input_shape)
        train(steps, examples, short, 0)
        began = time.perf_counter()
        train(steps, examples, short, 0)
        trained = time.perf_counter()
        count_wrong(steps, dataset)
        seconds = (trained - began) / protocol.steps(size), time.perf_counter() - trained
        probed.append((-math.log(kept), *seconds))
    return network.prunable, np.array(probed).T
