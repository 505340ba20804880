"""Iterative magnitude pruning with rewinding: the state machine of one trajectory."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from imp_runs.config import Trajectory, protocol_hash
from imp_runs.errors import StoppedError
from imp_runs.examples import Source
from imp_runs.network import Network, State
from imp_runs.prune import prune
from imp_runs.steps import choose_kernels, choose_steps, count_wrong, make_steps, name_kernels
from imp_runs.store import Checkpoint, Inside, Store
from imp_runs.train import check_size, subset, train
from imp_runs.workers import device_name

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
        stop: Asked after every step and between test batches; when it says yes, a checkpoint inside the level is
            written and the run ends.

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
    check_size(dataset, trajectory)
    if store.is_whole(trajectory.key):
        return []
    with store.locked(trajectory):
        mended = store.mend(trajectory.key)
        levels = Levels(trajectory, dataset, store, torch.device(device), stop)
        checkpoint = levels.first()
        try:
            while checkpoint is not None:
                level, checkpoint = checkpoint.level, _run_level(levels, checkpoint, kernels)
                if progress:
                    progress(1 if checkpoint else 1 + trajectory.last_level - level)
        finally:
            levels.watch.life.end()
    return mended


def _run_level(levels: Levels, begun: Checkpoint, kernels: str) -> Checkpoint | None:
    """Train a level from a checkpoint, and finish it."""
    trajectory, network, inside = levels.trajectory, levels.network, begun.inside
    levels.begin(begun)
    chosen = choose_steps(trajectory, network, kernels)
    steps = make_steps(chosen, network, trajectory.protocol, levels.dataset.input_shape)
    if inside:
        steps.velocity = inside.velocity

    def after_step(step: int, rewind_state: State) -> None:
        if levels.watch.is_due(step):
            levels.watch.keep(step, rewind_state, network, steps.velocity)
            levels.watch.stop_if_asked(step)

    state = train(steps, levels.examples, trajectory, begun.level, after_step=after_step, **levels.schedule(begun))
    wrong = count_wrong(steps, levels.dataset, lambda: after_step(levels.steps, state))
    return levels.finish(begun, state, wrong, name_kernels(chosen, trajectory, levels.dataset, levels.device))


class Levels:
    """Begin and finish the levels of a trajectory, each from the checkpoint that the one before it has left.

    Args:
        trajectory: What is run, owned by this process (`Store.locked`).
        dataset: Its dataset.
        store: Where records and checkpoints go.
        device: Where it is computed.
        stop: Asked after every step; when it says yes, the run is to end.
    """

    def __init__(
        self, trajectory: Trajectory, dataset: Source, store: Store, device: torch.device, stop: Callable[[], bool]
    ) -> None:
        choose_kernels(trajectory, dataset, device)
        self.trajectory, self.device, self._store = trajectory, device, store
        self.steps = trajectory.protocol.steps(trajectory.dataset_size)
        self.dataset = dataset.to(device)
        self.examples = subset(self.dataset, trajectory)
        self.network = make_network(trajectory, dataset, device)
        self.watch = Watch(trajectory, store, stop)

    def first(self) -> Checkpoint | None:
        """Give what is to be gone on with, or the beginning; nothing where all that was left to do is to say so."""
        key, network = self.trajectory.key, self.network
        if (last := self._store.last_record(key)) and self._is_last(last["level"], last["status"]):
            self._store.mark_done(key, levels=last["level"], status=last["status"])
            return None
        beginning = Checkpoint(0, network.state(), torch.ones_like(network.mask))
        return self._store.read_checkpoint(key, recorded=True) or beginning

    def _is_last(self, level: int, status: str) -> bool:
        """Say whether a level that ended so has none after it."""
        return status != "trained" or level == self.trajectory.last_level

    def begin(self, begun: Checkpoint, *, share: float = 1.0) -> None:
        """Bring the network to where a level begins, or was interrupted; `share` is its part of the time spent."""
        self.watch.begin(begun, share)
        self.network.rewind(begun.inside.state if begun.inside else begun.state, begun.mask)

    def schedule(self, begun: Checkpoint) -> dict[str, Any]:
        """Say from where `train` goes on, as its arguments."""
        protocol, level, inside = self.trajectory.protocol, begun.level, begun.inside
        return {
            "start": int(protocol.rewind * self.steps) if level else 0,
            "taken": inside.step if inside else None,
            "rewind_state": begun.state if level or inside else None,
        }

    def finish(self, begun: Checkpoint, state: State, wrong: int, computed_by: str) -> Checkpoint | None:
        """Record a trained level and prune; give the checkpoint of the next one, or nothing after the last.

        That checkpoint is written before the record, and counts only once that is there: a level whose record is
        written is never computed again, whatever computes the next one.

        Args:
            begun: What the level began from.
            state: What the next one rewinds to.
            wrong: Test images that the network gets wrong.
            computed_by: The kernels.
        """
        key, protocol, level, network = self.trajectory.key, self.trajectory.protocol, begun.level, self.network
        following = protocol.kept_after(network.kept)
        status = "exhausted" if following in (0, network.kept) else "trained"
        if not torch.isfinite(network.values).all():
            status = "diverged"
        record = describe(self.trajectory, self.dataset, network, self.device)
        record |= {"kernels": computed_by}
        record |= _result(self.trajectory, network, wrong, len(self.dataset.test_labels), level, status)
        record |= {"seconds": self.watch.seconds}
        if self._is_last(level, status):
            self._store.write_record(key, level, record)
            self._store.mark_done(key, levels=level, status=status)
            return None
        checkpoint = Checkpoint(level + 1, state, prune(network.weights, network.mask, following))
        self._store.write_checkpoint(key, checkpoint, pending=True)
        self._store.write_record(key, level, record)
        self._store.drop_checkpoints(key, below=checkpoint.level)
        return checkpoint


class Watch:
    """Look after a level: leave a sign of life, keep a checkpoint now and then, and stop when asked to."""

    def __init__(self, trajectory: Trajectory, store: Store, stop: Callable[[], bool]) -> None:
        self.life = store.life(trajectory.key)
        self._key, self._store, self._stop = trajectory.key, store, stop
        self._steps = trajectory.protocol.steps(trajectory.dataset_size)
        self._kept, self._asked = time.monotonic(), False

    def begin(self, begun: Checkpoint, share: float) -> None:
        """Begin a level, or go on inside it."""
        self._level, self._mask, self._share, inside = begun.level, begun.mask, share, begun.inside
        self._before, self._began = inside.seconds if inside else 0.0, time.perf_counter()
        self.life.show(level=self._level, step=inside.step if inside else 0, steps=self._steps)

    @property
    def seconds(self) -> float:
        """Time spent on the level so far, interruptions not counted."""
        return self._before + self._share * (time.perf_counter() - self._began)

    def is_due(self, step: int) -> bool:
        """Leave a sign of life, ask whether to stop, and say whether a checkpoint is to be kept."""
        self.life.show(level=self._level, step=step, steps=self._steps)
        self._asked = self._stop()
        return self._asked or time.monotonic() - self._kept > CHECKPOINT_EVERY

    def keep(self, step: int, rewind_state: State, network: Network, velocity: torch.Tensor) -> None:
        """Write a checkpoint inside the level."""
        inside = Inside(step, self.seconds, network.state(), velocity)
        self._store.write_checkpoint(self._key, Checkpoint(self._level, rewind_state, self._mask, inside))
        self._kept = time.monotonic()

    def stop_if_asked(self, step: int) -> None:
        """End the run, once its checkpoint is written, where a stop was asked for."""
        if self._asked:
            raise StoppedError(
                f"{self._key}: stopped at step {step} of level {self._level}; the next start goes on there."
            )


def _result(
    trajectory: Trajectory, network: Network, wrong: int, tested: int, level: int, status: str
) -> dict[str, Any]:
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
        "precision": trajectory.protocol.precision,
        "device": device_name(device),
        "versions": json.dumps(versions, sort_keys=True),
    }
