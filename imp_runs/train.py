"""One training run, from a state to a trained network."""

from __future__ import annotations

from collections.abc import Callable

import torch

from imp_runs.config import Protocol, Trajectory, size_fault
from imp_runs.errors import ImpRunsError
from imp_runs.examples import Examples, Source
from imp_runs.network import State
from imp_runs.steps import Steps


def check_size(dataset: Source, trajectory: Trajectory) -> None:
    """Raise an `ImpRunsError` if a trajectory wants more training examples than there are."""
    if fault := size_fault(trajectory.dataset, trajectory.dataset_size, len(dataset.train_labels)):
        raise ImpRunsError(f"{fault}; choose at most that.")


def subset(dataset: Source, trajectory: Trajectory) -> Examples:
    """Cut the training subset of a trajectory: the first n of the replicate's order, so nested across n."""
    generator = torch.Generator().manual_seed(trajectory.seed("subset"))
    order = torch.randperm(len(dataset.train_labels), generator=generator)[: trajectory.dataset_size]
    return dataset.take(order)


def learning_rate(protocol: Protocol, step: int, steps: int) -> float:
    """Give the learning rate of a step: a linear rise from 0 during the warm-up, stepwise decay at the milestones."""
    passed = sum(step >= int(milestone * steps) for milestone in protocol.milestones)
    rate, warm = protocol.learning_rate * protocol.decay**passed, int(protocol.warmup * steps)
    return rate * step / warm if step < warm else rate


def train(
    steps: Steps,
    examples: Examples,
    trajectory: Trajectory,
    level: int,
    *,
    start: int = 0,
    taken: int | None = None,
    rewind_state: State | None = None,
    after_step: Callable[[int, State], None] | None = None,
) -> State:
    """Train a network from step `start` to the end of its schedule.

    Args:
        steps: What computes the steps of the network, already rewound and masked.
        examples: The training subset.
        trajectory: What is run; gives protocol and randomness.
        level: Pruning round; together with the epoch it is the counter of all randomness.
        start: First step; 0 at level 0, the rewinding step afterwards.
        taken: Steps taken before an interruption, after which network and momentum stand; default `start`.
        rewind_state: What an interrupted training would have returned.
        after_step: Called after every step with the number of steps taken and what would be returned.

    Returns:
        The state of the network after the rewinding step (at level 0), else its state at the start.
    """
    protocol, network = trajectory.protocol, steps.network
    size, total = len(examples), protocol.steps(len(examples))
    rewind_step = int(protocol.rewind * total)
    rewind_state = rewind_state or network.state()
    step, taken = 0, start if taken is None else taken
    for epoch in range(protocol.epochs):
        if step + protocol.steps_per_epoch(size) <= taken:
            step += protocol.steps_per_epoch(size)
            continue
        first, done = max(start - step, 0), max(taken - step, 0)
        step += done
        for images, labels in examples.batches(trajectory, level, epoch, first, done):
            steps.step(images, labels, learning_rate(protocol, step, total))
            step += 1
            if level == 0 and step == rewind_step:
                rewind_state = network.state()
            if after_step:
                after_step(step, rewind_state)
    return rewind_state
