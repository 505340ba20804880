"""What the families' networks hold and cost, in closed form: weights by resolution, and all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    """Hold the counts of networks.

    Attributes:
        weights: Pairs of a number of prunable weights and how often each of them is multiplied per image.
        unprunable: Number of biases and batch-norm parameters.
    """

    weights: list[tuple[NDArray[np.float64], float]]
    unprunable: NDArray[np.float64]

    @property
    def prunable(self) -> NDArray[np.float64]:
        """Number of prunable weights."""
        return sum((count for count, _ in self.weights), start=np.zeros(()))

    @property
    def macs(self) -> NDArray[np.float64]:
        """Multiply-adds of one forward pass."""
        return sum((count * positions for count, positions in self.weights), start=np.zeros(()))


@dataclass(frozen=True)
class Form:
    """Hold what is known of a family in closed form.

    Attributes:
        count: Counts from depth, width, shape of the images (channels, height, width) and number of classes.
        depths: Words that say which depths there are.
        has_depth: Tells which of some depths there are.
        width_reference: Width at which the paper's width multiplier is one.
        smallest_side: Smallest height and width of the images.
    """

    count: Callable[[NDArray, NDArray, tuple[int, ...], int], Counts]
    depths: str
    has_depth: Callable[[NDArray], NDArray[np.bool_]]
    width_reference: float
    smallest_side: int = 1


def _halved(input_shape: tuple[int, ...], times: int, *, up: bool) -> float:
    """Count the positions of a feature map whose sides were halved, rounding up (strides) or down (pooling)."""
    sides = np.array(input_shape[1:])
    return float(np.prod(-(-sides // 2**times) if up else sides // 2**times))


def _cifar_resnet(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
    blocks = (depth - 2) / 6
    stages = [9 * input_shape[0] * width + 18 * blocks * width**2]
    for inputs, outputs in ((width, 2 * width), (2 * width, 4 * width)):
        stages.append(9 * inputs * outputs + 9 * outputs**2 + inputs * outputs + 18 * (blocks - 1) * outputs**2)
    weights = [(count, _halved(input_shape, stage, up=True)) for stage, count in enumerate(stages)]
    normalised = width + 2 * blocks * (width + 2 * width + 4 * width) + 2 * width + 4 * width
    return Counts([*weights, (4 * width * classes, 1.0)], 2 * normalised + classes)


def _mlp(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
    hidden = depth - 1
    prunable = float(np.prod(input_shape)) * width + (hidden - 1) * width**2 + width * classes
    return Counts([(prunable, 1.0)], hidden * width + classes)


#: Convolutions per stage, by depth.
_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _cifar_vgg(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
    weights, channels = [], np.zeros_like(width)
    inputs: NDArray | int = input_shape[0]
    for stage, convolutions in enumerate(_by_stage(_VGG, depth)):
        outputs = width * min(2**stage, 8)
        count = 9 * inputs * outputs + 9 * (convolutions - 1) * outputs**2
        weights.append((count, _halved(input_shape, stage, up=False)))
        channels = channels + convolutions * outputs
        inputs = outputs
    return Counts([*weights, (8 * width * classes, 1.0)], 3 * channels + classes)


#: Dense layers per block, by depth.
_DENSENET = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


def _cifar_densenet(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
    channels, unprunable = 2 * width, np.zeros_like(width)
    weights = [(9 * input_shape[0] * channels, _halved(input_shape, 0, up=False))]
    for block, layers in enumerate(_by_stage(_DENSENET, depth)):
        if block:
            weights.append((channels**2 / 2, _halved(input_shape, block - 1, up=False)))
            unprunable = unprunable + 2 * channels
            channels = channels / 2
        # Layer i reads `channels` + i `width`, squeezes them to 4 `width` and adds `width`.
        read = layers * channels + layers * (layers - 1) / 2 * width
        weights.append((4 * width * read + 36 * layers * width**2, _halved(input_shape, block, up=False)))
        unprunable = unprunable + 2 * read + 8 * layers * width
        channels = channels + layers * width
    return Counts([*weights, (channels * classes, 1.0)], unprunable + 2 * channels + classes)


#: Blocks per stage, by depth; from 50 on they are bottlenecks.
_RESNET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _resnet(halvings: int, stem: int) -> Callable[[NDArray, NDArray, tuple[int, ...], int], Counts]:
    """Give the counts of ResNets of four stages, with a stem of `stem` x `stem` that halves the sides so often."""

    def count(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
        bottleneck = depth >= 50
        expansion = np.where(bottleneck, 4, 1)
        at = [_halved(input_shape, halvings + stage, up=True) for stage in range(4)]
        weights = [(stem**2 * input_shape[0] * width, _halved(input_shape, min(halvings, 1), up=True))]
        normalised, inputs = width, width
        for stage, blocks in enumerate(_by_stage(_RESNET, depth)):
            planes = width * 2**stage
            outputs = expansion * planes
            shortcut = np.where((inputs != outputs) | (stage > 0), inputs * outputs, 0)
            # A bottleneck squeezes its input before it halves the sides; a basic block halves them at once.
            before = np.where(bottleneck, inputs * planes, 0)
            first = np.where(bottleneck, 13 * planes**2, 9 * planes * (inputs + planes))
            others = (blocks - 1) * np.where(bottleneck, 17, 18) * planes**2
            weights += [(before, at[max(stage - 1, 0)]), (first + shortcut + others, at[stage])]
            normalised = normalised + np.where(shortcut > 0, outputs, 0)
            normalised = normalised + blocks * np.where(bottleneck, 6, 2) * planes
            inputs = outputs
        return Counts([*weights, (inputs * classes, 1.0)], 2 * normalised + classes)

    return count


def _by_stage(table: Mapping[int, tuple[int, ...]], depth: NDArray) -> NDArray[np.float64]:
    """Look up the number of layers of every stage, `[stages, ...]`."""
    numbers = np.array([table[int(value)] for value in depth.flat], float)
    return np.moveaxis(numbers.reshape(*depth.shape, -1), -1, 0)


def _one_of(table: Mapping[int, tuple[int, ...]]) -> tuple[str, Callable[[NDArray], NDArray[np.bool_]]]:
    depths = sorted(table)
    return f"one of {', '.join(map(str, depths))}", lambda depth: np.isin(depth, depths)


#: The families by name.
FORMS: dict[str, Form] = {
    "cifar_resnet": Form(
        _cifar_resnet, "6D+2 with D >= 1: 8, 14, 20, ...", lambda depth: (depth >= 8) & ((depth - 2) % 6 == 0), 16
    ),
    "mlp": Form(_mlp, "hidden layers + 1, so a whole number >= 2", lambda depth: (depth >= 2) & (depth % 1 == 0), 64),
    "cifar_vgg": Form(_cifar_vgg, *_one_of(_VGG), 64, smallest_side=16),
    "cifar_densenet": Form(_cifar_densenet, *_one_of(_DENSENET), 32, smallest_side=8),
    "tinyimagenet_resnet": Form(_resnet(0, 3), *_one_of(_RESNET), 64),
    "imagenet_resnet": Form(_resnet(2, 7), *_one_of(_RESNET), 64),
}
