"""Trajectories in a worker of any engine: run one, or a pack, and say how each ended."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imp_runs.config import Trajectory
from imp_runs.errors import BusyError, ImpRunsError, StoppedError
from imp_runs.life import asked_to_stop, stopping_on_signals
from imp_runs.packing import ALONE, Way
from imp_runs.store import Store


@dataclass(frozen=True)
class Settings:
    """Say how trajectories are computed.

    Attributes:
        data_dir: Where the data lie.
        device: On what.
        kernels: With which kernels; stacks are PyTorch's.
        pack: How many networks are stacked where one process runs several alike (`imp_runs.packing.Choices`).
        streams: How many stacks are computed side by side.
    """

    data_dir: str | Path | None = None
    device: str = "cpu"
    kernels: str = "auto"
    pack: int | None = 1
    streams: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Say how a run ended.

    Attributes:
        key: The trajectory.
        state: `"done"`, `"failed"`, `"busy"` (another process runs it) or `"stopped"` (asked to, and it can go on).
        reason: Why, unless it is done.
        mended: What was damaged in the store and has been computed again.
    """

    key: str
    state: str
    reason: str = ""
    mended: tuple[str, ...] = ()


def work(trajectory: Trajectory, store: str | Path, settings: Settings) -> Outcome:
    """Run a trajectory; whatever goes wrong is written down in its folder and given back, never raised.

    Args:
        trajectory: What is run.
        store: Where.
        settings: How.

    Returns:
        How it ended.
    """
    return work_all([trajectory], store, settings, ALONE)[0]


def work_all(trajectories: Sequence[Trajectory], store: str | Path, settings: Settings, way: Way) -> list[Outcome]:
    """Run trajectories like `work`: one, or several that may be trained together.

    Args:
        trajectories: What is run.
        store: Where.
        settings: How.
        way: How they are trained together, or one by one.

    Returns:
        How each ended.
    """
    with stopping_on_signals():
        ended: Mapping[str, Sequence[str] | Exception]
        try:
            ended = _run(trajectories, store, settings, way)
        except Exception as error:
            ended = {trajectory.key: error for trajectory in trajectories}
        return [_outcome(trajectory, store, ended[trajectory.key]) for trajectory in trajectories]


def _run(
    trajectories: Sequence[Trajectory], store: str | Path, settings: Settings, way: Way
) -> Mapping[str, Sequence[str] | Exception]:
    first = trajectories[0]
    if asked_to_stop():
        raise StoppedError(f"{first.key}: stopped before it began.")
    from imp_runs.workers import dataset_of

    opened = Store(store, first.protocol)
    dataset = dataset_of(first.dataset, first.pool, settings.data_dir)
    if way != ALONE:
        from imp_runs.pack import run_pack

        return run_pack(trajectories, dataset, opened, way, device=settings.device, stop=asked_to_stop)
    from imp_runs.imp import run_trajectory

    options = {"device": settings.device, "kernels": settings.kernels, "stop": asked_to_stop}
    return {t.key: run_trajectory(t, dataset, opened, **options) for t in trajectories}


def _outcome(trajectory: Trajectory, store: str | Path, ended: Sequence[str] | Exception) -> Outcome:
    if not isinstance(ended, Exception):
        return Outcome(trajectory.key, "done", mended=tuple(ended))
    if isinstance(ended, StoppedError | BusyError):
        return Outcome(trajectory.key, "stopped" if isinstance(ended, StoppedError) else "busy", str(ended))
    return fail(trajectory, store, reason_of(ended), "".join(traceback.format_exception(ended)))


def fail(trajectory: Trajectory, store: str | Path, reason: str, details: str = "") -> Outcome:
    """Write down that a trajectory failed, where the store can still be written, and say which file to open.

    One that had ended before is done, whatever happened to those that were run with it.
    """
    with contextlib.suppress(OSError, ImpRunsError):
        opened = Store(store, trajectory.protocol)
        if opened.is_whole(trajectory.key):
            return Outcome(trajectory.key, "done")
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        path = opened.mark_failed(trajectory.key, reason, f"{when}\n{trajectory}\n{details}")
        reason = f"{reason} (open {path})"
    return Outcome(trajectory.key, "failed", reason)


def reason_of(error: BaseException) -> str:
    """Say in one sentence what went wrong, and what to do where that is known."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, ImpRunsError):
        return str(error)
    out = "OutOfMemoryError", "can't allocate memory"
    if isinstance(error, MemoryError) or type(error).__name__ == out[0] or out[1] in str(error):
        return f"out of memory ({text.strip()}): run fewer workers at once, or choose a smaller batch_size"
    if isinstance(error, OSError):
        return f"{text}: make room or make it writable, then run the sweep again"
    return f"{type(error).__name__}: {text}"
