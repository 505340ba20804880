"""One trajectory in a worker of any engine: run it, and say how it ended."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from imp_runs.config import Trajectory
from imp_runs.errors import BusyError, ImpRunsError, StoppedError
from imp_runs.life import asked_to_stop, stopping_on_signals
from imp_runs.store import Store


@dataclass(frozen=True)
class Settings:
    """Say how trajectories are computed: where the data lie, on what, and with which kernels."""

    data_dir: str | Path | None = None
    device: str = "cpu"
    kernels: str = "auto"


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
    with stopping_on_signals():
        try:
            return Outcome(trajectory.key, "done", mended=_run(trajectory, store, settings))
        except StoppedError as error:
            return Outcome(trajectory.key, "stopped", str(error))
        except BusyError as error:
            return Outcome(trajectory.key, "busy", str(error))
        except Exception as error:
            return fail(trajectory, store, reason_of(error), traceback.format_exc())


def _run(trajectory: Trajectory, store: str | Path, settings: Settings) -> tuple[str, ...]:
    if asked_to_stop():
        raise StoppedError(f"{trajectory.key}: stopped before it began.")
    from imp_runs.imp import run_trajectory
    from imp_runs.workers import dataset_of

    opened = Store(store, trajectory.protocol)
    dataset = dataset_of(trajectory.dataset, trajectory.pool, settings.data_dir)
    mended = run_trajectory(
        trajectory, dataset, opened, device=settings.device, kernels=settings.kernels, stop=asked_to_stop
    )
    return tuple(mended)


def fail(trajectory: Trajectory, store: str | Path, reason: str, details: str = "") -> Outcome:
    """Write down that a trajectory failed, where the store can still be written, and say which file to open."""
    with contextlib.suppress(OSError, ImpRunsError):
        opened = Store(store, trajectory.protocol)
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
