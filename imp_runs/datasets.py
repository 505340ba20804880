"""The datasets by name, and those held whole in memory: standardised, with a fixed test set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from imp_runs.config import DATASETS
from imp_runs.distributed import share
from imp_runs.errors import ImpRunsError
from imp_runs.examples import Batch, HeldExamples
from imp_runs.folders import list_folders, read_images

if TYPE_CHECKING:
    from imp_runs.streaming import Streamed


@dataclass(frozen=True)
class Dataset:
    """Hold images (examples, channels, height, width; float32, standardised) and labels (examples; int64)."""

    name: str
    classes: int
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Dataset:
        """Copy the tensors to a device."""
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return Dataset(self.name, self.classes, *(t.to(device) for t in tensors))

    def take(self, order: torch.Tensor) -> HeldExamples:
        """Cut a training subset: the examples of these numbers, in this order."""
        order = order.to(self.train_labels.device)
        return HeldExamples(self.train_images[order], self.train_labels[order])

    def test_batches(self, size: int) -> Iterator[Batch]:
        """Give images and labels of the test set, or this process's share of every batch of `size`."""
        for images, labels in zip(self.test_images.split(size), self.test_labels.split(size), strict=True):
            yield share(images), share(labels)


def default_data_dir() -> Path:
    """Name the folder of downloaded datasets: `$IMP_RUNS_DATA`, else `~/.cache/imp_runs`."""
    return Path(os.environ.get("IMP_RUNS_DATA") or Path.home() / ".cache" / "imp_runs")


def load_dataset(
    name: str, *, pool: int = 1, data_dir: str | Path | None = None, download: bool = False
) -> Dataset | Streamed:
    """Load a dataset, mean-pooled over `pool` x `pool` squares and standardised by channel.

    Those in memory are standardised by their training pixels, `imagenet` by the constants in common use.

    Args:
        name: `digits` (inside scikit-learn: 1,000 training and 797 test images), `fashion_mnist`, `mnist`, `cifar10`,
            `cifar100` or `svhn` (through torchvision), `tinyimagenet` (5 GB in memory), or `imagenet`, which is
            streamed from its files.
        pool: Side of the pooling square; must divide the image side (224 for `imagenet`).
        data_dir: Folder in which torchvision finds its files, and which holds the folders `tiny-imagenet-200` and
            `imagenet`, each with `train` and `val`; default `$IMP_RUNS_DATA` or `~/.cache/imp_runs`.
        download: Fetch missing files, where torchvision can.

    Returns:
        The dataset; its batches come on the CPU.

    Raises:
        ImpRunsError: Files are missing or damaged, `pool` does not divide the side, or the name is unknown.

    Example:
        >>> load_dataset("digits").input_shape
        (1, 8, 8)
    """
    root = Path(data_dir) if data_dir else default_data_dir()
    if name == "imagenet":
        from imp_runs.streaming import load_imagenet

        return load_imagenet(root, pool)
    if name == "digits":
        train, test = _digits()
    elif name == "tinyimagenet":
        train, test = _tinyimagenet(root / "tiny-imagenet-200")
    elif name in _TORCHVISION:
        train, test = _torchvision(name, root, download)
    else:
        raise ImpRunsError(f"dataset {name!r} is unknown; allowed: {', '.join(DATASETS)}.")
    side = train[0].shape[2]
    if side % pool:
        raise ImpRunsError(f"grid.pool = {pool} must divide the image side {side} of {name}; choose a divisor.")
    images = [functional.avg_pool2d(part[0], pool) if pool > 1 else part[0] for part in (train, test)]
    mean, std = images[0].mean((0, 2, 3), keepdim=True), images[0].std((0, 2, 3), keepdim=True)
    train_images, test_images = (part.sub_(mean).div_(std).contiguous() for part in images)
    return Dataset(name, int(train[1].max()) + 1, train_images, train[1], test_images, test[1])


_Part = tuple[torch.Tensor, torch.Tensor]


def _digits() -> tuple[_Part, _Part]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)).reshape(-1, 1, 8, 8)[order] / 16
    targets = torch.from_numpy(np.asarray(labels, dtype=np.int64))[order]
    train = DATASETS["digits"]
    return (pixels[:train], targets[:train]), (pixels[train:], targets[train:])


def _tinyimagenet(root: Path) -> tuple[_Part, _Part]:
    _, train, test = list_folders("tinyimagenet", root)
    return read_images(train, 64), read_images(test, 64)


_TORCHVISION = {
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}


def _torchvision(name: str, root: Path, download: bool) -> tuple[_Part, _Part]:
    import torchvision

    maker = getattr(torchvision.datasets, _TORCHVISION[name])
    parts = []
    for train in (True, False):
        arguments = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            parts.append(_tensors(maker(str(root), download=download, **arguments)))
        except (RuntimeError, OSError, ValueError, AssertionError) as error:  # missing, or cut short
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ImpRunsError(
                f"dataset {name!r} could not be read from {root} ({reason}). Either allow the download with "
                f"--download (it needs a network), or give --data-dir a folder in which torchvision finds the files "
                f"of {_TORCHVISION[name]}."
            ) from None
    return parts[0], parts[1]


def _tensors(source: object) -> _Part:
    pixels = torch.as_tensor(np.asarray(getattr(source, "data")))  # noqa: B009
    labels = getattr(source, "targets", None)
    labels = getattr(source, "labels", None) if labels is None else labels
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    return pixels.float().div(255).contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64)
