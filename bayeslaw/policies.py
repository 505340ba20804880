"""What new runs come to under the two ways of stopping: at a density chosen in advance, or where the error crosses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.special

from bayeslaw.curves import Drawn, generator, parameter_draws
from bayeslaw.frame import CONFIGURATION
from bayeslaw.new_runs import new_runs, observations, share_born_dead, standard_noise, usual_n_test
from bayeslaw.objectives import Question, sparsest_density
from bayeslaw.precision import in_float64
from bayeslaw.starts import Costs, densities_of, rounds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Starts whose runs are drawn at once; bounds the memory at this many times rounds x draws.
BLOCK = 8
#: How far below the target, in logits, the adaptive policy may have to stop.
GUARDS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)


class Runs(NamedTuple):
    """Hold new runs of one start, a run a draw, to the last round that its weights and the budget allow.

    Attributes:
        kept: Weights kept after every round, `[rounds]`.
        population: Logit of the error that infinitely many test examples would show, `[draws, rounds]`.
        measured: Logit of the error measured on the examples that the stopping rule looks at, `[draws, rounds]`.
    """

    kept: NDArray[np.int64]
    population: NDArray[np.float64]
    measured: NDArray[np.float64]


def new_runs_of(fit: Fit, question: Question, starts: pd.DataFrame, costs: Costs, seed: int) -> Iterator[Runs]:
    """Draw a new run of every start from every posterior draw, its effects and the jitter of its levels included.

    Some never live, and guess to the end. None dies later: where their error is near a target, they hardly ever do.

    Args:
        fit: The posterior.
        question: What is asked; its budget ends the runs, its policy says whether errors are measured.
        starts: One row per start.
        costs: What they count.
        seed: Seed of everything fresh.

    Yields:
        The runs of one start after the other; without a round where the budget does not pay for one training.
    """
    lowest = sparsest_density(question, costs)
    for begin in range(0, len(starts), BLOCK):
        own = slice(begin, begin + BLOCK)
        kept = []
        for count, low in zip(costs.prunable[own], lowest[own], strict=True):
            rounds = rounds_of(count)
            kept.append(rounds[densities_of(count) >= low * (1 - 1e-12)])
        yield from _runs_of_block(fit, question, starts.iloc[own], costs.prunable[own], kept, seed)


@in_float64
def _runs_of_block(
    fit: Fit, question: Question, starts: pd.DataFrame, prunable: NDArray, kept: list[NDArray], seed: int
) -> list[Runs]:
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    lengths = [len(rounds) for rounds in kept]
    index = np.repeat(np.arange(len(starts)), lengths)
    nothing = np.empty((len(value["sigma"]), 0))
    if not len(index):
        return [Runs(rounds, nothing, nothing) for rounds in kept]
    designs = starts.iloc[index][CONFIGURATION].assign(density=np.minimum(np.concatenate(kept) / prunable[index], 1.0))
    effects = Drawn(*(effect[:, index] for effect in new_runs(fit, starts, seed)))
    location, scale = observations(fit.law, value, fit.frame, designs, effects, np.full(len(designs), np.inf))
    made, names = [], starts[CONFIGURATION].itertuples(index=False, name=None)
    born_dead, guessing = share_born_dead(fit, value, starts), scipy.special.logit(fit.frame.chance_error)
    for name, rounds, end, share in zip(names, kept, np.cumsum(lengths), born_dead.T, strict=True):
        places = slice(end - len(rounds), end)
        noise = standard_noise(generator(seed, name, "jitter"), value, np.arange(len(rounds)))
        never = generator(seed, name, "birth").random((len(share), 1)) < share[:, None]
        population = np.where(never, guessing, location[:, places] + scale[:, places] * noise)
        measured = population
        if question.policy == "adaptive":
            measured = population + _test_noise(fit, question, value, population, generator(seed, name, "test"))
        made.append(Runs(rounds, population, measured))
    return made


def _test_noise(
    fit: Fit, question: Question, value: dict[str, NDArray], logit: NDArray, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the noise of a finite number of test examples, the same at every round: correlated, and part of it lasts."""
    count = question.validation or usual_n_test(fit)
    if not np.isfinite(count):
        return np.zeros_like(logit)
    share = scipy.special.expit(logit)
    scale = np.sqrt(1 / (count * share + 0.5) + 1 / (count * (1 - share) + 0.5))
    gaussian = {name: value[name] for name in ("sigma", "rho") if name in value}
    noise = value.get("floor", 1.0) * standard_noise(rng, gaussian, np.arange(logit.shape[1]))
    if "lasting" in value:
        noise = noise + np.sqrt(value["lasting"]) * rng.standard_normal((len(logit), 1))
    return scale * noise


