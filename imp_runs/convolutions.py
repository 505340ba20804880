"""Convolutions of many narrow networks at once on a GPU, which libraries compute one network after the other.

Every output channel and pixel is a sum over input channels and taps, so a convolution is a product of matrices whose
second one is read from the images as it is needed. One launch computes all networks. Sums run in an order that depends
on the shapes of one network alone, and nothing is added up atomically: what else is in a stack changes no bit.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

#: Output pixels of a block, and those that are added up by one block in the gradient of the weights.
PIXELS, PIXELS_OF_SUM = 128, 512
#: Least channels of blocks that are multiplied as matrices; those with fewer than half as many pairs, each with each.
MATRIX = 16
#: Most channels of a block.
CHANNELS = 32

#: How float32 is multiplied on tensor cores: as three products of its halves, whose error is that of float32.
FULL = "tf32x3"

_SIZES = ["pixels", "networks", "inputs", "outputs", "height", "width", "out_height", "out_width"]


@triton.jit
def _source(row, column, tap, height, width,
            side: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, transposed: tl.constexpr):  # fmt: skip
    """Say which pixel of the input a tap reads for an output pixel, and whether there is one."""
    up, left = tap // side, tap % side
    if transposed:
        row, column = row + padding - up, column + padding - left
        there = (row >= 0) & (column >= 0) & (row % stride == 0) & (column % stride == 0)
        row, column = row // stride, column // stride
    else:
        row, column = row * stride - padding + up, column * stride - padding + left
        there = (row >= 0) & (column >= 0)
    return row * width + column, there & (row < height) & (column < width)


@triton.jit(do_not_specialize=_SIZES)
def _convolve(x, weights, y, pixels, networks, inputs, outputs, height, width, out_height, out_width,
              side: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, transposed: tl.constexpr,
              block_o: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr, matrices: tl.constexpr,
              precision: tl.constexpr):  # fmt: skip
    """Compute a block `[channels, pixels]` of a network's output, or of the gradient of its input (transposed)."""
    taps: tl.constexpr = side * side
    network, area = tl.program_id(2), out_height * out_width
    pixel, o = tl.program_id(0) * block_p + tl.arange(0, block_p), tl.program_id(1) * block_o + tl.arange(0, block_o)
    image, place = pixel // area, pixel % area
    row, column = place // out_width, place % out_width
    first_plane = (image * networks + network) * inputs
    total = tl.zeros((block_o, block_p), dtype=tl.float32)
    for tap in range(taps):
        source, there = _source(row, column, tap, height, width, side, stride, padding, transposed)
        source, there = first_plane * height * width + source, there & (pixel < pixels)
        for first in range(0, inputs, block_c):
            c = first + tl.arange(0, block_c)
            if transposed:
                at = ((network * inputs + c)[None, :] * outputs + o[:, None]) * taps + tap
            else:
                at = ((network * outputs + o)[:, None] * inputs + c[None, :]) * taps + tap
            w = tl.load(weights + at, mask=(o < outputs)[:, None] & (c < inputs)[None, :], other=0.0)
            read = tl.load(x + source[None, :] + c[:, None] * height * width,
                           mask=there[None, :] & (c < inputs)[:, None], other=0.0)  # fmt: skip
            if matrices:
                total = tl.dot(w, read, total, input_precision=precision)
            else:
                total += tl.sum(w[:, :, None] * read[None, :, :], 1)
    plane = (image * networks + network)[None, :] * outputs + o[:, None]
    tl.store(y + plane * area + place[None, :], total, mask=(o < outputs)[:, None] & (pixel < pixels)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _sum_weights(x, slope, sums, pixels, networks, inputs, outputs, height, width, out_height, out_width,
                 side: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr,
                 block_o: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr, of_sum: tl.constexpr,
                 matrices: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """Add up, over some pixels, a block `[outputs, inputs]` of one tap of the gradient of a network's weights."""
    taps: tl.constexpr = side * side
    network, part, block = tl.program_id(2), tl.program_id(0), tl.program_id(1)
    tap, block, blocks = block % taps, block // taps, tl.cdiv(outputs, block_o)
    o, c = block % blocks * block_o + tl.arange(0, block_o), block // blocks * block_c + tl.arange(0, block_c)
    area = out_height * out_width
    if matrices:
        total = tl.zeros((block_o, block_c), dtype=tl.float32)
    else:
        total = tl.zeros((block_o, block_c, block_p), dtype=tl.float32)
    for first in range(0, of_sum, block_p):
        pixel = part * of_sum + first + tl.arange(0, block_p)
        image, place = pixel // area, pixel % area
        source, there = _source(place // out_width, place % out_width, tap, height, width, side, stride, padding, False)
        plane = image * networks + network
        s = tl.load(slope + (plane * outputs * area + place)[None, :] + o[:, None] * area,
                    mask=(o < outputs)[:, None] & (pixel < pixels)[None, :], other=0.0)  # fmt: skip
        read = tl.load(x + (plane * inputs * height * width + source)[None, :] + c[:, None] * height * width,
                       mask=(there & (pixel < pixels))[None, :] & (c < inputs)[:, None], other=0.0)  # fmt: skip
        if matrices:
            total = tl.dot(s, tl.trans(read), total, input_precision=precision)
        else:
            total += s[:, None, :] * read[None, :, :]
    if not matrices:
        total = tl.sum(total, 2)
    at = (((part * networks + network) * outputs + o)[:, None] * inputs + c[None, :]) * taps + tap
    tl.store(sums + at, total, mask=(o < outputs)[:, None] & (c < inputs)[None, :])


class Convolution(torch.autograd.Function):
    """Convolve images of several networks, `[examples, networks x inputs, height, width]`, each with its own weights.

    In float32, or on the tensor cores where `torch.backends.cudnn.allow_tf32` allows it.
    """

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weights: torch.Tensor, networks: int, stride: int, padding: int
    ) -> torch.Tensor:
        """Compute outputs (examples, networks x outputs, height, width).

        Args:
            ctx: What backward needs.
            images: Images (examples, networks x inputs, height, width).
            weights: Weights (networks x outputs, inputs, side, side).
            networks: How many they are.
            stride: Pixels between neighbouring outputs.
            padding: Zeros around the images.
        """
        images, weights = images.contiguous(), weights.contiguous()
        ctx.save_for_backward(images, weights)
        ctx.settings = networks, stride, padding
        examples, _, *sides = images.shape
        side = weights.shape[2]
        out = [(length + 2 * padding - side) // stride + 1 for length in sides]
        y = images.new_empty(examples, len(weights), *out)
        _launch(images, weights, y, ctx.settings, side, transposed=False)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of images and weights."""
        (images, weights), slope = ctx.saved_tensors, slopes[0].contiguous()
        towards_images = None
        if ctx.needs_input_grad[0]:
            towards_images = torch.empty_like(images)
            _launch(slope, weights, towards_images, ctx.settings, weights.shape[2], transposed=True)
        return towards_images, _towards_weights(images, weights, slope, ctx.settings), None, None, None


def _launch(
    x: torch.Tensor, weights: torch.Tensor, y: torch.Tensor, settings: tuple[int, int, int], side: int, *,
    transposed: bool,
) -> None:  # fmt: skip
    networks, stride, padding = settings
    inputs, outputs = x.shape[1] // networks, y.shape[1] // networks
    pixels, blocks = y.shape[0] * y.shape[2] * y.shape[3], _blocks(inputs, outputs)
    grid = triton.cdiv(pixels, PIXELS), triton.cdiv(outputs, blocks["block_o"]), networks
    _convolve[grid](
        x, weights, y, pixels, networks, inputs, outputs, *x.shape[2:], *y.shape[2:], side=side, stride=stride,
        padding=padding, transposed=transposed, block_p=PIXELS, **blocks,
    )  # fmt: skip


def _towards_weights(
    images: torch.Tensor, weights: torch.Tensor, slope: torch.Tensor, settings: tuple[int, int, int]
) -> torch.Tensor:
    networks, stride, padding = settings
    _, inputs, side, _ = weights.shape
    outputs = len(weights) // networks
    pixels, blocks = slope.shape[0] * slope.shape[2] * slope.shape[3], _blocks(inputs, outputs)
    parts = triton.cdiv(pixels, PIXELS_OF_SUM)
    sums = images.new_empty(parts, *weights.shape)
    tiles = triton.cdiv(outputs, blocks["block_o"]) * triton.cdiv(inputs, blocks["block_c"])
    _sum_weights[parts, tiles * side**2, networks](
        images, slope, sums, pixels, networks, inputs, outputs, *images.shape[2:], *slope.shape[2:], side=side,
        stride=stride, padding=padding, block_p=PIXELS, of_sum=PIXELS_OF_SUM, **blocks,
    )  # fmt: skip
    return sums.sum(0)


def _blocks(inputs: int, outputs: int) -> dict[str, Any]:
    """Choose how many channels of outputs and of inputs a block has, powers of two, and how they are multiplied."""
    o, c = (min(CHANNELS, triton.next_power_of_2(channels)) for channels in (outputs, inputs))
    matrices = o * c >= MATRIX**2 // 2
    if matrices:
        o, c = max(o, MATRIX), max(c, MATRIX)
    precision = "tf32" if torch.backends.cudnn.allow_tf32 else FULL
    return {"block_o": o, "block_c": c, "matrices": matrices, "precision": precision}
