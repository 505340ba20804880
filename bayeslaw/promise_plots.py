"""Figures of what plans promised and what came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslaw.plots import BAND, LINE, POINT, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bayeslaw.plan_evaluation import PlanEvaluation


def plot_looked_up(evaluation: PlanEvaluation, *, ax: Axes | None = None) -> Axes:
    """Draw the sizes that were planned for hidden networks, with what new runs would show, against those measured.

    Args:
        evaluation: What `bayeslaw.evaluate_plans` gave.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes: a point for every hidden network that was asked about and reached the target, its 90 % interval (to
        the edge where it has no end), optima in orange, and the band of 25 % around equality.
    """
    ax = new_axes(ax, (5.4, 5.0))
    rows = evaluation.starts[evaluation.starts["asked"] & np.isfinite(evaluation.starts["size"])]
    ends = [rows["size"].min() / 1.5, rows[["size", "median"]].replace(np.inf, np.nan).max().max() * 2]
    upper = rows["upper_90"].clip(upper=10 * ends[1])
    best = ((rows["depth"] == rows["best_depth"]) & (rows["width"] == rows["best_width"])).to_numpy()
    ax.fill_between(ends, [0.75 * end for end in ends], [1.25 * end for end in ends], color="0.9", lw=0, label="25 %")
    ax.plot(ends, ends, ":", color="0.5")
    for own, color, name in ((~best, LINE, "neighbour of the optimum"), (best, POINT, "optimum")):
        part = rows[own]
        ax.vlines(part["size"], part["lower_90"], upper[own], color=BAND if color == LINE else color, lw=1)
        ax.plot(part["size"], part["median"], "o", color=color, ms=4, ls="", label=f"{name}, 90 % of recordings")
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=(ends[0] / 2, ends[1] * 2))
    ax.set(xlabel="measured, non-zero parameters", ylabel="planned from the other networks, non-zero parameters")
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_reliability(table: pd.DataFrame) -> Figure:
    """Draw what came against what was promised, in bins, a panel for each kind of probability.

    Args:
        table: `PlanCheck.reliability`.

    Returns:
        The figure; points are as large as they have promises, with 90 % intervals over worlds.
    """
    from matplotlib.figure import Figure

    kinds = table["kind"].unique()
    figure = Figure(figsize=(3.4 * len(kinds), 3.4), layout="constrained")
    for ax, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        own = table[table["kind"] == kind]
        ax.plot([0, 1], [0, 1], ":", color="0.5")
        ax.vlines(own["promised"], own["lower"], own["upper"], color=LINE)
        ax.scatter(own["promised"], own["came"], 10 + 90 * own["count"] / own["count"].max(), color=LINE)
        ax.set(xlabel="promised probability", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_title(f"P({kind})")
    figure.axes[0].set_ylabel("share that came")
    return figure
