"""What new runs of networks would measure, draw by draw: effects, jitter of single levels, deaths, test examples."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special

from bayeslaw.compiled import jit
from bayeslaw.curves import (
    Drawn,
    by_block,
    configuration_draws,
    expected_luck,
    generator,
    network_values,
    parameter_draws,
    unique_rows,
)
from bayeslaw.deaths import DIED, STILLBORN, let_die, log_hazard, log_odds_born_dead
from bayeslaw.frame import (
    CONFIGURATION,
    ROUND,
    RUN,
    Frame,
    empirical_logit,
    n_test_of,
    rounds_at,
    tested_on,
)
from bayeslaw.laws import Law, moved_by_luck
from bayeslaw.noise import observation
from bayeslaw.precision import in_float64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Networks less likely to die by a level are not looked at.
_LEAST_HAZARD = 1e-4


@in_float64
def run_logits(fit: Fit, designs: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    """Draw the empirical logits that new runs would show.

    Args:
        fit: The posterior.
        designs: One row per network and density. Rows of a configuration are of one run, unless a column `replicate`
            tells its runs apart; with as many test examples as `n_test_for` says.
        seed: Seed of fresh effects and noise. Runs of a network that was not trained share its discrepancy.

    Returns:
        Logits, not yet those of whole counts where networks live, `[draws, designs]`.
    """
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    runs, index = unique_rows(designs, [*RUN, "subset_id"])
    n_test = n_test_for(fit, designs)
    fresh = new_runs(fit, runs, seed, n_test=tested_on(index, n_test))
    effects = Drawn(*(effect[:, index] for effect in fresh))
    location, scale = observations(fit.law, value, fit.frame, designs, effects, n_test)
    noise, rounds, names = np.empty_like(location), rounds_at(designs["density"]), names_of(runs)
    for i, name in enumerate(names):
        noise[:, index == i] = standard_noise(generator(seed, name, "noise"), value, rounds[index == i])
    logits = location + scale * noise
    if "dies" in value:
        at_risk = np.bincount(index, _hazard(fit, value, location).max(0) > _LEAST_HAZARD) > 0
        born_dead, dead_errors = share_born_dead(fit, value, runs), _dead_errors(fit)
        for i in np.flatnonzero(at_risk | (born_dead.mean(0) > _LEAST_HAZARD)).tolist():
            run = Drawn(*(effect[:, [i]] for effect in fresh))
            for count in np.unique(n_test[index == i]).tolist():
                own = (index == i) & (n_test == count)
                hazard = np.zeros((len(logits), rounds[own].max() + 1))
                if at_risk[i]:
                    hazard[:] = _hazard_by_round(fit, value, runs.iloc[[i]], run, hazard.shape[1], count)
                hazard[:, 0] = born_dead[:, i]
                errors = np.round(dead_errors * count) / count if np.isfinite(count) else dead_errors
                error, dead = let_die(hazard, value["stays"][:, 0], errors, generator(seed, names[i], "death"))
                shown = empirical_logit(error, np.full(1, count))[:, None]
                logits[:, own] = np.where(dead[:, rounds[own]], shown, logits[:, own])
    return logits


def _dead_errors(fit: Fit) -> NDArray[np.float64]:
    """List the errors that fitted networks showed as they died, else that of guessing."""
    died = np.isin(fit.tree["constant_data"]["fate"].to_numpy(), [DIED, STILLBORN])
    return fit.runs["error"].to_numpy(float)[died] if died.any() else np.array([fit.frame.chance_error])


def _hazard_by_round(
    fit: Fit, value: dict[str, NDArray], network: pd.DataFrame, run: Drawn, rounds: int, n_test: float
) -> NDArray[np.float64]:
    """Give the probability that a new run dies by the first rounds of pruning, if it lived till then.

    Args:
        fit: The posterior.
        value: Its parameters, `[draws, 1]` each.
        network: One row that names the run.
        run: Where its curve lies, `[draws, 1]`.
        rounds: How many rounds, from none.
        n_test: Test examples.

    Returns:
        `[draws, rounds]`.
    """
    path = network.loc[network.index.repeat(rounds)].assign(density=np.exp(-ROUND * np.arange(rounds)))
    along = Drawn(*(np.repeat(effect, rounds, axis=1) for effect in run))
    location, _ = observations(fit.law, value, fit.frame, path, along, np.full(rounds, n_test))
    return _hazard(fit, value, location)


def share_born_dead(fit: Fit, value: dict[str, NDArray], runs: pd.DataFrame) -> NDArray[np.float64]:
    """Give the probability that new runs never live, `[draws, runs]`; 0 where the model has no deaths."""
    if "born_dead" not in value:
        return np.zeros((len(value["sigma"]), len(runs)))
    return scipy.special.expit(np.asarray(log_odds_born_dead(value, fit.frame.covariates(runs)["width"])))


def new_runs(fit: Fit, runs: pd.DataFrame, seed: int, *, n_test: NDArray | None = None) -> Drawn:
    """Draw where the curves of new runs lie; those of one dataset size and `replicate` share the luck of a subset.

    Args:
        fit: The posterior.
        runs: One row per run, named as `names_of` does.
        seed: Seed of fresh effects.
        n_test: Test examples that they are measured on, `[runs]`; nothing for the curves of population errors.

    Returns:
        Log e and sideways shift, `[draws, runs]`.
    """
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    drawn = configuration_draws(fit, runs, seed)
    at_networks = network_values(value, fit.frame.covariates(runs), n_test)
    spreads = [np.broadcast_to(at_networks.get(name, 0.0), drawn.log_e.shape) for name in ("tau_np", "tau_p")]
    share, luck, unknown = expected_luck(fit, runs)
    for i, name in enumerate(names_of(runs)):
        normal = generator(seed, name, "run").standard_normal((2, len(drawn.log_e)))
        for effect, spread, fresh in zip(drawn, spreads, normal, strict=True):
            effect[:, i] += spread[:, i] * fresh
        if unknown[:, i].any():
            subset = generator(seed, name[len(CONFIGURATION) - 1 :], "subset")
            luck[:, i] += unknown[:, i] * subset.standard_normal(len(drawn.log_e))
    drawn.log_e[:] += moved_by_luck(share, luck)
    return drawn


def names_of(runs: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Name runs by configuration and, other than the first (0), by `replicate`, where there is such a column."""
    networks = runs[CONFIGURATION].itertuples(index=False, name=None)
    if "replicate" not in runs:
        return list(networks)
    named = zip(networks, runs["replicate"], strict=True)
    return [network if which == 0 else (*network, which) for network, which in named]


