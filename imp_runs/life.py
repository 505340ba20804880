"""Signs of life of a running trajectory, and the wish that it stop: what other processes and people see of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imp_runs.files import write_quickly

#: Seconds between two signs of life, and after which one is stale.
EVERY, STALE = 10.0, 60.0


class Life:
    """Leave signs of life in a file, at most one in `EVERY` seconds.

    Args:
        path: The file, `running.json` of a trajectory; none where another process leaves them.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._last, self._began = path, float("-inf"), time.time()

    def show(self, **where: Any) -> None:
        """Say where the run is; a disk that is full or read-only is not the concern of this."""
        now = time.monotonic()
        if self._path is None or now - self._last < EVERY:
            return
        self._last = now
        who = {"host": socket.gethostname(), "process": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
        content = who | where | {"began": self._began, "updated": time.time()}
        with contextlib.suppress(OSError):
            write_quickly(self._path, json.dumps(content).encode())

    def end(self) -> None:
        """Leave no sign of life."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def read_life(path: Path) -> dict[str, Any] | None:
    """Read a sign of life; nothing where there is none, or where one is just being written."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def alive(path: Path) -> bool:
    """Say whether a sign of life is fresh."""
    content = read_life(path)
    return content is not None and time.time() - float(content.get("updated", 0)) < STALE


_ASKED: list[int] = []


def asked_to_stop() -> bool:
    """Say whether this process got one of the signals of `stopping_on_signals`."""
    return bool(_ASKED)


def forget() -> None:
    """Forget that a stop was asked for: the process goes on with something else."""
    _ASKED.clear()


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Let SIGTERM, SIGUSR1, SIGUSR2 and SIGINT ask for a stop at the next step instead of ending this process.

    Schedulers send them some time before they kill: Slurm at pre-emption and before a time limit.
    """
    names = [name for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), lambda number, _: _ASKED.append(number)) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
