"""The run table: one row per (trajectory, level), the contract with whoever reads it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from imp_runs.errors import ImpRunsError
from imp_runs.files import check_output
from imp_runs.store import Store

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the run table, in order.
COLUMNS = (
    "trajectory", "family", "dataset", "classes", "input_shape", "depth", "width", "dataset_size", "replicate",
    "subset_id", "level", "density", "kept", "prunable", "parameters", "nonzero", "kept_by_layer", "nonzero_macs",
    "error", "n_wrong", "n_test", "epochs", "steps", "status", "protocol", "protocol_hash", "precision", "device",
    "kernels", "versions", "seconds",
)  # fmt: skip
#: Of the files it can be written to.
ENDINGS = (".parquet", ".csv")
#: Rows that become a part of the table at once; lists of Python objects take far more memory than a table.
_TOGETHER = 10_000
_ORDER = ["family", "dataset", "depth", "width", "dataset_size", "replicate", "level"]


def make_table(store: Store | str | Path) -> pd.DataFrame:
    """Collect the records of a store.

    Args:
        store: The store or its folder.

    Returns:
        A DataFrame with `COLUMNS`, one row per finished (trajectory, level), ordered by family, dataset, depth, width,
        dataset size, replicate and level. Trajectories that have begun but not ended are there as far as they got.

    Raises:
        ImpRunsError: The folder is no store, or a record is damaged.
    """
    import pandas as pd

    store = store if isinstance(store, Store) else Store(store)
    parts, rows = [pd.DataFrame([], columns=list(COLUMNS))], []
    for key, records in store.all_records():
        for record in records:
            if lacking := [column for column in COLUMNS if column not in record]:
                raise ImpRunsError(
                    f"{store.folder(key)}: the record of level {record.get('level')} lacks {', '.join(lacking)}; "
                    "move the file away and run the sweep again: the level is recomputed."
                )
            rows.append([record[column] for column in COLUMNS])
        if len(rows) > _TOGETHER:
            parts.append(pd.DataFrame(rows, columns=list(COLUMNS)))
            rows = []
    if rows:
        parts.append(pd.DataFrame(rows, columns=list(COLUMNS)))
    table = pd.concat(parts[1:]) if parts[1:] else parts[0]
    return table.sort_values(_ORDER, kind="stable", ignore_index=True)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a run table to Parquet or, by its ending, CSV; whole or not at all.

    Raises:
        ImpRunsError: It cannot be written there.
    """
    path = check_output(path, "table", ENDINGS)
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".parquet":
        table.to_parquet(temporary, index=False)
    else:
        table.to_csv(temporary, index=False)
    temporary.replace(path)


def recorded_sweeps() -> list[str]:
    """List the sweeps whose tables come with the package."""
    folder = resources.files("imp_runs") / "recorded"
    return sorted(item.name.removesuffix(".parquet") for item in folder.iterdir() if item.name.endswith(".parquet"))
