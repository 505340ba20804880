r"""Networks that have died: they answer one class whatever they see.

The error of a dead network is that of its class, to the last digit, and comes again level after level. A living network
dies between a level and the next with a hazard that rises with the error of its curve there,

$$h = \mathrm{dies} \, (\epsilon / \epsilon_{chance})^{\mathrm{dies\_power}}$$

and a dead one stays dead with probability `stays`. Some never live: they are dead before anything is pruned, with odds
that fall with the width w, as a channel that answers nothing is the less of a network the more there are,

$$\frac{h_0}{1 - h_0} = \mathrm{born\_dead} \, (w / w_{central})^{-\mathrm{born\_power}}$$

Levels of living networks are measured around the curve; those of dead ones say that the network died where it did, and
nothing else of the curve and its noise; that a network never lived says nothing of its curve at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Share of the random-guess error from which on an error that is repeated can be a dead network's.
NEAR = 0.9
#: It is where it is repeated more often in a table than living networks would by chance, at this level.
LEVEL = 0.01
#: What became of a network by a level: lived on, died, revived, stayed dead; unpruned, was born alive or dead. Where a
#: trajectory begins with a pruned network, it lived before.
LIVED, DIED, REVIVED, STAYED, BORN, STILLBORN = FATES = range(6)
#: An unpruned network's log density is within this of 0.
UNPRUNED = 1e-9


def fates_of(
    error: NDArray, trajectory: NDArray[np.integer], log_density: NDArray, chance_error: float, n_test: Any = np.inf
) -> NDArray[np.int8]:
    """Tell what became of every level's network: one of `FATES`.

    Dead are those whose error, near that of random guessing, comes again at a trajectory's next level more often than
    by chance: two counts of n_test examples, of share e wrong each, are the same with a probability of about
    1 / (2 sqrt(pi n_test e (1 - e))). With so many that this is rare, also those whose error is that of guessing.

    Args:
        error: Errors, `[rows]`.
        trajectory: Trajectory of every row.
        log_density: Log density of every row.
        chance_error: Error of random guessing.
        n_test: Test examples; infinite where unknown, broadcast.

    Returns:
        The fates, `[rows]`.

    Example:
        >>> density = np.array([1, 0.8, 0.64, 0.51, 0.41, 0.33])
        >>> error = np.array([0.1, 0.88, 0.903, 0.903, 0.903, 0.87])
        >>> fates_of(error, np.zeros(6, int), np.log(density), 0.9, n_test=10_000).tolist()
        [4, 0, 1, 3, 3, 2]
    """
    order = np.lexsort((-log_density, trajectory))
    ordered = error[order]
    same_run = np.diff(trajectory[order], prepend=-1) == 0
    follows = same_run & (np.diff(log_density[order], prepend=np.inf) < 0)
    again = follows & (ordered >= NEAR * chance_error) & (np.diff(ordered, prepend=np.inf) == 0)
    count = np.broadcast_to(n_test, error.shape)[order]
    own = [error for error in np.unique(ordered[again]) if _too_often(error, ordered, follows, count)]
    dead = np.isin(ordered, own)
    if _coincidence(chance_error, count) < LEVEL:
        dead |= np.isclose(ordered, chance_error, rtol=0, atol=1e-9)
    before = np.concatenate([[False], dead[:-1]]) & same_run
    unpruned = ~same_run & (log_density[order] > -UNPRUNED)
    came = [unpruned & dead, unpruned, before & dead, before, dead]
    fates = np.empty(len(error), np.int8)
    fates[order] = np.select(came, [STILLBORN, BORN, STAYED, REVIVED, DIED], LIVED)
    return fates


def _too_often(own: float, error: NDArray, follows: NDArray[np.bool_], n_test: NDArray) -> bool:
    """Tell whether levels of one error are followed by the same more often than by chance, rows being in order."""
    here = np.append((error[:-1] == own) & follows[1:], False)
    repeats, chances = np.sum(error[1:][here[:-1]] == own), here.sum()
    return bool(scipy.stats.binom.sf(repeats - 1, chances, _coincidence(own, n_test[here])) < LEVEL)


def _coincidence(error: float, n_test: NDArray) -> float:
    """Give the probability that two counts of wrong answers are the same, or one of them one that is given."""
    return 1 / (2 * np.sqrt(np.pi * max(np.median(n_test) * error * (1 - error), 0.25)))


def are_dead(fates: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell the levels of dead networks."""
    return (fates == DIED) | (fates == STAYED) | (fates == STILLBORN)


