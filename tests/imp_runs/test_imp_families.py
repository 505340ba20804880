"""The network families: exact counts, what is prunable, initial values, and the flat view of a network."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imp_runs.families import build, layer_uses, prunable_layers
from imp_runs.network import Network

CPU = torch.device("cpu")
NETWORKS = [
    ("cifar_resnet", 8, 1, (1, 8, 8), 10),
    ("cifar_resnet", 8, 3, (1, 14, 14), 10),
    ("cifar_resnet", 14, 2, (3, 9, 9), 100),
    ("cifar_resnet", 20, 16, (3, 32, 32), 10),
    ("mlp", 2, 1, (1, 8, 8), 10),
    ("mlp", 5, 7, (3, 4, 4), 3),
    ("cifar_vgg", 16, 2, (3, 32, 32), 10),
    ("cifar_densenet", 121, 1, (1, 14, 14), 10),
    ("tinyimagenet_resnet", 18, 2, (3, 64, 64), 200),
    ("imagenet_resnet", 50, 1, (3, 57, 40), 100),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def resnet_counts(depth: int, width: int, channels: int, classes: int) -> tuple[int, int]:
    """Count prunable and all parameters of a CIFAR ResNet by hand."""
    blocks, prunable, batch_norm, inputs = (depth - 2) // 6, 9 * channels * width, 2 * width, width
    for stage in range(3):
        outputs = width * 2**stage
        prunable += 9 * inputs * outputs + (2 * blocks - 1) * 9 * outputs * outputs
        batch_norm += 2 * blocks * 2 * outputs
        if stage:  # the 1x1 convolution on the downsampling shortcut and its batch norm
            prunable += inputs * outputs
            batch_norm += 2 * outputs
        inputs = outputs
    prunable += inputs * classes
    return prunable, prunable + batch_norm + classes


def mlp_counts(depth: int, width: int, pixels: int, classes: int) -> tuple[int, int]:
    prunable = pixels * width + (depth - 2) * width * width + width * classes
    return prunable, prunable + (depth - 1) * width + classes


def test_the_counts_of_resnet_20_and_of_the_smallest_resnet_8():
    big = Network.fresh("cifar_resnet", 20, 16, (3, 32, 32), 10, 0, CPU)
    assert (len(big.values), big.prunable) == (272_474, 270_896)
    small = Network.fresh("cifar_resnet", 8, 1, (1, 8, 8), 10, 0, CPU)
    assert (small.prunable, len(small.values) - small.prunable) == (347, 52)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_the_counts_of_any_resnet(blocks, width, channels, classes):
    network = Network.fresh("cifar_resnet", 6 * blocks + 2, width, (channels, 8, 8), classes, 0, CPU)
    assert (network.prunable, len(network.values)) == resnet_counts(6 * blocks + 2, width, channels, classes)
    # Weight layers: the depth, and one more on each of the two downsampling shortcuts.
    assert len(network.uses) == 6 * blocks + 2 + 2


@given(st.integers(2, 6), st.integers(1, 9), st.integers(1, 3), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_the_counts_of_any_mlp(depth, width, channels, classes):
    network = Network.fresh("mlp", depth, width, (channels, 4, 4), classes, 0, CPU)
    assert (network.prunable, len(network.values)) == mlp_counts(depth, width, channels * 16, classes)
    assert len(network.uses) == depth


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_dense_macs_are_half_the_flops_that_pytorch_counts(network):
    family, depth, width, shape, classes = network
    model = build(family, depth, width, shape, classes, seeded()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    uses = layer_uses(model, shape)
    assert 2 * sum(use.weights * use.positions for use in uses) == counter.get_total_flops()


def test_macs_of_resnet_8_by_hand_on_8x8():
    uses = layer_uses(build("cifar_resnet", 8, 1, (1, 8, 8), 10, seeded()), (1, 8, 8))
    # stem, stage 1 (8x8), stage 2 (4x4, shortcut last), stage 3 (2x2, shortcut last), linear
    expected = [(9, 64), (9, 64), (9, 64), (18, 16), (36, 16), (2, 16), (72, 4), (144, 4), (8, 4), (40, 1)]
    assert [(use.weights, use.positions) for use in uses] == expected


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_logits_have_one_column_per_class(network):
    family, depth, width, shape, classes = network
    model = build(family, depth, width, shape, classes, seeded())
    assert model(torch.zeros(5, *shape)).shape == (5, classes)


def test_what_is_prunable_is_every_convolution_and_linear_weight_and_nothing_else():
    model = build("cifar_resnet", 8, 2, (1, 8, 8), 10, seeded())
    weights = {f"{name}.weight" for name in prunable_layers(model)}
    others = {name for name, _ in model.named_parameters()} - weights
    assert all(".bn" in f".{name}" or "shortcut.1" in name or name == "fc.bias" for name in others)
    assert all("conv" in name or "shortcut.0" in name or name == "fc.weight" for name in weights)
    assert not any(isinstance(m, nn.Conv2d) and m.bias is not None for m in model.modules())


def test_shortcuts_are_the_identity_but_where_the_shape_changes():
    model = build("cifar_resnet", 14, 2, (1, 8, 8), 10, seeded())
    kinds = [type(block.shortcut) for block in model.blocks]
    same, down = nn.Identity, nn.Sequential
    assert kinds == [same, same, down, same, down, same]
    for block in (model.blocks[2], model.blocks[4]):
        assert block.shortcut[0].kernel_size == (1, 1)
        assert block.shortcut[0].stride == block.conv1.stride == (2, 2)


def test_initial_values_are_kaiming_normal_uniform_scales_and_zero_shifts():
    model = build("cifar_resnet", 20, 16, (3, 32, 32), 10, seeded())
    for layer in prunable_layers(model).values():
        if layer.weight.numel() > 2000:
            fan_in = layer.weight[0].numel()
            # Standard error of a standard deviation: 1 / sqrt(2 n) of it; five of those.
            ratio = float(layer.weight.detach().std()) / math.sqrt(2 / fan_in)
            assert abs(ratio - 1) < 5 / math.sqrt(2 * layer.weight.numel())
    scales = torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= float(scales.min()) < 0.02
    assert 0.98 < float(scales.max()) < 1
    assert abs(float(scales.mean()) - 0.5) < 5 / math.sqrt(12 * len(scales))
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_initial_values_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = Network.fresh("mlp", 3, 4, (1, 8, 8), 10, 5, CPU).values
    torch.manual_seed(2)
    assert torch.equal(Network.fresh("mlp", 3, 4, (1, 8, 8), 10, 5, CPU).values, first)
    assert not torch.equal(Network.fresh("mlp", 3, 4, (1, 8, 8), 10, 6, CPU).values, first)


@pytest.mark.parametrize("family", ["cifar_resnet", "mlp"])
def test_a_network_is_its_module_seen_as_one_vector(family):
    network = Network.fresh(family, 8, 12, (1, 8, 8), 10, 3, CPU)
    weights = [layer.weight for layer in prunable_layers(network.model).values()]
    assert torch.equal(network.weights, torch.cat([w.detach().flatten() for w in weights]))
    assert len(network.values) == sum(p.numel() for p in network.model.parameters())
    network.model(torch.randn(4, 1, 8, 8, generator=seeded())).square().sum().backward()
    gradients = torch.cat([w.grad.flatten() for w in weights])
    assert bool(gradients.any())
    assert torch.equal(network.gradients[: network.prunable], gradients)
    with torch.no_grad():
        network.values.fill_(7.0)
    assert all(bool((p == 7).all()) for p in network.model.parameters())


def test_kept_weights_are_counted_layer_by_layer():
    network = Network.fresh("mlp", 3, 2, (1, 2, 2), 3, 0, CPU)  # 8 + 4 + 6 weights
    assert (network.kept, network.kept_by_layer) == (18, [8, 4, 6])
    network.mask[[0, 7, 8, 12, 13, 14]] = 0
    assert (network.kept, network.kept_by_layer) == (12, [6, 3, 3])
