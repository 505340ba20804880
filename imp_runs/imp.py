"""Iterative magnitude pruning with rewinding: the state machine of one trajectory."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from imp_runs.config import Trajectory, protocol_hash
from imp_runs.errors import StoppedError
from imp_runs.examples import Source
from imp_runs.network import Network, State
from imp_runs.prune import prune
from imp_runs.steps import Steps, choose_kernels, choose_steps, count_wrong, make_steps, name_kernels
from imp_runs.store import Checkpoint, Inside, Store
from imp_runs.train import check_size, subset, train

#: Seconds of training after which a checkpoint inside the level is written.
CHECKPOINT_EVERY = 600.0


def make_network(trajectory: Trajectory, dataset: Source, device: torch.device) -> Network:
    """Make the freshly initialised network of a trajectory."""
    return Network.fresh(
        trajectory.family,
        trajectory.depth,
        trajectory.width,
        dataset.input_shape,
        dataset.classes,
        trajectory.seed("initialisation"),
        device,
    )


def run_trajectory(
    trajectory: Trajectory,
    dataset: Source,
    store: Store,
    *,
    device: torch.device | str = "cpu",
    kernels: str = "auto",
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Train, prune 20 %, rewind, repeat, until the last level or until nothing can be pruned.

    Every finished level is one record in the store; a run that was interrupted goes on at the level it was in, or at
    the step of the level at which it was asked to stop. What is damaged in the store is set aside and computed again.

    Args:
        trajectory: What is run.
        dataset: Its dataset.
        store: Where records and checkpoints go.
        device: Where it is computed.
        kernels: `"torch"`, `"sparse"` (on a CPU, skipping pruned weights) or `"auto"`, the faster of them at every
            level.
        progress: Called with the number of levels just finished.
        stop: Asked after every step; when it says yes, a checkpoint inside the level is written and the run ends.

    Returns:
        What was damaged and has been set aside, one sentence each.

    Raises:
        StoppedError: `stop` said yes.
        BusyError: Another process runs the same trajectory.
        ImpRunsError: The subset is larger than the dataset, or a level recomputed after an interruption differs from
            its record.

    Source:
        Frankle, Dziugaite, Roy, Carbin, ICML 2020 (rewinding); Rosenfeld et al., ICML 2021, section 3 (protocol).
    """
    device = torch.device(device)
    check_size(dataset, trajectory)
    key, protocol = trajectory.key, trajectory.protocol
    if store.is_whole(key):
        return []
    with store.locked(trajectory):
        mended = store.mend(key)
        choose_kernels(trajectory, dataset)
        dataset = dataset.to(device)
        examples = subset(dataset, trajectory)
        network = make_network(trajectory, dataset, device)
        checkpoint = store.read_checkpoint(key)
        if checkpoint is None or not store.has_records(key, below=checkpoint.level):
            checkpoint = Checkpoint(0, network.state(), torch.ones_like(network.mask))
        state, mask, inside = checkpoint.state, checkpoint.mask, checkpoint.inside
        status, level = "trained", 0
        rewind_step = int(protocol.rewind * protocol.steps(trajectory.dataset_size))
        watch = _Watch(trajectory, store, stop)
        try:
            for level in range(checkpoint.level, protocol.levels + 1):
                watch.begin(level, mask, inside)
                network.rewind(inside.state if inside else state, mask)
                chosen = choose_steps(trajectory, network, kernels)
                steps = make_steps(chosen, network, protocol, dataset.input_shape)
                start, taken = rewind_step if level else 0, None
                if inside:
                    steps.velocity, taken, inside = inside.velocity, inside.step, None
                state = train(
                    steps, examples, trajectory, level, start=start, taken=taken,
                    rewind_state=state if level or taken else None,
                    after_step=lambda step, state, steps=steps: watch.look(step, state, steps),
                )  # fmt: skip
                kept, following = network.kept, protocol.kept_after(network.kept)
                status = "exhausted" if following == kept or following == 0 else "trained"
                if not torch.isfinite(network.values).all():
                    status = "diverged"
                record = describe(trajectory, dataset, network, device)
                record |= {"kernels": name_kernels(chosen, trajectory, dataset, device)}
                record |= _result(trajectory, dataset, steps, level, status)
                store.write_record(key, level, record | {"seconds": watch.seconds})
                if status != "trained" or level == protocol.levels:
                    break
                mask = prune(network.weights, network.mask, following)
                store.write_checkpoint(key, Checkpoint(level + 1, state, mask))
                if progress:
                    progress(1)
            store.mark_done(key, levels=level, status=status)
        finally:
            watch.life.end()
        if progress:
            progress(1 + protocol.levels - level)
    return mended


