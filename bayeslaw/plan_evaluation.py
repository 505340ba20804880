"""Whether plans come true on recorded runs: optima and their neighbours hidden, planned from the rest, looked up."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from bayeslaw.calibration import bootstrap_share
from bayeslaw.diagnostics import Diagnosis
from bayeslaw.errors import BayeslawError, OutOfReachError
from bayeslaw.fitting import FEW_CONFIGURATIONS, chance_error_of, fit
from bayeslaw.frame import CONFIGURATION
from bayeslaw.frontiers import size_draws
from bayeslaw.measured import crossings, middle, run_sizes, smoothed
from bayeslaw.new_runs import run_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Target errors, as multiples of the least unpruned error recorded with a dataset size.
FACTORS = (1.25, 1.5, 2.0, 3.0)
#: Targets above this share of the random-guess error are not asked for.
HIGHEST = 0.75
#: How far off the paper's optimal sizes were at most.
NEAR = 0.25
#: Draws of the posterior whose new runs are measured, and resamples of recorded runs.
DRAWS, RESAMPLES = 1000, 1000
#: What starts are judged by: a network is asked about where it is as likely as not to reach the target.
LIKELY = 0.5
_QUANTILES = {"lower_90": 0.05, "lower_50": 0.25, "median": 0.5, "upper_50": 0.75, "upper_90": 0.95}
_NETWORK = ["depth", "width"]


@dataclass(frozen=True)
class PlanEvaluation:
    """Hold what was planned and what was measured.

    Attributes:
        questions: One row per dataset_size and target_error: `best_depth`, `best_width` and `best_size`, the measured
            optimum; `planned_size`, the fewest parameters by the plan's median (NaN where it called the target out of
            reach), and `off`, how far it is from the measured, as a fraction; `lower_90` to `upper_90`, quantiles of
            what would be measured as the optimum, seeds' noise and the visible networks' sizes included, and
            `inside_50`, `inside_90`; `depth`, `width`, the start of least expected loss, its measured size `size`
            (infinite where it misses) and `regret`, how far that lies above the optimum, as a fraction;
            `near_by_seeds`, the share of new recordings of the same networks whose optimum is within 25 % of this one.
        starts: One row per question and hidden network: `size` measured and the same columns of it; `p_finite`, the
            predicted probability that the middle one of its runs reaches the target; `asked`, whether that is at least
            one half: coverage is taken over these.
        coverage: Of the `optimum` of all questions and of the `hidden networks` asked about: the share inside its 50 %
            and 90 % intervals, and the shares within 25 % of the plan's number and of a new recording, with 90 %
            intervals bootstrapped over networks, whose targets go together.
        gates: The verdict on every fit, by the network hidden with its neighbours.
    """

    questions: pd.DataFrame
    starts: pd.DataFrame
    coverage: pd.DataFrame
    gates: Mapping[str, Diagnosis]

    def __str__(self) -> str:
        def form(table: pd.DataFrame) -> str:
            return table.to_string(index=False, float_format=lambda v: f"{v:.4g}")

        shown = ["dataset_size", "target_error", "best_depth", "best_width", "best_size", "planned_size", "off"]
        shown += ["lower_90", "upper_90", "depth", "width", "regret", "near_by_seeds"]
        failed = [f"{name}: {'; '.join(gate.failures)}" for name, gate in self.gates.items() if not gate.passed]
        passed = np.mean([gate.passed for gate in self.gates.values()])
        return "\n".join(
            [
                "planned with the optimum and its neighbours hidden, and measured",
                form(self.questions[shown]),
                "",
                form(self.coverage),
                "",
                f"fits that passed the gate: {passed:.0%}",
                *failed,
            ]
        )

    def save(self, folder: str | Path) -> Path:
        """Write `questions.csv`, `starts.csv`, `coverage.csv` and the figure `sizes.png` into a folder; give it."""
        from bayeslaw.plots import save_figure
        from bayeslaw.promise_plots import plot_looked_up

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("questions", "starts", "coverage"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        save_figure(plot_looked_up(self), folder / "sizes.png")
        return folder


def evaluate_plans(
    runs: pd.DataFrame,
    *,
    factors: Sequence[float] = FACTORS,
    law: str = "sharpness",
    correlated: bool = True,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> PlanEvaluation:
    """Hide the networks around every measured optimum, plan from the rest, and look up what was measured.

    For every dataset size and target, the optimum is the network whose runs end smallest (`bayeslaw.measured`:
    smoothed, interpolated between levels, the middle one of the runs). It and the networks one step away from it in
    depth or in width are left out at every dataset size, and the rest is fitted.

    What is measured has seeds' noise in it. The plan's number, the size of a typical run, has not; it is judged by the
    share within 25 %, the paper's figure, beside the share of new recordings that would be: runs of every network drawn
    again, their deviations enlarged by sqrt(R / (R - 1)) for R runs, which resampling loses. Intervals are of what is
    measured: as many new runs as were recorded, drawn from the posterior and treated like them.

    Args:
        runs: Validated run table of one family, with replicates.
        factors: Target errors, as multiples of the least unpruned error with a dataset size.
        law: As in `bayeslaw.fit`.
        correlated: Likewise.
        draws: Posterior draws per chain.
        seed: Seed of everything random.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The evaluation.

    Raises:
        BayeslawError: No target is low enough, or too few networks are left to fit.

    Source:
        Rosenfeld et al., ICML 2021, section 6: estimated and actual optimal counts differ by at most 25 %.

    Example:
        >>> import bayeslaw
        >>> print(bayeslaw.evaluate_plans(bayeslaw.load_recorded("digits_resnet")))  # doctest: +SKIP
    """
    asked = _questions(runs, factors)
    settings: dict[str, Any] = {"law": law, "correlated": correlated, "draws": draws, "seed": seed, "progress": False}
    questions, starts, gates = [], [], {}
    hidden_bar = None if progress else True
    groups = list(asked.groupby(["best_depth", "best_width"]))
    for (depth, width), own in tqdm(groups, desc="optima", disable=hidden_bar, file=sys.stderr):
        hidden = _around(runs, depth, width)
        is_hidden = pd.MultiIndex.from_frame(runs[_NETWORK]).isin(hidden)
        rest = runs[~is_hidden]
        if len(rest[CONFIGURATION].drop_duplicates()) < FEW_CONFIGURATIONS:
            raise BayeslawError(
                f"without depth {depth:g}, width {width:g} and its neighbours too few networks are left to fit; "
                f"{FEW_CONFIGURATIONS} are needed."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # axes that no longer vary
            posterior = fit(rest, **settings)
        gates[f"depth {depth:g}, width {width:g}"] = posterior.diagnose()
        for size, of_size in own.groupby("dataset_size"):
            recorded = runs[runs["dataset_size"] == size]
            new = _new_recordings(posterior, recorded[is_hidden[runs["dataset_size"] == size]], seed)
            for _, question in of_size.iterrows():
                row, rows = _looked_up(posterior, recorded, hidden, new, question, seed)
                questions.append(row)
                starts += rows
    order = ["dataset_size", "target_error"]
    question_table = pd.DataFrame(questions).sort_values(order, ignore_index=True)
    start_table = pd.DataFrame(starts).sort_values([*order, *_NETWORK], ignore_index=True)
    return PlanEvaluation(question_table, start_table, _coverage(question_table, start_table, seed), gates)


def _questions(runs: pd.DataFrame, factors: Sequence[float]) -> pd.DataFrame:
    """Choose the targets, and find the measured optimum of each."""
    rows, limit = [], HIGHEST * chance_error_of(runs)
    densest = runs.loc[runs.groupby("trajectory")["density"].idxmax()]
    for size, own in runs.groupby("dataset_size"):
        unpruned = densest[densest["dataset_size"] == size].groupby(_NETWORK)["error"].mean()
        for target in (factor * float(unpruned.min()) for factor in factors):
            if not 0 < target < limit:
                continue
            sizes = _middles(run_sizes(own, target))
            if not np.isfinite(sizes.min()):
                continue
            depth, width = sizes.index[int(sizes.to_numpy().argmin())]
            rows.append(
                {
                    "dataset_size": size, "target_error": target, "best_depth": depth, "best_width": width,
                    "best_size": sizes.min(),
                }
            )  # fmt: skip
    if not rows:
        raise BayeslawError(f"factors = {list(factors)}: no recorded network reaches such a target below {limit:.3g}.")
    return pd.DataFrame(rows)


def _middles(sizes: pd.DataFrame) -> pd.Series:
    """Take the middle one of every network's runs, by depth and width."""
    return sizes.groupby(_NETWORK)["size"].agg(lambda own: float(middle(own.to_numpy())))


