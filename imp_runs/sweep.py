"""Run what a sweep lacks: worker processes, one thread each on a CPU, one process on a GPU."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imp_runs.config import Sweep, Trajectory
from imp_runs.errors import ImpRunsError
from imp_runs.store import Store

#: What every CPU worker is started with, so that results do not depend on the processor's vector width.
KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
if platform.machine() in {"x86_64", "AMD64"}:
    KERNELS |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}


#: Densities at which the cost of a step is measured for an estimate.
PROBED = (1.0, 0.5, 0.2, 0.05, 0.005)

#: What may compute a run: the fastest, PyTorch, or on a CPU kernels that skip pruned weights.
CHOICES = ("auto", "torch", "sparse")


@dataclass(frozen=True)
class Estimate:
    """Say what a sweep will cost: trajectories in all and to run, training steps, and seconds with the workers."""

    trajectories: int
    missing: int
    steps: int
    seconds: float


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
        workers: Number of processes; default one per core on a CPU, one on a GPU.
        device: `"cpu"` or `"cuda"`; default CUDA when there is one.
        kernels: `"torch"`, `"sparse"` (on a CPU, skipping pruned weights) or `"auto"`, the faster of them.

    Raises:
        ImpRunsError: The store holds another protocol, the dataset is missing, or trajectories failed (all are named;
            the others have run).
    """
    opened = Store(store, sweep.protocol)
    missing = [trajectory for trajectory in sweep.trajectories if not opened.is_done(trajectory.key)]
    if not missing:
        return
    device, kernels = _checked(device), _checked_kernels(kernels)
    workers = workers or (os.cpu_count() or 1 if device == "cpu" else 1)
    context = multiprocessing.get_context("spawn")
    finished = context.Queue()
    arguments = (str(store), str(data_dir) if data_dir else None, device, kernels)
    _prefetch(missing, data_dir, download)
    levels = sum(t.protocol.levels + 1 - _levels_done(opened, t) for t in missing)
    with _pinned(device), _pool(min(workers, len(missing)), context, finished) as pool:
        futures = {pool.submit(_work, trajectory, *arguments): trajectory for trajectory in missing}
        try:
            _follow(futures, finished, levels, sweep.name)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failures = [f"{t}: {future.exception()}" for future, t in futures.items() if future.exception()]
    if failures:
        raise ImpRunsError(
            f"{len(failures)} of {len(missing)} trajectories failed, the others are done:\n" + "\n".join(failures)
        )


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
    opened = Store(store, sweep.protocol) if store and (Path(store) / "store.json").exists() else None
    missing = [t for t in sweep.trajectories if not (opened and opened.is_done(t.key))]
    device, kernels = _checked(device), _checked_kernels(kernels)
    workers = workers or (os.cpu_count() or 1 if device == "cpu" else 1)
    if not missing:
        return Estimate(len(sweep.trajectories), 0, 0, 0.0)
    _prefetch(missing, data_dir, download)
    context = multiprocessing.get_context("spawn")
    with _pinned(device), _pool(1, context, context.Queue()) as pool:
        costs = pool.submit(_costs, missing, str(data_dir) if data_dir else None, device, kernels).result()
    steps = sum(cost[0] for cost in costs)
    return Estimate(len(sweep.trajectories), len(missing), steps, sum(cost[1] for cost in costs) / workers)


def default_device() -> str:
    """Choose CUDA when there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _checked_kernels(kernels: str) -> str:
    if kernels not in CHOICES:
        raise ImpRunsError(f"kernels {kernels!r} must be one of {', '.join(CHOICES)}.")
    return kernels


def _checked(device: str | None) -> str:
    if device is None:
        return default_device()
    kind = device.split(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise ImpRunsError(f"device {device!r} must be cpu or cuda.")
    if kind == "cuda" and default_device() != "cuda":
        raise ImpRunsError(f"device {device!r}: PyTorch finds no CUDA device here; give --device cpu.")
    return device


@contextlib.contextmanager
def _pinned(device: str) -> Iterator[None]:
    """Set the environment that workers inherit, and restore it."""
    wanted = KERNELS if device == "cpu" else {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _pool(workers: int, context: Any, finished: Any) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(finished,)
    )


def _prefetch(missing: list[Trajectory], data_dir: str | Path | None, download: bool) -> None:
    """Fetch the dataset once for all workers, and refuse what it is too small for before anything runs."""
    from imp_runs.datasets import load_dataset
    from imp_runs.train import check_size

    first = missing[0]
    dataset = load_dataset(first.dataset, pool=first.pool, data_dir=data_dir, download=download)
    check_size(dataset, max(missing, key=lambda trajectory: trajectory.dataset_size))


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


_FINISHED: Any = None


def _start_worker(finished: Any) -> None:
    global _FINISHED
    _FINISHED = finished
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@functools.cache
def _dataset(name: str, pool: int, data_dir: str | None):
    from imp_runs.datasets import load_dataset

    return load_dataset(name, pool=pool, data_dir=data_dir)


def _work(trajectory: Trajectory, store: str, data_dir: str | None, device: str, kernels: str) -> None:
    from imp_runs.imp import run_trajectory

    dataset = _dataset(trajectory.dataset, trajectory.pool, data_dir)
    opened = Store(store, trajectory.protocol)
    run_trajectory(trajectory, dataset, opened, device=device, kernels=kernels, progress=_FINISHED.put)


def _costs(trajectories: list[Trajectory], data_dir: str | None, device: str, kernels: str) -> list[tuple[int, float]]:
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


def _time_network(trajectory: Trajectory, data_dir: str | None, device: str, kernels: str) -> tuple[int, np.ndarray]:
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

    dataset = _dataset(trajectory.dataset, trajectory.pool, data_dir).to(torch.device(device))
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
