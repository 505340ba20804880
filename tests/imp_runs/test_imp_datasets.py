"""Datasets: shapes, splits, standardisation, nested subsets, and what is said when files are missing or broken."""

from __future__ import annotations

import dataclasses
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from imp_runs.config import DATASETS, Trajectory
from imp_runs.datasets import _tensors, load_dataset
from imp_runs.errors import ImpRunsError
from imp_runs.train import subset

TRAIN_LABELS = [6, 5, 5, 7, 9, 9, 8, 4, 6, 8, 6, 0]
TEST_LABELS = [6, 5, 8, 3, 1, 0, 9, 1, 0, 3, 1, 7]


def write_idx(path, array: np.ndarray) -> None:
    """Write unsigned bytes in the format of the MNIST files."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    """Write a tiny Fashion-MNIST, 20 training and 6 test images, and give its folder and arrays."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(20) % 10,
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (6, 28, 28)),
        "t10k-labels-idx1-ubyte": np.array([9, 0, 3, 3, 1, 7]),
    }
    for name, array in arrays.items():
        write_idx(raw / name, array)
    return tmp_path, arrays


def test_digits_have_their_shapes_and_types(digits):
    assert len(digits.train_labels) == DATASETS["digits"]
    assert digits.name == "digits"
    assert digits.classes == 10
    assert digits.input_shape == (1, 8, 8)
    assert digits.train_images.shape == (1000, 1, 8, 8)
    assert digits.test_images.shape == (797, 1, 8, 8)
    assert digits.train_labels.shape == (1000,)
    assert digits.test_labels.shape == (797,)
    assert digits.train_images.dtype == digits.test_images.dtype == torch.float32
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64


def test_digits_are_standardised_by_the_training_pixels(digits):
    assert float(digits.train_images.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(digits.train_images.double().std()) == pytest.approx(1, abs=1e-6)
    assert abs(float(digits.test_images.mean())) > 1e-4  # not by their own


def test_training_and_test_digits_are_all_of_scikit_learn_each_once(digits):
    images, labels = load_digits(return_X_y=True)
    # The pixels are 0 ... 16, so the standardised ones are 17 values in the same order.
    ours = torch.cat([digits.train_images, digits.test_images]).flatten(1).double()
    low, high = ours.min(), ours.max()
    pixels = ((ours - low) / (high - low) * 16).round().to(torch.int64)
    everything = torch.cat([pixels, torch.cat([digits.train_labels, digits.test_labels])[:, None]], 1)
    assert sorted(everything.tolist()) == sorted(np.column_stack([images, labels]).astype(int).tolist())


def test_the_split_of_the_digits_is_fixed(digits):
    torch.manual_seed(123)
    again = load_dataset("digits")
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(again, field), getattr(digits, field)), field
    # Literal labels: another split would not fit the recorded sweeps.
    assert digits.train_labels[:12].tolist() == TRAIN_LABELS
    assert digits.test_labels[-12:].tolist() == TEST_LABELS


def indices(dataset, trajectory: Trajectory) -> list[int]:
    """Find which training examples a subset holds, by subsetting their numbers in place of their labels."""
    numbered = dataclasses.replace(dataset, train_labels=torch.arange(len(dataset.train_labels)))
    return subset(numbered, trajectory).labels.tolist()


def test_subsets_are_nested_across_sizes_and_shared_by_the_networks_of_a_replicate(toy, digits):
    largest = indices(digits, toy("mlp", dataset_size=1000))
    assert sorted(largest) == list(range(1000))
    for size in (1, 40, 250, 999):
        assert indices(digits, toy("mlp", dataset_size=size)) == largest[:size]
        assert indices(digits, toy("cifar_resnet", dataset_size=size, epochs=7)) == largest[:size]
    assert indices(digits, toy("mlp", dataset_size=40, replicate=1)) != largest[:40]


