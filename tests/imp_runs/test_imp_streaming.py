"""Datasets in folders: TinyImageNet in memory, ImageNet streamed, the same whatever reads it and however often."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from imp_runs.datasets import load_dataset
from imp_runs.errors import ImpRunsError
from imp_runs.folders import list_folders
from imp_runs.imp import run_trajectory
from imp_runs.store import Store
from imp_runs.streaming import MEAN, PART, STD, Streamed
from imp_runs.train import subset

#: PyTorch warns where readers are more than cores, which is what is wanted here.
FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def streamed(root, readers: int = 0, pool: int = 7) -> Streamed:
    classes, train, test = list_folders("imagenet", root / "imagenet")
    return Streamed("imagenet", classes, train, test, pool=pool, readers=readers)


def described(toy, **changes):
    settings = {"dataset": "imagenet", "pool": 7, "dataset_size": 21, "batch_size": 8, "augmentation": "resized_crop"}
    return toy("imagenet_resnet", **(settings | changes))


@pytest.fixture
def copied(pictures, tmp_path):
    """Copy the folders, to be spoilt."""
    return shutil.copytree(pictures, tmp_path / "pictures")


# --- what is there ----------------------------------------------------------------------------------------------------


def test_imagenet_is_listed_by_class(pictures):
    dataset = load_dataset("imagenet", data_dir=pictures)
    assert (dataset.name, dataset.classes, dataset.input_shape) == ("imagenet", 4, (3, 224, 224))
    assert dataset.train_labels.tolist() == [label for label in range(4) for _ in range(12)]
    assert dataset.test_labels.tolist() == [label for label in range(4) for _ in range(6)]
    assert load_dataset("imagenet", data_dir=pictures, pool=7).input_shape == (3, 32, 32)


def test_classes_have_the_numbers_of_the_training_set_where_the_test_set_lacks_some(copied):
    shutil.rmtree(copied / "imagenet" / "val" / "n0001")
    assert load_dataset("imagenet", data_dir=copied).test_labels.tolist() == [0] * 6 + [2] * 6 + [3] * 6


@pytest.mark.parametrize("rearranged", [False, True])
def test_tinyimagenet_is_held_in_memory(copied, rearranged):
    root = copied / "tiny-imagenet-200"
    names, labels = [f"val_{number}.JPEG" for number in range(4)], [2, 0, 1, 1]
    if rearranged:  # as many keep it: one folder per class
        for name, label in zip(names, labels, strict=True):
            folder = root / "val" / f"n{label:04d}"
            folder.mkdir(exist_ok=True)
            (root / "val" / "images" / name).rename(folder / name)
        shutil.rmtree(root / "val" / "images")
        (root / "val" / "val_annotations.txt").unlink()
        names, labels = [names[i] for i in (1, 2, 3, 0)], [0, 1, 1, 2]
    dataset = load_dataset("tinyimagenet", data_dir=copied)
    assert (dataset.classes, dataset.input_shape) == (3, (3, 64, 64))
    assert dataset.train_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert dataset.test_labels.tolist() == labels
    train = np.stack([np.array(Image.open(p)) for p in sorted((root / "train").glob("*/images/*.JPEG"))]) / 255
    folder = root / "val"
    test = np.stack([np.array(Image.open(next(folder.rglob(name)))) for name in names]) / 255
    expected = (test - train.mean((0, 1, 2))) / train.std((0, 1, 2), ddof=1)
    np.testing.assert_allclose(dataset.test_images.numpy(), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-5)


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_test_images_are_resized_cropped_and_standardised_as_usual(pictures):
    dataset = streamed(pictures, pool=1)
    plain = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    paths = sorted((pictures / "imagenet" / "val").glob("*/*.JPEG"))
    expected = torch.stack([plain(Image.open(path)) for path in paths])
    batches = list(dataset.test_batches(10))
    assert [len(labels) for _, labels in batches] == [10, 10, 4]
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.test_labels)


def test_training_images_are_torchvision_s_random_crops_by_their_own_seeds(pictures, toy):
    trajectory, dataset = described(toy), streamed(pictures, pool=1)
    examples = subset(dataset, trajectory)
    images, labels = next(iter(examples.batches(trajectory, 2, 1)))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(trajectory.seed("subset")))[:21]
    seen = torch.randperm(21, generator=torch.Generator().manual_seed(trajectory.seed("order", 2, 1)))[:8]
    paths = sorted((pictures / "imagenet" / "train").glob("*/*.JPEG"), key=lambda p: (p.parent.name, p.name))
    augment = transforms.v2.Compose([
        transforms.v2.RandomResizedCrop(224), transforms.v2.RandomHorizontalFlip(), transforms.v2.PILToTensor(),
    ])  # fmt: skip
    for number, image, label in zip(seen.tolist(), images, labels.tolist(), strict=True):
        path = paths[order[number]]
        torch.manual_seed(trajectory.seed("augmentation", 2, 1, number))
        expected = augment(Image.open(path)).double() / 255
        expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(image.double(), expected, rtol=0, atol=1e-5)
        assert path.parent.name == f"n{label:04d}"


def test_without_augmentation_a_training_image_is_seen_like_a_test_image(pictures, toy):
    trajectory, dataset = described(toy, augmentation="none", dataset_size=48), streamed(pictures)
    images, labels = next(iter(subset(dataset, trajectory).batches(trajectory, 0, 0)))
    again, _ = next(iter(subset(dataset, trajectory).batches(trajectory, 5, 5)))
    assert images.shape == (8, 3, 32, 32)
    assert len(labels) == 8
    assert not torch.equal(images, again)  # another order
    every = torch.cat([batch for batch, _ in subset(dataset, trajectory).batches(trajectory, 1, 0)])
    same = (every.flatten(1)[:, None] == images.flatten(1)[None]).all(2)
    assert same.any(0).all()


@FEW_CORES
def test_what_is_seen_depends_neither_on_readers_nor_on_where_an_epoch_is_entered(pictures, toy):
    trajectory = described(toy)
    alone, readers = streamed(pictures), streamed(pictures, readers=2)
    state = torch.random.get_rng_state()
    for epoch in (0, 1):
        whole = list(subset(alone, trajectory).batches(trajectory, 0, epoch))
        assert [len(labels) for _, labels in whole] == [8, 8, 5]
        for dataset, first in ((readers, 0), (readers, 2), (alone, 1)):
            part = list(subset(dataset, trajectory).batches(trajectory, 0, epoch, first))
            assert len(part) == 3 - first
            for (images, labels), (others, other_labels) in zip(part, whole[first:], strict=True):
                assert torch.equal(images, others)
                assert torch.equal(labels, other_labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    # An epoch that is left early does not spoil the next one.
    next(iter(subset(readers, trajectory).batches(trajectory, 0, 0)))
    images, _ = next(iter(subset(readers, trajectory).batches(trajectory, 0, 1)))
    assert torch.equal(images, whole[0][0])


def test_batches_larger_than_what_a_reader_hands_over_come_whole(pictures, toy):
    trajectory, dataset = described(toy, dataset_size=48, batch_size=40), streamed(pictures)
    assert [len(labels) for _, labels in subset(dataset, trajectory).batches(trajectory, 0, 0)] == [40, 8]
    files = dataset._train
    many = Streamed("imagenet", 4, files, type(files)(files.paths * 3, files.labels.repeat(3)), pool=7, readers=0)
    assert len(many.test_labels) > 2 * PART
    (images, labels), (last, last_labels) = many.test_batches(130)
    assert (len(images), len(last)) == (130, 14)
    assert torch.equal(torch.cat([labels, last_labels]), many.test_labels)
    assert torch.equal(images[:48], images[48:96])


# --- runs -------------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for whatever ends a process between two levels."""


