"""Training on a CPU at the price of the weights that are left: a network as the tables of the kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from imp_runs import kernels
from imp_runs.architectures import MLP, Block, CifarResNet
from imp_runs.config import Protocol
from imp_runs.families import prunable_layers
from imp_runs.network import Network

_Arrays = tuple[np.ndarray, ...]

#: Examples that go through the network at once when it is evaluated.
BATCH = 100


class _Buffer(NamedTuple):
    """Hold one of `kernels.BUFFER`."""

    start: int
    scratch: int
    channels: int
    height: int
    width: int
    padding: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, height, width, padding."""
        return self[2:]

    @property
    def size(self) -> int:
        """Number of places per example, border included."""
        return self.channels * (self.height + 2 * self.padding) * (self.width + 2 * self.padding)


@dataclass
class _Tables:
    """Collect buffers and units of a network, layer by layer."""

    network: Network
    buffers: list[_Buffer] = field(default_factory=list)
    units: list[dict[str, int]] = field(default_factory=list)
    layers: list[nn.Conv2d | nn.Linear | None] = field(default_factory=list)

    def buffer(self, channels: int, height: int, width: int, padding: int) -> int:
        """Add a feature map; maps of one shape share a scratch map."""
        start, free, scratches = 0, 0, {}
        for before in self.buffers:
            start += before.size
            scratches[before.shape] = before.scratch
            free = max(free, before.scratch + before.size)
        shape = (channels, height, width, padding)
        self.buffers.append(_Buffer(start, scratches.get(shape, free), *shape))
        return len(self.buffers) - 1

    def layer(
        self,
        source: int,
        module: nn.Conv2d | nn.Linear,
        norm: nn.BatchNorm2d | None = None,
        *,
        added: int = -1,
        rectified: bool = True,
    ) -> int:
        """Add a layer with what follows it; give the feature map it makes."""
        height, width, stride = self.buffers[source].height, self.buffers[source].width, 1
        if isinstance(module, nn.Conv2d):
            stride = module.stride[0]
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        channels = len(module.weight)
        target = self.buffer(channels, height, width, 1 if isinstance(module, nn.Conv2d) else 0)
        shift = norm.bias if norm is not None else module.bias
        assert shift is not None
        unit = {
            "pooling": 0,
            "source": source,
            "target": target,
            "added": added,
            "stride": stride,
            "scale": -1 if norm is None else self.network.position(norm.weight),
            "shift": self.network.position(shift),
            "mean": -1 if norm is None else self.network.statistic(norm, "running_mean"),
            "variance": -1 if norm is None else self.network.statistic(norm, "running_var"),
            "rectified": int(rectified),
        }
        self.units.append(unit)
        self.layers.append(module)
        return target

    def pool(self, source: int) -> int:
        """Add the mean over all positions."""
        target = self.buffer(self.buffers[source].channels, 1, 1, 0)
        self.units.append({"pooling": 1, "source": source, "target": target, "added": -1})
        self.layers.append(None)
        return target

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Give units and buffers as the kernels' records: who fills which gradient first, in the order backward."""
        units = np.zeros(len(self.units), kernels.UNIT)
        written = set()
        channels_out = channels_in = 0
        for index, unit in enumerate(self.units):
            for name, value in unit.items():
                units[index][name] = value
            units[index]["taps_out"], units[index]["taps_in"] = channels_out, channels_in
            units[index]["reads_images"] = unit["source"] == 0
            channels_out += self.buffers[unit["target"]].channels + 1
            channels_in += self.buffers[unit["source"]].channels + 1
        for index in reversed(range(len(units))):
            for name, fills in (("added", "fills_added"), ("source", "fills_source")):
                units[index][fills] = units[index][name] not in written
                written.add(int(units[index][name]))
        return units, np.array(self.buffers, kernels.BUFFER)


def _resnet(tables: _Tables, model: CifarResNet, input_shape: tuple[int, int, int]) -> None:
    here = tables.layer(tables.buffer(*input_shape, 1), model.conv, model.bn)
    for block in cast(Iterable[Block], model.blocks):
        shortcut = here
        if isinstance(block.shortcut, nn.Sequential):
            convolution, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(block.shortcut))
            shortcut = tables.layer(here, convolution, norm, rectified=False)
        inner = tables.layer(here, block.conv1, block.bn1)
        here = tables.layer(inner, block.conv2, block.bn2, added=shortcut)
    tables.layer(tables.pool(here), model.fc, rectified=False)


def _mlp(tables: _Tables, model: MLP, input_shape: tuple[int, int, int]) -> None:
    channels, height, width = input_shape
    here = tables.buffer(channels * height * width, 1, 1, 0)
    *hidden, last = cast(Iterable[nn.Linear], model.layers)
    for layer in hidden:
        here = tables.layer(here, layer)
    tables.layer(here, last, rectified=False)


#: What lays out a network of each family that the kernels know.
_LAYOUTS = {CifarResNet: _resnet, MLP: _mlp}


