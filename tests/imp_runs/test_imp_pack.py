"""Stacks of networks against the plain loop, one network at a time; packs interrupted, mixed and run by the engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from imp_runs.config import load_sweep
from imp_runs.datasets import Dataset
from imp_runs.errors import BusyError, ImpRunsError, StoppedError
from imp_runs.imp import make_network, run_trajectory
from imp_runs.network import Network
from imp_runs.pack import run_pack
from imp_runs.packing import ALONE, LOAD, Choices, Way, choices_file, remember, shares_of, unmeasured
from imp_runs.prune import prune
from imp_runs.stacked import StackedExamples, StackedNetwork, StackedSteps
from imp_runs.steps import TorchSteps
from imp_runs.store import Store
from imp_runs.sweep import run_sweep
from imp_runs.table import make_table
from imp_runs.train import subset
from imp_runs.work import Settings, fail

CPU = torch.device("cpu")
#: Relative, in double precision: sums run in another order.
ONE_STEP, FIVE_STEPS = 1e-10, 1e-6
#: Columns that say how a row was computed, not what came out.
HOW = ["kernels", "seconds"]
FAMILIES = ["mlp", "cifar_resnet", "cifar_densenet", "tinyimagenet_resnet"]


@pytest.fixture
def double(digits):
    """Compute in double precision, in which a stack and single networks agree to many digits."""
    torch.set_default_dtype(torch.float64)
    yield dataclasses.replace(
        digits, train_images=digits.train_images.double(), test_images=digits.test_images.double()
    )
    torch.set_default_dtype(torch.float32)


def pruned_networks(toy, family: str, dataset: Dataset, count: int) -> list[Network]:
    """Make networks with other weights and other masks each."""
    networks = []
    for replicate in range(count):
        network = make_network(toy(family, replicate=replicate), dataset, CPU)
        kept = network.prunable // (2 + replicate)
        network.rewind(network.state(), prune(network.weights, network.mask, kept))
        networks.append(network)
    return networks


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_a_stack_are_those_of_its_networks(toy, double, family):
    """Gradients, then values, statistics, momentum and logits after five steps, the last batch an odd one."""
    protocol = toy(family, momentum=0.9, weight_decay=1e-3).protocol
    alone, stacked = (pruned_networks(toy, family, double, 3) for _ in range(2))
    stack = StackedNetwork([stacked], 4)
    steps = StackedSteps(stack, protocol)
    serial = [TorchSteps(network, protocol) for network in alone]
    generator = torch.Generator().manual_seed(0)
    for number, size in enumerate((8, 8, 8, 8, 3)):
        images = torch.randn(4, size, *double.input_shape, generator=generator)
        labels = torch.randint(10, (4, size), generator=generator)
        steps.step(images, labels, 0.1)
        for place, own in enumerate(serial):
            own.step(images[place], labels[place], 0.1)
        if number == 0:
            for place, network in enumerate(alone):
                assert distance(stack.unstack(stack.gradients)[place], network.gradients) < ONE_STEP
    logits = steps.logits(images[0])
    stack.give_back()
    for place, own in enumerate(serial):
        assert distance(stacked[place].values, own.network.values) < FIVE_STEPS
        assert distance(stack.unstack(steps.velocity)[place], own.velocity) < FIVE_STEPS
        assert distance(logits[place], own.logits(images[0])) < FIVE_STEPS
        assert torch.equal(stacked[place].weights == 0, own.network.weights == 0)
        for name, statistic in own.network.model.named_buffers():
            assert torch.allclose(dict(stacked[place].model.named_buffers())[name], statistic, rtol=FIVE_STEPS)
    assert distance(stacked[0].values, stacked[1].values) > 0.1


def test_a_network_that_diverges_takes_no_other_with_it(toy, digits):
    networks, fine = (pruned_networks(toy, "cifar_resnet", digits, 2) for _ in range(2))
    networks[0].values[0] = torch.nan
    batch = torch.randn(2, 8, *digits.input_shape), torch.randint(10, (2, 8))
    for stacked in (networks, fine):
        stack = StackedNetwork([stacked], 2)
        steps = StackedSteps(stack, toy().protocol)
        for _ in range(3):
            steps.step(*batch, 0.1)
        stack.give_back()
    assert torch.isnan(networks[0].values).any()
    assert torch.equal(networks[1].values, fine[1].values)


@pytest.mark.parametrize("augmentation", ["none", "flip_crop"])
def test_members_see_what_they_would_see_alone(toy, digits, augmentation):
    """Batch for batch, from the middle of an epoch too, each at its own level."""
    members = [toy(replicate=r, dataset_size=40, batch_size=16, augmentation=augmentation) for r in range(2)]
    held = [subset(digits, member) for member in members]
    examples = StackedExamples(held, members, [0, 3], [0, 1, 0])
    assert len(examples) == 40
    for taken in (0, 1):
        alone = [list(h.batches(t, at, 1, 0, taken)) for h, t, at in zip(held, members, (0, 3), strict=True)]
        seen = list(examples.batches(members[0], 0, 1, 0, taken))
        assert len(seen) == len(alone[0]) == 3 - taken
        for (images, labels), *own in zip(seen, *alone, strict=True):
            for place in range(3):
                assert torch.equal(images[place], own[place % 2][0])
                assert torch.equal(labels[place], own[place % 2][1])


def tables_of(trajectories, dataset, tmp_path, run) -> list[pd.DataFrame]:
    """Run trajectories one by one and as told; give both tables without what says how."""
    serial, packed = (Store(tmp_path / name, trajectories[0].protocol) for name in ("serial", "packed"))
    for trajectory in trajectories:
        run_trajectory(trajectory, dataset, serial, kernels="torch")
    run(packed)
    return [make_table(store).drop(columns=HOW) for store in (serial, packed)]


@pytest.mark.parametrize("family", ["mlp", "cifar_resnet"])
def test_a_pack_gives_the_table_of_single_runs(toy, double, tmp_path, family):
    """Five trajectories in stacks of three, whose places others take; rewinding in the middle of an epoch."""
    grid = {"dataset_size": 45, "levels": 3, "rewind": 0.3, "augmentation": "flip_crop", "epochs": 3}
    trajectories = [toy(family, replicate=replicate, **grid) for replicate in range(5)]
    serial, packed = tables_of(
        trajectories, double, tmp_path, lambda store: run_pack(trajectories, double, store, Way(3))
    )
    pd.testing.assert_frame_equal(packed, serial, check_exact=True)
    assert serial["n_wrong"].nunique() > 5


def test_networks_side_by_side_give_the_table_of_single_runs_bit_for_bit(toy, digits, tmp_path):
    """In single precision, of five architectures, one of which is pruned to nothing before the others end."""
    kinds = [("mlp", {"depth": 2, "width": 1}), ("mlp", {"depth": 3, "width": 4}), ("cifar_resnet", {"width": 1})]
    kinds += [("cifar_resnet", {"width": 2, "depth": 14}), ("cifar_vgg", {"dataset": "digits"})]
    grid = {"dataset_size": 45, "levels": 6, "rewind": 0.3, "epochs": 3, "prune_fraction": 0.8}
    images = [torch.nn.functional.interpolate(part, size=16) for part in (digits.train_images, digits.test_images)]
    larger = dataclasses.replace(digits, train_images=images[0], test_images=images[1])
    trajectories = [toy(family, replicate=r, **changes, **grid) for family, changes in kinds for r in range(2)]
    serial, packed = tables_of(
        trajectories, larger, tmp_path, lambda store: run_pack(trajectories, larger, store, Way(1, 4))
    )
    pd.testing.assert_frame_equal(packed, serial, check_exact=True)
    assert serial.groupby("trajectory")["level"].max().nunique() > 1


def test_stacks_of_several_architectures_side_by_side(toy, double, tmp_path):
    """In double precision, with places that are left over, stopped inside a level and gone on with."""
    grid = {"dataset_size": 45, "levels": 2, "rewind": 0.3, "augmentation": "flip_crop", "epochs": 3}
    kinds = [("mlp", {}), ("cifar_resnet", {}), ("cifar_resnet", {"depth": 14}), ("cifar_densenet", {"width": 1})]
    trajectories = [toy(family, replicate=r, **changes, **grid) for family, changes in kinds for r in range(3)]

    def run(store: Store) -> None:
        calls = iter(range(10**6))
        with pytest.raises(StoppedError, match="stopped at step"):
            run_pack(trajectories, double, store, Way(2, 3), stop=lambda: next(calls) >= 20)
        assert not any(run_pack(trajectories, double, store, Way(2, 3)).values())

    serial, packed = tables_of(trajectories, double, tmp_path, run)
    pd.testing.assert_frame_equal(packed, serial, check_exact=True)


def test_a_pack_that_is_stopped_goes_on_as_another_or_one_by_one(toy, double, tmp_path):
    """Stopped three times inside levels, then in stacks of two; one goes on alone, the others together."""
    grid = {"dataset_size": 45, "levels": 2, "rewind": 0.3, "epochs": 3}
    trajectories = [toy("cifar_resnet", replicate=replicate, **grid) for replicate in range(3)]

    def run(store: Store) -> None:
        for size, steps in ((3, 5), (3, 7), (2, 5)):
            calls = iter(range(10**6))
            with pytest.raises(StoppedError, match="stopped at step"):
                run_pack(trajectories, double, store, Way(size), stop=lambda n=3 * steps, c=calls: next(c) >= n)
            inside = [path for key in store.keys() for path in store.folder(key).glob("checkpoint-*-*.json")]
            assert inside
        run_trajectory(trajectories[0], double, store, kernels="torch")
        assert not any(run_pack(trajectories, double, store, Way(2)).values())

    serial, packed = tables_of(trajectories, double, tmp_path, run)
    pd.testing.assert_frame_equal(packed, serial, check_exact=True)


def test_what_else_is_in_a_stack_changes_no_bit(toy, digits, tmp_path):
    """In single precision: a trajectory alone in a stack of four, and among three others."""
    trajectories = [toy("cifar_resnet", replicate=replicate, levels=2) for replicate in range(4)]
    tables = []
    for own in (trajectories[2:3], trajectories):
        store = Store(tmp_path / str(len(own)), trajectories[0].protocol)
        run_pack(own, digits, store, Way(4))
        table = make_table(store)
        tables.append(table[table["replicate"] == 2].drop(columns="seconds").reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert tables[0]["kernels"].str.endswith("stack of 4").all()


def test_final_errors_are_those_of_single_runs_over_many_seeds(toy, digits, tmp_path):
    # Stated in advance, as for the sparse kernels: the mean difference of paired seeds within four of its standard
    # errors at every level, or no difference at all.
    grid = {"width": 2, "dataset_size": 100, "epochs": 4, "levels": 2}
    trajectories = [toy("cifar_resnet", replicate=replicate, **grid) for replicate in range(40)]
    serial, packed = tables_of(
        trajectories, digits, tmp_path, lambda store: run_pack(trajectories, digits, store, Way(8))
    )
    difference = (packed["n_wrong"] - serial["n_wrong"]).groupby(serial["level"])
    mean, error = difference.mean(), difference.std() / np.sqrt(40)
    assert (mean.abs() <= 4 * error).all()


def test_a_failure_and_a_run_elsewhere_leave_the_others_alone(toy, digits, tmp_path):
    """One record says something else, one trajectory is run by another process; both are told, two others are done."""
    trajectories = [toy(replicate=replicate) for replicate in range(4)]
    store = Store(tmp_path, trajectories[0].protocol)
    key = trajectories[1].key
    with store.locked(trajectories[1]):
        store.write_record(key, 1, {"level": 1, "n_wrong": -1})
    with store.locked(trajectories[3]):
        ended = run_pack(trajectories, digits, Store(tmp_path), Way(2))
    assert isinstance(ended[key], ImpRunsError)
    assert "gave another" in str(ended[key])
    assert isinstance(ended[trajectories[3].key], BusyError)
    assert [store.is_done(trajectory.key) for trajectory in trajectories] == [True, False, True, False]


def test_what_is_not_alike_is_no_pack(toy, digits, tmp_path):
    store = Store(tmp_path, toy().protocol)
    with pytest.raises(ImpRunsError, match="one dataset and dataset size; got 2 kinds"):
        run_pack([toy(), toy(dataset_size=7)], digits, store, Way(2))
    with pytest.raises(ImpRunsError, match=r"imagenet.*--pack 1"):
        run_pack([dataclasses.replace(toy(), dataset="imagenet")], digits, store, Way(2))
    with pytest.raises(ValueError, match=r"\[3\] networks do not fit 2 places"):
        StackedNetwork([pruned_networks(toy, "mlp", digits, 3)], 2)


def test_the_engine_deals_out_packs(toy, tmp_path):
    """Two workers get a pack each of what is alike; what is streamed or was not asked for goes one by one."""
    store = Store(tmp_path, toy().protocol)
    tasks = [(toy(width=width, replicate=r), store) for width in (2, 3) for r in range(5)]
    shares = shares_of(tasks, Settings(pack=2), 2)
    assert [(len(share.tasks), share.way) for share in shares] == [(3, Way(2)), (2, Way(2))] * 2
    assert {t.width for t, _ in shares[0].tasks} == {2}
    assert sorted(t.key for share in shares for t, _ in share.tasks) == sorted(t.key for t, _ in tasks)
    together = shares_of(tasks, Settings(pack=2, streams=2), 2)
    assert [(len(share.tasks), share.way) for share in together] == [(5, Way(2, 2))] * 2
    assert {t.width for t, _ in together[0].tasks} == {2, 3}
    mixed = sorted(tasks, key=lambda task: task[0].replicate)
    assert [share.tasks for share in shares_of(mixed, Settings(pack=None), 2)] == [[task] for task in mixed]
    streamed = [(dataclasses.replace(t, dataset="imagenet"), store) for t, _ in tasks]
    assert [share.way for share in shares_of(streamed, Settings(pack=8), 2)] == [ALONE] * 10


def test_what_was_measured_on_a_gpu_is_remembered_there_and_nowhere_else(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    remember("cuda", toy(), Way(16))
    remember("cuda", toy(width=3), Way(4, 8))
    remember("cpu", toy(), Way(8))
    assert choices_file().is_relative_to(tmp_path)
    asked = [Choices("cuda").of(own, 100) for own in (toy(), toy(width=3), toy(width=4))]
    assert asked == [Way(16), Way(4, 8), unmeasured(toy(width=4))]
    assert Choices("cuda").of(toy(width=3), 3) == Way(3, 11)  # as many networks, in stacks that are full
    assert Choices("cuda", 2).of(toy(), 100) == Way(2)
    assert Choices("cpu").of(toy(), 100) == ALONE
    for damaged in ("no json", "[]", choices_file().read_text().replace("16", '"16"')):
        choices_file().write_text(damaged)
        assert Choices("cuda").of(toy(), 100) == unmeasured(toy())


def test_where_nothing_was_measured_small_networks_lie_side_by_side_on_a_gpu(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")

    def streams(width: int, **changes) -> int:
        own = toy("cifar_resnet", **{"depth": 20, "width": width, "batch_size": 64, "dataset": "cifar10"} | changes)
        way = Choices("cuda").of(own, 100)
        assert way.pack == 1
        return way.streams

    assert [streams(1), streams(16), streams(64), streams(64, depth=110), streams(1024)] == [8, 8, 8, 1, 1]
    assert streams(64, batch_size=128) == 4
    for width in (1, 4, 16, 64, 256):
        for depth in (8, 20, 110):
            assert streams(width, depth=depth) == 1 or streams(width, depth=depth) * width * depth * 64 <= LOAD
    assert streams(16, dataset="tinyimagenet") == streams(16, dataset="imagenet") == 1
    assert Choices("cuda").of(toy("cifar_densenet"), 100) == ALONE
    assert Choices("cuda", streams=2).of(toy(), 100) == Way(1, 2)
    assert Choices("cuda", 1, 1).of(toy(), 100) == Choices("cpu").of(toy(), 100) == ALONE


def test_a_sweep_in_packs_is_the_sweep(whole, tmp_path):
    """The same command with --pack: what came out agrees as far as rounding lets it, and nothing is run twice."""
    sweep = load_sweep(whole.file)
    for _ in range(2):
        done = run_sweep(sweep, tmp_path / "store", workers=2, device="cpu", pack=4)
    assert done.submitted == 0
    table = make_table(tmp_path / "store")
    assert table["kernels"].str.endswith("stack of 4").all()
    same = ["trajectory", "level", "kept", "density", "n_test", "steps", "status"]
    pd.testing.assert_frame_equal(table[same], whole.table[same], check_exact=True)
    assert (table["n_wrong"] == whole.table["n_wrong"]).mean() > 0.5


def test_what_fails_in_a_pack_takes_nothing_else_with_it(toy, digits, tmp_path):
    """One cannot begin, and a level of two ends for want of memory: they say so, and the others are done."""
    trajectories = [toy(replicate=replicate) for replicate in range(6)]
    store = Store(tmp_path, trajectories[0].protocol)
    store.folder(trajectories[1].key).write_text("a file is in the way of its folder")
    steps = trajectories[0].protocol.steps(40)
    asked = iter(range(10**6))

    def stop() -> bool:
        if next(asked) == 2 * steps - 1:  # in the first level, the last of two that are trained together
            raise MemoryError("no room")
        return False

    ended = run_pack(trajectories, digits, store, Way(2), stop=stop)
    assert [type(ended[t.key]) for t in trajectories] == [MemoryError, FileExistsError, MemoryError, list, list, list]
    assert [store.path.joinpath("trajectories", t.key, "done.json").exists() for t in trajectories] == [False] * 3 + [
        True
    ] * 3
    store.folder(trajectories[1].key).unlink()
    assert run_pack(trajectories, digits, store, Way(2)) == {t.key: [] for t in trajectories}
    assert all(store.is_whole(t.key) for t in trajectories)


def test_no_more_is_held_than_twice_what_is_trained_at_once(toy, digits, tmp_path):
    trajectories = [toy(replicate=replicate) for replicate in range(7)]
    store, held = Store(tmp_path, trajectories[0].protocol), []

    def look() -> bool:
        held.append(sum(not store.is_done(key) for key in store.keys()))
        return False

    run_pack(trajectories, digits, store, Way(1, 2), stop=look)
    assert max(held) == 4
    assert all(store.is_whole(t.key) for t in trajectories)


def test_what_ended_before_is_done_though_its_share_failed(toy, digits, tmp_path):
    """A process that dies after some of a pack have ended, or a dataset that vanishes, does not undo these."""
    over, begun = toy(), toy(replicate=1)
    run_trajectory(over, digits, Store(tmp_path, over.protocol))
    outcomes = [fail(trajectory, tmp_path, "its process died") for trajectory in (over, begun)]
    assert [outcome.state for outcome in outcomes] == ["done", "failed"]
    assert not (Store(tmp_path).folder(over.key) / "failed.json").exists()


@pytest.mark.parametrize("dies", ["before the record", "after the record", "after the last record"])
def test_a_pack_that_was_killed_at_the_end_of_a_level_goes_on_one_by_one(toy, digits, tmp_path, dies):
    """What has a record is not computed again, which by other kernels would give another one."""

    class Dying(Store):
        def write_record(self, key, level, record):
            if level == 1 and dies == "before the record":
                raise KeyboardInterrupt
            super().write_record(key, level, record)

        def drop_checkpoints(self, key, *, below):
            if below == 2 and dies == "after the record":
                raise KeyboardInterrupt
            super().drop_checkpoints(key, below=below)

        def mark_done(self, key, *, levels, status):
            raise KeyboardInterrupt

    trajectory = toy("cifar_resnet", levels=3)
    both = [trajectory, toy("cifar_resnet", levels=3, replicate=1)]
    with pytest.raises(KeyboardInterrupt):
        run_pack(both, digits, Dying(tmp_path, trajectory.protocol), Way(2))
    store = Store(tmp_path)
    recorded = store.records(trajectory.key)
    assert len(recorded) == {"before the record": 1, "after the record": 2, "after the last record": 4}[dies]
    run_trajectory(trajectory, digits, store, kernels="torch")
    assert store.records(trajectory.key)[: len(recorded)] == recorded
    stacked = [record["kernels"].endswith("stack of 2") for record in store.records(trajectory.key)]
    assert stacked == [level < len(recorded) for level in range(4)]
    assert store.is_whole(trajectory.key)
