"""Iterative magnitude pruning with rewinding: run it, keep every record, make run tables.

Names are loaded when they are first used, so that importing the package needs no torch.
"""

import importlib
from typing import Any

_WHERE = {
    "ImpRunsError": "errors",
    "Protocol": "config",
    "Trajectory": "config",
    "Sweep": "config",
    "load_sweep": "config",
    "Store": "store",
    "load_dataset": "datasets",
    "run_trajectory": "imp",
    "run_sweep": "sweep",
    "Status": "status",
    "status_of": "status",
    "plot_measured": "watch",
    "write_table": "table",
    "bench": "costs",
    "estimate": "costs",
    "make_table": "table",
    "recorded_sweeps": "table",
}
__all__ = [
    "ImpRunsError",
    "Protocol",
    "Status",
    "Store",
    "Sweep",
    "Trajectory",
    "bench",
    "estimate",
    "load_dataset",
    "load_sweep",
    "make_table",
    "plot_measured",
    "recorded_sweeps",
    "run_sweep",
    "run_trajectory",
    "status_of",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'imp_runs' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"imp_runs.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
