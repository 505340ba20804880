"""The published architectures: at reference width the networks are torchvision's, parameter by parameter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision
from imp_oracle import run_oracle
from torch import nn
from torch.nn import functional

from imp_runs.errors import ImpRunsError
from imp_runs.families import MODELS, build, prunable_layers
from imp_runs.imp import run_trajectory
from imp_runs.network import Network
from imp_runs.store import Store

#: All parameters as published: of torchvision's models for ImageNet, and of the usual variants for CIFAR-10.
PUBLISHED = {
    ("imagenet_resnet", 18, (3, 224, 224), 1000): 11_689_512,
    ("imagenet_resnet", 34, (3, 224, 224), 1000): 21_797_672,
    ("imagenet_resnet", 50, (3, 224, 224), 1000): 25_557_032,
    ("imagenet_resnet", 101, (3, 224, 224), 1000): 44_549_160,
    ("imagenet_resnet", 152, (3, 224, 224), 1000): 60_192_808,
    ("cifar_vgg", 16, (3, 32, 32), 10): 14_728_266,
    ("cifar_densenet", 121, (3, 32, 32), 10): 6_956_298,
}
WIDTH = {"cifar_vgg": 64, "cifar_densenet": 32, "tinyimagenet_resnet": 64, "imagenet_resnet": 64}


def resnet(depth: int, classes: int) -> nn.Module:
    return getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)


def resnet_with_small_stem(depth: int, classes: int) -> nn.Module:
    model = resnet(depth, classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def densenet_with_small_stem(depth: int, classes: int) -> nn.Module:
    """The stem of large images (a 7x7 convolution, batch norm, max-pooling) becomes one 3x3 convolution."""
    model = getattr(torchvision.models, f"densenet{depth}")(num_classes=classes)
    model.features.conv0 = nn.Conv2d(3, model.features.conv0.out_channels, 3, 1, 1, bias=False)
    model.features.norm0 = model.features.relu0 = model.features.pool0 = nn.Identity()
    return model


def vgg_with_small_head(depth: int, classes: int) -> nn.Module:
    """Three linear layers become one; the last max-pooling is left out, as the mean follows."""
    model = getattr(torchvision.models, f"vgg{depth}_bn")()
    return nn.Sequential(*list(model.features)[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


@pytest.mark.parametrize(("network", "parameters"), PUBLISHED.items(), ids=str)
def test_parameters_are_as_many_as_published(network, parameters):
    family, depth, shape, classes = network
    with torch.device("meta"):
        model = MODELS[family](depth, WIDTH[family], shape, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("family", "depth", "width", "side", "theirs"),
    [
        ("imagenet_resnet", 18, 64, 65, resnet),
        ("imagenet_resnet", 50, 64, 64, resnet),
        ("tinyimagenet_resnet", 18, 64, 33, resnet_with_small_stem),
        ("tinyimagenet_resnet", 50, 64, 16, resnet_with_small_stem),
        ("cifar_densenet", 121, 32, 32, densenet_with_small_stem),
        ("cifar_densenet", 161, 48, 16, densenet_with_small_stem),
        ("cifar_vgg", 11, 64, 32, vgg_with_small_head),
        ("cifar_vgg", 16, 64, 32, vgg_with_small_head),
    ],
)
def test_logits_are_those_of_torchvision(family, depth, width, side, theirs):
    """With the same parameters, in double precision, in training mode and then with the running statistics."""
    ours = build(family, depth, width, (3, side, side), 7, torch.Generator().manual_seed(0)).double()
    other = theirs(depth, 7).double()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in other.parameters()]
    with torch.no_grad():
        for mine, yours in zip(ours.parameters(), other.parameters(), strict=True):
            yours.copy_(mine)
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        for training in (True, False):
            expected = other.train(training)(images)
            torch.testing.assert_close(ours.train(training)(images), expected, rtol=1e-9, atol=1e-9)
            assert float(expected.std()) > 1e-3


@pytest.mark.parametrize("family", WIDTH)
def test_the_new_families_prune_every_convolution_and_linear_weight_and_train(family):
    depth = {"cifar_vgg": 11, "cifar_densenet": 121}.get(family, 18)
    network = Network.fresh(family, depth, 2, (3, 32, 32), 10, 0, torch.device("cpu"))
    weights = {f"{name}.weight" for name in prunable_layers(network.model)}
    for name, parameter in network.model.named_parameters():
        assert (name in weights) == (parameter.ndim > 1)
    network.model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert all(bool(layer.weight.grad.any()) for layer in prunable_layers(network.model).values())


@pytest.mark.parametrize(("family", "depth", "side"), [("cifar_vgg", 16, 15), ("cifar_densenet", 121, 7)])
def test_images_too_small_for_a_family_are_refused(family, depth, side):
    with pytest.raises(ImpRunsError, match=rf"{family} needs images of at least {side + 1} x .*grid\.pool"):
        build(family, depth, 4, (3, side, 40), 10, torch.Generator())


@pytest.mark.parametrize("family", WIDTH)
def test_their_trajectories_are_those_of_the_plain_loop(toy, digits, tmp_path, family):
    padded = {name: functional.pad(getattr(digits, name), (4,) * 4) for name in ("train_images", "test_images")}
    dataset = dataclasses.replace(digits, **padded)
    trajectory = toy(family, width=4, dataset_size=100, epochs=4, levels=1, rewind=0.25)
    store = Store(tmp_path, trajectory.protocol)
    run_trajectory(trajectory, dataset, store)
    expected = run_oracle(trajectory, dataset)
    records = store.records(trajectory.key)
    assert [r["n_wrong"] for r in records] == [level.n_wrong for level in expected]
    assert [r["kept_by_layer"] for r in records] == [level.kept_by_layer for level in expected]
    assert len({r["n_wrong"] for r in records}) > 1
    assert not records[0]["kernels"].endswith("sparse")
