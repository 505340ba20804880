"""Networks trained at once: those of one architecture as a stack, and several stacks side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from imp_runs.captured import Captured, side_by_side
from imp_runs.config import Protocol, Trajectory
from imp_runs.examples import Batch, HeldExamples, draw, flip_crop, shuffled
from imp_runs.grouped import grouped, grouped_shape
from imp_runs.network import Network, State
from imp_runs.steps import SgdSteps


class Stack:
    """Give networks of one architecture a place in a vector, parameter by parameter: the first one of all, and so on.

    Attributes:
        size: Number of networks.
        model: Module of all of them (`imp_runs.grouped`).
        length: Number of all their parameters.
        parameters: Views of the vector by name, as the module takes them.
        buffers: Batch-norm statistics by name, `[size x channels]`.

    Args:
        network: One of them.
        size: How many they are.
    """

    def __init__(self, network: Network, size: int) -> None:
        self.size, self.model = size, grouped(network.model, size)
        own = sorted((network.position(p), name, p.shape) for name, p in network.model.named_parameters())
        self._shapes = {name: (shape, grouped_shape(network.model, name, size)) for _, name, shape in own}
        self.length = size * len(network.values)
        self.parameters: dict[str, torch.Tensor] = {}
        buffers = dict(network.model.named_buffers())
        self.buffers = {name: b.repeat(size) for name, b in buffers.items() if b.ndim}
        self._counts = {name: b.repeat(size) for name, b in buffers.items() if not b.ndim}

    @property
    def counts(self) -> int:
        """Number of batch counters."""
        return self.size * len(self._counts)

    def lie_in(self, values: torch.Tensor, counts: torch.Tensor) -> None:
        """Take these values, `[length]`, as parameters, and these integers, `[counts]`, as batch counters."""
        parts = values.split([self.size * shape.numel() for shape, _ in self._shapes.values()])
        for (name, (_, shape)), part in zip(self._shapes.items(), parts, strict=True):
            self.parameters[name] = nn.Parameter(part.view(shape))
        self._counts = dict(zip(self._counts, counts.split(self.size), strict=True)) if self._counts else {}

    def interleave(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put vectors of all networks, each as `Network.values`, into one, `[length]`."""
        sizes = [shape.numel() for shape, _ in self._shapes.values()]
        return torch.cat([part.reshape(-1) for part in torch.stack(list(vectors)).split(sizes, dim=1)])

    def separate(self, vector: torch.Tensor) -> torch.Tensor:
        """Undo `interleave`, `[size, parameters]`."""
        sizes = [self.size * shape.numel() for shape, _ in self._shapes.values()]
        return torch.cat([part.view(self.size, -1) for part in vector.split(sizes)], dim=1)

    def statistics(self) -> State:
        """Copy batch-norm statistics, `[size, ...]`, under the names of one network's."""
        whole = {name: buffer.clone().view(self.size, -1) for name, buffer in self.buffers.items()}
        return whole | {name: count.clone() for name, count in self._counts.items()}

    def set_statistics(self, states: Sequence[State]) -> None:
        """Set batch-norm statistics to those of the states of all networks."""
        for name, buffer in (self.buffers | self._counts).items():
            buffer.copy_(torch.stack([state[name] for state in states]).view_as(buffer))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits (examples, size x classes) of images (examples, size x channels, height, width)."""
        return functional_call(self.model, (self.parameters, self.buffers), (images,))


class StackedNetwork:
    """Hold stacks, and all their values as one vector.

    Places that are left over are filled with the stack's networks again: the arithmetic of an operation may depend on
    its shape, and so a network's numbers do not depend on how many others there are.

    Attributes:
        stacks: The stacks.
        values: All parameters, stack by stack, `[parameters]`.
        gradients: Their gradients.
        mask: 0 where a weight is pruned, and 1 elsewhere, `[parameters]`.
        counts: Batches that every batch norm has seen.

    Args:
        groups: Networks of one architecture for every stack.
        size: Places of every stack.
    """

    def __init__(self, groups: Sequence[Sequence[Network]], size: int) -> None:
        self.stacks = [Stack(group[0], size) for group in groups]
        self.values = torch.zeros(sum(s.length for s in self.stacks), device=groups[0][0].values.device)
        self.gradients, self.mask = torch.zeros_like(self.values), torch.ones_like(self.values)
        self.counts = torch.zeros(sum(s.counts for s in self.stacks), dtype=torch.int64, device=self.values.device)
        counts = self.counts.split([stack.counts for stack in self.stacks])
        for stack, *places in zip(self.stacks, self._parts(self.values), counts, strict=True):
            stack.lie_in(*places)
        self.fill(groups)

    def fill(self, groups: Sequence[Sequence[Network]]) -> None:
        """Take the values, masks and statistics of networks, of the same architectures as those before."""
        self._groups, size = groups, self.stacks[0].size
        if any(not 0 < len(group) <= size for group in groups):
            raise ValueError(f"stacks of {[len(group) for group in groups]} networks do not fit {size} places.")
        filled = self.fill_up(groups)
        self.values.copy_(self.stack([n.values for n in filled]))
        self.mask.copy_(self.stack([torch.cat([n.mask, torch.ones_like(n.values[n.prunable :])]) for n in filled]))
        for number, stack in enumerate(self.stacks):
            stack.set_statistics([n.state() for n in filled[number * size : (number + 1) * size]])

    def fill_up[Member](self, groups: Sequence[Sequence[Member]]) -> list[Member]:
        """List what every place is filled with, where every stack's group may be short of its size."""
        return [group[place % len(group)] for group in groups for place in range(self.stacks[0].size)]

    def first_places(self) -> list[int]:
        """List the places of the networks themselves, without those that are left over."""
        size = self.stacks[0].size
        return [number * size + place for number, group in enumerate(self._groups) for place in range(len(group))]

    def members_by_place(self) -> list[int]:
        """Give the number of the network in every place, counted through all groups."""
        numbers = iter(range(sum(len(group) for group in self._groups)))
        return self.fill_up([[next(numbers) for _ in group] for group in self._groups])

    def _parts(self, vector: torch.Tensor) -> Sequence[torch.Tensor]:
        return vector.split([stack.length for stack in self.stacks])

    def stack(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put vectors of every place, each as `Network.values`, into one as `values`."""
        size = self.stacks[0].size
        return torch.cat([s.interleave(vectors[n * size : (n + 1) * size]) for n, s in enumerate(self.stacks)])

    def unstack(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Undo `stack`."""
        return [own for s, part in zip(self.stacks, self._parts(vector), strict=True) for own in s.separate(part)]

    def state(self) -> State:
        """Copy the states of all networks: those of stack 1, `[size, ...]`, under `1.` and the names of one's."""
        states = {}
        for number, (stack, values) in enumerate(zip(self.stacks, self._parts(self.values), strict=True)):
            own = {"values": stack.separate(values), **stack.statistics()}
            states |= {f"{number}.{name}": part for name, part in own.items()}
        return states

    def state_of(self, members: Sequence[State]) -> State:
        """Put states of all places together as `state` does."""
        size, states = self.stacks[0].size, {}
        for number in range(len(self.stacks)):
            own = members[number * size : (number + 1) * size]
            states |= {f"{number}.{name}": torch.stack([one[name] for one in own]) for name in own[0]}
        return states

    def members_of(self, state: State) -> list[State]:
        """Take a state apart, place by place."""
        members: list[State] = []
        for number, stack in enumerate(self.stacks):
            own = {n.partition(".")[2]: part for n, part in state.items() if n.partition(".")[0] == str(number)}
            members += [{name: part[place] for name, part in own.items()} for place in range(stack.size)]
        return members

    def give_back(self) -> None:
        """Let the networks have their values and statistics."""
        members = self.members_of(self.state())
        networks = [network for group in self._groups for network in group]
        for network, place in zip(networks, self.first_places(), strict=True):
            network.rewind(members[place], network.mask)


class StackedSteps(SgdSteps):
    """Let PyTorch compute the steps of all networks at once, on a GPU as one CUDA graph with a stream for every stack.

    The loss is the sum over networks of each one's mean, so that every gradient is that of its network alone.

    Args:
        network: The networks.
        protocol: Gives momentum and weight decay.
    """

    def __init__(self, network: StackedNetwork, protocol: Protocol) -> None:
        super().__init__(network, protocol)
        self._stacked = network
        on_gpu = network.values.is_cuda
        self._streams = [torch.cuda.Stream() for _ in network.stacks] if on_gpu else []
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self._graphs: dict[tuple[bool, torch.Size], Captured] = {}

    def restart(self) -> None:
        """Forget the momentum."""
        self._optimizer.state.clear()

    def differentiate(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Compute the gradients of all networks on their batches `[places, examples, ...]`."""
        self._compute(self._differentiate, images, labels)
        self._stacked.counts += 1

    def _differentiate(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        def gradients(stack: Stack, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            logits = self._logits_of(stack, images).flatten(0, 1)
            loss = functional.cross_entropy(logits, labels.T.flatten(), reduction="sum")
            found = torch.autograd.grad(loss / labels.shape[1], list(stack.parameters.values()))
            return torch.cat([gradient.reshape(-1) for gradient in found])

        return self._stacked.gradients.copy_(self._side_by_side(gradients, images, labels))

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits `[places, examples, classes]` of the same images."""
        places = sum(stack.size for stack in self._stacked.stacks)
        self._set_training(False)
        logits = self._compute(self._logits, images.expand(places, *images.shape))
        self._set_training(True)
        return logits

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self._side_by_side(lambda stack, images: self._logits_of(stack, images).transpose(0, 1), images)

    def _logits_of(self, stack: Stack, images: torch.Tensor) -> torch.Tensor:
        """Compute a stack's logits `[examples, size, classes]` of images `[size, examples, ...]`."""
        return self.rounded(stack.logits, images.transpose(0, 1).flatten(1, 2)).unflatten(1, (stack.size, -1))

    def _set_training(self, training: bool) -> None:
        for stack in self._stacked.stacks:
            stack.model.train(training)

    def _side_by_side(self, compute: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Let every stack compute on its part of the inputs."""
        parts = zip(*(tensor.split(self._stacked.stacks[0].size) for tensor in inputs), strict=True)
        return side_by_side(
            [partial(compute, stack, *own) for stack, own in zip(self._stacked.stacks, parts, strict=True)],
            self._streams,
        )

    def _compute(self, compute: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Compute, or on a GPU replay what was captured in the first call for inputs of this shape."""
        if not self._streams:
            return compute(*inputs)
        key = self._stacked.stacks[0].model.training, inputs[0].shape
        if key not in self._graphs:
            buffers = [buffer for stack in self._stacked.stacks for buffer in stack.buffers.values()]
            before = [buffer.clone() for buffer in buffers]
            self._graphs[key] = Captured(compute, inputs, self._pool)
            for buffer, own in zip(buffers, before, strict=True):
                buffer.copy_(own)
        return self._graphs[key](*inputs)


class StackedExamples:
    """Give batches of all places of stacks, `[places, examples, ...]`; what one sees is what it would see alone.

    Args:
        examples: The training subset of every member, all of one size.
        trajectories: What the members are.
        levels: Their pruning rounds.
        places: By place, the number of its member.
    """

    def __init__(
        self,
        examples: Sequence[HeldExamples],
        trajectories: Sequence[Trajectory],
        levels: Sequence[int],
        places: Sequence[int],
    ) -> None:
        self._members = list(zip(trajectories, levels, strict=True))
        self._places = torch.tensor(places)
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
