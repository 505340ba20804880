"""What finding the start costs: suggested runs against runs chosen at random, and against the whole grid.

    uv run python tests/benchmarks/campaigns.py simulated --first 18 -n 6 -o tests/benchmarks/campaigns
    uv run python tests/benchmarks/campaigns.py digits_resnet -o tests/benchmarks/campaigns
    uv run python tests/benchmarks/campaigns.py fashion_mnist_resnet -o tests/benchmarks/campaigns

A campaign (`bayeslaw.autopilot`) begins with eight networks of the cheaper half of a grid and adds four a round, each
network once and each run as far down as is chosen, until they have cost a third of the whole grid; after every round it
names the start of least expected loss. Both contenders begin with the same networks. How far that start ends above the
best one is looked up: in simulated worlds (drawn as `bayeslaw check` draws them; target 1.5 times the least true
unpruned error) in the true curves, in a recorded sweep in the sizes that all its runs show (`bayeslaw.measured`; a
campaign gets one run of every network, drawn anew in each repetition). All costs are shares of that of the whole grid,
every network once and all the way down. Finished campaigns are kept in SOURCE.csv and not flown again; figure and table
of what there is are made anew each time. Each network once, and lines as long as the longest run, mean that tables of
as many runs have equal shapes, so that every one is compiled once a process: a round takes seconds instead of a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

import bayeslaw
from bayeslaw import frame
from bayeslaw.campaign import prices, spent_on
from bayeslaw.check_models import model_named
from bayeslaw.checking import draw_values
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION, family_of
from bayeslaw.measured import start_sizes
from bayeslaw.plan_checking import Truth
from bayeslaw.plots import new_axes, save_figure
from bayeslaw.simulation import Design, simulate
from bayeslaw.starts import make_starts

CHOICES = ("suggest", "random")
#: Regret, in per cent, below which a start is taken as found.
FOUND = (25, 10)
#: Share of the grid's cost after which a campaign ends.
MOST = 1 / 3
BATCH, DRAWS, RESAMPLES = 4, 500, 2000
DEPTHS, WIDTHS, SIZES = (8, 14, 20), (2, 4, 8, 16, 32), (12_500, 50_000)
#: Target errors at the largest dataset size of recorded sweeps.
TARGETS = {"digits_resnet": 0.025, "fashion_mnist_resnet": 0.2}


class Source(NamedTuple):
    """Hold what one repetition is flown over: runs, the question, and what every start truly comes to."""

    runs: pd.DataFrame
    target_error: float
    truth: pd.Series


class UpTo(bayeslaw.Replay):
    """Replay until runs have cost so much."""

    def __init__(self, recorded: pd.DataFrame) -> None:
        super().__init__(recorded)
        self.about = self.describe().iloc[0]
        networks = recorded[CONFIGURATION].drop_duplicates()
        self.whole = prices(self.about, networks.assign(density=self.about["density"])).sum()

    def available(self, candidates: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Keep what can be run, and nothing once enough is spent."""
        left = super().available(candidates, runs)
        return left if not len(runs) or spent_on(self.about, runs) < MOST * self.whole else left.iloc[:0]


