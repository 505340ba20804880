"""Which run should be next: the expected fall of the decision's regret for every unit of training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION, ROUND, rounds_at
from bayeslaw.new_runs import run_logits
from bayeslaw.objectives import draws_of, fallback_of, values_of
from bayeslaw.precision import in_float64
from bayeslaw.predict import check_designs
from bayeslaw.starts import Costs, Counter, costs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.plan import Plan
    from bayeslaw.posterior import Fit

#: Levels of a candidate run that its summary is made of at most, and numbers that are kept of them.
LEVELS, COMPONENTS = 12, 4
#: Share of the dearest candidate's cost that every candidate is charged with at least.
LEAST_COST = 0.02
#: Shares of the rounds down to the lowest density after which candidate runs may stop too, where none are given.
STOPS = (0.25, 0.5, 0.75)
#: Starts of least regret whose losses are told apart.
STARTS = 60
#: Folds of the cross-fit.
FOLDS = 4


@dataclass(frozen=True)
class Suggestion:
    """Hold which runs are worth most.

    Attributes:
        ranked: One row per candidate (depth, width, dataset_size, density down to which), best first: `value`, the
            expected fall of the decision's regret by one run of it, in units of the objective, and its Monte Carlo
            standard error `mcse`; `narrows`, the sd of the differences between starts that one run explains, each start
            weighted by its probability of being best; `training_flops`; `value_per_flop`. First come runs whose value
            is above two standard errors, by that value for its cost; then the others, by the variance explained for its
            cost, of which a further run of the same network counts half, a third and so on, or where no run explains
            any, by how near they are to the start of least expected loss. A run that stops at a higher density costs
            less, and tells less. All count with a fiftieth of the dearest one's cost at least: where it is small
            anyway, cost is no reason.
        chosen: The batch, in the order of choice: the same columns, `value` being what a run adds to those before it.
            A network can appear more than once: its replicates.
        regret: Expected regret of the present decision, in units of the objective.
        notes: What the reader must know.
        family: Name of the fitted networks' family.
        dataset: Label of their dataset.
    """

    ranked: pd.DataFrame
    chosen: pd.DataFrame
    regret: float
    notes: tuple[str, ...]
    family: str
    dataset: str

    def __str__(self) -> str:
        formats = dict.fromkeys(CONFIGURATION, "{:g}".format) | {"density": "{:.4f}".format}
        formats |= dict.fromkeys(("value", "mcse", "narrows", "training_flops", "value_per_flop"), "{:,.3g}".format)
        return "\n".join(
            [
                f"expected regret of the present decision: {self.regret:,.4g}",
                "",
                "candidates",
                self.ranked.head(10).to_string(index=False, formatters=formats),
                "",
                "next",
                self.chosen.to_string(index=False, formatters=formats),
                *self.notes,
            ]
        )

    def to_sweep(self, path: str | Path, *, template: str | Path, runs: pd.DataFrame | None = None) -> Path:
        """Write the batch as a sweep that `imp-runs sweep` runs.

        Args:
            path: TOML file to write.
            template: TOML file of the sweep whose family, dataset and protocol are taken.
            runs: Runs that there are already; new ones of the same network become further replicates.

        Returns:
            The path.

        Raises:
            BayeslawError: The template is no sweep, or one of another family or dataset than was fitted; nothing is
                suggested, or a network is none that can be trained.
        """
        from bayeslaw.sweep_file import check_origin, write_sweep

        check_origin(template, self.family, self.dataset)
        return write_sweep(path, self.chosen, template=template, runs=runs)


@in_float64
def suggest(
    fit: Fit,
    candidates: pd.DataFrame | None = None,
    *,
    objective: Plan,
    budget: float | None = None,
    batch: int = 1,
    family: Family | None = None,
    parameters: Counter | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Suggestion:
    r"""Rank trajectories by how far one run of them is expected to bring the decision's regret down, by their cost.

    With losses L of the starts and a run's errors y, the value of a run is

    $$\min_s \mathrm{E} [L_s] - \mathrm{E} [\min_s \mathrm{E} [L_s \mid y]]$$

    Every posterior draw makes a run of the candidate, effects, jitter, test noise and death included; the conditional
    expectation is a regression of the losses on what the run shows (the first principal components of its logits, their
    squares and products), and is judged on draws that it was not fitted to, so that it does not flatter itself.

    Args:
        fit: The posterior.
        candidates: One row per trajectory: depth, width, dataset_size and the density to prune down to (without it the
            lowest one fitted, and those after a quarter, half and three quarters of its rounds); `most`, how many runs
            of a network there can be, where that is limited. By default every start of the plan, at every dataset size
            fitted.
        objective: The plan whose decision is to be made surer: its question and its starts.
        budget: Floating-point operations for the whole batch, or no limit.
        batch: Runs to choose, one after the other, each given those before it: as many as there are workers.
        family: Counts multiply-adds; default the fitted family.
        parameters: Own counts instead, as in `plan`; needs multiply-adds.
        seed: Seed of the candidates' runs.
        progress: Show a progress bar where standard error is a terminal and it takes more than two seconds.

    Returns:
        The suggestion.

    Raises:
        BayeslawError: Candidates lack a column or are out of range, their cost is not known, or none is within the
            budget.

    Source:
        Strong, Oakley, Brennan, Breeze, Medical Decision Making 35, 2015: expected value of sample information by
        regression.

    Example:
        >>> import bayeslaw
        >>> plan = fit.plan(0.1, depths=[8, 14], widths=[2, 4, 8], dataset_size=1000)  # doctest: +SKIP
        >>> bayeslaw.suggest(fit, objective=plan).to_sweep("next.toml", template="sweep.toml")  # doctest: +SKIP
    """
    if batch < 1:
        raise BayeslawError(f"batch = {batch} must be at least 1.")
    table, most = _candidates(fit, candidates, objective)
    flops = _flops(fit, table, family, parameters)
    if budget is not None and not (flops <= budget).any():
        raise BayeslawError(
            f"budget = {budget:.3g} pays for none of the candidates; the cheapest takes {flops.min():.3g}."
        )
    charged = np.maximum(flops, LEAST_COST * flops.max())
    network = table.groupby(CONFIGURATION, sort=False).ngroup().to_numpy()
    decision = _Decision(_losses(fit, objective, seed), seed)
    shown: list[NDArray] = [np.empty(0)] * len(table)
    for one in tqdm(
        range(network.max() + 1), "candidates", delay=2, disable=None if progress else True, file=sys.stderr
    ):
        _show(shown, fit, table, network == one, 0, seed)
    alone = [decision.value([scores]) for scores in shown]
    table = table.assign(narrows=[explained for *_, explained in alone], training_flops=flops)
    left, times, known, before = np.inf if budget is None else budget, np.zeros(len(table), int), [], 0.0
    chosen, ranked = [], pd.DataFrame()
    while len(chosen) < batch:
        within = np.flatnonzero((flops <= left) & (times < most))
        if not len(within):
            break
        values = [decision.value([*known, shown[i]]) if known else alone[i] for i in within]
        found = _valued(table.iloc[within], values, before)
        score = _score(found, charged[within], times[within], objective, decision.base)
        if not chosen:
            ranked = found.iloc[np.argsort(-score, kind="stable")].reset_index(drop=True)
        best = found.iloc[int(score.argmax())]
        place = int(within[score.argmax()])
        chosen.append(best)
        known.append(shown[place])
        own = network == network[place]
        left, before, times[own] = left - flops[place], before + best["value"], times[own] + 1
        if len(chosen) < batch:
            _show(shown, fit, table, own, int(times[place]), seed)
    chosen = pd.DataFrame(chosen).reset_index(drop=True)
    return Suggestion(ranked, chosen, decision.regret, _notes(chosen, batch), fit.frame.family.name, fit.frame.dataset)


def _flops(fit: Fit, table: pd.DataFrame, family: Family | None, parameters: Counter | None) -> NDArray[np.float64]:
    """Compute what one run of every candidate costs, `[candidates]`."""
    flops = costs_of(fit, table, family, parameters).training * (rounds_at(table["density"]) + 1)
    if np.isnan(flops).any():
        raise BayeslawError(
            "suggest needs multiply-adds; parameters= must give them as its third value or column macs."
        )
    return flops


def _valued(table: pd.DataFrame, values: list[tuple[float, float, float]], before: float) -> pd.DataFrame:
    """Say what candidates add to the value of what is chosen already; below 0 it is noise of the cross-fit."""
    value, mcse, _ = np.array(values).T
    found = table.assign(value=np.maximum(value - before, 0.0), mcse=mcse)
    found["value_per_flop"] = found["value"] / found["training_flops"]
    return found[[*CONFIGURATION, "density", "value", "mcse", "narrows", "training_flops", "value_per_flop"]]


def _score(found: pd.DataFrame, charged: NDArray, times: NDArray, objective: Plan, base: int) -> NDArray[np.float64]:
    """Score candidates: above 1 those surely worth something, else what tells most; see `Suggestion`."""
    value = np.where(found["value"] > 2 * found["mcse"], found["value"], 0.0) / charged
    explained = (found["narrows"] ** 2 / (1 + times)).to_numpy() / charged
    if not explained.any():
        explained = _nearness(objective, base, found) / (1 + times)
    return np.where(value > 0, 1 + value / max(value.max(), 1e-300), explained / explained.max())


def _candidates(fit: Fit, given: pd.DataFrame | None, objective: Plan) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Give one row per candidate, and how many runs of each there can be."""
    if given is None:
        starts = objective.starts[["depth", "width"]].drop_duplicates()
        sizes = {*fit.runs["dataset_size"], *objective.starts["dataset_size"]}
        given = starts.merge(pd.DataFrame({"dataset_size": sorted(sizes)}), how="cross")
    if isinstance(given, pd.DataFrame) and "density" not in given:
        given = given.merge(pd.DataFrame({"density": stops(float(fit.runs["density"].min()))}), how="cross")
    given = check_designs(given, 0.9, "run")
    table = given.drop_duplicates([*CONFIGURATION, "density"]).reset_index(drop=True)
    most = table["most"].to_numpy(float) if "most" in table else np.full(len(table), np.inf)
    return table[[*CONFIGURATION, "density"]], most


