"""What a sweep will cost, one by one and in stacks, and what it would with plain PyTorch, from a few real steps."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from imp_runs.config import STREAMED, Sweep, Trajectory, check_sizes
from imp_runs.files import place
from imp_runs.packing import ALONE, Choices, Way, remember, ways_of
from imp_runs.store import Store
from imp_runs.workers import checked_device, checked_kernels, dataset_of, default_workers, fetch, started

if TYPE_CHECKING:
    import pandas as pd

    from imp_runs.examples import Source

#: Densities at which the cost of a step is measured for an estimate.
PROBED = (1.0, 0.5, 0.2, 0.05, 0.005)
#: Networks stacked, and stacks side by side, that `bench` tries, by device.
PACKS = {"cpu": (2, 4, 8), "cuda": (1, 8, 32, 128)}
STREAMS = {"cpu": (1,), "cuda": (1, 8)}
#: Most networks that are tried at once, unless more are asked for.
MOST = 128
#: Floating-point operations of a multiply-add in training: forward, and backward twice.
TRAINING = 6
#: Rows of the matrices whose product tells what a device can do at most.
PEAK = {"cpu": 1024, "cuda": 8192}


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
    pack: int | None = None,
    streams: int | None = None,
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
        pack: How many networks would be stacked, as in `run_sweep`.
        streams: How many stacks would be computed side by side.

    Returns:
        The estimate; `seconds` is wall time with the workers: single-process step times divided by their number, but no
        less than the dearest trajectory's.
    """
    opened = Store(store, sweep.protocol) if store and (place(store) / "store.json").exists() else None
    missing = [t for t in sweep.trajectories if not (opened and opened.is_whole(t.key))]
    device, kernels = checked_device(device), checked_kernels(kernels)
    if not missing:
        return Estimate(len(sweep.trajectories), 0, 0, 0.0)
    check_sizes(missing)
    ways: dict[Way, list[Trajectory]] = {}
    for t, way in zip(missing, ways_of(missing, Choices(device, pack, streams)), strict=True):
        ways.setdefault(way, []).append(t)
    with started(device) as pool:
        fetch(pool, missing, data_dir, download)
        costs = []
        for way, own in ways.items():
            costs += pool.submit(costs_of, own, data_dir, device, kernels, way).result()
    steps, each = sum(cost[0] for cost in costs), [cost[1] for cost in costs]
    seconds = max(sum(each) / (workers or default_workers(device)), *each)
    return Estimate(len(sweep.trajectories), len(missing), steps, seconds)