def log_hazard(value: Mapping[str, Any], log_mean: Any, log_chance: Any) -> Any:
    """Give the log probability that a living network dies by a level, from the log error of its curve there."""
    return jnp.log(value["dies"]) + value["dies_power"] * (log_mean - log_chance)


def log_odds_born_dead(value: Mapping[str, Any], width: Any) -> Any:
    """Give the log odds that networks never live, from their centred log width."""
    return jnp.log(value["born_dead"]) - value["born_power"] * width


def log_probability(value: Mapping[str, Any], fates: Any, log_mean: Any, log_chance: Any, width: Any) -> Any:
    """Give the log probability of every level's fate given the level before, broadcast.

    Args:
        value: `dies`, `dies_power`, `stays`, `born_dead` and `born_power`.
        fates: What became of the networks.
        log_mean: Log error of their curves.
        log_chance: Logarithm of the random-guess error.
        width: Their centred log width.
    """
    dying, stays, born_dead = log_hazard(value, log_mean, log_chance), value["stays"], log_odds_born_dead(value, width)
    each = jnp.log1p(-jnp.exp(dying)), dying, jnp.log1p(-stays), jnp.log(stays), *_log_shares(born_dead)
    return jnp.select([fates == fate for fate in FATES], jnp.broadcast_arrays(*each))


def _log_shares(log_odds: Any) -> tuple[jax.Array, jax.Array]:
    """Give the log probabilities that something with these log odds is not, and that it is."""
    return -jax.nn.softplus(log_odds), -jax.nn.softplus(-log_odds)


def log_density_of_dead(value: Mapping[str, Any], counts: Any, born: Any, width: Any) -> jax.Array:
    """Give the log probability of what became of networks that is no matter of their curves.

    Args:
        value: `stays`, `born_dead` and `born_power`.
        counts: How many networks revived, and how many stayed dead, `[2]`.
        born: How many were born alive, and how many dead, `[configurations, 2]`.
        width: Their centred log width, `[configurations]`.
    """
    stayed = jnp.log1p(-value["stays"]) * counts[0] + jnp.log(value["stays"]) * counts[1]
    alive, dead = _log_shares(log_odds_born_dead(value, width))
    return stayed + jnp.sum(born[:, 0] * alive + born[:, 1] * dead)


def count_dead(fates: NDArray[np.integer]) -> NDArray[np.float64]:
    """Count `REVIVED` and `STAYED`."""
    return np.bincount(fates, minlength=len(FATES))[[REVIVED, STAYED]].astype(float)


def count_born(fates: NDArray[np.integer], configuration: NDArray[np.integer]) -> NDArray[np.float64]:
    """Count `BORN` and `STILLBORN` among the rows of every configuration, `[configurations, 2]`."""
    return np.stack([np.bincount(configuration, fates == fate) for fate in (BORN, STILLBORN)], axis=1)


def let_die(
    hazard: NDArray, stays: NDArray, dead_errors: NDArray, rng: np.random.Generator
) -> tuple[NDArray, NDArray[np.bool_]]:
    """Let networks die along runs.

    Args:
        hazard: Probability of dying by levels, one after the other, of being born dead by the first,
            `[draws, levels]`.
        stays: Probability of staying dead, `[draws]`.
        dead_errors: What dead networks show, one of them each.
        rng: Source of randomness.

    Returns:
        The error of every run where it is dead, `[draws]`, and whether it is, `[draws, levels]`.
    """
    own, dead = rng.choice(dead_errors, len(hazard)), np.zeros(hazard.shape, bool)
    fresh = rng.random(hazard.shape[::-1]).T  # levels first, so that none depends on how many follow
    was_dead = np.zeros(len(hazard), bool)
    for level in range(hazard.shape[1]):
        dead[:, level] = was_dead = fresh[:, level] < np.where(was_dead, stays, hazard[:, level])
    return own, dead
