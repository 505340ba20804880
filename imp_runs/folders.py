"""Datasets that come as folders of image files, one folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from imp_runs.errors import ImpRunsError

if TYPE_CHECKING:
    from PIL.Image import Image


class Files(NamedTuple):
    """Hold the paths and the labels of image files, in one order."""

    paths: list[str]
    labels: torch.Tensor


def list_folders(name: str, root: Path) -> tuple[int, Files, Files]:
    """List the image files under `root/train/CLASS/` and `root/val/CLASS/`.

    TinyImageNet's own layout is known too: all of `root/val/images/`, with classes in `root/val/val_annotations.txt`.

    Args:
        name: Name of the dataset, for messages.
        root: Its folder.

    Returns:
        Number of classes, the files of the training set and those of the test set; classes are numbered by name.

    Raises:
        ImpRunsError: Folders or files are missing, or the test set has classes that the training set lacks.
    """
    from torchvision.datasets import ImageFolder

    try:
        train = ImageFolder(root / "train")
        annotations = root / "val" / "val_annotations.txt"
        if annotations.exists():
            test = _annotated(annotations, train.class_to_idx)
        else:
            folder = ImageFolder(root / "val", allow_empty=True)
            if unknown := sorted(set(folder.classes) - set(train.classes)):
                raise ValueError(f"val has classes that train lacks: {', '.join(unknown[:3])}")
            test = [(path, train.class_to_idx[folder.classes[label]]) for path, label in folder.samples]
        if not test:
            raise ValueError("val has no images")
    except (OSError, ValueError, KeyError) as error:
        raise ImpRunsError(
            f"dataset {name!r} could not be read from {root} ({error}). It cannot be downloaded from here: unpack it "
            "there as train/CLASS/*.JPEG and val/CLASS/*.JPEG, or give --data-dir the folder that holds "
            f"{root.name}."
        ) from None
    return len(train.classes), _files(train.samples), _files(test)


def _annotated(annotations: Path, numbers: dict[str, int]) -> list[tuple[str, int]]:
    rows = [line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines() if line]
    if wrong := [row for row in rows if len(row) < 2 or row[1] not in numbers]:
        raise ValueError(f"{annotations.name}: no class of train in the line {wrong[0]}")
    return [(str(annotations.parent / "images" / file), numbers[label]) for file, label in rows]


def _files(samples: list[tuple[str, int]]) -> Files:
    return Files([path for path, _ in samples], torch.tensor([label for _, label in samples]))


def read_image(path: str) -> Image:
    """Read an image file, in colour.

    Raises:
        ImpRunsError: The file is missing or no image.
    """
    from torchvision.datasets.folder import pil_loader

    try:
        return pil_loader(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImpRunsError(f"{path}: cannot be read as an image ({error}); fetch the file again.") from None


def read_images(files: Files, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images of `side` x `side` pixels into memory, as (examples, 3, side, side) in [0, 1], and their labels.

    Raises:
        ImpRunsError: A file is missing, no image, or of another size.
    """
    images = torch.empty(len(files.paths), 3, side, side)
    for index, path in enumerate(files.paths):
        pixels = np.array(read_image(path))
        if pixels.shape[:2] != (side, side):
            height, width = pixels.shape[:2]
            raise ImpRunsError(f"{path}: is {width} x {height} pixels and must be {side} x {side}.")
        images[index] = torch.from_numpy(pixels).permute(2, 0, 1)
    return images.div_(255), files.labels