def stops(density: float) -> list[float]:
    """List the densities that runs down to the lowest one may stop at.

    Example:
        >>> [round(density, 3) for density in stops(0.8**28)]
        [0.21, 0.044, 0.009, 0.002]
    """
    rounds = int(rounds_at(density))
    before = np.unique(np.round(np.multiply(STOPS, rounds))).astype(int)
    return [*np.exp(-ROUND * before[(before > 0) & (before < rounds)]).tolist(), density]


def _losses(fit: Fit, objective: Plan, seed: int) -> NDArray[np.float64]:
    """Compute what every start comes to, a miss falling back on the largest, `[draws, starts]`, least regret first."""
    question = objective.question
    starts = objective.starts.sort_values("regret")[:STARTS]
    every = _costs_in(objective.starts)
    value = values_of(fit, question, starts, _costs_in(starts), draws_of(fit, starts, seed))
    fallback = fallback_of(fit, question, objective.starts, every, seed)
    return np.where(np.isfinite(value), value, fallback[:, None])


def _costs_in(starts: pd.DataFrame) -> Costs:
    """Take the counts that a plan keeps."""
    return Costs(*(starts[name].to_numpy(float) for name in ("prunable", "unprunable", "macs", "one_training_flops")))


def _show(
    shown: list[NDArray], fit: Fit, table: pd.DataFrame, own: NDArray[np.bool_], replicate: int, seed: int
) -> None:
    """Let every draw make one run of a network, and keep what each of its candidates shows of it."""
    places = np.flatnonzero(own)
    summaries = _summaries(fit, table.iloc[places], replicate, seed)
    for place, scores in zip(places, summaries, strict=True):
        shown[place] = scores


