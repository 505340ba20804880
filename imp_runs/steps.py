"""Who computes a training step: PyTorch, or on a CPU kernels that skip pruned weights."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from typing import Protocol as Interface

import torch
from torch.nn import functional

from imp_runs.config import Protocol, Trajectory
from imp_runs.distributed import processes, total
from imp_runs.errors import ImpRunsError
from imp_runs.examples import Source
from imp_runs.network import Network, State

#: Test images that are evaluated at once.
EVALUATION_BATCH = 1000

#: Base channels times image side up to which PyTorch's own convolutions beat oneDNN's on a CPU thread. Measured,
#: forward + backward + step: ResNet-8 on 8x8, 1 channel 1.3 against 2.9 ms, 4 channels 2.4 against 3.2, 8 channels
#: 4.3 against 3.8; on 14x14, 1 channel 2.6 against 5.5, 2 channels 5.6 against 5.7, 4 channels no gain.
NATIVE_LIMIT = 32

#: Where skipping pruned weights is faster than PyTorch on a CPU thread. Measured, one step of 64 examples: ResNet-20 on
#: 14x14, unpruned, 2, 4, 8, 16 channels 9.5, 3.1, 1.3, .9 times as fast, at density .1 23, 11, 6.3, 4.4 times; MLPs on
#: 28x28 of 8, 32, 128, 256 units unpruned 2.6, 1.1, .6, .4, at density .1 5.9, 4.2, 2.8, 2.4 times.
SPARSE_CHANNELS = 8
SPARSE_DENSITY = 0.7
SPARSE_WEIGHTS = 50_000

#: Families that the sparse kernels know.
SPARSE_FAMILIES = ("cifar_resnet", "mlp")


class Flat(Interface):
    """Hold a network, or several, as one vector of values (`Network`, `StackedNetwork`); the mask covers its start."""

    values: torch.Tensor
    gradients: torch.Tensor
    mask: torch.Tensor

    def state(self) -> State:
        """Copy parameters and batch-norm statistics."""
        ...


class Steps(Interface):
    """Train a network, already rewound and masked, step by step, and evaluate it; the network is changed in place."""

    @property
    def network(self) -> Flat:
        """The network."""
        ...

    @property
    def velocity(self) -> torch.Tensor:
        """The optimiser's momentum, `[parameters]`; what is assigned is copied."""
        ...

    @velocity.setter
    def velocity(self, velocity: torch.Tensor) -> None: ...

    def step(self, images: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> None:
        """Take one step of SGD on a batch."""
        ...

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits `[examples, classes]` with the running batch-norm statistics."""
        ...


class SgdSteps(abc.ABC):
    """Take steps of SGD with momentum on values whose gradients a subclass computes with PyTorch.

    Args:
        network: The network, or several.
        protocol: Gives momentum, weight decay and precision.
    """

    def __init__(self, network: Flat, protocol: Protocol) -> None:
        self.network: Flat = network
        self._precision = protocol.precision
        self._parameter = parameter = torch.nn.Parameter(network.values)
        parameter.grad = network.gradients
        self._masked_gradients = network.gradients[: len(network.mask)]
        self._optimizer = torch.optim.SGD(
            [parameter], protocol.learning_rate, protocol.momentum, weight_decay=protocol.weight_decay
        )

    @property
    def velocity(self) -> torch.Tensor:
        """The optimiser's momentum, `[parameters]`."""
        buffer = self._optimizer.state[self._parameter].get("momentum_buffer")
        return torch.zeros_like(self.network.values) if buffer is None else buffer

    @velocity.setter
    def velocity(self, velocity: torch.Tensor) -> None:
        self._optimizer.state[self._parameter]["momentum_buffer"] = velocity.to(self.network.values.device).clone()

    def step(self, images: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> None:
        """Take one step of SGD on a batch."""
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self.differentiate(images, labels)
        self._masked_gradients.mul_(self.network.mask)
        self._optimizer.step()

    @abc.abstractmethod
    def differentiate(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Write the gradients of a batch into the network's."""

    def rounded(self, compute: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Compute logits in the protocol's precision; they come back in that of the images.

        In bfloat16 the channels of images lie innermost in memory, as the units that GPUs have for it want them.
        """
        if self._precision != "bfloat16":
            return compute(images)
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        with torch.autocast(images.device.type, torch.bfloat16):
            return compute(images.contiguous(memory_format=layout)).to(images.dtype)


class TorchSteps(SgdSteps):
    """Let PyTorch compute a network: the plain way, on every device and for every family.

    Args:
        network: The network, already rewound and masked.
        protocol: Gives momentum, weight decay and precision.
    """

    def __init__(self, network: Network, protocol: Protocol) -> None:
        super().__init__(network, protocol)
        self._model = network.model
        self._model.train()

    def differentiate(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Write the gradients of a batch into the network's."""
        self._optimizer.zero_grad(set_to_none=False)
        self.loss(images, labels).backward()

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the mean cross-entropy of a batch, `[]`."""
        return functional.cross_entropy(self.rounded(self._model, images), labels)

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits `[examples, classes]` with the running batch-norm statistics."""
        self._model.eval()
        logits = self.rounded(self._model, images)
        self._model.train()
        return logits


def make_steps(name: str, network: Network, protocol: Protocol, input_shape: tuple[int, int, int]) -> Steps:
    """Make the steps that `choose_steps` chose; PyTorch's are taken by all processes that train together."""
    if name == "sparse":
        from imp_runs.sparse import SparseSteps

        return SparseSteps(network, protocol, input_shape)
    if processes() > 1:
        from imp_runs.parallel import SharedSteps

        return SharedSteps(network, protocol)
    return TorchSteps(network, protocol)


def choose_steps(trajectory: Trajectory, network: Network, kernels: str = "auto") -> str:
    """Say who computes the steps of a level: `"torch"` or `"sparse"`.

    Args:
        trajectory: What is run.
        network: Its network; its device and its mask decide.
        kernels: `"torch"` or `"sparse"` as asked for, or `"auto"`: by a rule that depends on the description of the
            network and on its density alone, so that every machine with a CPU chooses the same.

    Raises:
        ImpRunsError: The sparse kernels were asked for on a GPU, or for a family or a precision that they do not know.
    """
    on_cpu, known = network.values.device.type == "cpu", trajectory.family in SPARSE_FAMILIES
    single = trajectory.protocol.precision == "float32"
    if kernels == "sparse" and not single:
        raise ImpRunsError(
            f"kernels 'sparse' compute in float32, not in protocol.precision {trajectory.protocol.precision!r}; give "
            "--kernels auto or torch."
        )
    if kernels == "sparse" and not on_cpu:
        raise ImpRunsError("kernels 'sparse' are for the CPU; give --kernels auto or torch, or --device cpu.")
    if kernels == "sparse" and not known:
        raise ImpRunsError(
            f"kernels 'sparse' know {' and '.join(SPARSE_FAMILIES)}, not {trajectory.family}; give --kernels auto or "
            "torch."
        )
    if kernels != "auto":
        return kernels
    if not (on_cpu and known and single):
        return "torch"
    if trajectory.family == "mlp":
        faster = network.kept <= SPARSE_WEIGHTS
    else:
        faster = trajectory.width <= SPARSE_CHANNELS or network.kept <= SPARSE_DENSITY * network.prunable
    return "sparse" if faster else "torch"


def choose_kernels(trajectory: Trajectory, dataset: Source, device: torch.device) -> None:
    """Choose PyTorch's faster CPU convolutions, and the precision of a GPU's, by a network's description alone.

    Raises:
        ImpRunsError: The protocol asks for a precision that the device does not have.
    """
    rounds = trajectory.protocol.precision == "tensorfloat32"
    if rounds and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise ImpRunsError(
            f"protocol.precision 'tensorfloat32' needs a GPU of compute capability 8.0 or more, and device {device} is "
            "none; give 'float32', or --device cuda where there is one."
        )
    torch.backends.mkldnn.enabled = not _prefers_native(trajectory, dataset)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounds


def _prefers_native(trajectory: Trajectory, dataset: Source) -> bool:
    return trajectory.family == "cifar_resnet" and trajectory.width * dataset.input_shape[1] <= NATIVE_LIMIT


def name_kernels(steps: str, trajectory: Trajectory, dataset: Source, device: torch.device) -> str:
    """Name what computed a record."""
    together = f" x {processes()} processes" if processes() > 1 else ""
    if device.type == "cuda":
        return f"cuda{together}"
    if steps == "sparse":
        return f"{os.environ.get('NUMBA_CPU_NAME', 'host')} sparse"
    library = "native" if _prefers_native(trajectory, dataset) else "onednn"
    return f"{torch.backends.cpu.get_cpu_capability()} {library}{together}"


def wrong_of(
    steps: Steps, dataset: Source, batch: int = EVALUATION_BATCH, between: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Count the test images that a network gets wrong (top-1), `[]`, or those of several, `[places]`.

    Evaluated with the running batch-norm statistics, on this process's share of the images; `between` is called between
    two batches.
    """
    wrong = []
    for images, labels in dataset.test_batches(batch):
        if wrong:
            between()
        wrong.append((steps.logits(images).argmax(-1) != labels).sum(-1))
    return torch.stack(wrong).sum(0)


def count_wrong(steps: Steps, dataset: Source, between: Callable[[], None] = lambda: None) -> int:
    """Count the test images that the network gets wrong, on all processes that train it."""
    return total(int(wrong_of(steps, dataset, between=between)), steps.network.values.device)
