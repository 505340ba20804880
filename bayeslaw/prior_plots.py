"""Figures about priors: the curves they allow, and what the data made of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro.distributions import biject_to

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION
from bayeslaw.plots import BAND, LINE, POINT
from bayeslaw.precision import in_float64
from bayeslaw.unconstrained import on_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

    from bayeslaw.posterior import Fit
    from bayeslaw.prior_draws import PriorPredictive
    from bayeslaw.priors import Prior

#: Panels of one figure, and in a row.
_PANELS, _COLUMNS = 12, 4
#: Errors below this are drawn here.
_LOWEST_ERROR = 1e-4
#: The axis shows at most this many widths of the posterior's 98 % interval to each side, so that it stays visible.
_WIDTHS = 8.0
_PRIOR = "0.35"


def plot_prior_predictive(
    drawn: PriorPredictive, *, runs: pd.DataFrame | None = None, curves: int = 20, inner: float = 0.5
) -> Figure:
    """Draw the error curves that the priors allow, one panel per network.

    Args:
        drawn: What `bayeslaw.prior_predictive` gave.
        runs: Run table whose rows of the same networks are drawn as points.
        curves: How many single draws to show as lines.
        inner: Probability of the inner, darker band, in (0, 1).

    Returns:
        The figure; where there are more than 12 networks it shows 12 of them, spread over all.

    Raises:
        BayeslawError: An argument is out of its range.
    """
    if not 0 < inner < 1 or curves < 0:
        raise BayeslawError(f"inner = {inner} must be in (0, 1), and curves = {curves} 0 or more.")
    networks = drawn.table[CONFIGURATION].drop_duplicates(ignore_index=True)
    shown = networks.iloc[np.unique(np.linspace(0, len(networks) - 1, _PANELS).round().astype(int))]
    figure, axes = _panels(len(shown), (3.2, 2.7), shared=True)
    lowest = min(
        _prior_curves(ax, drawn, network, runs, curves, inner)
        for ax, (_, network) in zip(axes, shown.iterrows(), strict=True)
    )
    axes[0].set_ylim(0.7 * lowest, 1.2)
    for ax in axes[:: _columns(len(shown))]:
        ax.set_ylabel("test error (fraction)")
    _legend_above(figure, axes[0], f"prior predictive, {_KINDS[drawn.kind]}")
    return figure


_KINDS = {"mean": "mean curve of a network", "run": "what one run measures"}


def _prior_curves(
    ax: Axes, drawn: PriorPredictive, network: pd.Series, runs: pd.DataFrame | None, curves: int, inner: float
) -> float:
    """Draw one network's panel, and give the lowest error that must be in sight."""
    own = (drawn.table[CONFIGURATION] == network).all(axis=1).to_numpy()
    order = np.flatnonzero(own)[np.argsort(drawn.table.loc[own, "density"].to_numpy())]
    table, errors = drawn.table.iloc[order], np.maximum(drawn.draws.to_numpy()[:, order], _LOWEST_ERROR)
    density = table["density"]
    low, high = np.quantile(errors, [(1 - inner) / 2, (1 + inner) / 2], axis=0)
    lower = table["lower"].clip(lower=_LOWEST_ERROR)
    ax.fill_between(density, lower, table["upper"], color=BAND, alpha=0.4, lw=0, label=f"{drawn.interval:.0%} interval")
    ax.fill_between(density, low, high, color=BAND, alpha=0.9, lw=0, label=f"{inner:.0%} interval")
    for i, curve in enumerate(errors[:curves]):
        ax.plot(density, curve, color="0.3", lw=0.6, alpha=0.5, label="single draws" if i == 0 else None)
    ax.plot(density, table["median"].clip(lower=_LOWEST_ERROR), color=LINE, lw=1.5, label="median")
    ax.axhline(drawn.frame.chance_error, color="0.5", lw=0.8, ls=":", label="random guessing")
    lowest = float(lower.min())
    if runs is not None:
        measured = runs[(runs[CONFIGURATION] == network).all(axis=1)]
        error = measured["error"].clip(lower=_LOWEST_ERROR)
        ax.plot(measured["density"], error, "o", color=POINT, ms=2.5, label="measured")
        lowest = min([lowest, *error])
    depth, width, size = network
    ax.set_title(f"depth {depth:g}, width {width:g}, n = {size:g}", fontsize=9)
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("density (fraction of weights kept)", fontsize=8)
    ax.tick_params(labelbottom=True, labelsize=8)
    return lowest


