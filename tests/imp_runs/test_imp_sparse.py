"""The kernels that skip pruned weights: against PyTorch in double precision, step by step, and over whole runs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from imp_runs.config import Protocol
from imp_runs.errors import ImpRunsError
from imp_runs.imp import make_network, run_trajectory
from imp_runs.network import Network
from imp_runs.prune import prune
from imp_runs.sparse import SparseSteps
from imp_runs.steps import TorchSteps, choose_steps, count_wrong, make_steps
from imp_runs.store import Store
from imp_runs.sweep import run_sweep
from imp_runs.train import subset, train

CPU = torch.device("cpu")

#: Family, depth, width, image shape: odd sides, several channels, one channel, no hidden layer.
SHAPES = [
    ("cifar_resnet", 8, 1, (1, 8, 8)),
    ("cifar_resnet", 8, 3, (3, 9, 7)),
    ("cifar_resnet", 14, 2, (1, 14, 14)),
    ("cifar_resnet", 20, 4, (3, 6, 6)),
    ("mlp", 2, 5, (1, 8, 8)),
    ("mlp", 4, 17, (3, 5, 4)),
    ("mlp", 1, 5, (1, 8, 8)),
]


def make(family, depth, width, shape, density, classes=7):
    """Make a network with random signs on its batch-norm scales, pruned to a density at random."""
    network = Network.fresh(family, depth, width, shape, classes, 3, CPU)
    generator = torch.Generator().manual_seed(depth * width)
    with torch.no_grad():
        network.values[network.prunable :] += torch.randn(len(network.values) - network.prunable, generator=generator)
    mask = (torch.rand(network.prunable, generator=generator) < density).float()
    network.rewind(network.state(), mask)
    return network


def batch(shape, examples, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(examples, *shape, generator=generator)
    return images, torch.randint(classes, (examples,), generator=generator)


def by_pytorch(network, images, labels, dtype=torch.float64):
    """Give loss, masked gradients and running statistics of one batch as PyTorch computes them."""
    model = copy.deepcopy(network.model).to(dtype).train()
    model.zero_grad()
    loss = functional.cross_entropy(model(images.to(dtype)), labels)
    loss.backward()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    known = {id(weight) for weight in weights}
    ordered = weights + [p for p in model.parameters() if id(p) not in known]
    gradients = torch.cat([p.grad.reshape(-1) for p in ordered])
    gradients[: network.prunable] *= network.mask
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    statistics = [getattr(norm, name) for norm in norms for name in ("running_mean", "running_var")]
    return loss.item(), gradients, torch.cat(statistics) if statistics else torch.zeros(0)


def assert_exact(network, images, labels, steps):
    """Compare gradients with double precision, by their norm, as a rectifier may be at its kink to the last bit.

    Single precision is allowed twenty times the error that PyTorch itself has in it.
    """
    loss, gradients, statistics = by_pytorch(network, images, labels)
    _, single, _ = by_pytorch(network, images, labels, torch.float32)
    network.gradients.fill_(0)
    assert steps.gradients(images, labels) == pytest.approx(loss, rel=1e-4)
    norm = gradients.norm()
    own = (single - gradients).norm() / norm
    assert float((network.gradients - gradients).norm() / norm) < 1e-4 + 20 * float(own)
    torch.testing.assert_close(network.statistics, statistics.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("examples", [1, 5, 64])
@pytest.mark.parametrize("density", [1.0, 0.3, 0.02])
@pytest.mark.parametrize(("family", "depth", "width", "shape"), SHAPES)
def test_gradients_and_statistics_are_those_of_double_precision(family, depth, width, shape, density, examples):
    network = make(family, depth, width, shape, density)
    images, labels = batch(shape, examples)
    assert_exact(network, images, labels, SparseSteps(network, Protocol(), shape))
    gone = network.mask == 0
    assert not network.gradients[: network.prunable][gone].any()
    assert not network.weights[gone].any()


def test_a_second_batch_of_another_size_leaves_nothing_of_the_first():
    shape = (1, 9, 7)
    network, sizes = make("cifar_resnet", 8, 2, shape, 0.5), (64, 13, 64, 13)
    sparse = SparseSteps(network, Protocol(), shape)
    for seed, examples in enumerate(sizes):
        assert_exact(network, *batch(shape, examples, seed=seed), sparse)


@pytest.mark.parametrize(("family", "depth", "width", "shape"), SHAPES)
def test_logits_are_those_of_the_evaluated_module(family, depth, width, shape):
    network = make(family, depth, width, shape, 0.4)
    with torch.no_grad():
        network.statistics.add_(0.3 * torch.rand(len(network.statistics)))
    images, _ = batch(shape, 233)  # more than two batches of evaluation, the last one short
    before = network.state()
    logits = SparseSteps(network, Protocol(), shape).logits(images)
    expected = TorchSteps(network, Protocol()).logits(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state().items())


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "momentum": 0.0}, {"augmentation": "flip_crop"}])
@pytest.mark.parametrize("family", ["cifar_resnet", "mlp"])
def test_training_follows_pytorch_step_by_step(toy, digits, family, settings):
    # A small learning rate, so that rounding has no time to grow; 60 examples in batches of 16 end with one of 12.
    trajectory = toy(family, dataset_size=60, epochs=4, learning_rate=1e-3, rewind=0.3, **settings)
    ends = {}
    for kernels in ("torch", "sparse"):
        network = make_network(trajectory, digits, CPU)
        network.rewind(network.state(), prune(network.weights, network.mask, network.prunable // 3))
        steps = make_steps(kernels, network, trajectory.protocol, digits.input_shape)
        state = train(steps, subset(digits, trajectory), trajectory, 0)
        ends[kernels] = network.state(), state, count_wrong(steps, digits)
    assert ends["torch"][2] == ends["sparse"][2]
    for which in (0, 1):  # at the end, and at the rewinding step
        for name, tensor in ends["torch"][which].items():
            torch.testing.assert_close(ends["sparse"][which][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    begun = make_network(trajectory, digits, CPU).values
    assert float((ends["torch"][0]["values"] - begun).abs().max()) > 1e-3  # something was trained


def test_pruned_weights_stay_zero_and_kept_ones_move(toy, digits):
    trajectory = toy("cifar_resnet", dataset_size=60, weight_decay=1e-2)
    network = make_network(trajectory, digits, CPU)
    network.rewind(network.state(), prune(network.weights, network.mask, network.prunable // 2))
    before, gone = network.weights.clone(), network.mask == 0
    train(
        make_steps("sparse", network, trajectory.protocol, digits.input_shape),
        subset(digits, trajectory),
        trajectory,
        1,
    )
    assert not network.weights[gone].any()
    assert bool((network.weights != before)[~gone].all())


def test_final_errors_are_those_of_pytorch_over_many_seeds(toy, digits, tmp_path):
    # Stated in advance: the mean difference of paired seeds within four of its standard errors at every level.
    differences = []
    for replicate in range(40):
        trajectory = toy("cifar_resnet", width=2, dataset_size=100, epochs=4, levels=2, replicate=replicate)
        wrong = {}
        for kernels in ("torch", "sparse"):
            store = Store(tmp_path / kernels, trajectory.protocol)
            run_trajectory(trajectory, digits, store, kernels=kernels)
            wrong[kernels] = [record["n_wrong"] for record in store.records(trajectory.key)]
        differences.append(np.subtract(wrong["sparse"], wrong["torch"]))
    mean, error = np.mean(differences, 0), np.std(differences, 0, ddof=1) / np.sqrt(40)
    assert np.all(np.abs(mean) < 4 * error)
    assert np.any(np.array(differences) != 0)  # rounding does differ, so the agreement says something


CHOICES = [
    ("cifar_resnet", 8, 1.0, "sparse"),
    ("cifar_resnet", 16, 1.0, "torch"),
    ("cifar_resnet", 16, 0.4, "sparse"),
    ("mlp", 64, 1.0, "sparse"),
    ("mlp", 2000, 1.0, "torch"),
    ("mlp", 2000, 0.01, "sparse"),
]


@pytest.mark.parametrize(("family", "width", "density", "expected"), CHOICES)
def test_the_faster_one_is_chosen_by_description_and_density(toy, digits, family, width, density, expected):
    trajectory = toy(family, width=width)
    network = make_network(trajectory, digits, CPU)
    network.rewind(network.state(), prune(network.weights, network.mask, int(density * network.prunable)))
    assert choose_steps(trajectory, network) == expected
    assert choose_steps(trajectory, network, "torch") == "torch"
    assert choose_steps(trajectory, network, "sparse") == "sparse"


def test_unknown_kernels_are_refused_before_anything_runs(whole, tmp_path):
    from imp_runs.config import load_sweep

    with pytest.raises(ImpRunsError, match=r"kernels 'dense' must be one of auto, torch, sparse"):
        run_sweep(load_sweep(whole.file), tmp_path / "store", kernels="dense", device="cpu")


def test_sparse_kernels_are_refused_on_a_gpu(toy, digits):
    trajectory = toy()
    network = make_network(trajectory, digits, torch.device("meta"))
    with pytest.raises(ImpRunsError, match="are for the CPU"):
        choose_steps(trajectory, network, "sparse")
    assert choose_steps(trajectory, network) == "torch"


def test_families_that_the_kernels_do_not_know_are_left_to_pytorch(toy, digits):
    trajectory = toy("imagenet_resnet")
    network = make_network(trajectory, digits, CPU)
    assert choose_steps(trajectory, network) == choose_steps(trajectory, network, "torch") == "torch"
    with pytest.raises(ImpRunsError, match="know cifar_resnet and mlp, not imagenet_resnet; give --kernels auto"):
        choose_steps(trajectory, network, "sparse")


def test_a_module_that_the_kernels_do_not_know_is_refused():
    network = make("mlp", 2, 3, (1, 4, 4), 1.0)
    network.model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="CifarResNet, MLP"):
        SparseSteps(network, Protocol(), (1, 4, 4))


TRAINED = """
import hashlib
import torch
from imp_runs.config import Protocol
from imp_runs.network import Network
from imp_runs.sparse import SparseSteps

network = Network.fresh("cifar_resnet", 8, 2, (1, 8, 8), 10, 3, torch.device("cpu"))
steps, generator = SparseSteps(network, Protocol(), (1, 8, 8)), torch.Generator().manual_seed(0)
for step in range(20):
    examples = 64 if step % 3 else 40
    images = torch.randn(examples, 1, 8, 8, generator=generator)
    steps.step(images, torch.randint(10, (examples,), generator=generator), 0.1)
print(hashlib.sha256(network.values.numpy().tobytes()).hexdigest())
"""


def test_compiled_anew_or_from_the_cache_the_numbers_are_the_same(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", TRAINED]
    first, second = (
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbc"))
    assert first == second != ""
