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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc_util import IntegratorState, build_tree, dual_averaging, euclidean_kinetic_energy

#: No step is longer: a Gaussian's half period, pi, is passed by three of them and no fewer.
LONGEST_STEP = 1.4
#: The first.
FIRST_STEP = 0.5
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


class SplitNUTS:
    """Sample with trajectories that are exact for a unit Gaussian.

    Args:
        potential: Negative log density of a position.
        target_acceptance: Mean acceptance rate that the step size aims at while it is adapted, in (0, 1).
    """

    def __init__(self, potential: Callable[[jax.Array], jax.Array], target_acceptance: float) -> None:
        self.potential, self.target_acceptance = potential, target_acceptance
        self.begin_averaging, self.average = dual_averaging()
        self.warmup = 0

    def init(self, key: jax.Array, warmup: int, position: jax.Array) -> State:
        """Begin at a position and adapt the step size in the first `warmup` transitions."""
        self.warmup = warmup
        value, gradient = jax.value_and_grad(self.potential)(position)
        none, zero = jnp.asarray(0), jnp.zeros(())
        step_size = StepSize(jnp.asarray(FIRST_STEP), self.begin_averaging(jnp.log(LONGEST_STEP)))
        return State(none, position, gradient, value, zero, none, zero, jnp.asarray(False), step_size, key)

    def sample(self, state: State, *_: Any) -> State:
        """Make a transition."""
        key, of_momentum, of_tree = jax.random.split(state.rng_key, 3)
        momentum = jax.random.normal(of_momentum, state.z.shape)
        tree = build_tree(
            functools.partial(_step, jax.value_and_grad(self.potential)),
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
            self._adapted(i, accepted, state.adapt_state),
            key,
        )

    def _adapted(self, i: jax.Array, accepted: jax.Array, before: StepSize) -> StepSize:
        """Adapt the step size in the warm-up, and keep its average from the end of it on."""
        averaging = self.average(self.target_acceptance - accepted, before.averaging)
        log_step = jnp.where(i < self.warmup, averaging[0], averaging[1])
        after = StepSize(jnp.minimum(jnp.exp(log_step), LONGEST_STEP), averaging)
        return jax.tree.map(lambda new, old: jnp.where(i <= self.warmup, new, old), after, before)


def _step(value_and_gradient: Callable[..., Any], step: Any, _: Any, state: IntegratorState) -> IntegratorState:
    """Kick, turn, kick; a negative step goes back."""
    position, momentum, _, gradient = state
    momentum = momentum - 0.5 * step * (gradient - position)
    cosine, sine = jnp.cos(step), jnp.sin(step)
    position, momentum = cosine * position + sine * momentum, cosine * momentum - sine * position
    value, gradient = value_and_gradient(position)
    return IntegratorState(position, momentum - 0.5 * step * (gradient - position), value, gradient)