@FEW_CORES
def test_a_run_interrupted_at_every_level_and_read_by_others_gives_the_same_records(pictures, toy, tmp_path):
    trajectory = described(toy, levels=1)

    def interrupt(_levels):
        raise Interrupted

    whole, store = Store(tmp_path / "whole", trajectory.protocol), Store(tmp_path / "parts", trajectory.protocol)
    run_trajectory(trajectory, streamed(pictures), whole)
    for readers in (2, 0):
        with pytest.raises(Interrupted):
            run_trajectory(trajectory, streamed(pictures, readers), store, progress=interrupt)
    assert store.is_done(trajectory.key)
    records, others = (
        [{k: v for k, v in record.items() if k != "seconds"} for record in kept.records(trajectory.key)]
        for kept in (whole, store)
    )
    assert records == others
    assert [r["level"] for r in records] == [0, 1]
    assert records[0]["n_test"] == 24
    assert records[0]["input_shape"] == [3, 32, 32]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet", "tinyimagenet"])
def test_missing_folders_are_named_with_what_to_do(name, tmp_path):
    with pytest.raises(ImpRunsError) as caught:
        load_dataset(name, data_dir=tmp_path)
    for part in (f"dataset {name!r}", str(tmp_path), "cannot be downloaded", "train/CLASS/*.JPEG", "--data-dir"):
        assert part in str(caught.value)


