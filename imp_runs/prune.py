"""Global magnitude pruning: exact counts, nested masks, ties broken by index."""

from __future__ import annotations

import torch


def prune(weights: torch.Tensor, mask: torch.Tensor, kept: int) -> torch.Tensor:
    """Keep the `kept` largest of the weights that are still there.

    Args:
        weights: Trained weights, `[prunable]`.
        mask: 1 where a weight is there, 0 where it was pruned before, `[prunable]`.
        kept: Number to keep, at most the number that is there.

    Returns:
        A mask `[prunable]` of the same type with exactly `kept` ones, all of them where `mask` is 1. Of equal
        magnitudes the one with the smaller index stays.

    Raises:
        ValueError: `kept` is negative or more than there are.

    Example:
        >>> prune(torch.tensor([0.5, -2.0, 0.5, 1.0]), torch.ones(4), 3).tolist()
        [1.0, 1.0, 0.0, 1.0]
    """
    there = mask.nonzero().squeeze(1)
    if not 0 <= kept <= len(there):
        raise ValueError(f"kept = {kept} must be between 0 and the {len(there)} weights that are there.")
    order = torch.sort(weights[there].abs(), descending=True, stable=True).indices
    pruned = torch.zeros_like(mask)
    pruned[there[order[:kept]]] = 1
    return pruned
