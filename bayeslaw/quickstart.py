"""The whole way once, on real data: fit recorded runs, predict a network left out, train it live, plan."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit
from bayeslaw.frame import CONFIGURATION
from bayeslaw.live import LiveRun
from bayeslaw.plan_plots import plot_frontier
from bayeslaw.plots import plot_curve, plot_posterior, save_figure
from bayeslaw.posterior import Fit
from bayeslaw.runs import load_recorded, recorded_folder

if TYPE_CHECKING:
    from bayeslaw.plan import Plan

SWEEP = "digits_resnet"
#: Left out by default: a network that trains and prunes in less than 20 core-seconds.
NETWORK = (8, 4, 500)
TARGET_ERROR = 0.03


@dataclass(frozen=True)
class Outcome:
    """Hold what the quickstart found.

    Attributes:
        fit: The posterior of the runs without the network that was left out.
        plan: The plan made with it.
        live: Run table of the network trained live, with the predicted interval of every row.
        coverage: Share of the live errors inside their 90 % intervals.
        seconds: Wall time.
    """

    fit: Fit
    plan: Plan
    live: pd.DataFrame
    coverage: float
    seconds: float


def quickstart(
    output: str | Path = "quickstart",
    *,
    network: tuple[int, int, int] = NETWORK,
    target_error: float = TARGET_ERROR,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> Outcome:
    """Fit `digits_resnet` without one network, predict its curve, train and prune it live, and plan.

    Args:
        output: Folder for `fit.nc`, `runs.parquet`, `plan.csv` and the figures.
        network: Depth, width and dataset size of the network left out; must be one of the recorded ones.
        target_error: Error that the plan aims at.
        seed: Seed of the sampler.
        say: Called with every block of text.

    Returns:
        What was found.

    Raises:
        BayeslawError: The network is not recorded, or the runner is not installed.
    """
    began, output = time.perf_counter(), Path(output)
    runs = load_recorded(SWEEP)
    chosen = (runs[CONFIGURATION] == list(network)).all(axis=1)
    if not chosen.any():
        raise BayeslawError(f"network {network} is not in {SWEEP}; choose one of these:\n{_choices(runs)}")
    depth, width, size = network
    say(
        f"{SWEEP}: {runs['trajectory'].nunique()} trajectories, {len(runs)} rows. Left out: depth {depth}, width "
        f"{width}, n = {size}; it is trained and pruned live on one core while the posterior is sampled."
    )
    with tempfile.TemporaryDirectory() as scratch:
        live = LiveRun(runs[chosen].iloc[0], recorded_folder() / f"{SWEEP}.toml", Path(scratch) / "store")
        try:
            posterior = fit(runs[~chosen], seed=seed)
            say(f"\nposterior (90 % intervals)\n{posterior.summary().round(3).to_string()}")
            say(f"\ndiagnostics\n{posterior.diagnose()}")
            measured = live.wait()
        finally:
            live.stop()
    measured = _with_prediction(posterior, measured)
    coverage = float(measured["inside"].mean())
    say(f"\npredicted beside measured, depth {depth}, width {width}, n = {size}\n{_shown(measured)}")
    say(f"coverage: {measured['inside'].sum()} of {len(measured)} live errors lie inside their 90 % intervals")
    plan = posterior.plan(
        target_error,
        depths=sorted(runs["depth"].unique()),
        widths=sorted(runs["width"].unique()),
        dataset_size=int(runs["dataset_size"].max()),
        seed=seed,
    )
    say(f"\nplan for error {target_error:g} at n = {plan.dataset_size:g}\n{plan}")
    _write(output, posterior, plan, measured, network)
    seconds = time.perf_counter() - began
    say(f"\nwritten to {output}/: fit.nc, runs.parquet, plan.csv, curve.png, frontier.png, posterior.png")
    say(f"took {seconds:.0f} s, of which the live run trained for {measured['seconds'].sum():.0f} s on one core")
    return Outcome(posterior, plan, measured, coverage, seconds)


def _choices(runs: pd.DataFrame) -> str:
    cost = runs.groupby(["trajectory", *CONFIGURATION])["seconds"].sum().groupby(CONFIGURATION).mean()
    return cost.rename("core_seconds").round().reset_index().to_string(index=False)


def _with_prediction(posterior: Fit, measured: pd.DataFrame) -> pd.DataFrame:
    designs = measured[[*CONFIGURATION, "density", "n_test"]]
    predicted = posterior.predict(designs, kind="run")
    assert isinstance(predicted, pd.DataFrame)
    table = measured.assign(**{name: predicted[name].to_numpy() for name in ("median", "lower", "upper")})
    return table.assign(inside=table["error"].between(table["lower"], table["upper"]))


def _shown(measured: pd.DataFrame) -> str:
    columns = ["level", "density", "kept", "error", "median", "lower", "upper", "inside"]
    rows = measured.iloc[np.unique(np.linspace(0, len(measured) - 1, 11).round().astype(int))]
    return rows[columns].to_string(index=False, float_format=lambda v: f"{v:.3f}")


def _write(output: Path, posterior: Fit, plan: Plan, measured: pd.DataFrame, network: tuple[int, int, int]) -> None:
    depth, width, size = network
    output.mkdir(parents=True, exist_ok=True)
    posterior.save(output / "fit.nc")
    measured.to_parquet(output / "runs.parquet", index=False)
    plan.starts.to_csv(output / "plan.csv", index=False)
    curve = plot_curve(posterior, depth=depth, width=width, dataset_size=size, runs=measured)
    save_figure(curve, output / "curve.png")
    save_figure(plot_frontier(posterior, plan), output / "frontier.png")
    plot_posterior(posterior).savefig(output / "posterior.png", dpi=150)
