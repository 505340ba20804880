"""Datasets too large for memory: image files, read and transformed batch by batch while the network trains."""

from __future__ import annotations

import collections
import copy
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.utils import data
from torchvision.transforms import v2

from imp_runs.config import Trajectory
from imp_runs.distributed import processes, share
from imp_runs.errors import ImpRunsError
from imp_runs.examples import Batch, shuffled
from imp_runs.folders import Files, list_folders, read_image

#: Side of the images that the networks see, before pooling, and of the shorter side that test images are resized to.
SIDE = 224
RESIZED = 256

#: Images that a reading process hands over at once.
PART = 64

#: Mean and standard deviation of the pixels of ImageNet, by channel, as torchvision's models use them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Wanted(NamedTuple):
    """Name an image that is wanted: its file, its label, and the seed of its augmentation (nothing for none)."""

    path: str
    label: int
    seed: int | None


class Streamed:
    """Stream a dataset from image files.

    Every image that is seen has a seed of its own, the hash of trajectory, level, epoch and its place in the subset, so
    that what is seen depends neither on the number of readers nor of processes, nor on interruptions.

    Args:
        name: Name of the dataset.
        classes: Number of classes.
        train: Training images.
        test: Test images.
        pool: Side of the squares over which images are mean-pooled; divides 224.
        readers: Processes that read and transform images; 0 does it in this one. The default is `$IMP_RUNS_READERS`,
            else this process's share of the cores.

    Attributes:
        name: Name of the dataset.
        classes: Number of classes.
    """

    def __init__(
        self, name: str, classes: int, train: Files, test: Files, *, pool: int = 1, readers: int | None = None
    ) -> None:
        self.name, self.classes = name, classes
        self._train, self._test, self._pool = train, test, pool
        self._device = torch.device("cpu")
        self._reader = Reader(_default_readers() if readers is None else readers)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, as the networks see it."""
        return 3, SIDE // self._pool, SIDE // self._pool

    @property
    def train_labels(self) -> torch.Tensor:
        """Labels of all training examples."""
        return self._train.labels

    @property
    def test_labels(self) -> torch.Tensor:
        """Labels of all test examples."""
        return self._test.labels

    def to(self, device: torch.device) -> Streamed:
        """Give the same with its batches on a device; both share one reader."""
        other = copy.copy(self)
        other._device = device
        return other

    def take(self, order: torch.Tensor) -> StreamedExamples:
        """Cut a training subset: the examples of these numbers, in this order."""
        paths = [self._train.paths[number] for number in order.tolist()]
        return StreamedExamples(self, Files(paths, self._train.labels[order]))

    def test_batches(self, size: int) -> Iterator[Batch]:
        """Give images and labels of the test set, or this process's share of every batch of `size`."""
        wanted = [Wanted(*both, None) for both in zip(self._test.paths, self._test.labels.tolist(), strict=True)]
        return self.read(share(wanted[start : start + size]) for start in range(0, len(wanted), size))

    def read(self, batches: Iterable[list[Wanted]]) -> Iterator[Batch]:
        """Read batches of images, standardised and pooled, onto the device."""
        mean, std = (torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (MEAN, STD))
        for parts in self._reader.read(batches):
            pixels, labels = (
                torch.cat([part.to(self._device, non_blocking=True) for part in column])
                for column in zip(*parts, strict=True)
            )
            images = pixels.to(mean.dtype).div(255).sub(mean).div(std)
            yield functional.avg_pool2d(images, self._pool) if self._pool > 1 else images, labels


class StreamedExamples:
    """Stream the training subset of a trajectory.

    Args:
        source: The dataset.
        files: The subset's files.
    """

    def __init__(self, source: Streamed, files: Files) -> None:
        self._source, self._files = source, files

    def __len__(self) -> int:
        return len(self._files.paths)

    def batches(
        self, trajectory: Trajectory, level: int, epoch: int, first: int = 0, taken: int = 0
    ) -> Iterator[Batch]:
        """Give the batches of an epoch; `Examples.batches`."""
        protocol = trajectory.protocol
        order = shuffled(trajectory, level, epoch, len(self))
        numbers = order.split(protocol.batch_size)[max(first, taken) :]

        def wanted(number: int) -> Wanted:
            augmented = protocol.augmentation == "resized_crop"
            seed = trajectory.seed("augmentation", level, epoch, number) if augmented else None
            return Wanted(self._files.paths[number], int(self._files.labels[number]), seed)

        return self._source.read([wanted(number) for number in share(batch).tolist()] for batch in numbers)


