"""Processes that train one network together, and what each of them takes of a batch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch
from torch import distributed


@contextlib.contextmanager
def group(backend: str) -> Iterator[None]:
    """Be one of the processes that `torchrun` started, until the block ends.

    Networks wrapped in the block are collected before the group goes. They hold it, and the threads of one that
    outlives the interpreter abort the process when they let go of their last tensors.
    """
    distributed.init_process_group(backend)
    try:
        yield
    finally:
        gc.collect()
        distributed.destroy_process_group()


def processes() -> int:
    """Count the processes that train together; 1 where there is no group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Give the number of this process among those that train together."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share[Sliced: (torch.Tensor, list)](batch: Sliced) -> Sliced:
    """Cut this process's share of a batch: every n-th example, or all of them where it is alone."""
    return batch[rank() :: processes()] if processes() > 1 else batch


def total(count: int, device: torch.device) -> int:
    """Add up what all processes counted."""
    if processes() == 1:
        return count
    counted = torch.tensor(count, device=device)
    distributed.all_reduce(counted)
    return int(counted)