def _around(runs: pd.DataFrame, depth: Any, width: Any) -> pd.MultiIndex:
    """List a network and those one step away from it in depth or in width."""
    networks = runs[_NETWORK].drop_duplicates()
    steps = np.zeros(len(networks))
    for name, here in zip(_NETWORK, (depth, width), strict=True):
        values = sorted(networks[name].unique())
        steps += np.abs(networks[name].map(values.index).to_numpy() - values.index(here))
    return pd.MultiIndex.from_frame(networks[steps <= 1])


class _Recording:
    """Hold smoothed new runs of one network, drawn from a posterior, as many as were recorded."""

    def __init__(self, posterior: Fit, own: pd.DataFrame, seed: int) -> None:
        network, names = own.iloc[[0]], own["trajectory"].unique()
        density = np.sort(own.loc[own["trajectory"] == names[0], "density"].to_numpy(float))[::-1]
        self.log_density = np.log(density)
        levels = network[CONFIGURATION].merge(pd.DataFrame({"density": density}), how="cross")
        self.runs = []
        for replicate in range(len(names)):
            logits = run_logits(posterior, levels.assign(replicate=replicate), seed)
            self.runs.append(smoothed(logits[np.linspace(0, len(logits) - 1, DRAWS).round().astype(int)]))
        depth, width = (float(network[name].iloc[0]) for name in _NETWORK)
        self.prunable, self.unprunable = (float(count) for count in posterior.frame.family.counts(depth, width))

    def sizes(self, target_error: float) -> NDArray[np.float64]:
        """Give the middle one of the runs' sizes at a target, `[draws]`."""
        crossed = np.stack([crossings(own, self.log_density, target_error) for own in self.runs])
        return middle(np.exp(crossed) * self.prunable + self.unprunable, axis=0)


