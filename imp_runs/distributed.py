"""Processes that train one network together, and what each of them takes of a batch."""

from __future__ import annotations

import torch
from torch import distributed


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
