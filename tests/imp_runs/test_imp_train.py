"""Training and rewinding: against a plain oracle, step by step, and independent of everything but the counters."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch
from imp_oracle import run_oracle
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from imp_runs.config import Protocol
from imp_runs.examples import draw, flip_crop
from imp_runs.imp import make_network, run_trajectory
from imp_runs.prune import prune
from imp_runs.steps import TorchSteps, choose_kernels, count_wrong
from imp_runs.store import Store
from imp_runs.train import learning_rate, subset, train

CPU = torch.device("cpu")


def records_of(trajectory, dataset, folder, kernels="torch"):
    store = Store(folder, trajectory.protocol)
    run_trajectory(trajectory, dataset, store, kernels=kernels)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in store.records(trajectory.key)]


# --- the whole runner against the oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "depth", "width", "settings"),
    [
        ("mlp", 3, 8, {"epochs": 6, "levels": 4}),
        ("mlp", 2, 1, {"epochs": 1, "levels": 30}),  # to exhaustion
        ("cifar_resnet", 8, 1, {"epochs": 6, "levels": 4, "rewind": 0.2}),
        ("cifar_resnet", 8, 2, {"epochs": 4, "levels": 2, "rewind": 0.4, "augmentation": "flip_crop"}),
        ("cifar_resnet", 8, 2, {"epochs": 5, "levels": 4, "rewind": 0.0, "weight_decay": 1e-2, "decay": 0.5}),
    ],
)
def test_a_trajectory_is_that_of_the_plain_loop(toy, digits, tmp_path, family, depth, width, settings):
    trajectory = toy(family, depth=depth, width=width, dataset_size=60, **settings)
    records = records_of(trajectory, digits, tmp_path)
    expected = run_oracle(trajectory, digits)
    assert [r["n_wrong"] for r in records] == [level.n_wrong for level in expected]
    assert [r["kept_by_layer"] for r in records] == [level.kept_by_layer for level in expected]
    assert [r["status"] for r in records] == [level.status for level in expected]
    assert len({r["n_wrong"] for r in records}) > 1  # the levels differ, so their agreement says something


# --- what happens to the weights, seen from the optimiser's steps -----------------------------------------------------


class Watched:
    """Watch every optimiser step of a trajectory as it is run for real."""

    def __init__(self, trajectory, dataset, store) -> None:
        self.before, self.after = collections.defaultdict(list), collections.defaultdict(list)
        self.checkpoints, self.fresh, self.level = {}, {}, 0

        def look_before(optimizer, *_):
            (values,) = optimizer.param_groups[0]["params"]
            if not self.before[self.level]:
                self.fresh[self.level] = not any("momentum_buffer" in state for state in optimizer.state.values())
            self.before[self.level].append(values.detach().clone())

        def look_after(optimizer, *_):
            (values,) = optimizer.param_groups[0]["params"]
            self.after[self.level].append(values.detach().clone())

        def look_at_store(_levels):
            if not store.is_done(trajectory.key):
                self.level += 1
                self.checkpoints[self.level] = store.read_checkpoint(trajectory.key)

        hooks = [register_optimizer_step_pre_hook(look_before), register_optimizer_step_post_hook(look_after)]
        try:
            run_trajectory(trajectory, dataset, store, kernels="torch", progress=look_at_store)
        finally:
            for hook in hooks:
                hook.remove()


@pytest.fixture(params=["mlp", "cifar_resnet"])
def watched(request, toy, digits, tmp_path):
    trajectory = toy(request.param, dataset_size=60, epochs=4, levels=3, rewind=0.2, weight_decay=1e-2)
    return trajectory, Watched(trajectory, digits, Store(tmp_path, trajectory.protocol))


def test_every_level_starts_from_the_weights_of_step_k_times_its_mask(watched):
    trajectory, seen = watched
    steps = trajectory.protocol.steps(60)
    k = int(0.2 * steps)
    assert 0 < k < steps
    assert len(seen.after[0]) == steps
    step_k = seen.after[0][k - 1]
    assert sorted(seen.checkpoints) == [1, 2, 3]
    for level, checkpoint in seen.checkpoints.items():
        assert torch.equal(checkpoint.state["values"], step_k)
        expected = step_k.clone()
        expected[: len(checkpoint.mask)] *= checkpoint.mask
        assert torch.equal(seen.before[level][0], expected)
        assert len(seen.before[level]) == steps - k


def test_masked_weights_are_zero_and_stay_so(watched):
    _, seen = watched
    for level, checkpoint in seen.checkpoints.items():
        gone = checkpoint.mask == 0
        assert bool(gone.any())
        for values in seen.before[level] + seen.after[level]:
            assert not values[: len(gone)][gone].any()
        # ... while kept ones move.
        moved = seen.after[level][-1] != seen.before[level][0]
        assert bool(moved[: len(gone)][~gone].any())


def test_a_mask_keeps_the_largest_of_the_trained_weights(watched):
    _, seen = watched
    mask = torch.ones_like(seen.checkpoints[1].mask)
    for level, checkpoint in seen.checkpoints.items():
        trained = seen.after[level - 1][-1][: len(mask)].tolist()
        there = mask.nonzero().flatten().tolist()
        order = sorted(there, key=lambda i: (-abs(trained[i]), i))
        stays = sorted(order[: len(there) - len(there) // 5])
        assert checkpoint.mask.nonzero().flatten().tolist() == stays
        mask = checkpoint.mask


def test_momentum_is_fresh_at_every_level(watched):
    _, seen = watched
    assert seen.fresh == {0: True, 1: True, 2: True, 3: True}


# --- rewinding and training of one network ----------------------------------------------------------------------------


def pruned_once(trajectory, dataset):
    """Train a network, prune it, and give it with its examples, its stored state and its mask."""
    choose_kernels(trajectory, dataset, torch.device("cpu"))
    network, examples = make_network(trajectory, dataset, CPU), subset(dataset, trajectory)
    state = train(TorchSteps(network, trajectory.protocol), examples, trajectory, 0)
    mask = prune(network.weights, network.mask, trajectory.protocol.kept_after(network.kept))
    return network, examples, state, mask


def test_batch_norm_statistics_are_rewound_too(toy, digits):
    trajectory = toy("cifar_resnet", epochs=4, rewind=0.25)
    network, _, state, mask = pruned_once(trajectory, digits)
    trained = {name: buffer.clone() for name, buffer in network.model.named_buffers()}
    assert int(trained["bn.num_batches_tracked"]) == 12
    assert int(state["bn.num_batches_tracked"]) == 3
    network.rewind(state, mask)
    for name, buffer in network.model.named_buffers():
        assert torch.equal(buffer, state[name]), name
        assert not torch.equal(buffer, trained[name]), name


def test_a_stored_state_is_a_copy(toy, digits):
    network, examples, state, mask = pruned_once(toy("cifar_resnet", epochs=4), digits)
    before = {name: tensor.clone() for name, tensor in state.items()}
    network.rewind(state, mask)
    trajectory = toy("cifar_resnet", epochs=4)
    train(TorchSteps(network, trajectory.protocol), examples, trajectory, 1)
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert not torch.equal(network.values, before["values"])


def test_the_stored_state_is_that_after_step_k(toy, digits):
    whole = toy("cifar_resnet", epochs=4, rewind=0.5)  # 3 steps an epoch: k = 6
    state = pruned_once(whole, digits)[2]
    # Two epochs at the first learning rate are just these six steps.
    half = toy("cifar_resnet", epochs=2, milestones=(), rewind=0.0)
    network = make_network(half, digits, CPU)
    train(TorchSteps(network, half.protocol), subset(digits, half), half, 0)
    for name, tensor in network.state().items():
        assert torch.equal(tensor, state[name]), name


def test_rewinding_to_step_0_gives_back_the_initial_network(toy, digits):
    trajectory = toy("cifar_resnet", rewind=0.0)
    initial, state = make_network(trajectory, digits, CPU).state(), pruned_once(trajectory, digits)[2]
    assert initial.keys() == state.keys()
    assert all(torch.equal(initial[name], state[name]) for name in initial)


def test_the_first_step_after_rewinding_knows_no_momentum(toy, digits):
    # 12 steps, k = 11: a later level is a single step, the last one of the schedule.
    trajectory = toy("mlp", epochs=4, rewind=11 / 12, weight_decay=0.5)
    network, examples, state, mask = pruned_once(trajectory, digits)
    network.rewind(state, mask)
    start = network.values.clone()
    train(TorchSteps(network, trajectory.protocol), examples, trajectory, 1, start=11)
    gradient = network.gradients.clone()
    assert bool(gradient[: network.prunable][mask == 0].eq(0).all())
    rate = 0.1 * 0.1**2  # past both milestones
    expected = torch.add(start, torch.add(gradient, start, alpha=0.5), alpha=-rate)
    assert torch.equal(network.values, expected)
    assert not torch.equal(network.values, start)


def test_training_twice_from_one_state_gives_the_same_weights(toy, digits):
    trajectory = toy("cifar_resnet", epochs=3, augmentation="flip_crop")
    network, examples, state, mask = pruned_once(trajectory, digits)
    ends = []
    for seed in (1, 2):  # the generator of the process takes no part
        torch.manual_seed(seed)
        network.rewind(state, mask)
        train(TorchSteps(network, trajectory.protocol), examples, trajectory, 1)
        ends.append(network.state())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_levels_differ_in_order_and_augmentation(toy, digits):
    for augmentation in ("none", "flip_crop"):
        trajectory = toy("mlp", epochs=1, augmentation=augmentation)
        network, examples, state, mask = pruned_once(trajectory, digits)
        ends = []
        for level in (1, 2):
            network.rewind(state, mask)
            train(TorchSteps(network, trajectory.protocol), examples, trajectory, level)
            ends.append(network.values.clone())
        assert not torch.equal(*ends)


def test_augmentation_is_used_only_when_asked_for(toy, digits):
    errors = {}
    for augmentation in ("none", "flip_crop"):
        trajectory = toy("mlp", epochs=1, batch_size=40, augmentation=augmentation)
        network = make_network(trajectory, digits, CPU)
        train(TorchSteps(network, trajectory.protocol), subset(digits, trajectory), trajectory, 0)
        errors[augmentation] = network.values.clone()
    assert not torch.equal(errors["none"], errors["flip_crop"])


# --- schedule, augmentation, evaluation -------------------------------------------------------------------------------


def test_the_learning_rate_falls_at_the_milestones():
    protocol = Protocol(learning_rate=0.4, milestones=(0.5, 0.75), decay=0.1)
    rates = [learning_rate(protocol, step, 8) for step in range(8)]
    assert rates == pytest.approx([0.4] * 4 + [0.04] * 2 + [0.004] * 2, rel=1e-15)
    assert [learning_rate(protocol, step, 3) for step in range(3)] == pytest.approx([0.4, 0.04, 0.004], rel=1e-15)
    assert {learning_rate(Protocol(milestones=()), step, 8) for step in range(8)} == {0.1}
    paper = Protocol(epochs=160, batch_size=128)
    steps = paper.steps(50_000)
    falls = [s for s in range(1, steps) if learning_rate(paper, s, steps) < learning_rate(paper, s - 1, steps)]
    assert falls == [80 * 391, 120 * 391]


def test_the_optimiser_follows_the_schedule(toy, digits):
    trajectory = toy("mlp", epochs=4, rewind=0.25)
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        network, examples, state, mask = pruned_once(trajectory, digits)
        network.rewind(state, mask)
        train(TorchSteps(network, trajectory.protocol), examples, trajectory, 1, start=3)
    finally:
        hook.remove()
    whole = [0.1] * 6 + [0.1 * 0.1] * 3 + [0.1 * 0.1**2] * 3
    assert rates == whole + whole[3:]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 6, 9)])
def test_flip_and_crop_is_what_a_loop_over_images_does(channels, height, width):
    images = torch.randn(50, channels, height, width, generator=torch.Generator().manual_seed(1))
    augmented = flip_crop(images, draw(len(images), torch.Generator().manual_seed(2)))
    flips, tops, lefts = torch.rand(3, 50, generator=torch.Generator().manual_seed(2)).tolist()
    for image, result, flip, top, left in zip(images, augmented, flips, tops, lefts, strict=True):
        canvas = torch.zeros(channels, height + 8, width + 8)
        for row in range(height):
            for column in range(width):
                source = width - 1 - column if flip < 0.5 else column
                canvas[:, 4 + row, 4 + column] = image[:, row, source]
        down, across = int(top * 9), int(left * 9)
        assert torch.equal(result, canvas[:, down : down + height, across : across + width])


def test_flip_and_crop_reaches_every_offset_equally_often():
    # One lit pixel in the middle tells where the crop was; 8,100 images over 2 x 81 outcomes. The image is 9 wide, so
    # a flip leaves the middle where it is, and a second lit pixel beside it tells whether there was one.
    images = torch.zeros(8100, 1, 9, 9)
    images[:, 0, 4, 4], images[:, 0, 4, 5] = 1, 2
    augmented = flip_crop(images, draw(len(images), torch.Generator().manual_seed(3)))
    outcomes = collections.Counter()
    for image in augmented[:, 0]:
        row, column = (image == 1).nonzero()[0].tolist()
        flipped = column > 0 and float(image[row, column - 1]) == 2
        outcomes["flipped" if flipped else "kept"] += column > 0  # at the left edge a flipped neighbour is cut off
        outcomes[row, column] += 1
    places = [count for place, count in outcomes.items() if isinstance(place, tuple)]
    assert len(places) == 81
    # Binomial(8100, 1/81) has mean 100 and standard deviation 9.9; five of those are 50.
    assert all(50 <= count <= 150 for count in places)
    # Binomial(7200, 1/2): standard deviation 42.
    assert abs(outcomes["flipped"] - outcomes["kept"]) < 2 * 5 * 43


def test_wrong_answers_are_counted_over_the_whole_test_set_in_evaluation_mode(toy, digits):
    trajectory = toy("cifar_resnet", epochs=3)
    network, *_ = pruned_once(trajectory, digits)
    before, steps = network.state(), TorchSteps(network, trajectory.protocol)
    wrong = count_wrong(steps, digits)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state().items())
    assert network.model.training
    with torch.no_grad():
        guesses = [network.model.eval()(image[None]).argmax().item() for image in digits.test_images]
    assert wrong == sum(a != b for a, b in zip(guesses, digits.test_labels.tolist(), strict=True))
    # More than one batch of evaluation, the last one short.
    repeated = dataclasses.replace(
        digits, test_images=digits.test_images.repeat(3, 1, 1, 1), test_labels=digits.test_labels.repeat(3)
    )
    assert count_wrong(steps, repeated) == 3 * wrong


# --- what a trajectory does not depend on -----------------------------------------------------------------------------


def test_results_depend_neither_on_other_runs_nor_on_the_generator_of_the_process(toy, digits, tmp_path):
    one, two = toy("cifar_resnet"), toy("cifar_resnet", replicate=1)
    torch.manual_seed(1)
    first = [records_of(t, digits, tmp_path / "a") for t in (one, two)]
    torch.manual_seed(2)
    second = [records_of(t, digits, tmp_path / "b") for t in (two, one)]
    assert first == second[::-1]
    assert [r["n_wrong"] for r in first[0]] != [r["n_wrong"] for r in first[1]]


class Interrupted(Exception):
    """Stands for whatever ends a process between two levels."""


@pytest.mark.parametrize("kernels", ["torch", "sparse"])
@pytest.mark.parametrize("family", ["mlp", "cifar_resnet"])
def test_a_run_interrupted_at_every_level_gives_the_same_records(toy, digits, tmp_path, family, kernels):
    trajectory = toy(family, levels=3)

    def interrupt(_levels):
        raise Interrupted

    store, interruptions = Store(tmp_path / "interrupted", trajectory.protocol), 0
    while not store.is_done(trajectory.key):
        assert interruptions < 4, "no progress"
        try:
            run_trajectory(trajectory, digits, store, kernels=kernels, progress=interrupt)
        except Interrupted:
            interruptions += 1
    assert interruptions == 4
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in store.records(trajectory.key)]
    assert records == records_of(trajectory, digits, tmp_path / "whole", kernels)


@pytest.mark.parametrize("kernels", ["torch", "sparse"])
def test_a_run_whose_weights_blow_up_ends_marked_as_diverged(toy, digits, tmp_path, kernels):
    trajectory = toy("mlp", epochs=4, learning_rate=1e30, levels=3)
    records = records_of(trajectory, digits, tmp_path, kernels)
    assert [(r["level"], r["status"]) for r in records] == [(0, "diverged")]
    assert 0 <= records[0]["n_wrong"] <= 797
    assert Store(tmp_path).is_done(trajectory.key)
