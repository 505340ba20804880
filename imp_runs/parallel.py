"""One network trained by several processes: each takes a share of every batch, and all take the same step."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from imp_runs.config import Protocol
from imp_runs.distributed import processes
from imp_runs.network import Network
from imp_runs.steps import TorchSteps


class SharedSteps(TorchSteps):
    """Let PyTorch compute in several processes, by its `DistributedDataParallel`.

    A step is that of the whole batch: losses are summed over all shares, however unequal, and batch norms are taken
    over all of them. So the number of processes decides nothing but the rounding. The first process's parameters, mask
    and batch-norm statistics are everybody's at the start.

    Args:
        network: The network, already rewound and masked, in every process.
        protocol: Gives momentum and weight decay.
    """

    def __init__(self, network: Network, protocol: Protocol) -> None:
        for tensor in (network.values, network.mask, network.statistics):
            distributed.broadcast(tensor, 0)
        self._parallel = _parallel(network)
        super().__init__(network, protocol)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute this share's part of the mean loss, times the processes, as gradients are averaged over them."""
        examples = torch.tensor(float(len(labels)), device=images.device)
        distributed.all_reduce(examples)
        losses = functional.cross_entropy(self.rounded(self._parallel, images), labels, reduction="sum")
        return losses * processes() / examples


#: A network is wrapped once: every wrapping hooks into its gradients.
_WRAPPED: weakref.WeakKeyDictionary[Network, DistributedDataParallel] = weakref.WeakKeyDictionary()


def _parallel(network: Network) -> DistributedDataParallel:
    if network not in _WRAPPED:
        network.model = synchronise(network.model)
        device = network.values.device
        _WRAPPED[network] = DistributedDataParallel(
            network.model, device_ids=[device] if device.type == "cuda" else None
        )
    return _WRAPPED[network]


def synchronise(model: nn.Module) -> nn.Module:
    """Take batch norms over the whole batch: by PyTorch's own on a GPU, which knows no CPU, else by `SharedNorm`."""
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SharedNorm(child))
    return model


class SharedNorm(nn.BatchNorm2d):
    """Normalise over the examples of all processes.

    Args:
        norm: The batch norm whose parameters and running statistics are used, in place.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map feature maps (share of the batch, channels, height, width) to the same shape."""
        if not self.training:
            return super().forward(input)
        given, input = input.dtype, input.to(self.weight.dtype)
        number = _Sum.apply(input.new_tensor(float(input.numel() // input.shape[1])))
        if number == 1:
            raise ValueError("a batch norm needs more than one value per channel: one example has one position left.")
        mean = _Sum.apply(input.sum((0, 2, 3))) / number
        centred = input - mean.view(1, -1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / number
        self._remember(mean.detach(), variance.detach() * number / (number - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(given)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            assert self.momentum is not None
            running.mul_(1 - self.momentum).add_(now, alpha=self.momentum)


class _Sum(torch.autograd.Function):
    """Add up a tensor over all processes; the gradient is added up likewise."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        summed = tensor.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        summed = gradients[0].contiguous().clone()
        distributed.all_reduce(summed)
        return summed
