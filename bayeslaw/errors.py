"""The exceptions that `bayeslaw` raises for bad input, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class BayeslawError(ValueError):
    """Say what was wrong, where, what is allowed and what to do next.

    Example:
        >>> from bayeslaw.runs import load_runs
        >>> load_runs("runs.xlsx")
        Traceback (most recent call last):
            ...
        bayeslaw.errors.BayeslawError: runs.xlsx: a run table is read from .parquet or .csv; save it as one of these.
    """


class OutOfReachError(BayeslawError):
    """Say that no start meets the target or the budget, and how close one can get."""


class RunTableError(BayeslawError):
    """Report all that is wrong with a run table at once.

    Args:
        message: The faults, grouped, and what to do about them.
        faults: All of them, one a row, with the columns `row` (position among the data rows as the user gave them,
            counted from 0; missing where the whole column is meant), `column` (our name), `value` (as it was found)
            and `rule` (what it must be).

    Example:
        >>> import pandas as pd
        >>> from bayeslaw.runs import load_runs
        >>> runs = {"depth": 8, "width": 4, "dataset_size": 1000, "density": [1.0, 80.0], "error": [0.1, -0.2]}
        >>> try:
        ...     load_runs(pd.DataFrame(runs))
        ... except RunTableError as error:
        ...     print(error.faults)
           row   column value       rule
        0    1  density  80.0  in (0, 1]
        1    1    error  -0.2  in [0, 1]
    """

    def __init__(self, message: str, faults: pd.DataFrame) -> None:
        super().__init__(message)
        self.faults = faults

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the exception travel between processes with its faults."""
        return type(self), (str(self), self.faults)
