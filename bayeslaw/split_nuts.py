r"""NUTS whose steps follow a unit Gaussian exactly, for densities that are nearly one.

The energy is split into that of a unit Gaussian, whose flow turns positions and momenta into each other and is known,
and what the density differs by:

$$U(q) = \tfrac12 |q|^2 + R(q), \qquad r \mathrel{-}= \tfrac{h}{2} \nabla R(q), \quad
(q, r) \leftarrow (q \cos h + r \sin h, \; r \cos h - q \sin h), \quad r \mathrel{-}= \tfrac{h}{2} \nabla R(q)$$

The step is reversible, keeps volumes and costs one gradient, like the leapfrog; only the error of the energy is that of
R alone, so that steps can be twice as long and more. Trees, U-turns and the adaptation of the step size are NumPyro's.

Source:
    Shahbaba, Lan, Johnson and Neal, "Split Hamiltonian Monte Carlo", Statistics and Computing 2014, section 3.1;
    Hoffman and Gelman, JMLR 2014.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc_util import IntegratorState, build_tree, dual_averaging, euclidean_kinetic_energy

#: The first step size; it is adapted about it.
FIRST_STEP = 0.6
#: Lengths of a trajectory of 2^k - 1 steps that are made as long as the second; a half period is pi.
RESONANCE = (2.6, 4.2)
#: By how much steps are lengthened at most for that; else there are twice as many, shorter ones.
LENGTHENED = 1.25
#: Doublings of a trajectory at most.
MAX_TREE_DEPTH = 10


class StepSize(NamedTuple):
    """Hold the step size and what it is adapted by.

    Attributes:
        step_size: The step size of the next transition.
        averaging: State of dual averaging.
    """

    step_size: Any
    averaging: Any


class State(NamedTuple):
    """Hold where a chain is and what its last transition was like, under NumPyro's names.

    Attributes:
        i: Transitions made.
        z: Position, `[dimensions]`.
        z_grad: Gradient of the negative log density there.
        potential_energy: Negative log density there.
        energy: Potential and kinetic energy after the last transition.
        num_steps: Its gradients.
        accept_prob: Its mean acceptance rate.
        diverging: Whether its energy ran away.
        adapt_state: The step size.
        rng_key: Key of the next one.
        warmup: Transitions in which the step size is adapted.
    """

    i: Any
    z: Any
    z_grad: Any
    potential_energy: Any
    energy: Any
    num_steps: Any
    accept_prob: Any
    diverging: Any
    adapt_state: StepSize
    rng_key: Any
    warmup: Any


class SplitNUTS:
    """Sample with trajectories that are exact for a unit Gaussian.

    Args:
        potential: Negative log density of a position.
        target_acceptance: Mean acceptance rate that the step size aims at while it is adapted, in (0, 1).
    """

    def __init__(self, potential: Callable[[jax.Array], jax.Array], target_acceptance: float) -> None:
        self.potential, self.target_acceptance = potential, target_acceptance
        self.begin_averaging, self.average = dual_averaging()

    def init(self, key: jax.Array, warmup: Any, position: jax.Array) -> State:
        """Begin at a position and adapt the step size in the first `warmup` transitions."""
        value, gradient = jax.value_and_grad(self.potential)(position)
        none, zero = jnp.asarray(0), jnp.zeros(())
        step_size = StepSize(jnp.asarray(FIRST_STEP), self.begin_averaging(math.log(FIRST_STEP)))
        return State(
            none, position, gradient, value, zero, none, zero, jnp.asarray(False), step_size, key, jnp.asarray(warmup)
        )

    def sample(self, state: State, *_: Any) -> State:
        """Make a transition."""
        key, of_momentum, of_tree = jax.random.split(state.rng_key, 3)
        momentum = jax.random.normal(of_momentum, state.z.shape)
        tree = build_tree(
            functools.partial(split_step, jax.value_and_grad(self.potential)),
            euclidean_kinetic_energy,
            IntegratorState(state.z, momentum, state.potential_energy, state.z_grad),
            jnp.ones_like(state.z),
            state.adapt_state.step_size,
            of_tree,
            max_tree_depth=MAX_TREE_DEPTH,
        )
        accepted = tree.sum_accept_probs / tree.num_proposals
        i = state.i + 1
        return State(
            i,
            tree.z_proposal,
            tree.z_proposal_grad,
            tree.z_proposal_pe,
            tree.z_proposal_energy,
            tree.num_proposals,
            accepted,
            tree.diverging,
            self._adapted(state.warmup - i, accepted, state.adapt_state),
            key,
            state.warmup,
        )

    def _adapted(self, left: jax.Array, accepted: jax.Array, before: StepSize) -> StepSize:
        """Adapt the step size in the warm-up, and keep its average from the end of it on."""
        averaging = self.average(self.target_acceptance - accepted, before.averaging)
        log_step = jnp.where(left > 0, averaging[0], averaging[1])
        after = StepSize(off_resonance(jnp.exp(log_step)), averaging)
        return jax.tree.map(lambda new, old: jnp.where(left >= 0, new, old), after, before)


def off_resonance(step: Any) -> jax.Array:
    """Keep a step size off resonance, and short enough for three to be needed.

    In coordinates in which the posterior is a unit Gaussian, NUTS takes 2^k - 1 steps until they are longer than half a
    period, pi. Just short of it the next doubling ends where it began, goes unnoticed as a U-turn, and trees grow many
    times too deep; a slightly longer step stops at half the leapfrogs and moves as far, a much longer one would miss
    what is narrow.

    Args:
        step: Step size, positive.

    Returns:
        The same, a longer or a shorter one.

    Example:
        >>> [round(float(off_resonance(step)), 2) for step in (0.3, 0.4, 0.5, 0.7, 2.0)]
        [0.3, 0.28, 0.6, 0.7, 1.4]
    """
    found = step = jnp.minimum(step, RESONANCE[1] / 3)
    for steps in (2**depth - 1 for depth in range(2, MAX_TREE_DEPTH)):
        longer, shorter = RESONANCE[1] / steps, RESONANCE[1] / (2 * steps + 1)
        resonant = (RESONANCE[0] < steps * step) & (steps * step < RESONANCE[1])
        found = jnp.where(resonant, jnp.where(longer <= LENGTHENED * step, longer, shorter), found)
    return found


def split_step(value_and_gradient: Callable[..., Any], step: Any, _: Any, state: IntegratorState) -> IntegratorState:
    """Kick, turn, kick; a negative step goes back.

    Args:
        value_and_gradient: Of the negative log density.
        step: Step size.
        _: What NumPyro's trees give besides, a metric.
        state: Where to step from.
    """
    position, momentum, _, gradient = state
    momentum = momentum - 0.5 * step * (gradient - position)
    cosine, sine = jnp.cos(step), jnp.sin(step)
    position, momentum = cosine * position + sine * momentum, cosine * momentum - sine * position
    value, gradient = value_and_gradient(position)
    return IntegratorState(position, momentum - 0.5 * step * (gradient - position), value, gradient)
