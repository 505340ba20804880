"""Figures of plans: the frontier, the regret of every start, and where the target is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, varies
from bayeslaw.frontiers import frontier, pareto
from bayeslaw.objectives import OBJECTIVES
from bayeslaw.plan import Plan
from bayeslaw.plots import BAND, LINE, POINT, curve_densities, lowest_density, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayeslaw.posterior import Fit

#: Widths that a legend names at most, and starts that a figure of regret has bars for.
MOST_NAMED, MOST_BARS = 8, 20


def plot_frontier(
    fit: Fit,
    plan: Plan,
    *,
    interval: float = 0.9,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw error against non-zero parameters for every start, and the fewest parameters at every error.

    Args:
        fit: The posterior.
        plan: The plan whose starts, target and recommendation are drawn.
        interval: Probability of the band of the frontier.
        seed: Seed of fresh effects.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes: the paper's figure 8 with credible bands, and crosses for the fewest parameters at which fitted runs
        were measured to reach an error.

    Source:
        Rosenfeld et al., ICML 2021, figure 8.
    """
    import matplotlib as mpl

    ax = new_axes(ax, (7.2, 4.8))
    starts = plan.starts[plan.starts["dataset_size"] == plan.dataset_size]
    widths = sorted(starts["width"].unique())
    colors = mpl.colormaps["viridis"](np.linspace(0.1, 0.9, len(widths)))
    styles = ["-", "--", ":", "-."]
    depths = sorted(starts["depth"].unique())
    lowest = lowest_density(fit.runs)
    densities = curve_densities(lowest, 50)
    designs = starts[CONFIGURATION].merge(pd.DataFrame({"density": densities}), how="cross")
    curves = fit.predict(designs, seed=seed)
    assert isinstance(curves, pd.DataFrame)
    for (depth, width), curve in curves.groupby(["depth", "width"]):
        row = starts[(starts["depth"] == depth) & (starts["width"] == width)].iloc[0]
        size = curve["density"] * row["prunable"] + row["unprunable"]
        style = styles[depths.index(depth) % len(styles)]
        ax.plot(size, curve["median"], color=colors[widths.index(width)], ls=style, lw=1, alpha=0.8)
    targets = np.geomspace(curves["median"].min() * 1.02, 0.95 * float(fit.posterior["eps_up"].mean()), 30)
    front = _frontier_of(fit, plan, starts, targets, interval, seed)
    ax.fill_betweenx(front["target_error"], front["lower"], front["upper"], color="0.6", alpha=0.5, lw=0)
    ax.plot(front["median"], front["target_error"], color="black", lw=2)
    is_measured = bool(front["measured"].notna().any())
    if is_measured:
        ax.plot(front["measured"], front["target_error"], "x", color=POINT, ms=5, mew=1.2)
    if plan.target_error is not None:
        ax.axhline(plan.target_error, color=POINT, lw=1, ls=(0, (6, 3)))
    else:
        ax.axvline(plan.question.max_size or np.nan, color=POINT, lw=1, ls=(0, (6, 3)))
    row = plan.recommended
    if row is not None:
        error = row["run_median"] if plan.target_error is None else plan.target_error
        ax.plot(row["size"], error, "*", color=POINT, ms=14, zorder=5)
    _frontier_legend(ax, plan, widths, colors, depths, styles, interval, is_measured=is_measured)
    ax.set(xscale="log", yscale="log", xlabel="non-zero parameters", ylabel="test error (fraction)")
    ax.set_title(f"{fit.frame.family.name} on {fit.frame.dataset}, n = {plan.dataset_size:g}")
    return ax


def _frontier_of(
    fit: Fit, plan: Plan, starts: pd.DataFrame, targets: np.ndarray, interval: float, seed: int
) -> pd.DataFrame:
    """Compute the frontier of starts with the counts that the plan was made with."""
    front = frontier(
        fit,
        targets,
        depths=starts["depth"],
        widths=starts["width"],
        dataset_size=plan.dataset_size,
        parameters=starts[["depth", "width", "prunable", "unprunable"]],
        interval=interval,
        seed=seed,
    )
    return front[front["p_feasible"] >= 0.5]


