"""A network whose parameters are views into one vector, the prunable weights first."""

from __future__ import annotations

import torch
from torch import nn

from imp_runs.families import LayerUse, build, layer_uses, prunable_layers

State = dict[str, torch.Tensor]


class Network:
    """Hold a module, its parameters as one flat vector, their gradients as another, and a mask over the first part.

    One vector makes global pruning, masking, rewinding and the optimiser a handful of operations whatever the depth.

    Attributes:
        model: The module; its parameters are views into `values`.
        values: All parameters, `[parameters]`; the first `prunable` are the convolution and linear weights.
        gradients: Their gradients, `[parameters]`.
        mask: 1 where a weight is kept, 0 where it is pruned, `[prunable]`, float32.
        prunable: Number of prunable weights.
        statistics: Running means and variances of all batch norms, `[2 x channels]`.
        uses: Weights and multiplications per image of every prunable layer, in the order of `mask`.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int], device: torch.device) -> None:
        self.model = model.to(device)
        self.uses: list[LayerUse] = layer_uses(self.model, input_shape)
        weights = [layer.weight for layer in prunable_layers(self.model).values()]
        known = {id(weight) for weight in weights}
        ordered = weights + [p for p in self.model.parameters() if id(p) not in known]
        self.prunable = sum(weight.numel() for weight in weights)
        self.values = torch.cat([p.detach().reshape(-1) for p in ordered])
        self.gradients = torch.zeros_like(self.values)
        self.mask = torch.ones(self.prunable, device=device)
        start = 0
        for parameter in ordered:
            stop = start + parameter.numel()
            parameter.data = self.values[start:stop].view_as(parameter)
            parameter.grad = self.gradients[start:stop].view_as(parameter)
            start = stop
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        self._batches = torch.zeros(len(norms), dtype=torch.int64, device=device)
        self.statistics = torch.zeros(2 * sum(norm.num_features for norm in norms), device=device)
        start = 0
        for index, norm in enumerate(norms):
            norm.num_batches_tracked = self._batches[index]
            for name in ("running_mean", "running_var"):
                stop = start + norm.num_features
                self.statistics[start:stop] = getattr(norm, name)
                setattr(norm, name, self.statistics[start:stop])
                start = stop

    @classmethod
    def fresh(
        cls,
        family: str,
        depth: int,
        width: int,
        input_shape: tuple[int, int, int],
        classes: int,
        seed: int,
        device: torch.device,
    ) -> Network:
        """Make a network with initial values drawn from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return cls(build(family, depth, width, input_shape, classes, generator), input_shape, device)

    @property
    def weights(self) -> torch.Tensor:
        """View the prunable weights, `[prunable]`."""
        return self.values[: self.prunable]

    @property
    def kept(self) -> int:
        """Count the weights that are not pruned."""
        return int(self.mask.sum(dtype=torch.int64))

    @property
    def kept_by_layer(self) -> list[int]:
        """Count the weights that are not pruned in every prunable layer."""
        return [int(part.sum(dtype=torch.int64)) for part in self.layer_masks()]

    def position(self, parameter: torch.Tensor) -> int:
        """Give the place of a parameter's first value in `values`."""
        return (parameter.data_ptr() - self.values.data_ptr()) // self.values.element_size()

    def statistic(self, norm: nn.BatchNorm2d, name: str) -> int:
        """Give the place of a batch norm's `running_mean` or `running_var` in `statistics`."""
        buffer = getattr(norm, name)
        return (buffer.data_ptr() - self.statistics.data_ptr()) // self.statistics.element_size()

    def count_batch(self) -> None:
        """Count one more batch in every batch norm, as training with PyTorch does by itself."""
        self._batches += 1

    def layer_masks(self) -> tuple[torch.Tensor, ...]:
        """Split the mask by prunable layers."""
        return self.mask.split([use.weights for use in self.uses])

    def state(self) -> State:
        """Copy parameters and batch-norm statistics."""
        return {"values": self.values.clone(), **{name: b.clone() for name, b in self.model.named_buffers()}}

    def rewind(self, state: State, mask: torch.Tensor) -> None:
        """Return to a stored state, its weights multiplied by the mask."""
        with torch.no_grad():
            self.values.copy_(state["values"])
            self.mask.copy_(mask)
            self.weights.mul_(self.mask)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(state[name])
