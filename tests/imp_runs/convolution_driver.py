"""Check our own convolutions: `python convolution_driver.py DEVICE`; with `TRITON_INTERPRET=1` on a CPU, slowly."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.nn import functional

from imp_runs.convolutions import Convolution

#: Networks, channels in and out, side of the images and of the kernel, stride, padding: blocks that are full and not,
#: of one and of several, of few channels and of many.
SHAPES = [(3, 1, 4, 14, 3, 1, 1), (2, 4, 8, 14, 3, 2, 1), (2, 4, 8, 14, 1, 2, 0), (2, 20, 33, 7, 3, 1, 1)]
SHAPES += [(2, 5, 70, 8, 3, 2, 1), (1, 3, 2, 9, 7, 2, 3)]
#: Relative to double precision: float32 keeps 24 bits, and some hundred numbers are added up.
ROUNDED = 1e-6


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_of(
    convolve: Callable[..., torch.Tensor], images: torch.Tensor, weights: torch.Tensor, slope: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Give the output and both gradients."""
    images, weights = (tensor.detach().requires_grad_() for tensor in (images, weights))
    y = convolve(images, weights)
    return y.detach(), *torch.autograd.grad(y, (images, weights), slope.to(y))


def worst_error(device: str) -> float:
    """Compare outputs and gradients with PyTorch's in double precision; give the largest relative error."""
    torch.backends.cudnn.allow_tf32, worst = False, 0.0
    for networks, inputs, outputs, length, side, stride, padding in SHAPES:
        images, weights = draw(3, networks * inputs, length, length), draw(networks * outputs, inputs, side, side)
        settings = None, stride, padding, 1, networks
        expected = functional.conv2d(images.double(), weights.double(), *settings)
        slope = draw(*expected.shape, seed=1)
        exact = all_of(lambda x, w, s=settings: functional.conv2d(x, w, *s), images.double(), weights.double(), slope)
        ours = all_of(
            lambda x, w, s=(networks, stride, padding): Convolution.apply(x, w, *s),
            *(tensor.to(device) for tensor in (images, weights, slope)),
        )
        for one, other in zip(ours, exact, strict=True):
            assert one.dtype is torch.float32
            worst = max(worst, float((one.cpu().double() - other).norm() / other.norm()))
    return worst


def neighbours_change_bits(device: str) -> bool:
    """Compare a network alone with the same one as the second of three."""
    images, weights, slope = (draw(*shape).to(device) for shape in ((3, 6, 8, 8), (12, 2, 3, 3), (3, 12, 8, 8)))
    y, of_images, of_weights = all_of(lambda x, w: Convolution.apply(x, w, 3, 1, 1), images, weights, slope)
    alone = all_of(lambda x, w: Convolution.apply(x, w, 1, 1, 1), images[:, 2:4], weights[4:8], slope[:, 4:8])
    among = y[:, 4:8], of_images[:, 2:4], of_weights[4:8]
    return not all(torch.equal(one, other) for one, other in zip(alone, among, strict=True))


def main(device: str) -> int:
    worst = worst_error(device)
    print(f"relative error at most {worst:.1e}")
    return int(worst > ROUNDED or neighbours_change_bits(device))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
