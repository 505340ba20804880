"""One training run, from a state to a trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from imp_runs.config import Protocol, Trajectory, size_fault
from imp_runs.datasets import Dataset
from imp_runs.errors import ImpRunsError
from imp_runs.network import State
from imp_runs.steps import Steps


@dataclass(frozen=True)
class Examples:
    """Hold the training subset of a trajectory: images (n, channels, height, width) and labels (n)."""

    images: torch.Tensor
    labels: torch.Tensor


def check_size(dataset: Dataset, trajectory: Trajectory) -> None:
    """Raise an `ImpRunsError` if a trajectory wants more training examples than there are."""
    if fault := size_fault(trajectory.dataset, trajectory.dataset_size, len(dataset.train_labels)):
        raise ImpRunsError(f"{fault}; choose at most that.")


def subset(dataset: Dataset, trajectory: Trajectory) -> Examples:
    """Cut the training subset of a trajectory: the first n of the replicate's order, so nested across n."""
    generator = torch.Generator().manual_seed(trajectory.seed("subset"))
    order = torch.randperm(len(dataset.train_labels), generator=generator)[: trajectory.dataset_size]
    order = order.to(dataset.train_labels.device)
    return Examples(dataset.train_images[order], dataset.train_labels[order])


def learning_rate(protocol: Protocol, step: int, steps: int) -> float:
    """Give the learning rate of a step: stepwise decay at the milestones."""
    passed = sum(step >= int(milestone * steps) for milestone in protocol.milestones)
    return protocol.learning_rate * protocol.decay**passed


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
    size, total = len(examples.labels), protocol.steps(len(examples.labels))
    rewind_step = int(protocol.rewind * total)
    rewind_state = rewind_state or network.state()
    step, taken = 0, start if taken is None else taken
    for epoch in range(protocol.epochs):
        if step + protocol.steps_per_epoch(size) <= taken:
            step += protocol.steps_per_epoch(size)
            continue
        generator = torch.Generator().manual_seed(trajectory.seed("order", level, epoch))
        order = torch.randperm(size, generator=generator).to(examples.labels.device)
        augment = torch.Generator().manual_seed(trajectory.seed("augmentation", level, epoch))
        for batch in order.split(protocol.batch_size):
            if start <= step < taken and protocol.augmentation == "flip_crop":
                draw(len(batch), augment)  # what the steps before the interruption drew
            if step >= taken:
                images = examples.images[batch]
                if protocol.augmentation == "flip_crop":
                    images = flip_crop(images, augment)
                steps.step(images, examples.labels[batch], learning_rate(protocol, step, total))
            step += 1
            if step <= taken:
                continue
            if level == 0 and step == rewind_step:
                rewind_state = network.state()
            if after_step:
                after_step(step, rewind_state)
    return rewind_state


def draw(examples: int, generator: torch.Generator) -> torch.Tensor:
    """Draw what decides flip and offsets of every example, `[3, examples]`."""
    return torch.rand(3, examples, generator=generator)


def flip_crop(images: torch.Tensor, generator: torch.Generator, padding: int = 4) -> torch.Tensor:
    """Flip half of the images and crop each at its own offset after zero padding.

    Args:
        images: A batch (examples, channels, height, width).
        generator: Source of flips and offsets (CPU).
        padding: Pixels added on every side before the crop.

    Returns:
        A batch of the same shape.
    """
    size, _, height, width = images.shape
    draws = draw(size, generator).to(images.device)
    images = torch.where(draws[0].view(-1, 1, 1, 1) < 0.5, images.flip(3), images)
    offsets = (draws[1:] * (2 * padding + 1)).long()
    rows = offsets[0].view(-1, 1) + torch.arange(height, device=images.device)
    columns = offsets[1].view(-1, 1) + torch.arange(width, device=images.device)
    padded = functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    example = torch.arange(size, device=images.device).view(-1, 1, 1)
    return padded[example, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
