"""From a posterior to a decision: which network to start from and how far to prune it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError, OutOfReachError
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION, varies
from bayeslaw.new_runs import usual_n_test
from bayeslaw.objectives import (
    Question,
    check_gate,
    check_target,
    draws_of,
    fallback_of,
    unpruned_errors,
    values_of,
    worth,
)
from bayeslaw.policies import adaptive, fixed, new_runs_of
from bayeslaw.predict import extrapolation, predict
from bayeslaw.starts import Costs, Counter, costs_of, make_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Below this probability that any start reaches the target, there is nothing to plan.
OUT_OF_REACH = 0.05
#: Starts looked at together; bounds the memory at this many times draws.
BLOCK = 256


@dataclass(frozen=True)
class Plan:
    """Hold the decision and what it rests on.

    Attributes:
        question: What was asked: objective, target, budgets, policy, confidence.
        starts: One row per start (depth, width, dataset_size). By the curve of a typical run: `p_best`, probability
            that it is the best start; `p_feasible`, that its error unpruned is at most the target;
            `size_median`, `size_lower`, `size_upper` (`inference_...`, `error_...` by objective), where feasible (90 %,
            equal-tailed); `regret`, how much worse than the best start it is expected to end, where falling back on the
            largest start makes up for a miss, and `regret_percent` of what the best is expected to come to. By new
            runs, seed luck included: `rounds`, `density`, `size`, and `p_reach`, the probability that the population
            error there is at most the target. With the fixed policy at the deepest round that is sure enough; with the
            adaptive one they are medians, `run_lower` and `run_upper` are 90 % of the sizes, `size_mean` their mean,
            `stop_at` the measured error at which to stop, and `optimism` by how much the error measured there flatters.
            `training_flops`, of all trainings, and `one_training_flops`, NaN where unknown; `prunable` + `unprunable` =
            `parameters`, and `macs`, of the unpruned network; `extrapolation` as `Fit.predict` has it, at density 1.
        recommended: The row of `starts` to begin with, or nothing if none is sure enough.
        p_none: Probability that no start is feasible.
        notes: What the reader must know: extrapolation, prior-driven parameters, a failed gate.
    """

    question: Question
    starts: pd.DataFrame
    recommended: pd.Series | None
    p_none: float
    notes: tuple[str, ...]

    @property
    def target_error(self) -> float | None:
        """The wanted error."""
        return self.question.target_error

    @property
    def confidence(self) -> float:
        """The wanted probability that a new run reaches it."""
        return self.question.confidence

    @property
    def dataset_size(self) -> float:
        """The dataset size of the recommended start, else the largest looked at."""
        sizes = self.starts["dataset_size"]
        return sizes.max() if self.recommended is None else self.recommended["dataset_size"]

    def __str__(self) -> str:
        value = self.question.objective
        columns = ["depth", "width", *(["dataset_size"] if varies(self.starts["dataset_size"]) else [])]
        columns += ["p_best", "p_feasible", f"{value}_median", f"{value}_lower", f"{value}_upper", "regret_percent"]
        columns += ["rounds", "density", "size", "p_reach", "stop_at", "run_median", "run_lower", "run_upper"]
        columns = [name for name in columns if name in self.starts]
        shown = self.starts[columns].sort_values(["p_best", "size"], ascending=[False, True])
        formats = {name: "{:.2f}".format for name in columns if name.startswith("p_")}
        error = value == "error"
        for name in columns:
            if name in ("depth", "width", "dataset_size", "rounds"):
                formats[name] = "{:g}".format
            elif name in ("density", "stop_at") or (error and name.startswith(("error", "run"))):
                formats[name] = "{:.4f}".format
            elif not name.startswith("p_"):
                formats[name] = "{:,.0f}".format
        table = shown.to_string(index=False, formatters=formats, na_rep="-")
        return "\n".join([table, "", self.advice, *self.notes])

    @property
    def advice(self) -> str:
        """Say in a sentence what to do, and why."""
        if self.question.objective == "error":
            return self._advice_for_error()
        target = f"error {self.target_error:g}"
        if self.recommended is None:
            best = self.starts.iloc[int(self.starts["p_reach"].to_numpy().argmax())]
            return (
                f"No start reaches {target} with probability {self.confidence:g}; the closest is "
                f"depth {best['depth']:g}, width {best['width']:g} with {best['p_reach']:.2f}. Ask for less "
                "confidence, offer larger starts or more data."
            )
        row = self.recommended
        end = f"a new run reaches {target} with probability {row['p_reach']:.2f}"
        if self.question.policy == "adaptive":
            does = (
                f"prune until the measured error exceeds {row['stop_at']:.4g}, and keep the last good level: "
                f"{row['run_lower']:,.0f} to {row['run_upper']:,.0f} non-zero parameters (90 %) after about "
                f"{row['rounds']:g} rounds"
            )
        else:
            size = f"{row['size']:,.0f} non-zero parameters"
            size += f", {row['inference']:,.0f} multiply-adds" if self.question.objective == "inference" else ""
            does = f"prune {row['rounds']:g} rounds to density {row['density']:.4f}: {size}"
        return f"Start from {self._named(row)} and {does}; {end}. {self._reason(row)}"

    def _advice_for_error(self) -> str:
        row = self.recommended
        if row is None:
            return "No start can be pruned to that size within the budget. Allow more parameters or rounds."
        return (
            f"Start from {self._named(row)} and prune {row['rounds']:g} rounds to density {row['density']:.4f}: "
            f"{row['size']:,.0f} non-zero parameters, with error {row['run_median']:.3g} ({row['run_lower']:.3g} to "
            f"{row['run_upper']:.3g}, 90 % of new runs). {self._reason(row)}"
        )

    def _named(self, row: pd.Series) -> str:
        size = f", n = {row['dataset_size']:g}" if varies(self.starts["dataset_size"]) else ""
        return f"depth {row['depth']:g}, width {row['width']:g}{size}"

    def _reason(self, row: pd.Series) -> str:
        typical = self.starts.iloc[int(self.starts["regret"].to_numpy().argmin())]
        if typical.name == row.name or self.question.objective == "error":
            return (
                f"It is the best of these starts with probability {row['p_best']:.2f}, and expected to end "
                f"{row['regret_percent']:.0f} % above the best."
            )
        sure = f"is as sure only at {typical['size']:,.0f} parameters"
        if typical["p_reach"] < self.confidence:
            sure = f"reaches it with probability {typical['p_reach']:.2f} at most"
        return (
            f"A typical run from {self._named(typical)} ends smaller still (the best start with probability "
            f"{typical['p_best']:.2f}), but its runs differ more: a new one {sure}."
        )


def plan(
    fit: Fit,
    target_error: float | None = None,
    *,
    depths: Iterable[float],
    widths: Iterable[float],
    dataset_size: float | Iterable[float],
    objective: str = "size",
    max_size: float | None = None,
    max_training_flops: float | None = None,
    policy: str = "fixed",
    validation: int | None = None,
    family: Family | None = None,
    parameters: Counter | None = None,
    confidence: float = 0.9,
    allow_failed: bool = False,
    seed: int = 0,
) -> Plan:
    """Choose the starting network, and how far to prune it.

    Args:
        fit: The posterior.
        target_error: Wanted top-1 test error, in (0, random-guess error).
        depths: Depths to choose from.
        widths: Widths to choose from; `width_grid` spreads them over a range.
        dataset_size: Number of training examples, or several to choose from.
        objective: `"size"`, fewest non-zero parameters at the target; `"inference"`, fewest multiply-adds at the
            target; `"error"`, lowest error within `max_size`.
        max_size: Most non-zero parameters, for `objective="error"`.
        max_training_flops: Most floating-point operations for all trainings of one campaign: examples x epochs x 6
            multiply-adds of the unpruned network x (rounds + 1).
        policy: `"fixed"`, a density chosen in advance; `"adaptive"`, pruned until the measured error crosses a mark,
            the last good level kept.
        validation: For the adaptive policy, training examples held out to measure that error on (the network is
            trained on as many fewer), so that the test error is not selected; by default it is measured on the test
            set, with as many examples as the fitted runs have.
        family: Counts parameters; default the fitted family.
        parameters: Own counts instead: a function or a table, as in `bayeslaw.starts.costs_of`.
        confidence: Wanted probability that a new run's population error is at most the target, in (0, 1).
        allow_failed: Plan although the fit failed its gate; the plan then says so.
        seed: Seed of fresh effects.

    Returns:
        The plan. Sizes are kept + unprunable parameters.

    Raises:
        BayeslawError: The fit failed its gate, the target is out of reach of every start (with how close one can get)
            or at the high plateau, no start meets a budget, no counts are known, or an argument is out of range.

    Source:
        Rosenfeld et al., ICML 2021, section 6.

    Example:
        >>> import bayeslaw
        >>> fit = bayeslaw.load("fit.nc")  # doctest: +SKIP
        >>> fit.plan(0.1, depths=[8, 14], widths=[4, 8], dataset_size=1000, policy="adaptive")  # doctest: +SKIP
    """
    question = Question(objective, target_error, max_size, max_training_flops, policy, validation, confidence)
    question.check()
    starts = _held_out(make_starts(depths, widths, dataset_size), validation)
    check_target(fit, question)
    notes = check_gate(fit, allow_failed=allow_failed)
    costs = costs_of(fit, starts, family, parameters)
    judged, p_none = judge_starts(fit, question, starts, costs, seed)
    if 1 - p_none < OUT_OF_REACH:
        raise OutOfReachError(_out_of_reach(fit, question, starts, costs, seed))
    starts = starts.join(judged).join(_priced(fit, question, starts, costs, seed))
    recommended = _recommend(question, starts)
    if validation is not None:
        notes.append(f"Note: {validation} training examples are held out to stop on; dataset_size counts the rest.")
    elif policy == "adaptive" and not np.isfinite(usual_n_test(fit)):
        notes.append(
            "Note: the fitted runs have no n_test, so the error that is stopped on counts as exact; p_reach and "
            "optimism are those of a test set without end. Fit with n_test, or give validation."
        )
    notes += _novelty_notes(fit, starts if recommended is None else starts.loc[[recommended.name]])
    return Plan(question, starts, recommended, p_none, tuple(notes))


def judge_starts(
    fit: Fit, question: Question, starts: pd.DataFrame, costs: Costs, seed: int
) -> tuple[pd.DataFrame, float]:
    """Compare starts by the curves of typical runs: who is best, by how much, and how surely.

    Returns:
        One row per start, the columns `p_best` to `regret_percent` of `Plan.starts`, and the probability that no start
        is feasible.
    """
    name, fallback, rows = question.objective, fallback_of(fit, question, starts, costs, seed), []
    best_value: NDArray | float = np.inf
    best_start: NDArray | int = -1
    for begin in range(0, len(starts), BLOCK):
        own = slice(begin, begin + BLOCK)
        block = Costs(*(count[own] for count in costs))
        value = values_of(fit, question, starts.iloc[own], block, draws_of(fit, starts.iloc[own], seed))
        finite = np.isfinite(value)
        least = value.min(1)
        best_start = np.where(least < best_value, begin + value.argmin(1), best_start)
        best_value = np.minimum(best_value, least)
        median, lower, upper = _quantiles(value)
        loss = np.where(finite, value, fallback[:, None]).mean(0)
        ends = {f"{name}_median": median, f"{name}_lower": lower, f"{name}_upper": upper}
        rows.append(pd.DataFrame({"p_feasible": finite.mean(0), **ends, "regret": loss}))
    table, any_ = pd.concat(rows).set_index(starts.index), np.isfinite(best_value)
    table.insert(0, "p_best", np.bincount(np.asarray(best_start)[any_], minlength=len(starts)) / len(any_))
    # Where no start is feasible all fall back alike, without regret.
    best = np.where(any_, best_value, fallback)
    table["regret"] -= best.mean()
    table["regret_percent"] = 100 * table["regret"] / best.mean()
    return table, float(1 - any_.mean())


def _quantiles(value: NDArray) -> NDArray[np.float64]:
    """Give median, 5 % and 95 % of the finite values of every column, NaN where there are none."""
    ordered, count = np.sort(value, axis=0), np.isfinite(value).sum(0)
    place = np.array([[0.5], [0.05], [0.95]]) * np.maximum(count - 1, 0)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    columns = np.arange(value.shape[1])
    below, above = ordered[low, columns], ordered[high, columns]
    with np.errstate(invalid="ignore"):
        found = below + (place - low) * (above - below)
    return np.where(count > 0, found, np.nan)


def _priced(fit: Fit, question: Question, starts: pd.DataFrame, costs: Costs, seed: int) -> pd.DataFrame:
    """Price the policy with new runs."""
    runs = new_runs_of(fit, question, starts, costs, seed)
    table = (adaptive if question.policy == "adaptive" else fixed)(question, starts, runs, costs)
    table["density"] = (table["kept"] / costs.prunable).clip(upper=1.0)
    table["size"] = table["kept"] + costs.unprunable
    if question.objective == "inference":
        table["inference"] = worth(fit, question, table["density"].to_numpy(float), costs)
    trainings = table["trainings"] if "trainings" in table else table["rounds"] + 1
    table["training_flops"] = costs.training * trainings
    table["prunable"], table["unprunable"], table["parameters"] = costs.prunable, costs.unprunable, costs.parameters
    table["macs"], table["one_training_flops"] = costs.macs, costs.training
    table["extrapolation"] = extrapolation(fit, starts)
    return table


def _recommend(question: Question, starts: pd.DataFrame) -> pd.Series | None:
    """Take the least among the starts that are sure enough; for the error, the least expected one."""
    if question.objective == "error":
        value = np.where(starts["rounds"].notna(), starts["error_median"], np.inf)
    else:
        by = {"inference": "inference", "size": "size_mean" if question.policy == "adaptive" else "size"}
        sure = starts["p_reach"] >= question.confidence
        value = np.where(sure, starts[by[question.objective]], np.inf)
    return starts.iloc[int(value.argmin())] if np.isfinite(value).any() else None


def _held_out(starts: pd.DataFrame, validation: int | None) -> pd.DataFrame:
    if validation is None:
        return starts
    left = starts["dataset_size"] - validation
    if (left <= 0).any():
        raise BayeslawError(
            f"validation = {validation} leaves nothing of dataset_size = {starts['dataset_size'].min():g} to train on."
        )
    return starts.assign(dataset_size=left)


def _out_of_reach(fit: Fit, question: Question, starts: pd.DataFrame, costs: Costs, seed: int) -> str:
    """Say how close one can get."""
    if question.objective == "error":
        assert question.max_size is not None
        return (
            f"max_size = {question.max_size:g}: no start can be pruned to that within the budget; the least that "
            f"cannot be pruned is {costs.unprunable.min():,.0f} parameters. Allow more."
        )
    if question.max_training_flops is not None and (costs.training > question.max_training_flops).all():
        return (
            f"max_training_flops = {question.max_training_flops:.3g} does not pay for one training of any start; the "
            f"cheapest takes {costs.training.min():.3g}. Offer more, or smaller starts."
        )
    assert question.target_error is not None
    if question.max_training_flops is not None:
        starts = starts[costs.training <= question.max_training_flops]
    target, unpruned = question.target_error, unpruned_errors(fit, starts, seed)
    best = int(unpruned.mean(0).argmin())
    design = starts.iloc[[best]].assign(density=1.0)[[*CONFIGURATION, "density"]]
    closest = predict(fit, design)
    assert isinstance(closest, pd.DataFrame)
    row, budget = closest.iloc[0], "" if question.max_training_flops is None else ", or more max_training_flops"
    return (
        f"target_error = {target:g} is out of reach: the closest start is depth {row['depth']:g}, width "
        f"{row['width']:g}, whose unpruned mean error is {row['median']:.3g} ({row['lower']:.3g} to {row['upper']:.3g},"
        f" 90 %); it is at most the target with probability {(unpruned[:, best] <= target).mean():.3f}. "
        f"Ask for more error, or offer larger starts or more data{budget}."
    )


def _novelty_notes(fit: Fit, chosen: pd.DataFrame) -> list[str]:
    notes = []
    distance = float(extrapolation(fit, chosen.dropna(subset="density")[[*CONFIGURATION, "density"]]).max(initial=0.0))
    if fit.runs.empty:
        notes.append(
            f"Warning: no run of {fit.frame.label} was fitted: its exponents come from the other families, all else "
            "from the priors."
        )
    elif distance > 0:
        notes.append(
            f"Note: this start lies a factor {np.exp(distance):.2g} outside what was fitted; there the interval rests "
            "on the law."
        )
    names = ["gamma", "phi", "psi", "knee", *_dense_exponents(fit, chosen)]
    for drivers, words in ((fit.prior_driven, "the prior"), (fit.population_driven, "the other families")):
        driven = [name for name in names if name in drivers]
        if driven:
            notes.append(f"Note: {', '.join(driven)} driven by {words}, not by the data.")
    return notes


def _dense_exponents(fit: Fit, chosen: pd.DataFrame) -> list[str]:
    """Name the exponents of the dense law that the plateaus of starts rest on: none where all were trained."""
    names = []
    for name, columns in (("beta", ["depth", "width"]), ("omega", ["depth"]), ("alpha", ["dataset_size"])):
        there, asked = (pd.MultiIndex.from_frame(rows[columns].astype(float)) for rows in (fit.configurations, chosen))
        names += [name] if not asked.isin(there).all() else []
    return names