def _frontier_legend(
    ax: Axes, plan: Plan, widths, colors, depths, styles, interval: float, *, is_measured: bool
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named = np.unique(np.linspace(0, len(widths) - 1, MOST_NAMED).round().astype(int))
    handles: list = [Line2D([], [], color=colors[i], label=f"width {widths[i]:.3g}") for i in named]
    handles += [
        Line2D([], [], color="0.4", ls=styles[i % len(styles)], label=f"depth {d:g}") for i, d in enumerate(depths)
    ]
    handles += [
        Line2D([], [], color="black", lw=2, label="fewest parameters, median"),
        Patch(color="0.6", alpha=0.5, label=f"{interval:.0%} interval"),
        Line2D([], [], color=POINT, ls=(0, (6, 3)), label=_wanted(plan)),
    ]
    if is_measured:
        handles.append(Line2D([], [], color=POINT, marker="x", ls="", label="fewest parameters, measured"))
    if plan.recommended is not None:
        sure = "" if plan.target_error is None else f" (reached with p = {plan.recommended['p_reach']:.2f})"
        label = f"recommended{sure}"
        handles.append(Line2D([], [], color=POINT, marker="*", ms=12, ls="", label=label))
    ax.legend(handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _wanted(plan: Plan) -> str:
    if plan.target_error is None:
        return f"at most {plan.question.max_size:,.0f} parameters"
    return f"target {plan.target_error:g}"


def plot_pareto(fit: Fit, plan: Plan, *, interval: float = 0.9, seed: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the fewest non-zero parameters at the plan's target against what all trainings cost.

    Args:
        fit: The posterior.
        plan: A plan with a target error, whose starts are drawn from.
        interval: Probability of the band.
        seed: Seed of fresh effects.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes: `bayeslaw.pareto` where a start is as likely as not to reach the target, up to where more money
        changes nothing, each stretch named by the start that is most often the smallest; the plan's recommendation,
        which has to be sure, as a star.

    Raises:
        BayeslawError: The plan has no target error, or multiply-adds are not known.
    """
    if plan.target_error is None:
        raise BayeslawError("a front of size against cost needs a plan with a target error, not objective = 'error'.")
    starts = plan.starts
    front = pareto(
        fit,
        plan.target_error,
        depths=starts["depth"],
        widths=starts["width"],
        dataset_size=starts["dataset_size"],
        parameters=starts[["depth", "width", "prunable", "unprunable", "macs"]],
        interval=interval,
        allow_failed=True,  # as the plan's maker said
        seed=seed,
    )
    front = _until_it_stays(front[front["p_feasible"] >= 0.5])
    ax = new_axes(ax, (6.8, 4.4))
    ax.fill_between(front["training_flops"], front["lower"], front["upper"], color=BAND, lw=0, label=f"{interval:.0%}")
    ax.plot(front["training_flops"], front["median"], color=LINE, label="median")
    several, before = varies(starts["dataset_size"]), None
    for _, row in front.iterrows():
        name = f"depth {row['depth']:g}, width {row['width']:.3g}" + f", n = {row['dataset_size']:g}" * several
        if name != before:
            at = (row["training_flops"], row["median"])
            ax.plot(*at, "o", color=LINE, ms=4)
            ax.annotate(name, at, (4, 4), textcoords="offset points", fontsize=7, rotation=30)
        before = name
    if plan.recommended is not None:
        label = f"recommended (reached with p = {plan.recommended['p_reach']:.2f})"
        ax.plot(plan.recommended["training_flops"], plan.recommended["size"], "*", color=POINT, ms=14, label=label)
    ax.set(xscale="log", yscale="log", xlabel="all trainings, floating-point operations")
    ax.set_ylabel("non-zero parameters")
    ax.set_title(f"{_wanted(plan)}: fewest parameters by training cost, and the start they come from", fontsize=9)
    ax.legend(frameon=False)
    return ax


def _until_it_stays(front: pd.DataFrame) -> pd.DataFrame:
    """Keep the budgets up to two beyond the last that changes anything by more than a thousandth."""
    sizes = front[["median", "lower", "upper"]].to_numpy(float)
    changes = (np.abs(sizes / sizes[-1:] - 1) > 1e-3).any(axis=1)
    return front.head(int(changes.sum()) + 2)


def plot_regret(plan: Plan, *, ax: Axes | None = None) -> Axes:
    """Draw what every start is expected to end above the best of them, and the probability that it is the best.

    Args:
        plan: The plan; its starts of least regret are drawn, the best first.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes: bars of the expected regret in per cent of the best start's expected end, each with `p_best`.
    """
    shown = plan.starts.sort_values(["regret_percent", "p_best"], ascending=[True, False]).head(MOST_BARS)
    ax = new_axes(ax, (6.4, 1.4 + 0.26 * len(shown)))
    places = np.arange(len(shown))[::-1]
    chosen = [plan.recommended is not None and i == plan.recommended.name for i in shown.index]
    ax.barh(places, shown["regret_percent"], color=[POINT if own else BAND for own in chosen])
    several = varies(shown["dataset_size"])
    for place, (_, row) in zip(places, shown.iterrows(), strict=True):
        text = f" {row['regret_percent']:,.0f} %, best with p = {row['p_best']:.2f}"
        ax.text(row["regret_percent"], place, text, va="center", fontsize=8)
    names = [
        f"depth {row.depth:g}, width {row.width:.3g}" + f", n = {row.dataset_size:g}" * several
        for row in shown.itertuples()
    ]
    ax.set_yticks(places, names, fontsize=8)
    ax.set_xlim(0, 1.6 * max(1.0, float(shown["regret_percent"].max())))
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(f"expected regret, per cent of the best start's {OBJECTIVES[plan.question.objective]}")
    what = "recommended start in orange" if any(chosen) else "no start is sure enough to be recommended"
    ax.set_title(f"{_wanted(plan)}: {what}", fontsize=10)
    return ax


def plot_reach(plan: Plan, *, ax: Axes | None = None) -> Axes:
    """Draw over depth and width how likely the unpruned network is to reach the target.

    Args:
        plan: A plan with a target error.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes: `p_feasible` of every start at the plan's dataset size; the recommended start is marked.
    """
    own = plan.starts[plan.starts["dataset_size"] == plan.dataset_size]
    grid = own.pivot_table(index="depth", columns="width", values="p_feasible").sort_index()
    ax = new_axes(ax, (2.2 + 0.55 * grid.shape[1], 1.6 + 0.45 * grid.shape[0]))
    image = ax.pcolormesh(
        np.arange(grid.shape[1] + 1), np.arange(grid.shape[0] + 1), grid.to_numpy(), vmin=0, vmax=1, cmap="Blues"
    )
    if grid.size <= 100:
        for (row, column), value in np.ndenumerate(grid.to_numpy()):
            color = "white" if value > 0.6 else "black"
            ax.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    if plan.recommended is not None:
        row = list(grid.index).index(plan.recommended["depth"])
        column = list(grid.columns).index(plan.recommended["width"])
        ax.plot(
            [column, column + 1, column + 1, column, column], [row, row, row + 1, row + 1, row], color=POINT, lw=2.5
        )
    step = max(1, grid.shape[1] // 10)
    ax.set_xticks(np.arange(0, grid.shape[1], step) + 0.5, [f"{w:.3g}" for w in grid.columns[::step]])
    ax.set_yticks(np.arange(grid.shape[0]) + 0.5, [f"{d:g}" for d in grid.index])
    ax.set(xlabel="width", ylabel="depth")
    ax.set_title(
        f"probability that a typical unpruned network reaches {_wanted(plan)}, n = {plan.dataset_size:g}", fontsize=9
    )
    label = ax.figure.colorbar(image, ax=ax)
    label.set_label("probability")
    return ax


def plot_campaign(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the decision's expected regret against what the runs cost.

    Args:
        history: `Campaign.history`; with a column `campaign`, one line for each.
        ax: Where to draw; a new figure if not given.

    Returns:
        The axes; rounds whose fit failed its gate are hollow.
    """
    ax = new_axes(ax)
    groups = history.groupby("campaign") if "campaign" in history else [("", history)]
    for number, (name, own) in enumerate(groups):
        color = f"C{number}"
        ax.plot(own["training_flops"], own["regret_percent"], color=color, label=str(name))
        failed = ~own["passed"].astype(bool)
        ax.plot(own["training_flops"][~failed], own["regret_percent"][~failed], "o", color=color)
        ax.plot(own["training_flops"][failed], own["regret_percent"][failed], "o", color=color, mfc="white")
    ax.set(
        xscale="log", xlabel="training, floating-point operations", ylabel="expected regret of the decision, per cent"
    )
    ax.set_ylim(bottom=0)
    ax.set_title("hollow: the fit failed its gate", fontsize=9)
    if "campaign" in history:
        ax.legend(frameon=False)
    return ax
