"""Training in bfloat16: what is rounded and what is not, against float32 and against rounding by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from imp_runs.config import Protocol, protocol_hash
from imp_runs.errors import ImpRunsError
from imp_runs.imp import make_network, run_trajectory
from imp_runs.network import Network
from imp_runs.stacked import StackedNetwork, StackedSteps
from imp_runs.steps import TorchSteps, choose_steps
from imp_runs.store import Store
from imp_runs.table import make_table

CPU = torch.device("cpu")
HALF = Protocol(name="half", precision="bfloat16")
FAMILIES = ["mlp", "cifar_resnet", "cifar_densenet", "tinyimagenet_resnet"]
#: Of logits, relative: eight bits are kept of every number, 2^-9 is lost on average, some tens of times in a row.
ROUNDED = 0.05


def batch(shape: tuple[int, int, int], examples: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(examples, *shape, generator=generator), torch.randint(10, (examples,), generator=generator)


def fresh(family: str, digits, toy) -> Network:
    return make_network(toy(family), digits, CPU)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_rounded_and_nothing_else(toy, digits, family):
    network, seen = fresh(family, digits, toy), {}

    def look(name):
        def hook(module, inputs, output):
            seen[name] = type(module), inputs[0], output

        return hook

    for name, module in network.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.register_forward_hook(look(name))
    steps = TorchSteps(network, HALF)
    images, labels = batch(digits.input_shape)
    steps.step(images, labels, 0.1)
    kinds = {kind for kind, _, _ in seen.values()}
    assert nn.Linear in kinds
    for name, (kind, given, output) in seen.items():
        if kind is not nn.BatchNorm2d:
            assert output.dtype is torch.bfloat16
            continue
        norm = network.model.get_submodule(name)
        expected = 0.1 * given.float().mean((0, 2, 3))  # the running mean after one step from 0
        torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    for tensor in (network.values, network.gradients, network.statistics, steps.velocity, steps.logits(images)):
        assert tensor.dtype is torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_float32_but_for_rounding(toy, digits, family):
    network = fresh(family, digits, toy)
    images, _ = batch(digits.input_shape)
    half, single = (TorchSteps(network, protocol).logits(images) for protocol in (HALF, Protocol()))
    assert 1e-4 < distance(half, single) < ROUNDED


def test_the_gradient_of_a_layer_is_that_of_rounded_weights_and_inputs(toy, digits):
    """The last layer's, whose input can be seen: by hand, in double precision."""
    network = fresh("cifar_resnet", digits, toy)
    last = network.model.get_submodule([n for n, m in network.model.named_modules() if isinstance(m, nn.Linear)][-1])
    seen = {}
    last.register_forward_hook(lambda _, inputs, output: seen.update(given=inputs[0], logits=output))
    images, labels = batch(digits.input_shape)
    weight, bias = last.weight.detach().clone(), last.bias.detach().clone()
    TorchSteps(network, dataclasses.replace(HALF, weight_decay=0.0)).step(images, labels, 0.0)
    given = seen["given"].detach().bfloat16().double()
    logits = given @ weight.bfloat16().double().T + bias.bfloat16().double()
    torch.testing.assert_close(seen["logits"].detach().double(), logits, rtol=2**-8, atol=2**-8)
    slope = torch.softmax(seen["logits"].detach().double(), 1)
    slope[torch.arange(len(labels)), labels] -= 1
    expected = (slope / len(labels)).bfloat16().double().T @ given
    assert distance(last.weight.grad.double(), expected) < 2**-7


def test_a_stack_rounds_like_its_networks(toy, digits):
    networks = [make_network(toy("cifar_resnet", replicate=r), digits, CPU) for r in range(3)]
    images, _ = batch(digits.input_shape)
    alone = [TorchSteps(network, HALF).logits(images) for network in networks]
    together = StackedSteps(StackedNetwork([networks], 4), HALF).logits(images)
    assert together.dtype is torch.float32
    for own, other in zip(alone, together, strict=False):
        assert distance(other, own) < ROUNDED
    assert distance(together[1], together[0]) > 10 * ROUNDED


def test_final_errors_are_those_of_float32_over_many_seeds(toy, digits, tmp_path):
    # Stated in advance: the mean difference of paired seeds within four of its standard errors at every level.
    differences = []
    for replicate in range(30):
        wrong = []
        for precision in ("float32", "bfloat16"):
            changes = {"width": 8, "dataset_size": 100, "epochs": 8, "replicate": replicate, "precision": precision}
            trajectory = toy("mlp", **changes)
            store = Store(tmp_path / precision, trajectory.protocol)
            run_trajectory(trajectory, digits, store, kernels="torch")
            wrong.append([record["n_wrong"] for record in store.records(trajectory.key)])
        differences.append(np.subtract(*wrong))
    mean, error = np.mean(differences, 0), np.std(differences, 0, ddof=1) / np.sqrt(30)
    assert np.all(np.abs(mean) < 4 * error)
    assert np.any(np.array(differences) != 0)
    table = make_table(tmp_path / "bfloat16")
    assert set(table["precision"]) == {"bfloat16"}
    assert set(make_table(tmp_path / "float32")["precision"]) == {"float32"}


def test_a_store_holds_one_precision(toy, tmp_path):
    assert protocol_hash(dataclasses.replace(HALF, precision="float32")) != protocol_hash(HALF)
    Store(tmp_path, toy().protocol)
    with pytest.raises(ImpRunsError, match="protocol"):
        Store(tmp_path, toy(precision="bfloat16").protocol)


def test_sparse_kernels_compute_in_float32_alone(toy, digits):
    trajectory = toy("cifar_resnet", precision="bfloat16")
    network = make_network(trajectory, digits, CPU)
    assert choose_steps(trajectory, network) == "torch"
    with pytest.raises(ImpRunsError, match=r"float32, not in protocol.precision 'bfloat16'; give --kernels auto"):
        choose_steps(trajectory, network, "sparse")


def test_tensorfloat32_is_for_gpus_that_have_it(toy, digits, tmp_path):
    trajectory = toy(precision="tensorfloat32")
    with pytest.raises(ImpRunsError, match=r"needs a GPU of compute capability 8\.0 or more, and device cpu is none"):
        run_trajectory(trajectory, digits, Store(tmp_path, trajectory.protocol))
    assert protocol_hash(trajectory.protocol) != protocol_hash(toy().protocol)
