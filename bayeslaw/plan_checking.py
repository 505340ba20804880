"""Whether plans keep their promises: worlds drawn from the priors, planned from their runs, and looked up."""

from __future__ import annotations

import concurrent.futures
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from bayeslaw.check_models import model_named
from bayeslaw.checking import KEPT, LEVEL, draw_values
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit
from bayeslaw.frame import CONFIGURATION
from bayeslaw.objectives import Question, draws_of, values_of
from bayeslaw.plan import OUT_OF_REACH
from bayeslaw.rank_store import RankStore
from bayeslaw.simulation import (
    Design,
    Simulated,
    curve,
    log_dense,
    share_born_dead,
    simulate,
    spreads,
    structural_scale,
)
from bayeslaw.starts import costs_of, make_starts
from bayeslaw.uniformity import holm, uniformity_p_value

#: The question of every world: fixed beforehand, or it would tell of the truth.
TARGET_ERROR, DATASET_SIZE = 0.15, 50_000
#: Starts to choose from; the widest was never trained.
DEPTHS, WIDTHS = (8, 20), (4, 8, 16, 32)
CHAINS, DRAWS = 2, 500
#: Bins of a reliability diagram.
BINS = 10
#: What is promised of every start, with the columns of the promise and of what came.
_PROMISES = (("best", "best", "is_best"), ("feasible", "feasible", "is_feasible"), ("reach", "reach", "has_reached"))


@dataclass(frozen=True)
class PlanCheck:
    """Hold what was promised and what came.

    Attributes:
        worlds: One row per world: `size`, the rank of the true optimal size among `KEPT` draws; `expected_regret` and
            `realised_regret` of the start of least expected loss, in parameters; for every start i `best_i`,
            `feasible_i`, `reach_i`, the probabilities, and `is_best_i`, `is_feasible_i`, `has_reached_i`, what came;
            `none`, whether the target was called out of reach.
        table: One row per promise: `promised` and `came`, their means over worlds, the standard error `se` of the
            difference, `p`, `adjusted` (Holm) and `rejected` at the family-wise level of `bayeslaw.check`.
        coverage: Of the true optimal size: share of worlds inside the 50 % and 90 % intervals, with 95 % intervals.
        reliability: Promised probabilities in bins: their mean, the share that came, its 90 % interval over worlds, and
            the number of promises, by kind.
    """

    worlds: pd.DataFrame
    table: pd.DataFrame
    coverage: pd.DataFrame
    reliability: pd.DataFrame

    @property
    def rejected(self) -> bool:
        """Whether any promise was not kept, at the family-wise level."""
        return bool(self.table["rejected"].any())

    def __str__(self) -> str:
        verdict = "REJECTED" if self.rejected else "accepted"
        return (
            f"plans for error {TARGET_ERROR:g}: {len(self.worlds)} worlds\n"
            f"{self.table.to_string(float_format=lambda v: f'{v:.3g}')}\n\n"
            f"intervals of the optimal size\n{self.coverage.to_string(float_format=lambda v: f'{v:.3f}')}\n"
            f"{verdict} at the family-wise level {LEVEL:.0%}"
        )


def check_plans(
    *, worlds: int = 500, seed: int = 0, output: str | Path | None = None, processes: int = 1, progress: bool = True
) -> PlanCheck:
    """Plan in simulated worlds and see whether intervals, probabilities and regrets are what they say.

    Parameters are drawn from the priors of the hierarchical model (`bayeslaw.check_models`), a run table of twelve
    networks from them by plain code, `fit` and the planner do what a user would have them do, and the truth is looked
    up: the optimal size by a fine search on the true curves, and whether a true new run reaches the target at the
    round recommended for each start.

    Args:
        worlds: Number of worlds.
        seed: Seed; with the number of a world it decides all that is random in it.
        output: Folder for `ranks.csv`, written through world by world and continued from where it stopped, and for
            `table.csv`.
        processes: Number of worker processes.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The check.

    Raises:
        BayeslawError: A number is out of range, or the folder holds other rows.

    Source:
        A truth drawn from the prior is one more draw of the posterior (Cook, Gelman, Rubin 2006), so that every
        probability and expectation of a plan is right on average over worlds.
    """
    if worlds < 2 or processes < 1:
        raise BayeslawError(f"worlds = {worlds} must be from 2, and processes = {processes} from 1 up.")
    model = model_named("hierarchical")
    settings = {
        "check": "plan", "seed": seed, "target_error": TARGET_ERROR, "dataset_size": DATASET_SIZE,
        "depths": DEPTHS, "widths": WIDTHS, "chains": CHAINS, "draws": DRAWS, "kept": KEPT,
        "configurations": model.design.configurations,
    }  # fmt: skip
    store = RankStore(output, json.loads(json.dumps(settings)))
    missing = [(seed, i) for i in range(worlds) if i not in store.rows]
    hidden = None if progress else True
    with tqdm(total=worlds, initial=worlds - len(missing), desc="worlds", disable=hidden, file=sys.stderr) as bar:
        for row in _rows(missing, processes):
            store.add(row)
            bar.update()
    result = judge_plans(store.table(worlds))
    store.close(result.table)
    return result