def fixed(question: Question, starts: pd.DataFrame, runs: Iterable[Runs], costs: Costs) -> pd.DataFrame:
    """Choose for every start the deepest round at which a new run reaches the target with the confidence.

    Returns:
        One row per start: `rounds`, `kept`, `p_reach`; where no round is sure enough, those of the surest. With
        `objective = "error"` the first round within the number of parameters, and the error of a new run there.
    """
    rows = []
    for run, unprunable in zip(runs, costs.unprunable, strict=True):
        if question.objective == "error":
            rows.append(_first_within(question, run, unprunable))
            continue
        reach = (run.population <= _logit(question.target_error)).mean(0)
        if not len(reach):
            rows.append({"rounds": np.nan, "kept": np.nan, "p_reach": 0.0})
            continue
        sure = np.flatnonzero(reach >= question.confidence)
        chosen = int(sure[-1]) if len(sure) else int(reach.argmax())
        rows.append({"rounds": chosen, "kept": run.kept[chosen], "p_reach": reach[chosen]})
    return pd.DataFrame(rows, index=starts.index)


def _first_within(question: Question, run: Runs, unprunable: float) -> dict[str, float]:
    assert question.max_size is not None
    within = np.flatnonzero(run.kept + unprunable <= question.max_size)
    if not len(within):
        return dict.fromkeys(("rounds", "kept", "run_median", "run_lower", "run_upper"), np.nan)
    first = int(within[0])
    lower, median, upper = scipy.special.expit(np.quantile(run.population[:, first], [0.05, 0.5, 0.95]))
    return {"rounds": first, "kept": run.kept[first], "run_median": median, "run_lower": lower, "run_upper": upper}


def adaptive(question: Question, starts: pd.DataFrame, runs: Iterable[Runs], costs: Costs) -> pd.DataFrame:
    """Prune every run until its measured error crosses a mark, and keep the last good level.

    The mark is the highest at or below the target at which the kept level's *population* error is at most the target
    with the confidence: the measured one is selected, and looks better than it is.

    Returns:
        One row per start: `stop_at`, the mark; `rounds`, the median round kept; `kept`, the median of its weights;
        `run_lower` and `run_upper`, 90 % of the sizes; `size_mean`, their mean; `p_reach`; `optimism`, how far the
        population error of what is kept lies above the measured one on average, where any level was good; `trainings`,
        their mean number, the one that crossed included. Runs that miss at density 1 keep the unpruned network.
    """
    rows = [_stop(question, run, unprunable) for run, unprunable in zip(runs, costs.unprunable, strict=True)]
    return pd.DataFrame(rows, index=starts.index)


def _stop(question: Question, run: Runs, unprunable: float) -> dict[str, float]:
    if not len(run.kept):
        return {"rounds": np.nan, "kept": np.nan, "p_reach": 0.0}
    target, best = _logit(question.target_error), {}
    for guard in GUARDS:
        above = run.measured > target - guard
        crossed = np.where(above.any(1), above.argmax(1), len(run.kept))
        level = np.maximum(crossed - 1, 0)
        population = np.take_along_axis(run.population, level[:, None], 1)[:, 0]
        measured = np.take_along_axis(run.measured, level[:, None], 1)[:, 0]
        reached = (crossed > 0) & (population <= target)
        size = run.kept[level] + unprunable
        flattered = scipy.special.expit(population) - scipy.special.expit(measured)
        found = {
            "stop_at": scipy.special.expit(target - guard),
            "rounds": float(np.median(level)),
            "kept": float(np.median(run.kept[level])),
            "run_lower": np.quantile(size, 0.05),
            "run_upper": np.quantile(size, 0.95),
            "size_mean": size.mean(),
            "p_reach": reached.mean(),
            "optimism": flattered[crossed > 0].mean() if crossed.any() else np.nan,
            "trainings": np.minimum(crossed + 1, len(run.kept)).mean(),
        }
        if not best or found["p_reach"] > best["p_reach"]:
            best = found
        if best["p_reach"] >= question.confidence:
            break
    return best


def _logit(target_error: float | None) -> float:
    assert target_error is not None
    return float(scipy.special.logit(target_error))
