"""A module that computes networks of one architecture at once, their channels one behind the other."""

from __future__ import annotations

import copy
import importlib.util

import torch
from torch import nn

from imp_runs.architectures import Join

#: Whether there is what our own kernels (`imp_runs.convolutions`) are written in; it comes with PyTorch for GPUs.
KERNELS = importlib.util.find_spec("triton") is not None


def grouped(model: nn.Module, size: int) -> nn.Module:
    """Make the module of `size` networks of one architecture.

    Convolutions become grouped ones, linear layers batched products; batch norms, and what has no parameters, are the
    same for more channels. It is to be called with the networks' parameters and statistics in the shapes of
    `grouped_shape` (`torch.func.functional_call`). With one network its operations are those of the model.

    Args:
        model: Module of one network, left as it is.
        size: Number of networks.

    Returns:
        A module that maps images (batch, size x channels, height, width) to logits (batch, size x classes). It does not
        count batches.
    """
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
        elif isinstance(module, nn.Conv2d) and size > 1:
            module.groups *= size
            module.__class__ = _Convolutions
        elif isinstance(module, Join):
            module.networks = size
        elif isinstance(module, nn.Linear) and size > 1:
            module.__class__ = _Linears
    return copied


def grouped_shape(model: nn.Module, name: str, size: int) -> tuple[int, ...]:
    """Say in what shape `grouped` takes a parameter of `size` networks, stored network by network."""
    shape = tuple(model.get_parameter(name).shape)
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear) and size > 1:
        return size, *shape
    return size * shape[0], *shape[1:]


class _Convolutions(nn.Conv2d):
    """The convolutions of several networks, `groups` of one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (batch, size x inputs, height, width) to (batch, size x outputs, height, width)."""
        if not (KERNELS and input.is_cuda and input.dtype is torch.float32) or torch.is_autocast_enabled("cuda"):
            return super().forward(input)
        from imp_runs.convolutions import Convolution

        out = Convolution.apply(input, self.weight, self.groups, self.stride[0], self.padding[0])
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)


class _Linears(nn.Linear):
    """The linear layers of several networks, weights `[size, outputs, inputs]`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (batch, size x inputs) to (batch, size x outputs)."""
        given = input.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        out = torch.baddbmm(self.bias.unsqueeze(1), given, self.weight.transpose(1, 2))
        return out.transpose(0, 1).flatten(1)