class SparseSteps:
    """Take training steps, and count wrong answers, with kernels that skip pruned weights.

    Parameters, gradients and batch-norm statistics are those of the network, in place. Not bit for bit what PyTorch
    computes: sums run in another order.

    Args:
        network: The network, already rewound and masked; its mask must not change while this is used.
        protocol: Gives momentum and weight decay.
        input_shape: Channels, height, width of the images.

    Raises:
        TypeError: The kernels do not know the network's family.
    """

    def __init__(self, network: Network, protocol: Protocol, input_shape: tuple[int, int, int]) -> None:
        family = type(network.model)
        if family not in _LAYOUTS:
            raise TypeError(f"the sparse kernels know {', '.join(known.__name__ for known in _LAYOUTS)} only.")
        tables = _Tables(network)
        _LAYOUTS[family](tables, network.model, input_shape)
        self.network, self._maps = network, tables.buffers
        self._units, self._buffers = tables.finished()
        self._taps = _taps(tables)
        self._parameters, self._gradients = network.values.detach().numpy(), network.gradients.numpy()
        self._statistics = network.statistics.numpy()
        self._velocity = np.zeros_like(self._parameters)
        self._momentum, self._decay = np.float32(protocol.momentum), np.float32(protocol.weight_decay)
        self._work: dict[int, tuple[_Arrays, _Arrays]] = {}

    @property
    def velocity(self) -> torch.Tensor:
        """The optimiser's momentum, `[parameters]`."""
        return torch.from_numpy(self._velocity)

    @velocity.setter
    def velocity(self, velocity: torch.Tensor) -> None:
        self._velocity[:] = velocity.numpy()

    def step(self, images: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> None:
        """Take one step of SGD on a batch."""
        self.gradients(images, labels)
        kernels.descend(
            self._parameters, self._gradients, self._velocity, np.float32(learning_rate), self._momentum, self._decay
        )

    def gradients(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Write the gradients of a batch into the network's; give its mean cross-entropy."""
        tables, work = self._load(images)
        kernels.forward(tables, self._parameters, self._statistics, work, len(labels), True)
        self.network.count_batch()
        return kernels.backward(tables, self._parameters, self._gradients, work, labels.numpy())

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits `[examples, classes]` with the running batch-norm statistics."""
        return torch.cat([self._logits(batch) for batch in images.split(BATCH)])

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        tables, work = self._load(images)
        kernels.forward(tables, self._parameters, self._statistics, work, len(images), False)
        last, examples = self._maps[-1], len(images)
        flat = work[0][last.start * examples : (last.start + last.size) * examples]
        return torch.from_numpy(flat.reshape(last.channels, examples).T.copy())

    def _load(self, images: torch.Tensor) -> tuple[_Arrays, _Arrays]:
        """Copy a batch into the first feature map; give the tables and the arrays for its size."""
        examples = len(images)
        if examples not in self._work:
            self._work[examples] = (self._tables_for(examples), self._arrays_for(examples))
        tables, work = self._work[examples]
        first = self._maps[0]
        shaped = images.reshape(examples, first.channels, first.height, first.width)
        kernels.load(shaped.numpy(), work[0], self._buffers[0], examples)
        return tables, work

    def _tables_for(self, examples: int) -> _Arrays:
        taps_out, starts_out, taps_in, starts_in = self._taps
        stretch = np.array([1, 1, 1, examples])
        return self._units, self._buffers, taps_out * stretch, starts_out, taps_in * stretch, starts_in

    def _arrays_for(self, examples: int) -> _Arrays:
        whole = self._maps[-1].start + self._maps[-1].size
        scratch = max(buffer.scratch + buffer.size for buffer in self._maps)
        maps, slopes, totals, scratches = (_zeros(size * examples) for size in (whole, whole, whole, scratch))
        return maps, slopes, totals, scratches, np.zeros_like(self._statistics)


def _zeros(size: int) -> np.ndarray:
    """Make zeros that begin on a cache line: rows that straddle lines cost a quarter more."""
    line = 64
    zeros = np.zeros(size + line, np.float32)
    first = -zeros.ctypes.data % line // zeros.itemsize
    return zeros[first : first + size]


def _taps(tables: _Tables) -> _Arrays:
    """List the kept weights of every unit by output channel, then by input channel, with the starts of the channels.

    A tap is the position of the weight among the parameters, and the channel, row and column (in a map with its
    border) that it reads for the first position of a row of outputs, or of inputs on the way back.
    """
    masks = dict(zip(prunable_layers(tables.network.model).values(), tables.network.layer_masks(), strict=True))
    out, starts_out, into, starts_in = [], [], [], []
    count_out = count_in = 0
    for layer, unit in zip(tables.layers, tables.units, strict=True):
        source, target = tables.buffers[unit["source"]], tables.buffers[unit["target"]]
        kept = np.zeros((target.channels, source.channels, 1, 1), bool)
        padding, first = 0, 0
        if layer is not None:
            shape = (*layer.weight.shape, 1, 1)[:4]
            kept = masks[layer].numpy().reshape(shape) > 0
            padding = int(layer.padding[0]) if isinstance(layer, nn.Conv2d) else 0
            first = tables.network.position(layer.weight)
        to, source_channel, row, column = kept.nonzero()
        position = first + np.ravel_multi_index((to, source_channel, row, column), kept.shape)
        shift = source.padding - padding
        out.append(np.stack([position, source_channel, row + shift, column + shift], 1))
        starts_out.append(count_out + np.searchsorted(to, np.arange(target.channels + 1)))
        order = np.argsort(source_channel, kind="stable")
        shift = target.padding + padding
        into.append(np.stack([position, to, shift - row, shift - column], 1)[order])
        starts_in.append(count_in + np.searchsorted(source_channel[order], np.arange(source.channels + 1)))
        count_out, count_in = count_out + len(to), count_in + len(to)
    return np.concatenate(out), np.concatenate(starts_out), np.concatenate(into), np.concatenate(starts_in)
