"""The network families: initial values, prunable layers and the exact counts that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from imp_runs.architectures import MLP, CifarDenseNet, CifarResNet, CifarVGG, ImageNetResNet, TinyImageNetResNet
from imp_runs.errors import ImpRunsError

MODELS: dict[str, Callable[[int, int, tuple[int, int, int], int], nn.Module]] = {
    "cifar_resnet": CifarResNet,
    "mlp": MLP,
    "cifar_vgg": CifarVGG,
    "cifar_densenet": CifarDenseNet,
    "tinyimagenet_resnet": TinyImageNetResNet,
    "imagenet_resnet": ImageNetResNet,
}

#: Smallest side of an image that a family can halve as often as it does; 1 for all others.
SMALLEST_SIDE = {"cifar_vgg": 16, "cifar_densenet": 8}


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

    Raises:
        ImpRunsError: The images are too small for the family.

    Example:
        >>> net = build("cifar_resnet", 20, 16, (3, 32, 32), 10, torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in net.parameters())
        272474
    """
    side, smallest = min(input_shape[1:]), SMALLEST_SIDE.get(family, 1)
    if side < smallest:
        raise ImpRunsError(
            f"{family} needs images of at least {smallest} x {smallest} pixels, and gets {input_shape[1]} x "
            f"{input_shape[2]}: choose a smaller grid.pool, or another family."
        )
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