def test_images_and_labels_of_a_subset_belong_together(toy, digits):
    trajectory = toy(dataset_size=40)
    examples, chosen = subset(digits, trajectory), indices(digits, trajectory)
    assert torch.equal(examples.images, digits.train_images[chosen])
    assert torch.equal(examples.labels, digits.train_labels[chosen])


def test_fashion_mnist_is_read_from_its_files(fashion):
    folder, arrays = fashion
    dataset = load_dataset("fashion_mnist", data_dir=folder)
    assert (dataset.name, dataset.classes, dataset.input_shape) == ("fashion_mnist", 10, (1, 28, 28))
    train = arrays["train-images-idx3-ubyte"] / 255
    test = (arrays["t10k-images-idx3-ubyte"] / 255 - train.mean()) / train.std(ddof=1)
    np.testing.assert_allclose(dataset.test_images.numpy()[:, 0], test, rtol=0, atol=2e-6)
    assert dataset.train_labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert dataset.test_labels.tolist() == [9, 0, 3, 3, 1, 7]


def test_pooling_takes_the_mean_of_squares_before_it_standardises(fashion):
    folder, arrays = fashion
    dataset = load_dataset("fashion_mnist", data_dir=folder, pool=4)
    assert dataset.input_shape == (1, 7, 7)
    pooled = {name: a.reshape(-1, 7, 4, 7, 4).mean((2, 4)) for name, a in arrays.items() if "images" in name}
    train, test = pooled["train-images-idx3-ubyte"], pooled["t10k-images-idx3-ubyte"]
    expected = (test - train.mean()) / train.std(ddof=1)
    np.testing.assert_allclose(dataset.test_images.numpy()[:, 0], expected, rtol=0, atol=5e-6)
    assert float(dataset.train_images.double().std()) == pytest.approx(1, abs=1e-6)


def test_the_folder_of_datasets_can_come_from_the_environment(fashion, monkeypatch):
    monkeypatch.setenv("IMP_RUNS_DATA", str(fashion[0]))
    assert len(load_dataset("fashion_mnist").train_labels) == 20


def test_layouts_of_the_torchvision_datasets_become_one(fashion):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
    cifar = SimpleNamespace(data=pixels, targets=[3, 1, 0, 2])  # CIFAR: examples last but channels, a list of labels
    svhn = SimpleNamespace(data=pixels.transpose(0, 3, 1, 2), labels=np.array([3, 1, 0, 2]))  # SVHN: channels first
    mnist = SimpleNamespace(data=torch.from_numpy(pixels[..., 0]), targets=torch.tensor([3, 1, 0, 2]))
    expected = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(255))
    for source, images in ((cifar, expected), (svhn, expected), (mnist, expected[:, :1])):
        read, labels = _tensors(source)
        assert torch.equal(read, images)
        assert read.is_contiguous()
        assert labels.tolist() == [3, 1, 0, 2]
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "cifar100", "svhn"])
def test_missing_files_are_named_with_both_ways_out(name, tmp_path):
    with pytest.raises(ImpRunsError) as caught:
        load_dataset(name, data_dir=tmp_path)
    message = str(caught.value)
    for part in (f"dataset {name!r}", str(tmp_path), "--download", "network", "--data-dir"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 7, 16, 1000])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_files_cut_short_are_refused(fashion, name, size):
    file = fashion[0] / "FashionMNIST" / "raw" / name
    file.write_bytes(file.read_bytes()[: min(size, file.stat().st_size - 1)])
    with pytest.raises(ImpRunsError, match="dataset 'fashion_mnist' could not be read from"):
        load_dataset("fashion_mnist", data_dir=fashion[0])


@pytest.mark.parametrize("pool", [3, 5, 16])
def test_a_pool_that_does_not_divide_the_side_is_refused(pool):
    with pytest.raises(ImpRunsError, match=f"grid.pool = {pool} must divide the image side 8 of digits"):
        load_dataset("digits", pool=pool)


def test_an_unknown_dataset_is_refused():
    with pytest.raises(ImpRunsError, match="dataset 'coco' is unknown; allowed: digits, fashion_mnist"):
        load_dataset("coco")
