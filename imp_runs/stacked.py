"""Networks of one architecture as one: their values in one vector, their steps computed by the same operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from imp_runs.config import Protocol, Trajectory
from imp_runs.examples import Batch, HeldExamples, draw, flip_crop, shuffled
from imp_runs.network import Network, State
from imp_runs.steps import TorchSteps


class StackedNetwork:
    """Hold networks of one architecture as one vector, parameter by parameter, so that every one is a batch of them.

    Places that are left over are filled with the networks again: the arithmetic of an operation may depend on its
    shape, and so a network's numbers do not depend on how many others there are.

    Attributes:
        members: The networks.
        size: Places.
        model: Module of the first network, whose operations are used.
        values: All parameters, `[size x parameters]`: the first parameter of all networks, then the second; prunable
            ones first.
        gradients: Their gradients.
        mask: 1 where a weight is kept, `[size x prunable]`.
        prunable: Number of prunable weights of all together.
        parameters: Views of `values` by name, `[size, ...]`.
        buffers: Batch-norm statistics by name, `[size, ...]`.

    Args:
        members: The networks, at most `size`.
        size: Places.
    """

    def __init__(self, members: Sequence[Network], size: int) -> None:
        if not 0 < len(members) <= size:
            raise ValueError(f"{len(members)} networks do not fit a stack of {size}.")
        self.members, self.size, self.model = list(members), size, members[0].model
        self._sizes = {
            name: (members[0].position(parameter), parameter.shape)
            for name, parameter in sorted(self.model.named_parameters(), key=lambda item: members[0].position(item[1]))
        }
        filled = [members[place % len(members)] for place in range(size)]
        self.prunable = size * members[0].prunable
        self.values = self.stack([network.values for network in filled])
        self.mask = self.stack([torch.cat([n.mask, n.values[n.prunable :]]) for n in filled])[: self.prunable]
        self.gradients = torch.zeros_like(self.values)
        self.parameters: dict[str, torch.Tensor] = {
            name: nn.Parameter(self.values[part].view(size, *shape)) for name, part, shape in self._parts()
        }
        for name, part, shape in self._parts():
            self.parameters[name].grad = self.gradients[part].view(size, *shape)
        named = [dict(network.model.named_buffers()) for network in filled]
        self.buffers = {name: torch.stack([own[name] for own in named]) for name in named[0]}

    def _parts(self) -> Iterator[tuple[str, slice, torch.Size]]:
        for name, (position, shape) in self._sizes.items():
            yield name, slice(self.size * position, self.size * (position + shape.numel())), shape

    def stack(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put vectors of every place, each as `Network.values`, into one as `values`."""
        whole = torch.stack(list(vectors))
        return torch.cat([
            whole[:, position : position + shape.numel()].reshape(-1) for position, shape in self._sizes.values()
        ])  # fmt: skip

    def unstack(self, vector: torch.Tensor) -> torch.Tensor:
        """Undo `stack`, `[size, parameters]`."""
        return torch.cat([vector[part].view(self.size, -1) for _, part, _ in self._parts()], dim=1)

    def state(self) -> State:
        """Copy the states of all networks, `[size, ...]`, under the names of one's."""
        return {"values": self.unstack(self.values), **{name: b.clone() for name, b in self.buffers.items()}}

    def give_back(self) -> None:
        """Let the members have their values and statistics."""
        state = self.state()
        for network, own in zip(self.members, members_of(state), strict=False):
            network.rewind(own, network.mask)


def members_of(state: State) -> list[State]:
    """Take the state of a stack apart."""
    return [{name: part[place] for name, part in state.items()} for place in range(len(state["values"]))]


class StackedSteps(TorchSteps):
    """Let PyTorch compute the steps of all networks of a stack at once.

    The loss is the sum over networks of each one's mean, so that every gradient is that of its network alone.

    Args:
        network: The stack.
        protocol: Gives momentum and weight decay.
    """

    def __init__(self, network: StackedNetwork, protocol: Protocol) -> None:
        super().__init__(network, protocol)
        self._stack = network
        self._train = vmap(self._one, in_dims=(0, 0, 0))
        self._test = vmap(self._one, in_dims=(0, 0, None))

    def _one(
        self, parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], images: torch.Tensor
    ) -> torch.Tensor:
        return functional_call(self.network.model, (parameters, buffers), (images,))

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Add up the mean cross-entropies of batches `[size, examples, ...]`, `[]`."""
        logits = self.rounded(partial(self._train, self._stack.parameters, self._stack.buffers), images)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return losses / labels.shape[1]

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits `[size, examples, classes]` of the same images."""
        self.network.model.eval()
        logits = self.rounded(partial(self._test, self._stack.parameters, self._stack.buffers), images)
        self.network.model.train()
        return logits


class StackedExamples:
    """Give batches of all members of a stack, `[size, examples, ...]`; what one sees is what it would see alone.

    Args:
        examples: The training subset of every member, all of one size.
        trajectories: What the members are.
        levels: Their pruning rounds.
        size: Places; those left over are filled with the members again.
    """

    def __init__(
        self, examples: Sequence[HeldExamples], trajectories: Sequence[Trajectory], levels: Sequence[int], size: int
    ) -> None:
        self._members = list(zip(trajectories, levels, strict=True))
        self._places = torch.arange(size) % len(examples)
        self._count = len(examples[0])
        self._images = torch.cat([own.images for own in examples])
        self._labels = torch.cat([own.labels for own in examples])

    def __len__(self) -> int:
        return self._count

    def batches(
        self, trajectory: Trajectory, level: int, epoch: int, first: int = 0, taken: int = 0
    ) -> Iterator[Batch]:
        """Give the batches of an epoch; trajectory and level are the members' own."""
        protocol, size = trajectory.protocol, len(self._places)
        order = torch.stack([shuffled(own, at, epoch, self._count) for own, at in self._members])
        order = (order + self._count * torch.arange(len(order))[:, None])[self._places].to(self._labels.device)
        augment = [torch.Generator().manual_seed(own.seed("augmentation", at, epoch)) for own, at in self._members]
        for number, batch in enumerate(order.split(protocol.batch_size, dim=1)[first:], first):
            drawn = [draw(batch.shape[1], own) for own in augment] if protocol.augmentation == "flip_crop" else []
            if number < taken:
                continue
            images = self._images[batch.flatten()]
            if drawn:
                images = flip_crop(images, torch.cat([drawn[place] for place in self._places], dim=1))
            yield images.view(size, -1, *images.shape[1:]), self._labels[batch]
