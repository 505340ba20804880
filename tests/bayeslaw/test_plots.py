"""Figures: labelled axes, what the numbers say, and a file that holds a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayeslaw.plan_plots import plot_frontier
from bayeslaw.plots import curve_densities, plot_curve, plot_posterior, save_figure

STARTS = {"depths": [8, 14], "widths": [2, 8], "dataset_size": 2000}


@pytest.fixture(scope="module")
def plan(fitted):
    return fitted.plan(0.15, **STARTS)


def assert_drawn(figure: Figure, path: Path) -> None:
    """Write the figure and look that every panel is labelled and the picture is not empty."""
    figure.savefig(path, dpi=150)
    assert path.stat().st_size > 5000
    assert path.read_bytes().startswith(b"\x89PNG")
    for ax in figure.axes:
        assert ax.get_xlabel()
        assert ax.get_title()


def assert_log_log(ax: Axes) -> None:
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylabel() == "test error (fraction)"
    low, high = ax.get_ylim()
    assert 0 < low < high


def test_curve_with_measured_runs(fitted, tmp_path) -> None:
    ax = plot_curve(fitted, depth=8, width=4, dataset_size=2000, runs=fitted.runs)
    assert_log_log(ax)
    assert ax.get_xlabel() == "density (fraction of weights kept)"
    assert ax.get_title() == "cifar_resnet on digits: depth 8, width 4, n = 2000"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["new run, 90% interval", "mean curve, 90% interval", "median", "measured"]
    points = {line.get_label(): line for line in ax.get_lines()}
    own = fitted.runs.query("depth == 8 and width == 4 and dataset_size == 2000")
    np.testing.assert_array_equal(points["measured"].get_xdata(), own["density"])
    designs = own[["depth", "width", "dataset_size"]].iloc[[0]].assign(density=1.0)
    assert points["median"].get_ydata()[0] == pytest.approx(fitted.predict(designs)["median"].iloc[0])
    path = save_figure(ax, tmp_path / "new" / "curve.png")
    assert path.exists()
    assert_drawn(ax.figure, tmp_path / "curve.png")


def test_curve_of_a_network_that_was_not_trained_on_given_axes(fitted, tmp_path) -> None:
    """Other networks' runs are not drawn; without own points the curve spans what was fitted."""
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert plot_curve(fitted, depth=20, width=3, dataset_size=700, runs=fitted.runs, ax=axes[0]) is axes[0]
    plot_curve(fitted, depth=20, width=3, dataset_size=700, interval=0.5, ax=axes[1])
    for ax in axes:
        assert_log_log(ax)
        assert [line.get_label() for line in ax.get_lines()] == ["median"]
        assert ax.get_lines()[0].get_xdata().min() == pytest.approx(fitted.runs["density"].min())
    assert "50% interval" in axes[1].get_legend().get_texts()[0].get_text()
    assert_drawn(figure, tmp_path / "curve.png")


def test_frontier_shows_every_start_the_target_and_the_recommendation(fitted, plan, tmp_path) -> None:
    ax = plot_frontier(fitted, plan)
    assert_log_log(ax)
    assert ax.get_xlabel() == "non-zero parameters"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:4] == ["width 2", "width 8", "depth 8", "depth 14"]
    assert labels[4:7] == ["fewest parameters, median", "90% interval", "target 0.15"]
    assert labels[7] == "fewest parameters, measured"
    assert labels[8].startswith("recommended (reached with p = 0.9")
    # Four starts, the frontier, what was measured, the target and the star.
    lines = ax.get_lines()
    assert len(lines) == 8
    assert np.isfinite(lines[5].get_xdata()).sum() > 3
    assert lines[-1].get_xdata()[0] == plan.recommended["size"]
    # A start's curve begins at its unpruned size, and the frontier falls with size.
    assert sorted(line.get_xdata()[0] for line in lines[:4]) == pytest.approx(sorted(plan.starts["parameters"]))
    assert (np.diff(lines[4].get_xdata()) <= 0).all()
    assert (np.diff(lines[4].get_ydata()) > 0).all()
    assert_drawn(ax.figure, tmp_path / "frontier.png")


def test_frontier_with_own_counts_fractional_widths_and_no_recommendation(fitted, tmp_path) -> None:
    made = fitted.plan(
        0.15, depths=[8.0, 14.0], widths=[3.5, 4.5], dataset_size=250, confidence=0.99,
        parameters=lambda depth, width: (100.0 * depth * width**2, 50.0),
    )  # fmt: skip
    assert made.recommended is None
    ax = plot_frontier(fitted, made, interval=0.5)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == "width 3.5"
    assert not any(label.startswith("recommended") for label in labels)
    assert_drawn(ax.figure, tmp_path / "frontier.png")


def test_posterior_has_one_panel_per_parameter(fitted, tmp_path) -> None:
    figure = plot_posterior(fitted)
    assert [ax.get_xlabel() for ax in figure.axes] == ["gamma", "phi", "psi", "p_prime"]
    assert_drawn(figure, tmp_path / "posterior.png")
    one = plot_posterior(fitted, parameters=("tau_p",))
    lower, median, upper = np.quantile(fitted.posterior["tau_p"], [0.05, 0.5, 0.95])
    assert one.axes[0].get_title() == f"{median:.3g}  ({lower:.3g} to {upper:.3g})"


def test_densities_are_even_in_the_logarithm() -> None:
    assert curve_densities(0.01, 3).tolist() == pytest.approx([1.0, 0.1, 0.01])
