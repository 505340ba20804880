"""What `imp_runs` raises: one exception for bad input, and three kinds of it that a sweep goes on after."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


class ImpRunsError(ValueError):
    """Say what was wrong, where, what is allowed and what to do next."""


class DamagedError(ImpRunsError):
    """Say that a file of a store is not what was written; `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return DamagedError, (self.path, str(self))


class BusyError(ImpRunsError):
    """Say that another process is running the same trajectory."""


class StoppedError(ImpRunsError):
    """Say that a run was asked to stop and has kept where it is."""


def optional(module: str, extra: str) -> Any:
    """Import a library that comes with an extra, or raise an `ImpRunsError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImpRunsError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'bayeslaw[imp,{extra}]'."
        ) from None