def observations(
    law: Law,
    value: dict[str, Any],
    frame: Frame,
    designs: pd.DataFrame,
    runs: Drawn,
    n_test: NDArray,
) -> tuple[NDArray, ...]:
    """Give location and scale of the empirical logits that runs show, a block of designs at a time.

    Args:
        law: The law.
        value: Draws of the parameters, and `log_eps_up`, each `[draws, 1]`.
        frame: What turns designs into covariates.
        designs: One row per network and density.
        runs: Where the curves of the runs lie, `[draws, designs]`.
        n_test: Test examples, `[designs]`; infinite for the population error.

    Returns:
        Location and scale, each `[draws, designs]`.
    """
    return by_block(functools.partial(_observation, law, value), frame, designs, *runs, n_test)


@jit(static_argnums=0)
def _observation(
    law: Law,
    value: dict[str, Any],
    covariates: dict[str, Any],
    log_density: Any,
    log_e: Any,
    effect_p: Any,
    n_test: Any,
) -> tuple[jax.Array, jax.Array]:
    return observation(law, law.curve(value, covariates, log_e, effect_p), log_density, n_test, value)


def standard_noise(rng: np.random.Generator, value: dict[str, Any], rounds: NDArray) -> NDArray:
    """Draw the noise of a new run in units of its scale, after numbers of pruning rounds of 20 %.

    Args:
        rng: Source of randomness; the noise after a round does not depend on what other rounds are asked for.
        value: `nu` and `rho`, as far as there are such parts, each `[draws, 1]`.
        rounds: `[designs]`.

    Returns:
        `[draws, designs]`.
    """
    shape = (rounds.max(initial=0) + 1, len(value["sigma"]))
    noise = rng.standard_t(value["nu"].ravel(), shape) if "nu" in value else rng.standard_normal(shape)
    if "rho" in value:
        rho = value["rho"].ravel()
        for before, now in itertools.pairwise(noise):
            now *= np.sqrt(1 - rho**2)
            now += rho * before
    return noise[rounds].T


def _hazard(fit: Fit, value: dict[str, Any], location: NDArray) -> NDArray:
    """Give the probability of dying by a level from the location of its empirical logit."""
    return np.asarray(jnp.exp(log_hazard(value, scipy.special.log_expit(location), np.log(fit.frame.chance_error))))


def n_test_for(fit: Fit, designs: pd.DataFrame) -> NDArray[np.float64]:
    """Give the test examples of designs, else as many as the fitted runs have; infinite for the population error."""
    return n_test_of(designs) if "n_test" in designs else np.full(len(designs), usual_n_test(fit))


def usual_n_test(fit: Fit) -> float:
    """Give how many test examples the fitted runs have, in the middle; infinite where that is not known."""
    return float(fit.runs["n_test"].median()) if "n_test" in fit.runs and len(fit.runs) else np.inf