def _summaries(fit: Fit, candidates: pd.DataFrame, replicate: int, seed: int) -> list[NDArray[np.float64]]:
    """Let every draw make one run of a network; keep what tells most of its logits down to each candidate's density.

    Args:
        fit: The posterior.
        candidates: Rows of one network.
        replicate: Tells runs of the network apart.
        seed: Seed of the run.

    Returns:
        `[draws, components]` for each candidate.
    """
    last = rounds_at(candidates["density"]).tolist()
    kept = [np.unique(np.linspace(0, end, LEVELS).round().astype(int)) for end in last]
    rounds = np.unique(np.concatenate(kept))
    run = {name: float(candidates[name].iloc[0]) for name in CONFIGURATION} | {"replicate": replicate}
    logits = run_logits(fit, pd.DataFrame(run | {"density": np.exp(-ROUND * rounds)}), seed)
    logits = (logits - logits.mean(0)) / np.maximum(logits.std(0), 1e-12)
    return [_components(logits[:, np.isin(rounds, own)]) for own in kept]


def _components(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the first principal components, of unit variance."""
    left, size, _ = np.linalg.svd(logits, full_matrices=False)
    scores = (left * size)[:, :COMPONENTS]
    return scores / np.maximum(scores.std(0), 1e-12)


def _features(shown: list[NDArray]) -> NDArray[np.float64]:
    """Take the components of runs, their squares and products within a run, and a constant."""
    columns = [np.ones(len(shown[0]))]
    for scores in shown:
        upper = np.triu_indices(scores.shape[1])
        columns += [*scores.T, *(scores[:, upper[0]] * scores[:, upper[1]]).T]
    return np.column_stack(columns)


class _Decision:
    """Hold the losses that a decision is made by, and judge what it is worth to see runs before.

    Args:
        losses: What every start comes to, `[draws, starts]`.
        seed: Seed of the folds.
    """

    def __init__(self, losses: NDArray[np.float64], seed: int) -> None:
        self.base = int(losses.mean(0).argmin())
        self._differences = losses - losses[:, [self.base]]
        self._best = np.bincount(losses.argmin(1), minlength=losses.shape[1]) / len(losses)
        self._fold = np.random.default_rng(seed).permutation(len(losses)) % FOLDS

    @property
    def regret(self) -> float:
        """Expected regret of the start of least expected loss, `base`."""
        return float(-self._differences.min(1).mean())

    def value(self, shown: list[NDArray]) -> tuple[float, float, float]:
        """Estimate the value of runs: how much less the start costs that is chosen when they are seen.

        Args:
            shown: What every run shows, `[draws, components]` each.

        Returns:
            The value, its Monte Carlo standard error, and the sd of the differences between starts that they explain.
        """
        features, differences = _features(shown), self._differences
        fall, missed = np.empty(len(differences)), np.empty_like(differences)
        gram, moments = features.T @ features, features.T @ differences
        for index in range(FOLDS):
            out = self._fold == index
            left_out = features[out]
            within = gram - left_out.T @ left_out, moments - left_out.T @ differences[out]
            weights = np.linalg.lstsq(*within, rcond=1e-12)[0]  # of least norm where runs show the same
            expected = left_out @ weights
            fall[out] = -np.take_along_axis(differences[out], expected.argmin(1)[:, None], 1)[:, 0]
            missed[out] = differences[out] - expected
        explained = np.maximum(differences.var(0) - (missed**2).mean(0), 0.0)
        return float(fall.mean()), float(fall.std() / np.sqrt(len(fall))), float(np.sqrt(self._best @ explained))


def _nearness(objective: Plan, base: int, found: pd.DataFrame) -> NDArray[np.float64]:
    """Say how near candidates lie to the start of least expected loss, on the log scale."""
    start = np.log(objective.starts.sort_values("regret")[CONFIGURATION].iloc[base].to_numpy(float))
    distance = np.abs(np.log(found[CONFIGURATION].to_numpy(float)) - start).sum(axis=1)
    return 1 / (1 + distance)


def _notes(chosen: pd.DataFrame, batch: int) -> tuple[str, ...]:
    notes = []
    if len(chosen) < batch:
        notes.append(f"Note: the budget pays, or there are candidates, for {len(chosen)} of {batch} runs.")
    if (chosen["value"] < 2 * chosen["mcse"]).all():
        notes.append(
            "Note: no run is surely worth anything (less than two Monte Carlo standard errors): the decision is as "
            "sure as one of these runs can make it, or more posterior draws are needed to tell."
        )
    return tuple(notes)


def decision_regret(fit: Fit, objective: Plan, seed: int = 0) -> tuple[int, float]:
    """Give the start of least expected loss among a plan's, by its label, and its expected regret."""
    decision = _Decision(_losses(fit, objective, seed), seed)
    labels: Any = objective.starts.sort_values("regret").index[:STARTS]
    return int(labels[decision.base]), decision.regret
