"""The parameter counts that `bayeslaw` writes in closed form are those of the networks that `imp_runs` builds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bayeslaw.counts import FORMS
from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from imp_runs.architectures import DENSENET_LAYERS, RESNET_BLOCKS, VGG_CONVOLUTIONS
from imp_runs.config import DEPTHS as CONFIGURED
from imp_runs.config import FAMILIES
from imp_runs.families import MODELS, SMALLEST_SIDE, layer_uses, prunable_layers

INPUT_SHAPES = [(1, 8, 8), (1, 14, 14), (1, 28, 28), (3, 32, 32)]
CLASSES = [2, 10]
DEPTHS = {"cifar_resnet": [8, 14, 20, 26, 50], "mlp": [2, 3, 4, 5], **CONFIGURED}
WIDTHS = {"cifar_resnet": [1, 2, 3, 16], "mlp": [1, 4, 8, 100, 256], **{name: [1, 3, 16] for name in CONFIGURED}}


def build_counts(family: str, depth: int, width: int, input_shape: tuple[int, int, int], classes: int):
    """Count the parameters of a network that is built, without memory for its weights."""
    with torch.device("meta"):
        model = MODELS[family](depth, width, input_shape, classes)
    prunable = sum(layer.weight.numel() for layer in prunable_layers(model).values())
    return prunable, sum(p.numel() for p in model.parameters()) - prunable


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("input_shape", INPUT_SHAPES, ids=str)
def test_counts_are_exact(family: str, input_shape: tuple[int, int, int]) -> None:
    if input_shape[1] < SMALLEST_SIDE.get(family, 1):
        input_shape = (1, 33, 17)
    grid = list(itertools.product(DEPTHS[family], WIDTHS[family]))
    depth, width = np.array(grid).T
    for classes in CLASSES:
        counted = Family(family, input_shape, classes)
        prunable, unprunable = counted.counts(depth, width)
        built = [build_counts(family, d, w, input_shape, classes) for d, w in grid]
        assert list(zip(prunable, unprunable, strict=True)) == built
        assert list(counted.parameters(depth, width)) == [sum(both) for both in built]


def test_both_packages_know_the_same_families_depths_and_smallest_images() -> None:
    assert set(FORMS) == set(MODELS) == set(FAMILIES)
    assert {name: form.smallest_side for name, form in FORMS.items() if form.smallest_side > 1} == SMALLEST_SIDE
    tables = {"cifar_vgg": VGG_CONVOLUTIONS, "cifar_densenet": DENSENET_LAYERS}
    tables |= {"tinyimagenet_resnet": RESNET_BLOCKS, "imagenet_resnet": RESNET_BLOCKS}
    assert {name: tuple(table) for name, table in tables.items()} == CONFIGURED
    candidates = np.arange(1, 210)
    for name, depths in CONFIGURED.items():
        assert tuple(candidates[FORMS[name].has_depth(candidates)]) == depths


@pytest.mark.parametrize(
    ("family", "depth", "width"),
    [
        ("cifar_resnet", 98, 64),
        ("mlp", 12, 2000),
        ("cifar_vgg", 19, 256),
        ("cifar_densenet", 201, 64),
        ("tinyimagenet_resnet", 34, 256),
        ("imagenet_resnet", 152, 256),
    ],
)
def test_counts_are_exact_for_large_networks(family: str, depth: int, width: int) -> None:
    prunable, unprunable = Family(family, (3, 32, 32), 100).counts(depth, width)
    assert (prunable, unprunable) == build_counts(family, depth, width, (3, 32, 32), 100)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 14, 14), (3, 32, 30), (3, 65, 49)], ids=str)
def test_multiply_adds_are_exact(family: str, input_shape: tuple[int, int, int]) -> None:
    """Against one forward pass of the real network; 14 halves to 7, and to 4 by a stride, to 3 by pooling."""
    if min(input_shape[1:]) < SMALLEST_SIDE.get(family, 1):
        input_shape = (1, 31, 17)
    grid = list(itertools.product(DEPTHS[family][:3], WIDTHS[family][:3]))
    depth, width = np.array(grid).T
    built = []
    for d, w in grid:
        with torch.device("meta"):
            uses = layer_uses(MODELS[family](d, w, input_shape, 10), input_shape)
        built.append(sum(use.weights * use.positions for use in uses))
    assert Family(family, input_shape, 10).macs(depth, width).tolist() == built


@pytest.mark.parametrize(("family", "depth"), [("cifar_vgg", 16), ("cifar_densenet", 121)])
def test_images_too_small_for_a_family_are_refused(family: str, depth: int) -> None:
    side = SMALLEST_SIDE[family]
    Family(family, (1, side, side), 10).counts(depth, 8)
    with pytest.raises(BayeslawError, match=f"{family} has no network for input_shape .* at least {side} pixels"):
        Family(family, (1, side, side - 1), 10).counts(depth, 8)


def test_every_family_that_can_be_built_has_exact_counts() -> None:
    assert all(Family(name, (3, 32, 32), 10).is_exact for name in MODELS)


def test_counts_broadcast_over_starts() -> None:
    prunable, unprunable = Family("cifar_resnet", (1, 8, 8), 10).counts(np.array([[8], [14]]), [1, 2, 4])
    assert prunable.shape == unprunable.shape == (2, 3)
    assert (prunable[0, 0], unprunable[0, 0]) == (347, 52)


@pytest.mark.parametrize(
    "family",
    [Family("vgg", (3, 32, 32), 10), Family("cifar_resnet", None, 10), Family("mlp", (1, 8, 8), None)],
    ids=["unknown family", "no input shape", "no classes"],
)
def test_unknown_counts_say_what_is_known_and_what_to_do(family: Family) -> None:
    with pytest.raises(BayeslawError, match=rf"'{family.name}'.*known for cifar_densenet, .*, mlp.*pass parameters="):
        family.counts(8, 4)
    assert not family.is_exact


def test_without_exact_counts_parameters_grow_like_depth_and_squared_width() -> None:
    assert list(Family("vgg").parameters([10, 20], 4)) == [160, 320]
