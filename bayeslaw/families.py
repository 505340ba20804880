"""The families of networks by name: their reference widths and exact parameter counts, without building a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayeslaw.counts import FORMS, Counts
from bayeslaw.errors import BayeslawError

#: No two neighbouring depths of a family are further apart.
MOST_BETWEEN = 100


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
        return float(FORMS[self.name].width_reference) if self.name in FORMS else 1.0

    @property
    def is_exact(self) -> bool:
        """Say whether exact counts are known."""
        return self.name in FORMS and self.input_shape is not None and self.classes is not None

    def counts(self, depth: ArrayLike, width: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
        counted = self._count(depth, width)
        return counted.prunable, counted.unprunable

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
        return self._count(depth, width).macs

    def parameters(self, depth: ArrayLike, width: ArrayLike) -> NDArray[np.float64]:
        """Count all parameters, or where the family is not known give depth x width^2, which grows like the count."""
        if self.is_exact:
            prunable, unprunable = self.counts(depth, width)
            return prunable + unprunable
        return np.asarray(depth, float) * np.asarray(width, float) ** 2

    def next_depth(self, depth: float) -> float:
        """Give the next depth of which the family has a network, or of the deepest network the one before.

        Raises:
            BayeslawError: The family is not known.

        Example:
            >>> vgg = Family("cifar_vgg", (3, 32, 32), 10)
            >>> vgg.next_depth(11), vgg.next_depth(19), Family("cifar_resnet").next_depth(8)
            (13.0, 16.0, 14.0)
        """
        if self.name not in FORMS:
            raise BayeslawError(f"family {self.name!r}: depths are known for {', '.join(sorted(FORMS))}.")
        steps = np.arange(1.0, MOST_BETWEEN)
        there = [depths[FORMS[self.name].has_depth(depths)] for depths in (depth + steps, depth - steps)]
        return float(np.concatenate(there)[0])

    def _count(self, depth: ArrayLike, width: ArrayLike) -> Counts:
        if not self.is_exact or self.input_shape is None or self.classes is None:
            known = ", ".join(sorted(FORMS))
            raise BayeslawError(
                f"family {self.name!r}: parameter counts are known for {known} with input_shape and classes in the "
                "table; pass parameters=, a function (depth, width) -> (prunable, unprunable)."
            )
        form, (depths, widths) = (
            FORMS[self.name],
            np.broadcast_arrays(np.asarray(depth, float), np.asarray(width, float)),
        )
        if (wrong := np.unique(depths[~form.has_depth(depths)])).size:
            raise BayeslawError(
                f"{self.name} has no depth {', '.join(f'{v:g}' for v in wrong)}; depth must be {form.depths}."
            )
        if min(self.input_shape[1:], default=form.smallest_side) < form.smallest_side:
            raise BayeslawError(
                f"{self.name} has no network for input_shape {self.input_shape}; sides must be at least "
                f"{form.smallest_side} pixels."
            )
        return form.count(depths, widths, self.input_shape, self.classes)