def _new_recordings(posterior: Fit, hidden: pd.DataFrame, seed: int) -> dict[Any, _Recording]:
    return {network: _Recording(posterior, own, seed) for network, own in hidden.groupby(_NETWORK)}


def _looked_up(
    posterior: Fit,
    recorded: pd.DataFrame,
    hidden: pd.MultiIndex,
    new: Mapping[Any, _Recording],
    question: pd.Series,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plan for one question, and lay what was measured beside it: a row of it, and one for every hidden network."""
    target, sizes = float(question["target_error"]), run_sizes(recorded, float(question["target_error"]))
    measured, best = _middles(sizes), float(question["best_size"])
    again = _resampled(sizes, seed)
    drawn = {network: recording.sizes(target) for network, recording in new.items()}
    visible = measured[~measured.index.isin(hidden)]
    optimum = np.minimum(np.min(list(drawn.values()), axis=0), visible.min() if len(visible) else np.inf)
    axes: dict[str, Any] = _full_grid(measured.index)
    axes["dataset_size"] = float(question["dataset_size"])
    typical = size_draws(posterior, target, **axes, seed=seed).to_numpy().ravel()
    planned = float(np.quantile(typical, 0.5, method="lower"))
    row: dict[str, Any] = {str(name): part for name, part in question.items()}
    row |= {"planned_size": planned if np.isfinite(planned) else np.nan}
    row |= {"off": row["planned_size"] / best - 1} | _quantiles_of(optimum, best)
    by_plan: dict[Any, float] = {}
    chosen: Any = None
    try:
        plan = posterior.plan(target, **axes, allow_failed=True, seed=seed).starts
        by_plan = dict(plan.set_index(_NETWORK)["size_median"].items())
        chosen = tuple(plan[_NETWORK].iloc[int(plan["regret"].argmin())])
    except OutOfReachError:
        row |= dict.fromkeys(("depth", "width", "size", "regret"), np.nan)
    if chosen is not None:
        row |= dict(zip(_NETWORK, chosen, strict=True)) | {
            "size": measured.get(chosen, np.nan),
            "regret": measured.get(chosen, np.nan) / best - 1,
        }
    row["near_by_seeds"] = _near(np.min(list(again.values()), axis=0), best)
    rows = []
    for network, draws in drawn.items():
        size = float(measured[network])
        of_start = {name: row[name] for name in ("dataset_size", "target_error", "best_depth", "best_width")}
        of_start |= dict(zip(_NETWORK, network, strict=True)) | {
            "size": size,
            "planned_size": by_plan.get(network, np.nan),
        }
        of_start |= {"off": of_start["planned_size"] / size - 1} | _quantiles_of(draws, size)
        of_start |= {"p_finite": np.isfinite(draws).mean(), "asked": bool(np.isfinite(draws).mean() >= LIKELY)}
        rows.append(of_start | {"near_by_seeds": _near(again[network], size) if np.isfinite(size) else np.nan})
    return row, rows


def _full_grid(networks: pd.Index) -> dict[str, Any]:
    """Give all depths, and the widths that were recorded at each of them: of others nothing can be looked up."""
    depths = sorted({depth for depth, _ in networks})
    widths = sorted({width for _, width in networks})
    full = [width for width in widths if all((depth, width) in networks for depth in depths)]
    return {"depths": depths, "widths": full or widths}


def _quantiles_of(draws: NDArray, size: float) -> dict[str, Any]:
    """Give quantiles of draws, some of which are infinite, and whether a size lies between them."""
    found: dict[str, Any] = {
        name: float(np.quantile(draws, at, method="higher" if at > 0.5 else "lower")) for name, at in _QUANTILES.items()
    }
    return found | {f"inside_{k}": found[f"lower_{k}"] <= size <= found[f"upper_{k}"] for k in (50, 90)}


def _resampled(sizes: pd.DataFrame, seed: int) -> dict[Any, NDArray[np.float64]]:
    """Record every network again: its runs drawn with replacement, deviations as large as those of new runs."""
    rng, again = np.random.default_rng(seed), {}
    for network, own in sizes.groupby(_NETWORK)["size"]:
        values = own.to_numpy(float)
        count, centre = len(values), float(middle(values))
        drawn = middle(values[rng.integers(count, size=(RESAMPLES, count))], axis=1)
        if count > 1 and np.isfinite(centre):
            deviation = np.log(drawn / centre) * np.sqrt(count / (count - 1))
            drawn = centre * np.exp(deviation)
        again[network] = drawn
    return again


def _near(again: NDArray, size: float) -> float:
    return float((np.abs(again / size - 1) <= NEAR).mean())


def _coverage(questions: pd.DataFrame, starts: pd.DataFrame, seed: int) -> pd.DataFrame:
    rows = []
    parts = (
        ("optimum", questions, ["best_depth", "best_width", "dataset_size"]),
        ("hidden networks", starts[starts["asked"]], CONFIGURATION),
    )
    for name, table, network in parts:
        group = table.groupby(network).ngroup().to_numpy()
        near = (table["off"].abs() <= NEAR).to_numpy()
        row: dict[str, Any] = {"of": name, "count": len(table)}
        shares = {"in_50": table["inside_50"].to_numpy(bool), "in_90": table["inside_90"].to_numpy(bool), "near": near}
        for part, inside in shares.items():
            row[part] = inside.mean()
            row[f"{part}_lower"], row[f"{part}_upper"] = bootstrap_share(inside, group, seed)
        rows.append(row | {"near_by_seeds": table["near_by_seeds"].mean()})
    return pd.DataFrame(rows)
