"""Curves measured so far, drawn while a sweep runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imp_runs.files import check_output
from imp_runs.status import status_of
from imp_runs.store import Store
from imp_runs.table import make_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Panels of a figure at most; those with the largest networks and most data are left out.
PANELS = 12
ENDINGS = (".pdf", ".png", ".svg")


def plot_measured(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw measured error against density, one panel per depth and dataset size, one colour per width.

    Args:
        table: Run table, with at least one row.
        title: What stands above.

    Returns:
        The figure; every trajectory is one line, levels are points.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    kinds = list(table.groupby(["family", "dataset", "depth", "dataset_size"]))[:PANELS]
    columns = math.isqrt(len(kinds) - 1) + 1
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    widths = sorted(table["width"].unique())
    colours = {width: colormaps["viridis"](0.9 * place / max(len(widths) - 1, 1)) for place, width in enumerate(widths)}
    lines: dict[Any, Any] = {}
    for ax, (kind, here) in zip(axes, kinds, strict=False):
        for (width, _), run in here.groupby(["width", "trajectory"]):
            smallest = 0.5 / run["n_test"]
            (line,) = ax.plot(
                run["density"], run["error"].clip(lower=smallest), ".-", color=colours[width], lw=0.8, ms=3, alpha=0.8
            )
            lines.setdefault(width, line)
        family, dataset, depth, size = kind
        ax.set(xscale="log", yscale="log")
        ax.set_title(f"{family} on {dataset}: depth {depth}, n = {size}", fontsize=9)
    for ax in axes[len(kinds) :]:
        ax.set_visible(False)
    figure.supxlabel("density (fraction of weights kept)", fontsize=9)
    figure.supylabel("test error (fraction)", fontsize=9)
    shown = [lines[width] for width in widths if width in lines]
    labels = [f"width {width}" for width in widths if width in lines]
    figure.legend(shown, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def save_whole(figure: Figure, path: str | Path) -> Path:
    """Write a figure so that who looks at it while it is refreshed sees all of it.

    Raises:
        ImpRunsError: It cannot be written there.
    """
    path = check_output(path, "figure", ENDINGS)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
    return path


def watch(
    store: str | Path,
    draw: Callable[[pd.DataFrame, str], Figure] = plot_measured,
    *,
    output: str | Path,
    every: float = 30.0,
    once: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Draw what a store has measured, again and again until nothing runs or waits any more.

    Args:
        store: The store, its folder or URL.
        draw: Makes the figure from the run table and a title.
        output: Figure to write (.png, .pdf, .svg), whole each time.
        every: Seconds between two drawings.
        once: Draw once.
        say: Takes the status, each time.

    Raises:
        ImpRunsError: The folder is no store, a file in it is damaged, or the figure cannot be written there.
    """
    check_output(output, "figure", ENDINGS)
    opened = Store(store)
    while True:
        status, table = status_of(opened), make_table(opened)
        drawn = ""
        if len(table):
            left = "" if status.seconds is None else f", {len(status.running)} running, {status.records} records"
            title = f"{Path(str(store)).name}: {len(status.done)} trajectories done{left}"
            drawn = f"{save_whole(draw(table, title), output)} drawn at {time.strftime('%H:%M:%S')}"
        say(f"{status}\n{drawn}".rstrip())
        if once or not (status.running or status.waiting):
            return
        time.sleep(every)
