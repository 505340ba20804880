"""Figures: predicted beside measured, with intervals, readable as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslaw.frame import CONFIGURATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bayeslaw.checking import Check
    from bayeslaw.posterior import Fit

#: Colours of intervals, of medians, and of what was measured or needs notice.
BAND, LINE, POINT = "#9ecae1", "#08519c", "#d94801"


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.4)) -> Axes:
    """Make a figure with one panel, where no axes are given."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").add_subplot()


def save_figure(ax: Axes, path: str | Path) -> Path:
    """Write the figure of some axes; the ending chooses the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _figure(ax).savefig(path, dpi=150)
    return path


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def curve_densities(lowest: float, points: int = 60) -> np.ndarray:
    """Space densities evenly in the logarithm, from 1 down to the lowest."""
    return np.geomspace(1.0, lowest, points)


def lowest_density(runs: pd.DataFrame) -> float:
    """Give the lowest density measured; where nothing was, that of thirty rounds."""
    return 0.8**30 if runs.empty else float(runs["density"].min())


def plot_curve(
    fit: Fit,
    *,
    depth: int,
    width: float,
    dataset_size: int,
    runs: pd.DataFrame | None = None,
    interval: float = 0.9,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted error of one network against density, and measured runs over it.

    Args:
        fit: The posterior.
        depth: Depth of the network.
        width: Width of the network.
        dataset_size: Number of training examples.
        runs: Run table; its rows of this network are drawn as points.
        interval: Probability of the bands.
        seed: Seed of fresh effects.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes. The dark band is the configuration's mean curve, the light one a new run measured on the test set.
    """
    ax = new_axes(ax)
    measured = None
    if runs is not None:
        here = (runs[CONFIGURATION] == [depth, width, dataset_size]).all(axis=1)
        measured = runs[here]
    lowest = lowest_density(fit.runs if measured is None or measured.empty else measured)
    densities = curve_densities(lowest)
    designs = pd.DataFrame({"depth": depth, "width": width, "dataset_size": dataset_size, "density": densities})
    for kind, alpha, label in (("run", 0.35, "new run"), ("mean", 0.9, "mean curve")):
        table = fit.predict(designs, kind=kind, interval=interval, seed=seed)
        assert isinstance(table, pd.DataFrame)
        lower = table["lower"].clip(lower=1e-4)
        name = f"{label}, {interval:.0%} interval"
        ax.fill_between(densities, lower, table["upper"], color=BAND, alpha=alpha, lw=0, label=name)
        if kind == "mean":
            ax.plot(densities, table["median"], color=LINE, lw=1.5, label="median")
    if measured is not None and len(measured):
        ax.plot(measured["density"], measured["error"].clip(lower=1e-4), "o", color=POINT, ms=4, label="measured")
    ax.set(xscale="log", yscale="log", xlabel="density (fraction of weights kept)", ylabel="test error (fraction)")
    ax.set_title(f"{fit.frame.family.name} on {fit.frame.dataset}: depth {depth}, width {width:g}, n = {dataset_size}")
    ax.legend(frameon=False)
    return ax


