"""What the tests of the runner share: one thread, toy trajectories, and one sweep that ran without interruption."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

from imp_runs.config import Protocol, Trajectory, load_sweep
from imp_runs.datasets import Dataset, load_dataset
from imp_runs.store import Store
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table

SWEEP = """
name = "toys"
[grid]
family = "mlp"
dataset = "digits"
depth = [2]
width = [2, 3]
dataset_size = [40]
replicates = 12
[protocol]
name = "toy"
epochs = 1
batch_size = 20
rewind = 0.5
levels = 2
"""
TOY = Protocol(name="toy", epochs=2, batch_size=16, levels=2)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_kernels():
    """Undo the choice of kernels that running a trajectory makes for the whole process."""
    before = torch.backends.mkldnn.enabled
    yield
    torch.backends.mkldnn.enabled = before


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Make folders of little images: an ImageNet of four classes and a TinyImageNet of three, told apart by colour."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)

    def draw(path: Path, label: int, height: int, width: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.normal(110, 45, (height, width, 3))
        pixels[..., label % 3] += 40 + 40 * (label // 3)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)

    for label in range(4):
        for part, images in (("train", 12), ("val", 6)):
            for number in range(images):
                height, width = generator.integers(40, 90, 2)
                draw(root / "imagenet" / part / f"n{label:04d}" / f"{number}.JPEG", label, height, width)
    tiny, annotations = root / "tiny-imagenet-200", []
    for label in range(3):
        for number in range(5):
            draw(tiny / "train" / f"n{label:04d}" / "images" / f"{number}.JPEG", label, 64, 64)
    for number, label in enumerate((2, 0, 1, 1)):
        draw(tiny / "val" / "images" / f"val_{number}.JPEG", label, 64, 64)
        annotations.append(f"val_{number}.JPEG\tn{label:04d}\t0\t0\t62\t62\n")
    (tiny / "val" / "val_annotations.txt").write_text("".join(annotations))
    return root


@pytest.fixture(scope="session")
def toy():
    """Give a maker of tiny trajectories; unknown names are settings of the protocol."""
    shapes = {"mlp": (2, 2), "cifar_resnet": (8, 1), "cifar_vgg": (11, 2), "cifar_densenet": (121, 2)}
    shapes |= {"tinyimagenet_resnet": (18, 2), "imagenet_resnet": (18, 2)}

    def make(family: str = "mlp", *, replicate: int = 0, dataset_size: int = 40, **changes) -> Trajectory:
        depth, width = changes.pop("depth", shapes[family][0]), changes.pop("width", shapes[family][1])
        dataset, pool = changes.pop("dataset", "digits"), changes.pop("pool", 1)
        protocol = dataclasses.replace(TOY, **changes)
        return Trajectory(family, dataset, depth, width, dataset_size, replicate, pool, protocol)

    return make


@dataclass(frozen=True)
class Whole:
    """Hold a sweep that has run without interruption: its file, its store and its table."""

    file: Path
    store: Path
    table: pd.DataFrame

    def assert_same(self, store: Store | Path) -> None:
        """Compare the table of another store, in every column but `seconds`, bit for bit."""
        other = make_table(store).drop(columns="seconds")
        pd.testing.assert_frame_equal(other, self.table.drop(columns="seconds"), check_exact=True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Whole:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):  # of several processes of pytest the first runs the sweep, the others find it done
        (folder / "toys.toml").write_text(SWEEP)
        run_sweep(load_sweep(folder / "toys.toml"), folder / "store", workers=2, device="cpu")
    return Whole(folder / "toys.toml", folder / "store", make_table(folder / "store"))
