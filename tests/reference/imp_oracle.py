"""Iterative magnitude pruning once more, plainly: the slow oracle against which the runner is tested.

An ordinary eager loop: the module's own parameters, one mask per layer, `torch.optim.SGD` over
`model.parameters()`, every weight multiplied by its mask after every step, and a threshold found by sorting
`(magnitude, index)` pairs in Python. It shares the initial network, the training subset and the seeds with the runner,
and none of its machinery: no flat vector, no masked gradients, no `prune`, no `Network`, no store.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from imp_runs.config import Trajectory
from imp_runs.datasets import Dataset
from imp_runs.families import build
from imp_runs.train import subset


@dataclass
class OracleLevel:
    """Hold what one level of the oracle gave."""

    n_wrong: int
    kept_by_layer: list[int]
    status: str
    weights: dict[str, torch.Tensor]


def run_oracle(trajectory: Trajectory, dataset: Dataset) -> list[OracleLevel]:
    """Run a trajectory through all its levels."""
    protocol = trajectory.protocol
    generator = torch.Generator().manual_seed(trajectory.seed("initialisation"))
    model = build(
        trajectory.family, trajectory.depth, trajectory.width, dataset.input_shape, dataset.classes, generator
    )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    masks = {name: torch.ones_like(layer.weight) for name, layer in layers.items()}
    examples = subset(dataset, trajectory)
    batches_per_epoch = len(list(range(0, trajectory.dataset_size, protocol.batch_size)))
    total = protocol.epochs * batches_per_epoch
    rewind_step = int(total * protocol.rewind)
    stored = copy.deepcopy(model.state_dict())
    results = []
    for level in range(protocol.levels + 1):
        if level:
            model.load_state_dict(stored)
        _apply(layers, masks)
        model.train()
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=protocol.learning_rate,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
        )
        first = rewind_step if level else 0
        for step in range(first, total):
            if level == 0 and step == rewind_step:
                stored = copy.deepcopy(model.state_dict())
            epoch, position = divmod(step, batches_per_epoch)
            if position == 0 or step == first:
                augmentation = torch.Generator().manual_seed(trajectory.seed("augmentation", level, epoch))
            shuffle = torch.Generator().manual_seed(trajectory.seed("order", level, epoch))
            order = torch.randperm(trajectory.dataset_size, generator=shuffle).tolist()
            chosen = order[position * protocol.batch_size : (position + 1) * protocol.batch_size]
            rate = protocol.learning_rate
            for milestone in protocol.milestones:
                if step >= int(total * milestone):
                    rate = rate * protocol.decay
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            images = examples.images[chosen]
            if protocol.augmentation == "flip_crop":
                images = _flipped_and_cropped(images, augmentation)
            nn.CrossEntropyLoss()(model(images), examples.labels[chosen]).backward()
            optimizer.step()
            _apply(layers, masks)
        kept_by_layer = [int(mask.count_nonzero()) for mask in masks.values()]
        kept = sum(kept_by_layer)
        remove = kept // 5
        results.append(
            OracleLevel(
                _wrong(model, dataset),
                kept_by_layer,
                "trained" if remove else "exhausted",
                {name: p.detach().clone() for name, p in model.named_parameters()},
            )
        )
        if not remove:
            break
        masks = _pruned(layers, masks, remove)
    return results


def _apply(layers: dict[str, nn.Conv2d | nn.Linear], masks: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(layer.weight * masks[name])


def _pruned(
    layers: dict[str, nn.Conv2d | nn.Linear], masks: dict[str, torch.Tensor], remove: int
) -> dict[str, torch.Tensor]:
    """Remove the `remove` smallest of the remaining weights of all layers together; of equal ones the last goes."""
    candidates = []
    for place, (name, layer) in enumerate(layers.items()):
        values, there = layer.weight.detach().flatten().tolist(), masks[name].flatten().tolist()
        candidates += [(abs(v), -place, -i, name) for i, (v, m) in enumerate(zip(values, there, strict=True)) if m]
    after = {name: mask.clone() for name, mask in masks.items()}
    for _, _, minus_index, name in sorted(candidates)[:remove]:
        after[name].view(-1)[-minus_index] = 0
    return after


def _flipped_and_cropped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    flips, downs, acrosses = torch.rand(3, len(images), generator=generator).tolist()
    results = []
    for image, flip, down, across in zip(images, flips, downs, acrosses, strict=True):
        _, height, width = image.shape
        canvas = nn.functional.pad(image.flip(-1) if flip < 0.5 else image, (4, 4, 4, 4))
        top, left = int(down * 9), int(across * 9)
        results.append(canvas[:, top : top + height, left : left + width])
    return torch.stack(results)


def _wrong(model: nn.Module, dataset: Dataset) -> int:
    model.eval()
    with torch.no_grad():
        guesses = model(dataset.test_images).argmax(dim=1)
    return sum(int(a != b) for a, b in zip(guesses.tolist(), dataset.test_labels.tolist(), strict=True))