def bench(
    sweep: Sweep,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str | None = None,
    kernels: str = "auto",
    packs: Sequence[int] | None = None,
    streams: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Compare what computes a sweep's trajectories with the plain PyTorch loop, side by side in one process.

    A line for each network goes to standard error as soon as it is measured.

    How networks are best trained together is written down for a GPU (`imp_runs.packing`), and `run_sweep` takes it
    there.

    Args:
        sweep: Its networks are timed, each at its largest dataset size.
        data_dir: Where the dataset lies.
        download: Fetch missing dataset files.
        device: Where it is computed; on a CPU with one thread.
        kernels: What computes a single trajectory, and is compared with `"torch"`.
        packs: How many networks are stacked, each to be tried; default up to 8 on a CPU, up to 128 on a GPU.
        streams: How many stacks are computed side by side, each to be tried with each of `packs`; default 1, and on a
            GPU 8.

    Returns:
        One row per network: `depth`, `width`, `dataset_size`; for whole trajectories of all levels on one process
        `torch_per_hour`, `per_hour` of the best way and their ratio `speedup`; `pack`, the networks that it stacks (1:
        none), and `streams`, the stacks that it computes side by side; `examples_per_second` in training; `gflops`, the
        arithmetic rate of unpruned training (six operations a multiply-add and example); and `of_peak`, its share of
        what a product of large matrices reaches here.
    """
    import pandas as pd

    chosen = list({_timed_as(t): t for t in sorted(sweep.trajectories, key=_examples_then_first)}.values())
    device, kernels = checked_device(device), checked_kernels(kernels)
    check_sizes(chosen)
    ways = [("torch", ALONE), (kernels, ALONE), *(("torch", way) for way in _ways(chosen[0], device, packs, streams))]
    rows = []
    with started(device) as pool:
        fetch(pool, chosen, data_dir, download)
        peak = pool.submit(peak_rate, device, sweep.protocol.precision).result()
        for t in tqdm(chosen, "bench", unit="network", disable=None, file=sys.stderr):
            (steps, plain), *others = (
                pool.submit(_cost_of, t, data_dir, device, which, way).result() for which, way in ways
            )
            seconds, way = min(
                ((c[1], w) for c, (_, w) in zip(others, ways[1:], strict=True)), key=lambda pair: pair[0]
            )
            remember(device, t, way)
            examples = steps / t.protocol.steps_per_epoch(t.dataset_size) * t.dataset_size
            flops = TRAINING * pool.submit(macs_of, t, data_dir).result()
            row = {
                "depth": t.depth,
                "width": t.width,
                "dataset_size": t.dataset_size,
                "torch_per_hour": 3600 / plain,
                "per_hour": 3600 / seconds,
                "speedup": plain / seconds,
                "pack": way.pack,
                "streams": way.streams,
                "examples_per_second": examples / seconds,
                "gflops": flops * examples / seconds / 1e9,
                "of_peak": flops * examples / seconds / peak,
            }
            rows.append(row)
            tqdm.write(_said_of(row), file=sys.stderr)  # what is stopped has not measured for nothing
    return pd.DataFrame(rows)


def _said_of(row: Mapping[str, Any]) -> str:
    together = ", pack {pack}, streams {streams}" if row["pack"] * row["streams"] > 1 else ""
    line = "depth {depth}, width {width:g}: {speedup:.1f} times the plain loop, {per_hour:.0f} trajectories an hour"
    return (line + together).format(**row)


def _ways(trajectory: Trajectory, device: str, packs: Sequence[int] | None, streams: Sequence[int] | None) -> list[Way]:
    """List the ways of training together that are to be tried; of what is streamed there are none."""
    if trajectory.dataset in STREAMED:
        return []
    kind = device.split(":")[0]
    tried = [Way(pack, beside) for pack in packs or PACKS[kind] for beside in streams or STREAMS[kind]]
    return [way for way in tried if way != ALONE and (way.pack * way.streams <= MOST or (packs and streams))]


def _cost_of(
    trajectory: Trajectory, data_dir: str | Path | None, device: str, kernels: str, way: Way
) -> tuple[int, float]:
    """Give steps and seconds of a trajectory; no end of seconds for stacks that do not fit the memory."""
    import torch

    try:
        return costs_of([trajectory], data_dir, device, kernels, way)[0]
    except torch.OutOfMemoryError:
        if way == ALONE:
            raise
        return 0, math.inf


def peak_rate(device: str, precision: str = "float32") -> float:
    """Measure the floating-point operations per second of a product of large matrices."""
    import torch

    rows = PEAK[device.split(":")[0]]
    torch.backends.cuda.matmul.allow_tf32 = precision == "tensorfloat32"
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix, seconds = torch.rand(rows, rows, device=device, dtype=kind), []
    for _ in range(5):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * rows**3 / min(seconds)


def macs_of(trajectory: Trajectory, data_dir: str | Path | None) -> int:
    """Count the multiply-adds of one image in the unpruned network."""
    import torch

    from imp_runs.imp import make_network

    dataset = dataset_of(trajectory.dataset, trajectory.pool, data_dir)
    return sum(use.weights * use.positions for use in make_network(trajectory, dataset, torch.device("cpu")).uses)


def costs_of(
    trajectories: list[Trajectory], data_dir: str | Path | None, device: str, kernels: str, way: Way = ALONE
) -> list[tuple[int, float]]:
    """Give steps and seconds of every trajectory, from timed steps and a timed evaluation of each network.

    Those that are trained together are timed with others of their architecture, which share the time.
    """
    networks = {_timed_as(t): t for t in trajectories}
    if way == ALONE:
        timed = {key: _time_network(t, data_dir, device, kernels) for key, t in networks.items()}
    else:
        timed = {key: _time_stacks(t, data_dir, device, way) for key, t in networks.items()}
    costs = []
    for trajectory in trajectories:
        prunable, probed = timed[_timed_as(trajectory)]
        protocol, kept = trajectory.protocol, [prunable]
        while len(kept) <= trajectory.last_level and 0 < protocol.kept_after(kept[-1]) < kept[-1]:
            kept.append(protocol.kept_after(kept[-1]))
        first = protocol.steps(trajectory.dataset_size)
        steps = np.full(len(kept), first - int(protocol.rewind * first))
        steps[0] = first
        step_seconds, test_seconds = (np.interp(-np.log(kept), *probed[[0, row]]) for row in (1, 2))
        costs.append((int(steps.sum()), float(steps @ step_seconds + test_seconds.sum())))
    return costs


def _timed_as(trajectory: Trajectory) -> tuple[object, ...]:
    """Give what the time of a step depends on."""
    return trajectory.family, trajectory.dataset, trajectory.pool, trajectory.depth, trajectory.width


def _examples_then_first(trajectory: Trajectory) -> tuple[int, int]:
    """Order trajectories so that of one network the first replicate with most examples comes last."""
    return trajectory.dataset_size, -trajectory.replicate


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
    from imp_runs.steps import choose_steps, count_wrong, make_steps
    from imp_runs.train import subset, train

    dataset, short = _probe(trajectory, data_dir, device)
    protocol, examples = short.protocol, subset(dataset, short)
    network, probed = make_network(trajectory, dataset, torch.device(device)), []
    fresh, whole = network.state(), torch.ones_like(network.mask)
    for density in PROBED:
        network.rewind(fresh, whole)
        kept = max(int(density * network.prunable), 1)
        network.rewind(fresh, prune(network.weights, whole, kept))
        chosen = choose_steps(trajectory, network, kernels)
        steps = make_steps(chosen, network, protocol, dataset.input_shape)
        train(steps, examples, short, 0)
        network.values[0].item()  # waits for the device
        began = time.perf_counter()
        train(steps, examples, short, 0)
        network.values[0].item()
        trained = time.perf_counter()
        count_wrong(steps, dataset)
        seconds = (trained - began) / protocol.steps(short.dataset_size), time.perf_counter() - trained
        probed.append((-math.log(kept), *seconds))
    return network.prunable, np.array(probed).T


def _probe(trajectory: Trajectory, data_dir: str | Path | None, device: str) -> tuple[Source, Trajectory]:
    """Give the dataset, and a trajectory that is short enough to be timed."""
    import torch

    from imp_runs.steps import choose_kernels

    dataset = dataset_of(trajectory.dataset, trajectory.pool, data_dir).to(torch.device(device))
    choose_kernels(trajectory, dataset, torch.device(device))
    size = min(4 * trajectory.protocol.batch_size, len(dataset.train_labels))
    protocol = dataclasses.replace(trajectory.protocol, epochs=2)
    return dataset, dataclasses.replace(trajectory, dataset_size=size, protocol=protocol)


def _time_stacks(trajectory: Trajectory, data_dir: str | Path | None, device: str, way: Way) -> tuple[int, np.ndarray]:
    """Time stacks like `_time_network`, per member; their time does not depend on densities."""
    import torch

    from imp_runs.imp import make_network
    from imp_runs.pack import evaluated_at_once
    from imp_runs.stacked import StackedExamples, StackedNetwork, StackedSteps
    from imp_runs.steps import wrong_of
    from imp_runs.train import subset, train

    dataset, short = _probe(trajectory, data_dir, device)
    members = [dataclasses.replace(short, replicate=place) for place in range(way.pack * way.streams)]
    held: list = [subset(dataset, member) for member in members]
    networks = [make_network(member, dataset, torch.device(device)) for member in members]
    network = StackedNetwork([networks[at : at + way.pack] for at in range(0, len(networks), way.pack)], way.pack)
    examples = StackedExamples(held, members, [0] * len(members), range(len(members)))
    steps, batch = StackedSteps(network, short.protocol), evaluated_at_once(way)
    train(steps, examples, short, 0)
    wrong_of(steps, dataset, batch).tolist()  # waits for the device
    began = time.perf_counter()
    train(steps, examples, short, 0)
    network.values[0].item()
    trained = time.perf_counter()
    wrong_of(steps, dataset, batch).tolist()
    seconds = (trained - began) / short.protocol.steps(short.dataset_size), time.perf_counter() - trained
    prunable = networks[0].prunable
    ends = [(-math.log(kept), *(part / len(members) for part in seconds)) for kept in (prunable, 1)]
    return prunable, np.array(ends).T