@in_float64
def plot_prior_posterior(
    fit: Fit, *, parameters: Sequence[str] | None = None, priors: Mapping[str, Distribution] | None = None
) -> Figure:
    """Draw the posterior of parameters over their priors, one panel per parameter.

    Positive parameters have a logarithmic axis, and densities are those of the logarithm there. An axis shows the
    prior's 98 %, less where the posterior would be too narrow to be seen.

    Args:
        fit: The posterior.
        parameters: Names of parameters that have a prior; all by default.
        priors: Distributions of those priors that a fit cannot keep (`Fit.priors`).

    Returns:
        The figure; parameters that the data did not inform (`Fit.prior_driven`) are marked in their titles.

    Raises:
        BayeslawError: A parameter has no prior, or its prior could not be kept and is not given.
    """
    known = fit.priors(priors)
    names = list(known if parameters is None else parameters)
    if unknown := [name for name in names if name not in known]:
        raise BayeslawError(f"parameters {', '.join(unknown)} have no prior; those that have are {', '.join(known)}.")
    central = _central({name: known[name].distribution for name in names})
    figure, axes = _panels(len(names), (2.9, 2.3))
    for ax, name in zip(axes, names, strict=True):
        draws = fit.posterior[name].to_numpy().ravel()
        _prior_posterior(ax, known[name], np.asarray(central[name]), draws)
        driven = name in fit.prior_driven
        ax.set_title(f"{name}: prior-driven" if driven else name, fontsize=9, color=POINT if driven else "black")
    _legend_above(figure, axes[0], f"{fit.frame.family.name} on {fit.frame.dataset}: posterior over prior")
    return figure


@jax.jit
def _central(priors: dict[str, Any]) -> dict[str, jax.Array]:
    """Give the ends of every prior's central 98 %."""

    def ends(prior: Any) -> jax.Array:
        grid, weight = on_grid(prior)
        free = jnp.interp(jnp.array([0.01, 0.99]), jnp.cumsum(weight), grid)
        return jnp.asarray(biject_to(prior.support)(free))

    return {name: ends(prior) for name, prior in priors.items()}


def _prior_posterior(ax: Axes, prior: Prior, central: NDArray[np.float64], draws: NDArray[np.float64]) -> None:
    support: Any = prior.distribution.support
    logarithmic = bool(central[0] > 0) and not bool(support(jnp.asarray(-1.0))) and not hasattr(support, "upper_bound")
    scale = np.log if logarithmic else np.asarray
    low, high, cut = _limits(scale(central), scale(draws))
    if not logarithmic:
        ends = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
        low, high = np.clip([low, high], *ends)
    x = np.linspace(low, high, 400)
    inside = jnp.asarray(np.exp(x) if logarithmic else x)
    allowed = np.asarray(support(inside))
    log_density = np.asarray(prior.distribution.log_prob(jnp.where(allowed, inside, draws[0])))
    density = np.where(allowed, np.exp(log_density + (x if logarithmic else 0.0)), 0.0)
    height, edges = np.histogram(scale(draws), bins=np.linspace(low, high, 61))
    height = height / len(draws) / np.diff(edges)
    if logarithmic:
        x, edges = np.exp(x), np.exp(edges)
        ax.set_xscale("log")
    ax.stairs(height, edges, fill=True, color=BAND, label="posterior")
    ax.plot(x, density, color=_PRIOR, lw=1.3, label="prior")
    top = max(height.max(), min(density.max(), 3 * height.max()))
    ax.set(xlim=(x[0], x[-1]), ylim=(0, (1.25 if cut else 1.08) * top), yticks=[])
    ax.set_xlabel("\n".join(textwrap.wrap(prior.meaning, 38)), fontsize=7)
    ax.tick_params(labelsize=7)
    if cut:
        note = f"prior: {central[0]:.2g} to {central[1]:.2g} (98 %)"
        ax.text(0.03, 0.95, note, transform=ax.transAxes, fontsize=6.5, va="top", color=_PRIOR)
    if logarithmic:
        _label_one_two_five(ax)
    else:
        ax.locator_params(axis="x", nbins=5)


def _label_one_two_five(ax: Axes) -> None:
    """Label a logarithmic axis at a few round numbers, however many decades it has."""
    low, high = ax.get_xlim()
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = np.sort(np.outer(decades, digits).ravel())
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 5)]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def _limits(central: NDArray[np.float64], posterior: NDArray[np.float64]) -> tuple[float, float, bool]:
    """Span the prior's and the posterior's 98 %, but not so much more than the posterior's that it is a line.

    Returns:
        Both ends, and whether the prior was cut.
    """
    low, high = np.quantile(posterior, [0.01, 0.99])
    width = high - low
    low, high = min(low - 0.2 * width, central[0]), max(high + 0.2 * width, central[1])
    middle = float(np.median(posterior))
    ends = max(low, middle - _WIDTHS * width), min(high, middle + _WIDTHS * width)
    return *ends, ends != (low, high)


def _columns(count: int) -> int:
    return min(count, _COLUMNS)


def _panels(count: int, size: tuple[float, float], *, shared: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = _columns(count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.6), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharex=shared, sharey=shared)).ravel())
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _legend_above(figure: Figure, ax: Axes, title: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.suptitle(title, fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
