"""Fit, suggest, run, fit again: until the decision is sure enough or the budget is spent."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from bayeslaw.design import decision_regret, stops, suggest
from bayeslaw.errors import BayeslawError, OutOfReachError
from bayeslaw.fitting import FEW_CONFIGURATIONS, fit
from bayeslaw.frame import CONFIGURATION, family_of, rounds_at
from bayeslaw.objectives import Question
from bayeslaw.runs import load_runs
from bayeslaw.starts import make_starts, training_flops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.plan import Plan
    from bayeslaw.posterior import Fit

#: Networks that a campaign begins with: as many as the fast way of sampling takes.
INITIAL = FEW_CONFIGURATIONS


class Runner(Protocol):
    """Something that runs networks."""

    def describe(self) -> pd.DataFrame:
        """Give a row of a run table that says what all runs have in common, with the lowest `density` they go to."""
        ...

    def available(self, candidates: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Keep the candidates of which one more replicate can be run; `most` says how many, where that is limited."""
        ...

    def run(self, chosen: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Run one more replicate of every chosen network, down to its `density`; give the new rows."""
        ...


class Replay:
    """Take trajectories from a recorded sweep as if they were run now.

    Args:
        recorded: The sweep's run table, with replicates.
        order: Seed of the order in which replicates are given out.

    Raises:
        BayeslawError: The table has no trajectories.
    """

    def __init__(self, recorded: pd.DataFrame, *, order: int = 0) -> None:
        if "trajectory" not in recorded:
            raise BayeslawError(
                "a replay gives out trajectories one by one, and the table has no trajectory (or replicate) column; "
                "map it with load_runs(..., columns={'trajectory': ...})."
            )
        names = recorded.drop_duplicates("trajectory")[[*CONFIGURATION, "trajectory"]]
        self._recorded = recorded
        self._names = names.sample(frac=1.0, random_state=order)

    def describe(self) -> pd.DataFrame:
        """Give the first row, with the lowest density of all."""
        return self._recorded.iloc[[0]].assign(density=self._recorded["density"].min())

    def available(self, candidates: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Keep networks that have unused trajectories, and count these."""
        left = self._left(runs).groupby(CONFIGURATION).size().rename("most").reset_index()
        return candidates.merge(left, on=CONFIGURATION)

    def run(self, chosen: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
        """Give the next unused trajectory of every chosen network down to its density; none where all are used."""
        left, taken = self._left(runs), {}
        for row in chosen.to_dict("records"):
            own = left[(left[CONFIGURATION] == [row[name] for name in CONFIGURATION]).all(axis=1)]
            names = own.loc[~own["trajectory"].isin(taken), "trajectory"]
            if len(names):
                taken[names.iloc[0]] = rounds_at(row["density"])
        last = self._recorded["trajectory"].map(taken)
        return self._recorded[rounds_at(self._recorded["density"]) <= last]

    def _left(self, runs: pd.DataFrame) -> pd.DataFrame:
        used = set(runs["trajectory"]) if len(runs) else set()
        return self._names[~self._names["trajectory"].isin(used)]


@dataclass(frozen=True)
class Campaign:
    """Hold what an autopilot did.

    Attributes:
        history: One row per round: `runs` so far, `training_flops` they cost, the decision's expected `regret` (in
            units of the objective) and `regret_percent`, the start of least expected loss (`depth`, `width`), and
            whether the fit `passed` its gate.
        runs: The run table at the end.
        fit: The last fit.
        plan: The last plan; nothing where no start reaches the target.
        reason: Why it ended.
    """

    history: pd.DataFrame
    runs: pd.DataFrame
    fit: Fit
    plan: Plan | None
    reason: str


def autopilot(
    runner: Runner,
    output: str | Path,
    *,
    target_error: float,
    depths: Iterable[float],
    widths: Iterable[float],
    dataset_size: float,
    dataset_sizes: Iterable[float] | None = None,
    density: float | None = None,
    tolerance: float = 10.0,
    budget: float | None = None,
    batch: int = 3,
    choose: str = "suggest",
    draws: int = 500,
    seed: int = 0,
    say: Callable[[str], Any] = print,
) -> Campaign:
    """Run networks until it is clear enough which to start from.

    A round costs at most as much as all before it did, however it is chosen, so that little is spent while little is
    known.

    Args:
        runner: What runs them: `bayeslaw.live.Live` or `Replay`.
        output: Folder for `runs.parquet`, `history.csv`, `fit.nc`; a campaign that was stopped goes on there.
        target_error: Wanted error of the decision.
        depths: Depths to choose from, and to run.
        widths: Widths to choose from, and to run.
        dataset_size: Number of training examples of the decision.
        dataset_sizes: Numbers of training examples that may be run; by default that of the decision alone.
        density: Density down to which networks are run at most; by default the template's, or the recording's, lowest.
            Suggested runs stop earlier where that tells as much for its cost.
        tolerance: Expected regret, in per cent of the best start's size, at which it is clear enough.
        budget: Floating-point operations for all trainings, or no limit.
        batch: Networks to run in a round at most: as many as there are workers.
        choose: `"suggest"`, or `"random"` (networks, and where their runs stop), to compare with. Where a fit sees no
            start reach the target and is not believed, networks are spread over the cheaper half.
        draws: Posterior draws per chain.
        seed: Seed of the first networks, the sampler and the suggestions.
        say: Called with one line a round.

    Returns:
        The campaign.

    Raises:
        BayeslawError: The folder holds another campaign, the budget does not pay for a first run, the runner has none
            of the networks, runs gave nothing that can be fitted, or an argument is out of range.

    Example:
        >>> import bayeslaw
        >>> runner = bayeslaw.Replay(bayeslaw.load_recorded("digits_resnet"))  # doctest: +SKIP
        >>> starts = {"depths": [8, 14, 20], "widths": [1, 2, 4, 8, 16]}  # doctest: +SKIP
        >>> bayeslaw.autopilot(runner, "campaign", target_error=0.1, dataset_size=1000, **starts)  # doctest: +SKIP
    """
    if choose not in ("suggest", "random"):
        raise BayeslawError(f"choose = {choose!r} must be 'suggest' or 'random'.")
    if not (tolerance > 0 and batch >= 1):
        raise BayeslawError(f"tolerance = {tolerance} must be above 0 and batch = {batch} at least 1.")
    depths, widths = sorted(set(depths)), sorted(set(widths))
    sizes = sorted({dataset_size, *(dataset_sizes or ())})
    about = runner.describe().iloc[0]
    density = float(about["density"]) if density is None else density
    starts = _checked_starts(about, target_error, density, depths, widths, sizes)
    wanted = {
        "target_error": target_error, "depths": depths, "widths": widths, "dataset_size": dataset_size,
        "dataset_sizes": sizes, "density": density, "choose": choose, "batch": batch, "seed": seed,
    }  # fmt: skip
    output = _open(Path(output), wanted)
    candidates = starts.merge(pd.DataFrame({"density": stops(density)}), how="cross")
    runs, history = _resume(output)
    if runs.empty:
        runs = add_runs(output, runs, runner.run(_first(runner, candidates, about, budget, seed), runs))
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = fit(runs, draws=draws, seed=seed, progress=False)
            decision = _plan(posterior, target_error, depths, widths, dataset_size, seed)
        posterior.save(output / "fit.nc")
        row = _row(posterior, decision, runs, about, seed)
        history = [past for past in history if past["runs"] < row["runs"]] + [row]
        _write_whole(output / "history.csv", pd.DataFrame(history).to_csv(index=False))
        say(_line(row, len(history)))
        left = runner.available(candidates, runs)
        affordable = None if budget is None else budget - row["training_flops"]
        reason = _why_end(row, tolerance, left, about, affordable)
        if reason:
            say(reason)
            return Campaign(pd.DataFrame(history), runs, posterior, decision, reason)
        within = _for_a_round(row["training_flops"], left, about, affordable)
        if choose == "suggest" and decision is not None:
            chosen = suggest(
                posterior, left, objective=decision, budget=within, batch=batch, seed=seed, progress=False
            ).chosen
        else:  # by a fit that is not believed and sees no decision, nothing is known to be worth more
            rng = np.random.default_rng([seed, row["runs"]])
            cheap = left[prices(about, left) <= within]
            mixed = _mixed(cheap, rng) if choose == "random" else _spread(cheap, about, batch, rng)
            chosen = _paid(mixed, about, within).head(batch)
        runs = add_runs(output, runs, runner.run(chosen[[*CONFIGURATION, "density"]], runs))


def _for_a_round(spent: float, left: pd.DataFrame, about: pd.Series, affordable: float | None) -> float:
    """Give what the next round may cost: as much as all before it, and the cheapest run that is left in any case."""
    within = max(spent, float(prices(about, left).min()) * (1 + 1e-9))
    return within if affordable is None else min(within, affordable)


def _checked_starts(
    about: pd.Series, target_error: float, density: float, depths: list[float], widths: list[float], sizes: list[float]
) -> pd.DataFrame:
    """Make the starts of a campaign, or say what is wrong with its question before anything is written or run."""
    Question(target_error=target_error).check()
    if not 0 < density <= 1:
        raise BayeslawError(f"density = {density:g} must be a fraction of weights kept, in (0, 1].")
    starts = make_starts(depths, widths, sizes)
    family_of(about).counts(starts["depth"].to_numpy(float), starts["width"].to_numpy(float))
    chance = about.get("chance_error", 1 - 1 / about["classes"] if "classes" in about else 1.0)
    if target_error >= chance:
        raise BayeslawError(
            f"target_error = {target_error:g} is not below the error of guessing, {chance:g}: every network reaches "
            "it. Ask for a lower one."
        )
    return starts


def _mixed(left: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Mix candidates, and keep one stop of every network."""
    return left.sample(frac=1.0, random_state=int(rng.integers(2**31))).drop_duplicates(CONFIGURATION)


def _paid(candidates: pd.DataFrame, about: pd.Series, within: float) -> pd.DataFrame:
    """Take candidates in their order, each if it is paid for by what is left."""
    taken = []
    for cost in prices(about, candidates):
        taken.append(cost <= within)
        within -= cost if taken[-1] else 0.0
    return candidates[taken]


def _plan(
    posterior: Fit, target_error: float, depths: list[float], widths: list[float], dataset_size: float, seed: int
) -> Plan | None:
    """Plan, or give nothing where the fit sees no start reach the target."""
    try:
        return posterior.plan(
            target_error, depths=depths, widths=widths, dataset_size=dataset_size, allow_failed=True, seed=seed
        )
    except OutOfReachError:
        return None


def _open(output: Path, wanted: dict[str, Any]) -> Path:
    """Make the folder, or see that it is of the same campaign."""
    output.mkdir(parents=True, exist_ok=True)
    path, told = output / "campaign.json", json.loads(json.dumps(wanted, default=float))
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        if differ := [name for name in told if there.get(name) != told[name]]:
            raise BayeslawError(
                f"{output} holds another campaign ({', '.join(f'{n} = {there.get(n)}' for n in differ)}); choose "
                "another folder, or ask the same."
            )
    else:
        _write_whole(path, json.dumps(told, indent=1))
    return output


def _write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _resume(output: Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    runs, history = output / "runs.parquet", output / "history.csv"
    table = load_runs(runs) if runs.exists() else pd.DataFrame()
    rows = pd.read_csv(history).to_dict("records") if history.exists() else []
    return table, [{str(k): v for k, v in row.items()} for row in rows]


def add_runs(output: Path, runs: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Add runs, and write all, whole or not at all.

    Raises:
        BayeslawError: There is nothing to add.
    """
    if new.empty:
        raise BayeslawError(
            "the runs of this round gave no level that can be fitted: they diverged, or ended at once. Look at their "
            "store with `imp-runs status`; mend the training (learning_rate), or leave these networks out."
        )
    table = pd.concat([runs, load_runs(new)] if len(runs) else [load_runs(new)], ignore_index=True)
    scratch = output / "runs.part.parquet"
    table.to_parquet(scratch, index=False)
    scratch.replace(output / "runs.parquet")
    return load_runs(output / "runs.parquet")


def prices(about: pd.Series, candidates: pd.DataFrame) -> NDArray[np.float64]:
    """Give the floating-point operations of one trajectory of every candidate, down to its density.

    Args:
        about: What runs have in common (`Runner.describe`): family, input_shape, classes, epochs.
        candidates: Rows with depth, width, dataset_size and density.

    Returns:
        `[candidates]`.
    """
    macs = family_of(about).macs(candidates["depth"], candidates["width"])
    once = training_flops(macs, candidates["dataset_size"].to_numpy(float), float(about.get("epochs", 1.0)))
    return once * (rounds_at(candidates["density"]) + 1)


def spent_on(about: pd.Series, runs: pd.DataFrame) -> float:
    """Add up what trajectories of a run table cost, each as far down as it went."""
    return float(prices(about, runs.loc[runs.groupby("trajectory")["density"].idxmin()]).sum())


def _first(runner: Runner, candidates: pd.DataFrame, about: pd.Series, budget: float | None, seed: int) -> pd.DataFrame:
    """Begin with networks of the cheaper half, as far as the budget pays."""
    there = runner.available(candidates, pd.DataFrame())
    if there.empty:
        raise BayeslawError(
            "the runner has none of these networks: depths, widths and dataset_sizes must be among those that it can "
            "run."
        )
    chosen = _spread(there, about, INITIAL, np.random.default_rng(seed))
    cost = prices(about, chosen)
    paid = chosen if budget is None else chosen[np.cumsum(cost) <= budget]
    if not len(paid):
        raise BayeslawError(
            f"budget = {budget:.3g} does not pay for a first run; the cheapest takes {cost.min():.3g}. Offer more, or "
            "smaller networks."
        )
    return paid


def _spread(left: pd.DataFrame, about: pd.Series, number: int, rng: np.random.Generator) -> pd.DataFrame:
    """Take networks spread evenly over the cheaper half, so that every axis varies, as far down as they go."""
    left = left.sort_values("density").drop_duplicates(CONFIGURATION).sort_index()
    cheap = np.argsort(prices(about, left), kind="stable")[: max(number, len(left) // 2)]
    strata = np.array_split(cheap, min(number, len(cheap)))
    return left.iloc[[int(rng.choice(own)) for own in strata]]


def _row(posterior: Fit, decision: Plan | None, runs: pd.DataFrame, about: pd.Series, seed: int) -> dict[str, Any]:
    row = {"runs": runs["trajectory"].nunique(), "training_flops": spent_on(about, runs)}
    row |= {"passed": posterior.diagnose().passed}
    if decision is None:
        return row | dict.fromkeys(("regret", "regret_percent", "depth", "width"), np.nan)
    best, regret = decision_regret(posterior, decision, seed)
    percent, depth, width = decision.starts[["regret_percent", "depth", "width"]].loc[[best]].to_numpy(float)[0]
    return row | {"regret": regret, "regret_percent": percent, "depth": depth, "width": width}


def _line(row: dict[str, Any], number: int) -> str:
    gate = "" if row["passed"] else ", gate failed"
    done = f"round {number}: {row['runs']} runs, {row['training_flops']:.3g} operations"
    if np.isnan(row["depth"]):
        return f"{done}; by this fit no start reaches the target{gate}"
    start = f"start from depth {row['depth']:g}, width {row['width']:g}"
    return f"{done}; {start}, expected regret {row['regret_percent']:.1f} %{gate}"


def _why_end(
    row: dict[str, Any], tolerance: float, left: pd.DataFrame, about: pd.Series, affordable: float | None
) -> str:
    if row["regret_percent"] <= tolerance and row["passed"]:
        return f"done: the expected regret is at most {tolerance:g} %"
    if np.isnan(row["depth"]) and row["passed"]:
        return "ended: no start reaches the target; ask for more error, or offer larger starts or more data"
    if left.empty:
        return "ended: nothing is left to run"
    if affordable is not None and prices(about, left).min() > affordable:
        return "ended: the budget is spent"
    return ""
