"""Run networks live: the one place where `bayeslaw` calls `imp_runs`, and only when asked to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslaw.errors import BayeslawError
from bayeslaw.sweep_file import read_sweep, toml_of

if TYPE_CHECKING:
    import pandas as pd


class LiveRun:
    """Train and prune one network in a process of its own, on one core, while the caller does something else.

    Args:
        row: A row of a run table that names the network (family, dataset, depth, width, dataset_size, replicate).
        sweep: TOML file of the sweep whose protocol is used.
        store: Folder for the records.

    Raises:
        BayeslawError: The runner is not installed.
    """

    def __init__(self, row: pd.Series, sweep: Path, store: Path) -> None:
        import importlib.util

        if importlib.util.find_spec("torch") is None:
            raise BayeslawError("live runs need PyTorch: install the extra, pip install 'bayeslaw[imp]'.")
        content = read_sweep(sweep)
        grid = content["grid"] | {name: [int(row[name])] for name in ("depth", "width", "dataset_size")}
        grid["replicates"] = 1
        self.store = store
        self._file = store.parent / f"{store.name}.toml"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(toml_of({"name": content["name"], "grid": grid, "protocol": content["protocol"]}))
        command = [sys.executable, "-m", "imp_runs.cli", "sweep", str(self._file), "--store", str(store)]
        environment = os.environ | {"TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            [*command, "--device", "cpu", "--workers", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def wait(self) -> pd.DataFrame:
        """Wait for the end and give the run table.

        Raises:
            BayeslawError: The run failed; the message is the runner's.
        """
        _, error = self._process.communicate()
        if self._process.returncode:
            raise BayeslawError(f"the live run failed: {error.strip()}")
        from imp_runs.table import make_table

        return make_table(self.store)

    def stop(self) -> None:
        """End the run; what it has recorded stays."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.communicate()