def spoil(root, how: str) -> None:
    val, annotations = root / "imagenet" / "val", root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    if how == "a class more":
        (val / "n0003").rename(val / "n0009")
    elif how == "no test images":
        shutil.rmtree(val)
        val.mkdir()
    elif how == "flat":
        for path in list(val.glob("*/*")):
            path.rename(val / f"{path.parent.name}_{path.name}")
            path.parent.rmdir() if not list(path.parent.iterdir()) else None
    elif how == "annotation":
        annotations.write_text(annotations.read_text() + "val_9.JPEG\tn0007\t0\n")


@pytest.mark.parametrize(
    ("how", "name", "message"),
    [
        ("a class more", "imagenet", "val has classes that train lacks: n0009"),
        ("no test images", "imagenet", "could not be read"),
        ("flat", "imagenet", "could not be read"),
        ("annotation", "tinyimagenet", "val_annotations.txt: no class of train in the line .'val_9.JPEG', 'n0007'"),
    ],
)
def test_folders_of_another_layout_are_refused(copied, how, name, message):
    spoil(copied, how)
    with pytest.raises(ImpRunsError, match=message):
        load_dataset(name, data_dir=copied)


@pytest.mark.parametrize("readers", [0, 1])
def test_a_damaged_image_is_named(copied, toy, readers):
    path = copied / "imagenet" / "train" / "n0002" / "3.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    trajectory = described(toy, dataset_size=48)
    with pytest.raises(ImpRunsError, match=r"^\S*n0002/3.JPEG: cannot be read as an image") as caught:
        list(subset(streamed(copied, readers), trajectory).batches(trajectory, 0, 0))
    assert "Traceback" not in str(caught.value)


def test_a_tinyimagenet_image_of_another_size_is_named(copied):
    path = copied / "tiny-imagenet-200" / "train" / "n0001" / "images" / "2.JPEG"
    Image.new("RGB", (64, 60)).save(path)
    with pytest.raises(ImpRunsError, match=r"n0001/images/2.JPEG: is 64 x 60 pixels and must be 64 x 64"):
        load_dataset("tinyimagenet", data_dir=copied)


def test_a_pool_that_does_not_divide_the_side_is_refused(pictures):
    with pytest.raises(ImpRunsError, match="pool = 3 must divide the image side 224 of imagenet"):
        load_dataset("imagenet", data_dir=pictures, pool=3)


def test_a_number_of_readers_that_is_none_is_refused(pictures, monkeypatch):
    monkeypatch.setenv("IMP_RUNS_READERS", "many")
    with pytest.raises(ImpRunsError, match="IMP_RUNS_READERS = 'many' must be a number of processes"):
        load_dataset("imagenet", data_dir=pictures)