class Reader(data.Dataset):
    """Read and transform images in processes of its own, which live as long as it does.

    Args:
        readers: Number of processes; 0 does it in this one.
    """

    def __init__(self, readers: int) -> None:
        self._readers, self._agenda = readers, _Agenda()
        self._loader: data.DataLoader | None = None
        self._augmented = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        self._plain = v2.Compose([v2.Resize(RESIZED), v2.CenterCrop(SIDE), v2.PILToTensor()])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the reading processes do not need."""
        return self.__dict__ | {"_loader": None, "_agenda": None}

    def __getitem__(self, wanted: Wanted) -> tuple[torch.Tensor, int]:
        """Read one image as bytes (3, 224, 224), and its label.

        Raises:
            ImpRunsError: The file is missing or no image.
        """
        image = read_image(wanted.path)
        if wanted.seed is None:
            return self._plain(image), wanted.label
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(wanted.seed)
            return self._augmented(image), wanted.label

    def read(self, batches: Iterable[list[Wanted]]) -> Iterator[list[Batch]]:
        """Read batches, in order, each in parts: bytes (examples, 3, 224, 224) and labels."""
        if self._loader is None:
            self._loader = data.DataLoader(
                self,
                batch_sampler=self._agenda,
                num_workers=self._readers,
                collate_fn=_collate,
                generator=torch.Generator(),  # else PyTorch draws a seed, unused here, from the process's own
                pin_memory=torch.cuda.is_available(),
                multiprocessing_context="forkserver" if self._readers else None,
                persistent_workers=self._readers > 0,
            )
        counts: collections.deque[int] = collections.deque()
        self._agenda.batches, parts = _in_parts(batches, counts), []
        try:
            for part in self._loader:
                parts.append(part)
                if len(parts) == counts[0]:
                    counts.popleft()
                    yield parts
                    parts = []
        except ImpRunsError as error:  # PyTorch puts a reading process's traceback before the message
            raise ImpRunsError(str(error).rpartition("ImpRunsError: ")[2].strip()) from None


class _Agenda(data.Sampler[list[Wanted]]):
    """Hand out the batches that are wanted next."""

    def __init__(self) -> None:
        self.batches: Iterable[list[Wanted]] = ()

    def __iter__(self) -> Iterator[list[Wanted]]:
        return iter(self.batches)


def _in_parts(batches: Iterable[list[Wanted]], counts: collections.deque[int]) -> Iterator[list[Wanted]]:
    """Cut batches into parts, each for one reader, and note how many parts every batch has."""
    for batch in batches:
        parts = [batch[start : start + PART] for start in range(0, len(batch), PART)] or [[]]
        counts.append(len(parts))
        yield from parts


def _collate(examples: list[tuple[torch.Tensor, int]]) -> Batch:
    """Stack a batch; where processes are more than its examples, a share may be empty."""
    if not examples:
        return torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _default_readers() -> int:
    given = os.environ.get("IMP_RUNS_READERS")
    if given is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(cores // processes(), 1)
    if not given.isdigit():
        raise ImpRunsError(f"IMP_RUNS_READERS = {given!r} must be a number of processes, 0 or more.")
    return int(given)


def load_imagenet(root: Path, pool: int) -> Streamed:
    """List the image files of ImageNet; `imp_runs.load_dataset`."""
    if SIDE % pool:
        raise ImpRunsError(f"grid.pool = {pool} must divide the image side {SIDE} of imagenet; choose a divisor.")
    classes, train, test = list_folders("imagenet", root / "imagenet")
    return Streamed("imagenet", classes, train, test, pool=pool)
