"""The network families: modules, their prunable layers and the exact counts that follow from them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map feature maps (batch, inputs, height, width) to (batch, outputs, height, width), the last two strided."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6D+2) for small images, as in OpenLTH.

    A 3x3 stem, three stages of D two-convolution blocks with W, 2W and 4W channels, 1x1 stride-2 convolutions on the
    downsampling shortcuts, global average pooling and one linear layer.

    Args:
        depth: 6D+2.
        width: Base channels W.
        input_shape: Channels, height, width of the images.
        classes: Number of classes.

    Source:
        He et al., CVPR 2016, section 4.2; Frankle et al., OpenLTH (2020).
    """

    def __init__(self, depth: int, width: int, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(3):
            for index in range((depth - 2) // 6):
                outputs = width * 2**stage
                blocks.append(Block(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        out = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.fc(out.mean((2, 3)))


class MLP(nn.Module):
    """Multilayer perceptron: `depth - 1` hidden layers of `width` ReLU units, biases, no normalisation."""

    def __init__(self, depth: int, width: int, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        sizes = [input_shape[0] * input_shape[1] * input_shape[2], *[width] * (depth - 1), classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        out = x.flatten(1)
        for layer in self.layers[:-1]:
            out = functional.relu(layer(out))
        return self.layers[-1](out)


MODELS: dict[str, type[CifarResNet] | type[MLP]] = {"cifar_resnet": CifarResNet, "mlp": MLP}


def build(
    family: str, depth: int, width: int, input_shape: tuple[int, int, int], classes: int, generator: torch.Generator
) -> nn.Module:
    """Make a freshly initialised network of a family.

    Weights are Kaiming normal (fan-in), batch-norm scales uniform in [0, 1), all shifts and biases 0.

    Args:
        family: A key of `MODELS`.
        depth: Number of weight layers.
        width: Base channels or hidden units.
        input_shape: Channels, height, width of the images.
        classes: Number of classes.
        generator: Source of the initial values (CPU).

    Returns:
        The network, on the CPU, in training mode.

    Example:
        >>> net = build("cifar_resnet", 20, 16, (3, 32, 32), 10, torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in net.parameters())
        272474
    """
    model = MODELS[family](depth, width, input_shape, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def prunable_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """List the layers whose weights are pruned, in the order of the network's modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@dataclass(frozen=True)
class LayerUse:
    """Say how a prunable layer is used: its number of weights, and how often each is multiplied per image."""

    weights: int
    positions: int


def layer_uses(model: nn.Module, input_shape: tuple[int, int, int]) -> list[LayerUse]:
    """Measure, by one forward pass, how often every prunable weight is multiplied per image."""
    layers = prunable_layers(model)
    positions: dict[str, int] = {}

    def record(name: str):
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            positions[name] = output.shape[2] * output.shape[3] if output.ndim == 4 else 1

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, *input_shape, device=next(model.parameters()).device))
    model.train(training)
    for handle in handles:
        handle.remove()
    return [LayerUse(layer.weight.numel(), positions[name]) for name, layer in layers.items()]