def plot_posterior(fit: Fit, *, parameters: tuple[str, ...] = ("gamma", "phi", "psi", "p_prime")) -> Figure:
    """Draw the posterior of the law's parameters with their 90 % equal-tailed intervals.

    Args:
        fit: The posterior.
        parameters: Names of scalar parameters.

    Returns:
        The figure, one panel per parameter.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(2.6 * len(parameters), 2.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(parameters)))
    for ax, name in zip(axes, parameters, strict=True):
        draws = fit.posterior[name].to_numpy().ravel()
        lower, median, upper = np.quantile(draws, [0.05, 0.5, 0.95])
        ax.hist(draws, bins=50, density=True, color=BAND)
        ax.axvspan(lower, upper, color=LINE, alpha=0.12, lw=0)
        ax.axvline(median, color=LINE)
        ax.set(title=f"{median:.3g}  ({lower:.3g} to {upper:.3g})", xlabel=name, yticks=[])
        ax.title.set_fontsize(9)
        ax.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    figure.suptitle("posterior, median and 90 % interval", fontsize=10)
    return figure


def plot_ranks(check: Check) -> Figure:
    """Draw how the ranks of every quantity of a calibration check are distributed, less what uniform ranks have.

    Args:
        check: What `bayeslaw.check` gave.

    Returns:
        The figure, one panel per quantity: the ranks' distribution function less the uniform one, and the band that
        a quantity leaves with the family-wise level divided by the number of quantities (Bonferroni), if the code is
        correct. A curve above 0 on the left is a truth too often in the posterior's lower tail.

    Source:
        Saeilynoja, Buerkner, Vehtari, Statistics and Computing 2022.
    """
    from matplotlib.figure import Figure

    from bayeslaw.check_models import describe_fault
    from bayeslaw.checking import KEPT, LEVEL
    from bayeslaw.uniformity import counts_below, simultaneous_band

    names, total = list(check.ranks.columns), len(check.ranks)
    share = np.arange(1, KEPT + 1) / (KEPT + 1)
    low, high = (bound / total - share for bound in simultaneous_band(LEVEL / len(names), total, KEPT))
    columns = min(len(names), 4 if len(names) <= 8 else 6)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(0.5 + 2.3 * columns, 0.9 + 1.8 * rows), layout="constrained")
    panels = np.atleast_2d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for ax, name in zip(panels, names, strict=False):
        outside = bool(check.table.loc[name, "rejected"])
        difference = counts_below(check.ranks[name].to_numpy(), KEPT) / total - share
        ax.fill_between(share, low, high, color=BAND, alpha=0.6, lw=0, step="mid")
        ax.plot(share, difference, color=POINT if outside else LINE, lw=1.2, drawstyle="steps-mid")
        ax.axhline(0.0, color="0.5", lw=0.6)
        ax.set_title(f"{name}   p = {check.table.loc[name, 'p']:.2g}", fontsize=8, color=POINT if outside else "black")
        ax.tick_params(labelsize=7)
    for ax in panels[len(names) :]:
        ax.remove()
    for ax in panels[max(0, len(names) - columns) : len(names)]:
        ax.tick_params(labelbottom=True)
    verdict = "rejected" if check.rejected else "accepted"
    figure.suptitle(
        f"{check.model.title}: {total} data sets, fault: {describe_fault(check.fault)}; {verdict} at {LEVEL:.0%}\n"
        f"shaded: uniform ranks of all panels stay inside with {1 - LEVEL:.0%} or more",
        fontsize=10,
    )
    figure.supxlabel("rank of the truth among posterior draws, as a share", fontsize=9)
    figure.supylabel("distribution function less uniform", fontsize=9)
    return figure


def plot_learning_curve(table: pd.DataFrame) -> Figure:
    """Draw error, width and coverage of predictions against the number of configurations fitted.

    Args:
        table: What `bayeslaw.learning_curve` gave.

    Returns:
        The figure: every fit a dot, open where it failed the gate, with the mean of each number as a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    named = (
        ("deviation", "median |predicted / measured - 1|"),
        ("log_width", "median width of 90 % intervals (log)"),
        ("coverage", "coverage of 90 % intervals"),
    )
    passed = table["passed"].astype(bool)
    for ax, (name, label) in zip(axes, named, strict=True):
        mean = table.groupby("configurations")[name].mean()
        ax.plot(mean.index, mean, color=LINE, lw=1.5)
        ax.scatter(table["configurations"][passed], table[name][passed], s=18, color=POINT, label="passed the gate")
        ax.scatter(
            table["configurations"][~passed], table[name][~passed], s=18, facecolors="none", edgecolors=POINT,
            label="failed it",
        )  # fmt: skip
        ax.set(xlabel="configurations fitted", ylabel=label, xscale="log")
        ax.set_xticks(mean.index, [str(count) for count in mean.index], minor=False)
        ax.minorticks_off()
    axes[2].axhline(0.9, color="0.5", lw=0.8, ls="--")
    axes[2].set_ylim(0, 1)
    axes[0].set_ylim(0)
    axes[1].set_ylim(0)
    axes[0].legend(fontsize=8, frameon=False)
    return figure