class _Watch:
    """Look after every step: leave a sign of life, keep a checkpoint now and then, and stop when asked to."""

    def __init__(self, trajectory: Trajectory, store: Store, stop: Callable[[], bool]) -> None:
        self.life = store.life(trajectory.key)
        self._key, self._store, self._stop = trajectory.key, store, stop
        self._steps = trajectory.protocol.steps(trajectory.dataset_size)
        self._kept = time.monotonic()

    def begin(self, level: int, mask: torch.Tensor, inside: Inside | None) -> None:
        """Begin a level, or go on inside it."""
        self._level, self._mask = level, mask
        self._began = time.perf_counter() - (inside.seconds if inside else 0.0)
        self.life.show(level=level, step=inside.step if inside else 0, steps=self._steps)

    @property
    def seconds(self) -> float:
        """Time spent on the level so far, interruptions not counted."""
        return time.perf_counter() - self._began

    def look(self, step: int, rewind_state: State, steps: Steps) -> None:
        """Look after a step."""
        self.life.show(level=self._level, step=step, steps=self._steps)
        stop = self._stop()
        if stop or time.monotonic() - self._kept > CHECKPOINT_EVERY:
            inside = Inside(step, self.seconds, steps.network.state(), steps.velocity)
            self._store.write_checkpoint(self._key, Checkpoint(self._level, rewind_state, self._mask, inside))
            self._kept = time.monotonic()
        if stop:
            raise StoppedError(
                f"{self._key}: stopped at step {step} of level {self._level}; the next start goes on there."
            )


def _result(trajectory: Trajectory, dataset: Source, steps: Steps, level: int, status: str) -> dict[str, Any]:
    network, wrong, tested = steps.network, count_wrong(steps, dataset), len(dataset.test_labels)
    kept_by_layer = network.kept_by_layer
    macs = sum(kept * use.positions for kept, use in zip(kept_by_layer, network.uses, strict=True))
    total, rewound = trajectory.protocol.steps(trajectory.dataset_size), trajectory.protocol.rewind
    return {
        "level": level,
        "density": network.kept / network.prunable,
        "kept": network.kept,
        "nonzero": network.kept + len(network.values) - network.prunable,
        "kept_by_layer": kept_by_layer,
        "nonzero_macs": macs,
        "error": wrong / tested,
        "n_wrong": wrong,
        "n_test": tested,
        "epochs": trajectory.protocol.epochs,
        "steps": total - (int(rewound * total) if level else 0),
        "status": status,
    }


@functools.cache
def processor() -> str:
    """Name the processor: kernels of one instruction set still round differently on another."""
    wanted = {"vendor_id": "", "cpu family": "family ", "model": "model "}
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        found = {name.strip(): value.strip() for name, _, value in lines}
        if wanted.keys() <= found.keys():
            return "cpu " + " ".join(f"{said}{found[name]}" for name, said in wanted.items())
    return f"cpu {platform.machine()}"


def describe(trajectory: Trajectory, dataset: Source, network: Network, device: torch.device) -> dict[str, Any]:
    """Give the columns that all records of a trajectory share: what it is and what it was computed with."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {
        "trajectory": trajectory.key,
        "family": trajectory.family,
        "dataset": trajectory.dataset,
        "classes": dataset.classes,
        "input_shape": list(dataset.input_shape),
        "depth": trajectory.depth,
        "width": trajectory.width,
        "dataset_size": trajectory.dataset_size,
        "replicate": trajectory.replicate,
        "subset_id": trajectory.subset_id,
        "prunable": network.prunable,
        "parameters": len(network.values),
        "protocol": trajectory.protocol.name,
        "protocol_hash": protocol_hash(trajectory.protocol),
        "precision": "float32",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "versions": json.dumps(versions, sort_keys=True),
    }
