"""One of several processes that train a network together on made-up images; the first one saves what came out.

Started by `torchrun`: `parallel_driver.py FILE`. Batches are odd, and the last of one example leaves a share empty.
"""

from __future__ import annotations

import sys

import torch
from torch import distributed, nn

from imp_runs.config import Protocol
from imp_runs.distributed import group, share, total
from imp_runs.network import Network
from imp_runs.parallel import SharedNorm
from imp_runs.prune import prune
from imp_runs.steps import make_steps

NETWORKS = [
    ("imagenet_resnet", 18, 2),
    ("imagenet_resnet", 50, 1),
    ("tinyimagenet_resnet", 18, 1),
    ("cifar_vgg", 11, 2),
    ("cifar_densenet", 121, 1),
    ("cifar_resnet", 8, 2),
    ("mlp", 3, 8),
]
BATCHES = (7, 4, 9, 1)
SHAPE = (3, 40, 40)


def trained(family: str, depth: int, width: int, batches: tuple[int, ...] = BATCHES) -> dict[str, torch.Tensor]:
    """Take a step on every batch with a pruned network; give gradients of the first, then all state and logits.

    In double precision, as batch norms over a few values multiply every rounding.
    """
    torch.set_default_dtype(torch.float64)
    network = Network.fresh(family, depth, width, SHAPE, 5, 3, torch.device("cpu"))
    network.rewind(network.state(), prune(network.weights, network.mask, network.prunable // 2))
    steps = make_steps("torch", network, Protocol(), SHAPE)
    result: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for size in batches:
        images = torch.randn(size, *SHAPE, generator=generator)
        labels = torch.randint(5, (size,), generator=generator)
        steps.step(share(images), share(labels), 0.01)
        if not result:
            result["gradients"] = network.gradients.clone()
    steps = make_steps("torch", network, Protocol(), SHAPE)  # as at the next level
    images, labels = torch.randn(3, *SHAPE, generator=generator), torch.randint(5, (3,), generator=generator)
    steps.step(share(images), share(labels), 0.01)
    logits = steps.logits(torch.randn(4, *SHAPE, generator=generator))
    return result | {"values": network.values.detach(), "statistics": network.statistics, "logits": logits}


def check_rounded_norm() -> None:
    """Compare the batch norm over all processes with PyTorch's over the whole batch, of feature maps in bfloat16."""
    whole, shared = nn.BatchNorm2d(3), SharedNorm(nn.BatchNorm2d(3))
    maps = 3 + 2 * torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    maps = maps.bfloat16()
    result = shared(share(maps))
    assert result.dtype is torch.bfloat16
    torch.testing.assert_close(result, share(whole(maps)), rtol=2**-7, atol=2**-7)
    for name, statistic in whole.named_buffers():
        torch.testing.assert_close(dict(shared.named_buffers())[name], statistic, rtol=1e-5, atol=1e-6)


def main() -> None:
    """Train all networks together."""
    torch.set_num_threads(1)
    with group("gloo"):
        own = distributed.get_rank()
        assert total(own + 1, torch.device("cpu")) == 3
        check_rounded_norm()
        results = {}
        for family, depth, width in NETWORKS:
            for name, tensor in trained(family, depth, width).items():
                results[f"{family}-{depth}.{name}"] = tensor.contiguous()
                first = tensor.clone()
                distributed.broadcast(first, 0)
                assert torch.equal(first, tensor), f"processes differ: {family} {name}"
        if own == 0:
            torch.save(results, sys.argv[1])


if __name__ == "__main__":
    main()
