"""The families' exact parameter counts in closed form, without building a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayeslaw.errors import BayeslawError

#: Width at which the paper's width multiplier is one, by family; 1 for all others.
WIDTH_REFERENCE = {"cifar_resnet": 16.0, "mlp": 64.0}

Counts = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Family:
    """Name a family with what its parameter counts depend on.

    Attributes:
        name: Label of the family in the run table.
        input_shape: Channels, height, width of the inputs, or nothing if the table does not say.
        classes: Number of classes, or nothing if the table does not say.
    """

    name: str
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None

    @property
    def width_reference(self) -> float:
        """Width of multiplier one: tables carry channels or units, the law's p' is in multiples of this."""
        return WIDTH_REFERENCE.get(self.name, 1.0)

    @property
    def is_exact(self) -> bool:
        """Say whether exact counts are known."""
        return self.name in _COUNTS and self.input_shape is not None and self.classes is not None

    def counts(self, depth: ArrayLike, width: ArrayLike) -> Counts:
        """Count the prunable and the unprunable parameters of a network.

        Args:
            depth: Number of weight layers.
            width: Base channels or hidden units.

        Returns:
            Prunable (convolution and linear weights) and unprunable (biases, batch-norm) parameters, broadcast.

        Raises:
            BayeslawError: The counts of the family are not known, or it has no network of such a depth.

        Example:
            >>> prunable, unprunable = Family("cifar_resnet", (3, 32, 32), 10).counts(20, 16)
            >>> int(prunable), int(prunable + unprunable)
            (270896, 272474)
        """
        if not self.is_exact or self.input_shape is None or self.classes is None:
            known = ", ".join(sorted(_COUNTS))
            raise BayeslawError(
                f"family {self.name!r}: parameter counts are known for {known} with input_shape and classes in the "
                "table; pass parameters=, a function (depth, width) -> (prunable, unprunable)."
            )
        shape = np.broadcast_arrays(np.asarray(depth, float), np.asarray(width, float))
        rule, possible = _DEPTHS[self.name]
        if (wrong := np.unique(shape[0][~possible(shape[0])])).size:
            raise BayeslawError(f"{self.name} has no depth {', '.join(f'{v:g}' for v in wrong)}; depth must be {rule}.")
        return _COUNTS[self.name](shape[0], shape[1], self.input_shape, self.classes)

    def macs(self, depth: ArrayLike, width: ArrayLike) -> NDArray[np.float64]:
        """Count the multiply-adds of the unpruned network with its prunable weights, per example.

        Args:
            depth: Number of weight layers.
            width: Base channels or hidden units.

        Returns:
            Multiply-adds of one forward pass, broadcast; two floating-point operations each.

        Raises:
            BayeslawError: As `counts` does.

        Example:
            >>> int(Family("cifar_resnet", (3, 32, 32), 10).macs(20, 16))
            40813184
        """
        self.counts(depth, width)
        assert self.input_shape is not None
        assert self.classes is not None
        shape = np.broadcast_arrays(np.asarray(depth, float), np.asarray(width, float))
        return _MACS[self.name](shape[0], shape[1], self.input_shape, self.classes)

    def parameters(self, depth: ArrayLike, width: ArrayLike) -> NDArray[np.float64]:
        """Count all parameters, or where the family is not known give depth x width^2, which grows like the count."""
        if self.is_exact:
            prunable, unprunable = self.counts(depth, width)
            return prunable + unprunable
        return np.asarray(depth, float) * np.asarray(width, float) ** 2


def _cifar_resnet(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
    blocks = (depth - 2) / 6
    weights = sum(_resnet_weights(depth, width, input_shape, classes))
    normalised = width + 2 * blocks * (width + 2 * width + 4 * width) + 2 * width + 4 * width
    return np.asarray(weights), 2 * normalised + classes


def _resnet_weights(
    depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Count the weights at full, half and quarter resolution, and of the linear layer."""
    blocks = (depth - 2) / 6
    stages = [9 * input_shape[0] * width + 18 * blocks * width**2]
    for inputs, outputs in ((width, 2 * width), (2 * width, 4 * width)):
        stages.append(9 * inputs * outputs + 9 * outputs**2 + inputs * outputs + 18 * (blocks - 1) * outputs**2)
    return stages[0], stages[1], stages[2], 4 * width * classes


def _cifar_resnet_macs(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> NDArray:
    *stages, linear = _resnet_weights(depth, width, input_shape, classes)
    sides = np.array(input_shape[1:])
    positions = [float(np.prod(-(-sides // 2**stage))) for stage in range(3)]
    return sum((count * at for count, at in zip(stages, positions, strict=True)), start=linear)


def _mlp(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> Counts:
    hidden = depth - 1
    prunable = float(np.prod(input_shape)) * width + (hidden - 1) * width**2 + width * classes
    return prunable, hidden * width + classes


def _mlp_macs(depth: NDArray, width: NDArray, input_shape: tuple[int, ...], classes: int) -> NDArray:
    return _mlp(depth, width, input_shape, classes)[0]


_COUNTS: dict[str, Callable[[NDArray, NDArray, tuple[int, ...], int], Counts]] = {
    "cifar_resnet": _cifar_resnet,
    "mlp": _mlp,
}
_MACS: dict[str, Callable[[NDArray, NDArray, tuple[int, ...], int], NDArray]] = {
    "cifar_resnet": _cifar_resnet_macs,
    "mlp": _mlp_macs,
}
_DEPTHS: dict[str, tuple[str, Callable[[NDArray], NDArray]]] = {
    "cifar_resnet": ("6D+2 with D >= 1: 8, 14, 20, ...", lambda depth: (depth >= 8) & ((depth - 2) % 6 == 0)),
    "mlp": ("hidden layers + 1, so a whole number >= 2", lambda depth: (depth >= 2) & (depth % 1 == 0)),
}
