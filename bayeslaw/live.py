"""Run networks live: the one place where `bayeslaw` calls `imp_runs`, and only when asked to."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import ROUND
from bayeslaw.sweep_file import check_rounds, read_sweep, toml_of, write_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayeslaw.posterior import Fit


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
        _need_torch()
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
        return _table_of(self.store)

    def stop(self) -> None:
        """End the run; what it has recorded stays."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.communicate()


class Live:
    """Run networks with `imp-runs` on this machine.

    Args:
        template: TOML file of a sweep: family, dataset and protocol.
        store: Folder for the records.
        data_dir: Folder of the dataset, if it is none of scikit-learn's.
        arguments: More arguments of `imp-runs sweep`, such as `("--device", "cpu")`.

    Raises:
        BayeslawError: The template is no sweep, or the runner is not installed.
    """

    def __init__(
        self,
        template: str | Path,
        store: str | Path,
        *,
        data_dir: str | Path | None = None,
        arguments: Iterable[str] = (),
    ) -> None:
        _need_torch()
        self._template, self._store, self._data_dir = Path(template), Path(store), data_dir
        where = () if data_dir is None else ("--data-dir", str(data_dir))
        self._arguments = (*where, *arguments)
        self._content = read_sweep(template)

    def describe(self) -> pd.DataFrame:
        """Say what the runs of the template will have in common, with the lowest density that any of them goes to.

        Raises:
            BayeslawError: The template is no sweep, its rounds are none of 20 %, or its dataset is missing.
        """
        from imp_runs.config import sweep_from_dict
        from imp_runs.datasets import load_dataset

        check_rounds(self._content, self._template)
        with _told():
            trajectories = sweep_from_dict(self._content, where=str(self._template)).trajectories
            trajectory = max(trajectories, key=lambda one: one.last_level)
            dataset = load_dataset(trajectory.dataset, pool=trajectory.pool, data_dir=self._data_dir)
        row = {"family": trajectory.family, "dataset": trajectory.dataset}
        row |= {"classes": dataset.classes, "input_shape": dataset.input_shape}
        density = math.exp(-ROUND * trajectory.last_level)
        return pd.DataFrame([row | {"epochs": trajectory.protocol.epochs, "density": density}])

    def available(self, candidates: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Keep all: there is always one more seed."""
        return candidates

    def run(self, chosen: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Run the next replicates, and give the rows that were not there before, of runs that did not diverge at once.

        Raises:
            BayeslawError: A run failed; the message is the runner's.
        """
        path = self._store.parent / f"{self._store.name}_next.toml"
        write_sweep(path, chosen, template=self._template, runs=pd.concat([runs, self._diverged()]))
        command = [sys.executable, "-m", "imp_runs.cli", "sweep", str(path), "--store", str(self._store)]
        done = subprocess.run(
            [*command, *self._arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env=os.environ | {"TQDM_DISABLE": "1"}, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BayeslawError(f"the sweep {path} failed: {done.stderr.strip()}")
        table = _table_of(self._store)
        known = {*(runs["trajectory"] if len(runs) else ()), *self._diverged()["trajectory"]}
        return table[~table["trajectory"].isin(known)]

    def _diverged(self) -> pd.DataFrame:
        """Give the rows of runs that diverged before the first round, which no run table has; their seeds are used."""
        if not (self._store / "store.json").exists():
            return pd.DataFrame({"trajectory": []})
        table = _table_of(self._store)
        return table[(table["status"] == "diverged") & (table["level"] == 0)]


def watch(
    store: str | Path,
    fit: Fit,
    *,
    output: str | Path,
    every: float = 30.0,
    once: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Draw what a store of the runner has measured over a law's bands, again and again while something runs or waits.

    Args:
        store: Folder or URL of the store.
        fit: The posterior; its family and dataset are those of the runs.
        output: Figure to write (.png, .pdf, .svg).
        every: Seconds between two drawings.
        once: Draw once.
        say: Takes the status, each time.

    Raises:
        BayeslawError: The store cannot be read, or its runs are of another family or dataset than the fit's.
    """
    from imp_runs.watch import watch as run

    with _told():
        run(
            store, lambda table, title: plot_over_bands(fit, table, title),
            output=output, every=every, once=once, say=say,
        )  # fmt: skip


def plot_over_bands(fit: Fit, runs: pd.DataFrame, title: str = "", *, panels: int = 12) -> Figure:
    """Draw measured runs over the bands that a fit gives to their networks, one panel per network.

    Args:
        fit: The posterior.
        runs: Run table of the fit's family and dataset.
        title: What stands above.
        panels: Networks at most, those measured furthest.

    Returns:
        The figure.

    Raises:
        BayeslawError: The runs are of another family or dataset.
    """
    from matplotlib.figure import Figure

    from bayeslaw.frame import CONFIGURATION
    from bayeslaw.plots import plot_curve

    ours = (fit.frame.family.name, fit.frame.dataset)
    found = runs[["family", "dataset"]].drop_duplicates().itertuples(index=False, name=None)
    if others := sorted(f"{family} on {dataset}" for family, dataset in found if (family, dataset) != ours):
        raise BayeslawError(
            f"the store holds runs of {', '.join(others)}, the fit is of {ours[0]} on {ours[1]}; "
            "give a fit of these runs."
        )
    rows = runs.groupby(CONFIGURATION).size().sort_values(ascending=False, kind="stable")
    chosen = sorted(rows.index[:panels])
    columns = math.isqrt(len(chosen) - 1) + 1
    figure = Figure(figsize=(4.2 * columns, 3.2 * -(-len(chosen) // columns) + 0.4), layout="constrained")
    axes = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).ravel()
    for ax, (depth, width, dataset_size) in zip(axes, chosen, strict=False):
        plot_curve(fit, depth=depth, width=width, dataset_size=dataset_size, runs=runs, ax=ax)
        ax.set_title(f"depth {depth}, width {width:g}, n = {dataset_size}", fontsize=9)
        ax.set(xlabel="", ylabel="")
        ax.get_legend().remove()
    for ax in axes[len(chosen) :]:
        ax.set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.supxlabel("density (fraction of weights kept)", fontsize=9)
    figure.supylabel("test error (fraction)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _table_of(store: Path) -> pd.DataFrame:
    from imp_runs.table import make_table

    with _told():
        return make_table(store)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise the runner's errors as ours."""
    from imp_runs.errors import ImpRunsError

    try:
        yield
    except ImpRunsError as error:
        raise BayeslawError(str(error)) from None


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise BayeslawError("live runs need PyTorch: install the extra, pip install 'bayeslaw[imp]'.")