def main() -> None:
    """Fly what is missing, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=["simulated", *TARGETS])
    parser.add_argument("--first", type=int, default=0, help="number of the first repetition")
    parser.add_argument("-n", "--repetitions", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path, default=Path("campaigns"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    frame._LINE = 1000  # a line a run
    path = arguments.output / f"{arguments.source}.csv"
    for repetition in tqdm(range(arguments.first, arguments.first + arguments.repetitions), arguments.source):
        for choose in CHOICES:
            known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["repetition", "choose"])
            if not ((known["repetition"] == repetition) & (known["choose"] == choose)).any():
                rows = fly(source_of(arguments.source, repetition), repetition, choose)
                pd.concat([known, rows] if len(known) else [rows]).to_csv(path, index=False, float_format="%.6g")
    rows = pd.read_csv(path)
    print(costs(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    save_figure(plot(rows, arguments.source), arguments.output / f"{arguments.source}.png")


def source_of(name: str, repetition: int) -> Source:
    """Draw the world, or the runs of a sweep, of a repetition."""
    rng = np.random.default_rng([11, repetition])
    if name == "simulated":
        return world(repetition, rng)
    recorded = bayeslaw.load_recorded(name)
    runs = recorded.drop_duplicates("trajectory").sample(frac=1.0, random_state=repetition)
    chosen = runs.drop_duplicates(["depth", "width", "dataset_size"])["trajectory"]
    whole = recorded[recorded["dataset_size"] == recorded["dataset_size"].max()]
    truth = start_sizes(whole, TARGETS[name]).set_index(["depth", "width"])["size"]
    return Source(recorded[recorded["trajectory"].isin(chosen)], TARGETS[name], truth)


def world(repetition: int, rng: np.random.Generator) -> Source:
    """Draw parameters, the runs of a grid and the true sizes of its starts."""
    networks = tuple((depth, width, size) for depth in DEPTHS for width in WIDTHS for size in SIZES)
    design = Design(networks, 1, tuple(0.8 ** np.arange(0, 28, 3)), n_test=10_000)
    simulated = simulate(design, draw_values(model_named("hierarchical"), 10_000 + repetition), rng)
    starts = make_starts(DEPTHS, WIDTHS, max(SIZES))
    prunable, unprunable = Family("cifar_resnet", (3, 32, 32), 10).counts(starts["depth"], starts["width"])
    target = 1.5 * float(Truth(design, simulated, starts, 1.0, rng).typical_errors(np.ones(len(starts))).min())
    sizes = Truth(design, simulated, starts, target, rng).sizes(np.asarray(prunable), np.asarray(unprunable))
    truth = pd.Series(sizes, index=pd.MultiIndex.from_frame(starts[["depth", "width"]]))
    return Source(bayeslaw.load_runs(simulated.runs), target, truth)


def fly(source: Source, repetition: int, choose: str) -> pd.DataFrame:
    """Fly one campaign over the whole grid; give a row a round."""
    begun, runner, networks = time.process_time(), UpTo(source.runs), source.runs[CONFIGURATION].drop_duplicates()
    with tempfile.TemporaryDirectory() as folder:
        campaign = bayeslaw.autopilot(
            runner, folder, target_error=source.target_error, depths=networks["depth"],
            widths=networks["width"], dataset_size=int(networks["dataset_size"].max()),
            dataset_sizes=networks["dataset_size"].unique().tolist(), tolerance=1e-9, batch=BATCH, choose=choose,
            draws=DRAWS, seed=repetition, say=lambda _: None,
        )  # fmt: skip
    history = campaign.history
    # What cannot reach the target falls back on the largest network, unpruned where that misses too.
    family, largest = family_of(source.runs.iloc[0]), source.truth.index[-1]
    fallback = min(source.truth[largest], float(family.parameters(*(np.array(float(v)) for v in largest))))
    losses = source.truth.where(np.isfinite(source.truth), fallback)
    chosen = pd.MultiIndex.from_frame(history[["depth", "width"]].fillna(-1))
    ends = losses.reindex(chosen).fillna(fallback).to_numpy()
    return pd.DataFrame({
        "repetition": repetition, "choose": choose, "target_error": source.target_error, "round": range(len(history)),
        "runs": history["runs"], "share": history["training_flops"] / runner.whole,
        "depth": history["depth"], "width": history["width"], "expected_percent": history["regret_percent"],
        "regret_percent": 100 * (ends / losses.min() - 1), "passed": history["passed"],
        "seconds": round((time.process_time() - begun) / len(history), 2),
    })  # fmt: skip


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Tell by contender the share of the grid's cost until a start is found, and until it is found and kept.

    Infinite where it is not within the rounds flown; medians over repetitions.
    """
    table = []
    for (choose, limit), by in [((c, limit), rows[rows["choose"] == c]) for limit in FOUND for c in CHOICES]:
        first, kept = [], []
        for _, own in by.groupby("repetition"):
            good = own["regret_percent"].to_numpy() <= limit
            share = own["share"].to_numpy()
            first.append(share[good.argmax()] if good.any() else np.inf)
            late = len(good) - np.argmin(good[::-1]) if not good.all() else 0
            kept.append(share[late] if late < len(good) else np.inf)
        row: dict[str, object] = {"within": f"{limit} %", "choose": choose, "repetitions": len(first)}
        for name, values in (("first", np.array(first)), ("kept", np.array(kept))):
            row |= dict(zip((name, f"{name}_lower", f"{name}_upper"), median_of(values), strict=True))
            row |= {f"{name}_by_a_fifth": np.mean(values <= 0.2)}
        table.append(row)
    return pd.DataFrame(table)


def median_of(values: np.ndarray) -> tuple[float, float, float]:
    """Give the median over repetitions, and its 90 % bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    ordered = np.sort(np.median(values[drawn], axis=1)) if np.isfinite(values).all() else np.sort(
        np.sort(values[drawn], axis=1)[:, len(values) // 2]
    )  # fmt: skip
    middle = np.sort(values)[len(values) // 2] if not np.isfinite(values).all() else np.median(values)
    return float(middle), float(ordered[int(0.05 * RESAMPLES)]), float(ordered[int(0.95 * RESAMPLES)])


def plot(rows: pd.DataFrame, title: str):
    """Draw the share of repetitions whose start is within 25 % against the share of the grid's cost spent."""
    ax = new_axes(None)
    grid = np.geomspace(rows["share"].min(), rows["share"].max(), 60)
    for color, choose in zip(("C0", "C1"), CHOICES, strict=True):
        by = [own for _, own in rows[rows["choose"] == choose].groupby("repetition")]
        for style, limit in zip(("-", ":"), FOUND, strict=True):
            good = np.array([
                [(own["regret_percent"] <= limit).to_numpy()[max(np.searchsorted(own["share"], s + 1e-12) - 1, 0)]
                 for s in grid] for own in by
            ])  # fmt: skip
            share, error = good.mean(0), good.std(0) / np.sqrt(len(by))
            ax.plot(grid, share, style, color=color, label=f"{choose}, within {limit} %")
            if style == "-":
                ax.fill_between(grid, share - error, share + error, color=color, alpha=0.2, lw=0)
    ax.axvline(0.2, color="0.6", lw=1)
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="training cost, share of the whole grid's")
    ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    ax.set_xticks([], minor=True)
    ax.set_ylabel("share of campaigns whose start is found")
    ax.set_title(title, fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    return ax


if __name__ == "__main__":
    main()
