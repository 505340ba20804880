"""The networks as PyTorch modules."""

from __future__ import annotations

import itertools

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


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (with the stride) and a 1x1 convolution, which makes four times the channels, around a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map feature maps (batch, inputs, height, width) to (batch, 4 planes, height, width), the last two strided."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        return functional.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


#: Blocks per stage of the ResNets of large images, by depth; from 50 on they are bottlenecks.
RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ImageNetResNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152 for large images, as in torchvision, with W base channels in place of 64.

    A 7x7 stem of stride 2 and 3x3 max-pooling of stride 2, four stages of blocks with W, 2W, 4W and 8W channels (times
    four at the end of a bottleneck), global average pooling and one linear layer.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: Base channels W.
        input_shape: Channels, height, width of the images.
        classes: Number of classes.

    Source:
        He et al., CVPR 2016, table 1; the stride of a bottleneck is in its 3x3 convolution, as in torchvision.
    """

    def __init__(self, depth: int, width: int, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv, self.pool = self._stem(input_shape[0], width)
        self.bn = nn.BatchNorm2d(width)
        kind, expansion = (Bottleneck, 4) if depth >= 50 else (Block, 1)
        blocks, inputs = [], width
        for stage, count in enumerate(RESNET_BLOCKS[depth]):
            for index in range(count):
                blocks.append(kind(inputs, width * 2**stage, 2 if stage and not index else 1))
                inputs = expansion * width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def _stem(self, channels: int, width: int) -> tuple[nn.Conv2d, nn.Module]:
        return nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        out = self.blocks(self.pool(functional.relu(self.bn(self.conv(x)))))
        return self.fc(out.mean((2, 3)))


class TinyImageNetResNet(ImageNetResNet):
    """The same for images of 64 x 64: a 3x3 stem of stride 1, and no max-pooling.

    Source:
        Frankle, Dziugaite, Roy, Carbin, ICLR 2021 (the modified ResNet-18 for TinyImageNet).
    """

    def _stem(self, channels: int, width: int) -> tuple[nn.Conv2d, nn.Module]:
        return nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Identity()


#: Convolutions per stage of VGG, by depth; the three linear layers of the original count too.
VGG_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVGG(nn.Module):
    """VGG-11, 13, 16 or 19 with batch norm for small images, as in OpenLTH, with W base channels in place of 64.

    Five stages of 3x3 convolutions (with biases) with W, 2W, 4W, 8W and 8W channels, max-pooling between them, and
    global average pooling and one linear layer in place of the original's three.

    Args:
        depth: 11, 13, 16 or 19, the name's number.
        width: Base channels W.
        input_shape: Channels, height, width of the images; height and width at least 16.
        classes: Number of classes.

    Source:
        Simonyan and Zisserman, ICLR 2015, table 1; Frankle et al., OpenLTH (2020).
    """

    def __init__(self, depth: int, width: int, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = input_shape[0]
        for stage, count in enumerate(VGG_CONVOLUTIONS[depth]):
            if stage:
                layers.append(nn.MaxPool2d(2))
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.layers(x).mean((2, 3)))


class Join(nn.Module):
    """Put the channels of two feature maps one behind the other.

    Attributes:
        networks: How many networks' channels lie one behind the other in both (`imp_runs.grouped`).
    """

    networks = 1

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Map feature maps (batch, a, height, width) and (batch, b, height, width) to (batch, a + b, height, width)."""
        if self.networks == 1:
            return torch.cat([first, second], 1)
        return torch.cat([maps.unflatten(1, (self.networks, -1)) for maps in (first, second)], 2).flatten(1, 2)


class DenseLayer(nn.Module):
    """Add `growth` channels to a feature map: a 1x1 and a 3x3 convolution, each after batch norm and rectifier."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        self.join = Join()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map feature maps (batch, inputs, height, width) to (batch, inputs + growth, height, width)."""
        out = self.conv1(functional.relu(self.bn1(x)))
        return self.join(x, self.conv2(functional.relu(self.bn2(out))))


#: Layers per block of DenseNet, by depth.
DENSENET_LAYERS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


class CifarDenseNet(nn.Module):
    """DenseNet-121, 161, 169 or 201 for small images.

    A 3x3 stem with twice the growth rate of channels, four blocks of dense layers, and between them 1x1 convolutions
    that halve the channels and average pooling that halves the sides; global average pooling and one linear layer. The
    7x7 stem of stride 2 with batch norm and max-pooling that large images get is left out.

    Args:
        depth: 121, 161, 169 or 201.
        width: Growth rate; 32, but 48 for the original DenseNet-161.
        input_shape: Channels, height, width of the images; height and width at least 8.
        classes: Number of classes.

    Source:
        Huang et al., CVPR 2017, table 1 and section 3 (DenseNet-BC, its stem for CIFAR).
    """

    def __init__(self, depth: int, width: int, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = 2 * width
        self.conv = nn.Conv2d(input_shape[0], channels, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        for block, count in enumerate(DENSENET_LAYERS[depth]):
            if block:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                channels //= 2
            layers += [DenseLayer(channels + index * width, width) for index in range(count)]
            channels += count * width
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        out = functional.relu(self.bn(self.layers(self.conv(x))))
        return self.fc(out.mean((2, 3)))
