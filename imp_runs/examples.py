"""What a run is trained and tested on, batch by batch: the interface of datasets, and batches of those in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol as Interface
from typing import Self

import torch
from torch.nn import functional

from imp_runs.config import Trajectory
from imp_runs.distributed import share

Batch = tuple[torch.Tensor, torch.Tensor]


class Examples(Interface):
    """Give the training subset of a trajectory, batch by batch."""

    def __len__(self) -> int:
        """Count the training examples."""
        ...

    def batches(
        self, trajectory: Trajectory, level: int, epoch: int, first: int = 0, taken: int = 0
    ) -> Iterator[Batch]:
        """Give images and labels of the batches of an epoch, or this process's share of each.

        Args:
            trajectory: What is run; gives batch size, augmentation and randomness.
            level: Pruning round; together with the epoch it is the counter of all randomness.
            epoch: Number of the epoch.
            first: Number of the batch that training begins with in this epoch.
            taken: Batches of the epoch that are behind an interrupted training, `first` or more.
        """
        ...


class Source(Interface):
    """Give what a trajectory is trained and tested on: a dataset in memory, or one streamed from its files."""

    @property
    def name(self) -> str:
        """Name of the dataset."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, as the networks see it."""
        ...

    @property
    def train_labels(self) -> torch.Tensor:
        """Labels of all training examples."""
        ...

    @property
    def test_labels(self) -> torch.Tensor:
        """Labels of all test examples."""
        ...

    def to(self, device: torch.device) -> Self:
        """Give the same with its batches on a device."""
        ...

    def take(self, order: torch.Tensor) -> Examples:
        """Cut a training subset: the examples of these numbers, in this order."""
        ...

    def test_batches(self, size: int) -> Iterator[Batch]:
        """Give images and labels of the test set, or this process's share of every batch of `size`."""
        ...


@dataclass(frozen=True)
class HeldExamples:
    """Hold a training subset in memory: images (n, channels, height, width) and labels (n)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, trajectory: Trajectory, level: int, epoch: int, first: int = 0, taken: int = 0
    ) -> Iterator[Batch]:
        """Give the batches of an epoch; `Examples.batches`. Those before the first draw no augmentation."""
        protocol = trajectory.protocol
        order = shuffled(trajectory, level, epoch, len(self)).to(self.labels.device)
        augment = torch.Generator().manual_seed(trajectory.seed("augmentation", level, epoch))
        for number, batch in enumerate(order.split(protocol.batch_size)[first:], first):
            drawn = draw(len(batch), augment) if protocol.augmentation == "flip_crop" else None
            if number < taken:
                continue
            images = self.images[batch]
            if drawn is not None:
                images = flip_crop(images, drawn)
            yield share(images), share(self.labels[batch])


def shuffled(trajectory: Trajectory, level: int, epoch: int, size: int) -> torch.Tensor:
    """Draw the order in which the examples of a subset are seen in an epoch."""
    generator = torch.Generator().manual_seed(trajectory.seed("order", level, epoch))
    return torch.randperm(size, generator=generator)


def draw(examples: int, generator: torch.Generator) -> torch.Tensor:
    """Draw what decides flip and offsets of every example, `[3, examples]`."""
    return torch.rand(3, examples, generator=generator)


def flip_crop(images: torch.Tensor, draws: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Flip half of the images and crop each at its own offset after zero padding.

    Args:
        images: A batch (examples, channels, height, width).
        draws: What decides flip and offsets, `[3, examples]`, in [0, 1) (`draw`).
        padding: Pixels added on every side before the crop.

    Returns:
        A batch of the same shape.
    """
    size, _, height, width = images.shape
    draws = draws.to(images.device)
    images = torch.where(draws[0].view(-1, 1, 1, 1) < 0.5, images.flip(3), images)
    offsets = (draws[1:] * (2 * padding + 1)).long()
    rows = offsets[0].view(-1, 1) + torch.arange(height, device=images.device)
    columns = offsets[1].view(-1, 1) + torch.arange(width, device=images.device)
    padded = functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    example = torch.arange(size, device=images.device).view(-1, 1, 1)
    return padded[example, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