def _rows(jobs: list[tuple[int, int]], processes: int) -> Iterator[dict[str, float]]:
    if processes == 1:
        yield from map(_world, jobs)
        return
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_world, jobs)


def _world(job: tuple[int, int]) -> dict[str, float]:
    """Draw one world, plan in it, and look the truth up."""
    seed, repetition = job
    begun = time.perf_counter()
    model, rng = model_named("hierarchical"), np.random.default_rng([seed, repetition, 1])
    value_seed, fit_seed = (int(number) for number in rng.integers(2**31, size=2))
    simulated = simulate(model.design, draw_values(model, value_seed), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = fit(
            simulated.runs, priors=model.priors, seed=fit_seed, chains=CHAINS, draws=DRAWS, progress=False,
            **model.settings,
        )  # fmt: skip
    starts = make_starts(DEPTHS, WIDTHS, DATASET_SIZE)
    costs, question = costs_of(posterior, starts), Question(target_error=TARGET_ERROR)
    value = values_of(posterior, question, starts, costs, draws_of(posterior, starts, fit_seed))
    truth = Truth(model.design, simulated, starts, TARGET_ERROR, rng)
    true = truth.sizes(np.asarray(costs.prunable), np.asarray(costs.unprunable))
    row: dict[str, float] = {"repetition": repetition, "size": _rank(value.min(1), true.min(), rng)}
    row |= _regrets(value, true, costs.parameters)
    none = 1 - np.isfinite(value).any(1).mean()
    row["none"] = float(1 - none < OUT_OF_REACH)
    best = np.bincount(value.argmin(1)[np.isfinite(value).any(1)], minlength=len(starts)) / len(value)
    reach = np.zeros((len(starts), 2))
    if not row["none"]:
        plan = posterior.plan(
            TARGET_ERROR, depths=DEPTHS, widths=WIDTHS, dataset_size=DATASET_SIZE, allow_failed=True, seed=fit_seed
        )
        reach[:, 0] = plan.starts["p_reach"]
        reach[:, 1] = truth.new_errors(plan.starts["density"].to_numpy()) <= TARGET_ERROR
    for i in range(len(starts)):
        row |= {f"best_{i}": best[i], f"is_best_{i}": float(np.isfinite(true.min()) and true.argmin() == i)}
        row |= {f"feasible_{i}": np.isfinite(value[:, i]).mean(), f"is_feasible_{i}": float(np.isfinite(true[i]))}
        row |= {f"reach_{i}": reach[i, 0], f"has_reached_{i}": reach[i, 1]}
    return {name: float(v) for name, v in row.items()} | {
        "repetition": repetition, "size": int(row["size"]), "seconds": round(time.perf_counter() - begun, 2),
    }  # fmt: skip


def _rank(draws: NDArray, truth: float, rng: np.random.Generator) -> int:
    """Rank the truth among evenly thinned draws; where both are infinite, at random."""
    kept = draws[np.linspace(0, len(draws) - 1, KEPT).round().astype(int)]
    ties = int((kept == truth).sum())
    return int((kept < truth).sum()) + int(rng.integers(0, ties + 1))


def _regrets(value: NDArray, true: NDArray, parameters: NDArray) -> dict[str, float]:
    """Take the start of least expected loss; say what regret is expected of it, and what came."""
    largest = int(parameters.argmax())

    def losses(sizes: NDArray) -> NDArray:
        fallback = np.where(np.isfinite(sizes[..., largest]), sizes[..., largest], parameters[largest])
        return np.where(np.isfinite(sizes), sizes, fallback[..., None])

    expected, came = losses(value), losses(true)
    chosen = int(expected.mean(0).argmin())
    return {
        "expected_regret": float((expected[:, chosen] - expected.min(1)).mean()),
        "realised_regret": float(came[chosen] - came.min()),
    }


class Truth:
    """Look up the true curves of starts; networks that were not trained get a discrepancy of their own.

    Args:
        design: What was simulated.
        simulated: What came of it.
        starts: Rows with depth, width and dataset_size.
        target_error: The error that the plan is for.
        rng: Source of what the truth does not say: discrepancies of untrained networks, new runs.
    """

    def __init__(
        self, design: Design, simulated: Simulated, starts: pd.DataFrame, target_error: float, rng: np.random.Generator
    ) -> None:
        networks = starts[CONFIGURATION].to_numpy(float)
        self._value, self._design, self._target, self._rng = simulated.value, design, target_error, rng
        self._covariates = design.covariates(networks)
        self._spread = spreads(simulated.value, self._covariates)
        fresh, shift = (self._spread[name] * rng.standard_normal(len(networks)) for name in ("sigma_np", "sigma_p"))
        self._log_e, self._shift = log_dense(simulated.value, self._covariates) + fresh, shift
        for i, network in enumerate(networks.astype(int).tolist()):
            if tuple(network) in design.configurations:
                own = design.configurations.index(tuple(network))
                self._log_e[i], self._shift[i] = simulated.log_e[own], simulated.shift_p[own]

    def typical_errors(self, density: NDArray) -> NDArray[np.float64]:
        """Give the error of a run without effects, of every start at a density of its own."""
        effects = self._log_e, self._shift
        return curve(self._value, *effects, self._covariates, self._design.chance_error, density)[0]

    def sizes(self, prunable: NDArray, unprunable: NDArray) -> NDArray[np.float64]:
        """Search the smallest size that reaches the target on 20,001 densities, infinite where there is none."""
        density = np.geomspace(1e-6, 1.0, 20_001)
        at = {name: column[:, None] for name, column in self._covariates.items()}
        effects = self._log_e[:, None], self._shift[:, None]
        error, _ = curve(self._value, *effects, at, self._design.chance_error, density)
        reached = error <= self._target
        return np.where(reached.any(1), density[reached.argmax(1)] * prunable + unprunable, np.inf)

    def new_errors(self, density: NDArray) -> NDArray[np.float64]:
        """Train a new run of every start and prune it to a density; give its population error."""
        value, rng, count = self._value, self._rng, len(density)
        log_e = self._log_e + self._spread["tau_np"] * rng.standard_normal(count)
        effect = self._shift + self._spread["tau_p"] * rng.standard_normal(count)
        error, slope = curve(value, log_e, effect, self._covariates, self._design.chance_error, density)
        logit = np.log(error / (1 - error)) + structural_scale(value, error, slope) * rng.standard_t(value["nu"], count)
        never = rng.random(count) < share_born_dead(value, self._covariates)
        return np.where(never, self._design.chance_error, 1 / (1 + np.exp(-logit)))


def judge_plans(worlds: pd.DataFrame) -> PlanCheck:
    """Compare what was promised with what came, one row per world with the columns of `PlanCheck.worlds`."""
    starts = len(DEPTHS) * len(WIDTHS)
    told = {}
    for name, promise, came in _PROMISES:
        columns = [[f"{part}_{i}" for i in range(starts)] for part in (promise, came)]
        told[name] = tuple(worlds[names].to_numpy(float) for names in columns)
    # Of the best start there is always one.
    rows = {f"P({name})": _compare(*(part.sum(1) for part in told[name])) for name in ("feasible", "reach")}
    # Of the starts that were likely and of those that were not, so that errors at both ends do not cancel.
    for name, (promised, came) in told.items():
        tilt = promised - 0.5
        rows[f"P({name}), tilted"] = _compare((tilt * promised).sum(1), (tilt * came).sum(1))
    rows["regret"] = _compare(worlds["expected_regret"].to_numpy(), worlds["realised_regret"].to_numpy())
    ranks = worlds["size"].to_numpy(int)
    rows["optimal size"] = {
        "promised": 0.5, "came": ranks.mean() / KEPT, "se": ranks.std() / KEPT / math.sqrt(len(ranks)),
        "p": uniformity_p_value(ranks, KEPT),
    }  # fmt: skip
    table = pd.DataFrame(rows).T
    table["adjusted"] = holm(table["p"])
    table["rejected"] = table["adjusted"] <= LEVEL
    return PlanCheck(worlds, table, _coverage(ranks), _reliability(told))


def _compare(promised: NDArray, came: NDArray) -> dict[str, float]:
    import scipy.stats

    difference = came - promised
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    z = difference.mean() / error if error > 0 else 0.0
    p = 2 * float(scipy.stats.norm.sf(abs(z)))
    return {"promised": promised.mean(), "came": came.mean(), "se": error, "p": p}


def _coverage(ranks: NDArray) -> pd.DataFrame:
    import scipy.stats

    rows = []
    for level in (0.5, 0.9):
        tail = (1 - level) / 2 * KEPT
        inside = (ranks > tail) & (ranks <= KEPT - tail)
        interval = scipy.stats.binomtest(int(inside.sum()), len(inside)).proportion_ci()
        rows.append([level, inside.mean(), interval.low, interval.high])
    return pd.DataFrame(rows, columns=["interval", "coverage", "lower", "upper"])


def _reliability(told: dict[str, tuple[NDArray, NDArray]]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for kind, (promised, came) in told.items():
        world = np.broadcast_to(np.arange(len(promised))[:, None], promised.shape)
        place = np.minimum((promised * BINS).astype(int), BINS - 1)
        for index in np.unique(place):
            own = place == index
            rows.append(
                {"kind": kind, "promised": promised[own].mean(), "came": came[own].mean(), "count": int(own.sum())}
            )
            lower, upper = _over_worlds(came[own], world[own])
            rows[-1] |= {"lower": lower, "upper": upper}
    return pd.DataFrame(rows)


def _over_worlds(came: NDArray, world: NDArray) -> Iterable[float]:
    """Bootstrap the share that came over worlds, whose starts go together."""
    groups = pd.DataFrame({"came": came, "world": world}).groupby("world")["came"].agg(["sum", "size"]).to_numpy()
    rng = np.random.default_rng(0)
    drawn = groups[rng.integers(0, len(groups), (500, len(groups)))].sum(1)
    return np.quantile(drawn[:, 0] / drawn[:, 1], [0.05, 0.95])
