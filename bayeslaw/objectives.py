"""What a plan is asked for, and what every start is worth by it, draw by draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bayeslaw.compiled import jit
from bayeslaw.curves import Drawn, configuration_draws, parameter_draws
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import rounds_at
from bayeslaw.precision import in_float64
from bayeslaw.starts import MAX_ROUNDS, Costs, densities_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.laws import Law
    from bayeslaw.posterior import Fit

#: What can be made least, with the unit of its values.
OBJECTIVES = {"size": "non-zero parameters", "inference": "multiply-adds", "error": "error"}
POLICIES = ("fixed", "adaptive")


@dataclass(frozen=True)
class Question:
    """Say what a plan is asked for.

    Attributes:
        objective: `"size"`, fewest non-zero parameters at a target error; `"inference"`, fewest multiply-adds at a
            target error; `"error"`, lowest error within a number of parameters.
        target_error: Wanted error; nothing for `"error"`.
        max_size: Most non-zero parameters; for `"error"` alone.
        max_training_flops: Most floating-point operations for all trainings of one campaign, or nothing.
        policy: `"fixed"`, the density decided in advance; `"adaptive"`, pruned until the measured error crosses.
        validation: Examples held out of the training set to measure that error on; by default the test set is used.
        confidence: Wanted probability that a new run reaches the target.
    """

    objective: str = "size"
    target_error: float | None = None
    max_size: float | None = None
    max_training_flops: float | None = None
    policy: str = "fixed"
    validation: int | None = None
    confidence: float = 0.9

    def check(self) -> None:
        """Refuse what is out of range or does not go together.

        Raises:
            BayeslawError: With all that is wrong.
        """
        wants_error = self.objective == "error"
        faults = [
            (
                self.objective not in OBJECTIVES,
                f"objective = {self.objective!r} must be one of {', '.join(OBJECTIVES)}",
            ),
            (self.policy not in POLICIES, f"policy = {self.policy!r} must be one of {', '.join(POLICIES)}"),
            (not 0 < self.confidence < 1, f"confidence = {self.confidence} must be in (0, 1), for instance 0.9"),
            (wants_error and self.max_size is None, "objective = 'error' needs max_size, the most non-zero parameters"),
            (
                wants_error and self.target_error is not None,
                "objective = 'error' makes the error least and takes no target_error; leave it out",
            ),
            (
                wants_error and self.policy == "adaptive",
                "policy = 'adaptive' stops at a target error, which objective = 'error' does not have",
            ),
            (
                not wants_error and self.target_error is None,
                f"objective = {self.objective!r} needs target_error, for instance 0.1",
            ),
            (
                not wants_error and self.max_size is not None,
                "max_size goes with objective = 'error'; with a target error the size is what is made least",
            ),
            (
                self.target_error is not None and not 0 < self.target_error < 1,
                f"target_error = {self.target_error} must be a fraction in (0, 1), for instance 0.1",
            ),
            (
                self.max_training_flops is not None and not self.max_training_flops > 0,
                f"max_training_flops = {self.max_training_flops} must be above 0",
            ),
            (
                self.validation is not None and self.policy == "fixed",
                "validation is what policy = 'adaptive' stops on; a fixed density looks at nothing",
            ),
            (
                self.validation is not None and not self.validation > 0,
                f"validation = {self.validation} must be above 0",
            ),
        ]
        if told := [message for wrong, message in faults if wrong]:
            raise BayeslawError("; ".join(told) + ".")


def check_gate(fit: Fit, *, allow_failed: bool) -> list[str]:
    """Refuse a fit that failed its gate, or warn of it where that is allowed.

    Raises:
        BayeslawError: It failed, and that is not allowed.
    """
    diagnosis = fit.diagnose()
    if diagnosis.passed:
        return []
    message = "The fit failed its gate: " + "; ".join(diagnosis.failures) + "."
    if not allow_failed:
        raise BayeslawError(f"{message} Mend it, or pass allow_failed=True to plan with it all the same.")
    return [f"Warning: {message}"]


def check_target(fit: Fit, question: Question) -> None:
    """Refuse a target that every network reaches.

    Raises:
        BayeslawError: The target is at or above the high plateau.
    """
    highest = float(fit.posterior["eps_up"].quantile(0.05))
    if question.target_error is not None and question.target_error >= highest:
        raise BayeslawError(
            f"target_error = {question.target_error:g} is at or above the high plateau (eps_up, {highest:.3g} or "
            "more): every network reaches it at any density. Ask for less error."
        )


@in_float64
def values_of(
    fit: Fit, question: Question, starts: pd.DataFrame, costs: Costs, drawn: tuple[dict[str, NDArray], Drawn]
) -> NDArray[np.float64]:
    """Compute what every start is worth in every draw, by the curve of a typical run, which has no effects.

    Args:
        fit: The posterior.
        question: What is asked.
        starts: One row per start.
        costs: What they count.
        drawn: Draws of the parameters and of the starts, as `draws_of` gives them.

    Returns:
        The size, multiply-adds or error, `[draws, starts]`, less being better; infinite where a draw's start cannot
        meet target or budget. Within a training budget a start is pruned no further than its rounds allow.

    Raises:
        BayeslawError: Multiply-adds are asked for, or paid for, and not known.

    Source:
        Rosenfeld et al., ICML 2021, section 6; the inversion is `bayeslaw.law.log_m_at`.
    """
    if question.objective == "inference" and np.isnan(costs.macs).any():
        raise BayeslawError(
            "objective = 'inference' needs the multiply-adds of every start; parameters= must give them as its third "
            "value, or as column macs."
        )
    value, curves = drawn
    covariates, sparsest = fit.frame.covariates(starts), sparsest_density(question, costs)
    if question.objective == "error":
        assert question.max_size is not None
        density = np.minimum((question.max_size - costs.unprunable) / costs.prunable, 1.0)
        within = (density >= sparsest) & (density > 0)
        log_density = np.log(np.where(within, density, 1.0))
        return np.where(within, np.exp(_log_error_at(fit.law, value, covariates, curves, log_density)), np.inf)
    assert question.target_error is not None
    inference = question.objective == "inference"
    counts = (1.0, 0.0) if inference else (costs.prunable, costs.unprunable)
    target = np.log(question.target_error)
    found = np.asarray(_sizes_at(fit.law, value, covariates, curves, target, sparsest, *counts))
    return np.where(np.isfinite(found), worth(fit, question, found, costs), np.inf) if inference else found


def density_within(log_density: Any, sparsest: Any = 0.0) -> jax.Array:
    """Give the density to prune to: where the error reaches its target, but not beyond what a budget allows.

    Args:
        log_density: Where it reaches it, `[..., starts]`; above 0 where no density does.
        sparsest: Lowest density allowed, above 1 for none, `[starts]`.

    Returns:
        Densities, infinite where there is none.

    Example:
        >>> [round(float(density), 3) for density in density_within(np.log([0.1, 0.3, 2.0]), 0.2)]
        [0.2, 0.3, inf]
    """
    possible = (log_density <= 0) & (jnp.asarray(sparsest) <= 1)
    return jnp.where(possible, jnp.maximum(jnp.exp(jnp.minimum(log_density, 0.0)), sparsest), jnp.inf)


def worth(fit: Fit, question: Question, density: NDArray, costs: Costs) -> NDArray[np.float64]:
    """Turn densities `[..., starts]` into the objective: parameters, or multiply-adds."""
    if question.objective == "size":
        return density * costs.prunable + costs.unprunable
    return costs.macs * _macs_share(fit)(density)


def fallback_of(fit: Fit, question: Question, starts: pd.DataFrame, costs: Costs, seed: int) -> NDArray[np.float64]:
    """Say what missing is charged at, draw by draw: falling back on the largest start, pruned if it can be.

    Returns:
        The largest start's value, or its unpruned one where it misses too, `[draws]`; for the error, that of chance.
    """
    if question.objective == "error":
        return np.array([fit.frame.chance_error])
    largest = [int(costs.parameters.argmax())]
    own = Costs(*(count[largest] for count in costs))
    value = values_of(fit, question, starts.iloc[largest], own, draws_of(fit, starts.iloc[largest], seed))[:, 0]
    return np.where(np.isfinite(value), value, worth(fit, question, np.ones(1), own))


def sparsest_density(question: Question, costs: Costs) -> NDArray[np.float64]:
    """Give the lowest density that a training budget lets a start be pruned to, 0 without one, above 1 for none."""
    if question.max_training_flops is None:
        return np.zeros(len(costs.prunable))
    return sparsest_densities(np.array([question.max_training_flops]), costs)[0]


def sparsest_densities(budgets: NDArray, costs: Costs) -> NDArray[np.float64]:
    """Give the lowest density that each of several training budgets pays for, above 1 for none, `[budgets, starts]`.

    Raises:
        BayeslawError: What training costs is not known.
    """
    if np.isnan(costs.training).any():
        raise BayeslawError(
            "a training budget needs the multiply-adds of every start; parameters= must give them as its third value, "
            "or as column macs."
        )
    trainings = np.minimum(np.floor(budgets[:, None] / costs.training), MAX_ROUNDS + 1).astype(int)
    lowest = np.full(trainings.shape, np.inf)
    for i, count in enumerate(costs.prunable):
        density, paid = densities_of(count), trainings[:, i] > 0
        lowest[paid, i] = density[np.minimum(trainings[paid, i], len(density)) - 1]
    return lowest


@in_float64
def draws_of(fit: Fit, starts: pd.DataFrame, seed: int) -> tuple[dict[str, NDArray], Drawn]:
    """Give draws of the parameters, each `[draws, 1]`, and of where the curves of the starts lie, `[draws, starts]`.

    Starts that were trained have their own posterior, all others fresh discrepancies from `seed`.
    """
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    return value, configuration_draws(fit, starts, seed)


@jit(static_argnums=0)
def _sizes_at(
    law: Law, value: dict[str, Any], covariates: dict[str, Any], curves: Drawn, log_target: Any, sparsest: Any,
    prunable: Any, unprunable: Any,
) -> jax.Array:  # fmt: skip
    """Give the parameters left where the curve of each start reaches a target, `[draws, starts]`."""
    log_density = law.log_density_at(law.curve(value, covariates, *curves), log_target)
    return density_within(log_density, sparsest) * prunable + unprunable


@jit(static_argnums=0)
def _log_error_at(
    law: Law, value: dict[str, Any], covariates: dict[str, Any], curves: Drawn, log_density: Any
) -> jax.Array:
    return law.log_error(law.curve(value, covariates, *curves), jnp.asarray(log_density))


@in_float64
def unpruned_errors(fit: Fit, starts: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    """Compute the error of a typical unpruned run of every start, `[draws, starts]`."""
    value, curves = draws_of(fit, starts, seed)
    return np.exp(np.asarray(_log_error_at(fit.law, value, fit.frame.covariates(starts), curves, 0.0)))


def _macs_share(fit: Fit) -> Any:
    """Learn from the fitted runs what share of the multiply-adds a density leaves: layers are not pruned alike."""
    runs = fit.runs
    if "nonzero_macs" not in runs or not fit.frame.family.is_exact:
        raise BayeslawError(
            "objective = 'inference' needs runs with nonzero_macs, of a family whose multiply-adds are known: pruning "
            "by magnitude leaves other shares of the layers than of the whole."
        )
    whole = fit.frame.family.macs(runs["depth"].to_numpy(float), runs["width"].to_numpy(float))
    shares = pd.DataFrame({"density": np.log(runs["density"]), "share": np.log(runs["nonzero_macs"] / whole)})
    shares = shares[np.isfinite(shares["share"])]
    means = shares.groupby(rounds_at(np.exp(shares["density"]))).mean().sort_values("density")

    def share(density: NDArray) -> NDArray[np.float64]:
        log_density = np.log(density)
        found = np.interp(log_density, means["density"], means["share"])
        beyond = np.minimum(log_density - means["density"].iloc[0], 0.0)
        return np.exp(found + beyond)

    return share
