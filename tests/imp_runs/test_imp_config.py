"""Protocols, trajectories and sweep files: hashes, counts, expansion, and every fault named at once."""

from __future__ import annotations

import dataclasses
import itertools
from importlib import resources

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imp_runs.config import DATASETS, PROTOCOLS, Protocol, Trajectory, load_sweep, protocol_hash, sweep_from_dict
from imp_runs.errors import ImpRunsError
from imp_runs.train import learning_rate

GRID = {"family": "mlp", "dataset": "digits", "depth": [2], "width": [8], "dataset_size": [100], "replicates": 1}
OTHER = {str: "mlp2", int: 7, float: 0.3125, tuple: (0.25,), type(None): 7}


def trajectory(**changes) -> Trajectory:
    protocol = Protocol(name="digits_resnet", epochs=60, batch_size=25, levels=30)
    start = Trajectory("cifar_resnet", "digits", 8, 1, 1000, 0, 1, protocol)
    return dataclasses.replace(start, **changes)


@given(st.integers(0, 10**9))
def test_one_round_leaves_kept_minus_a_fifth_of_it_in_integer_arithmetic(kept):
    assert Protocol().kept_after(kept) == kept - kept // 5


@given(st.one_of(st.integers(0, 10**9), st.integers(0, 10**7).map(lambda n: 100 * n)), st.integers(1, 99))
@example(100, 29)  # in floating point int(0.29 * 100) is 28
def test_other_fractions_are_exact_too(kept, hundredths):
    protocol = Protocol(prune_fraction=hundredths / 100)
    assert protocol.kept_after(kept) == kept - kept * hundredths // 100


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 50))
def test_steps_count_the_batches_that_are_cut(dataset_size, batch_size, epochs):
    protocol = Protocol(epochs=epochs, batch_size=batch_size)
    batches = len(list(itertools.batched(range(dataset_size), batch_size)))
    assert protocol.steps_per_epoch(dataset_size) == batches
    assert protocol.steps(dataset_size) == epochs * batches


def test_hashes_are_those_of_the_recorded_sweeps():
    # Literal values: were they to change, stores and recorded tables would no longer match what is run.
    start = trajectory()
    assert start.key == "e0cb608f362e361c"
    assert protocol_hash(start.protocol) == "53583a61a1100f3a"
    assert start.subset_id == "7e10fae6"
    assert start.seed("initialisation") == 823722878776199437
    assert start.seed("order", 3, 2) == 1050971222020935647


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Trajectory) if f.name != "protocol"])
def test_every_field_of_a_trajectory_changes_its_key(field):
    assert trajectory(**{field: OTHER[type(getattr(trajectory(), field))]}).key != trajectory().key


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Protocol)])
def test_every_field_of_a_protocol_changes_key_and_protocol_hash(field):
    start = trajectory().protocol
    other = dataclasses.replace(start, **{field: OTHER[type(getattr(start, field))]})
    assert protocol_hash(other) != protocol_hash(start)
    assert trajectory(protocol=other).key != trajectory().key


def test_the_seed_of_the_subset_depends_on_dataset_and_replicate_alone():
    start = trajectory().seed("subset")
    same = {"family": "mlp", "depth": 20, "width": 4, "dataset_size": 250, "pool": 2, "protocol": Protocol()}
    for field, value in same.items():
        assert trajectory(**{field: value}).seed("subset") == start, field
    assert trajectory(dataset="mnist").seed("subset") != start
    assert trajectory(replicate=1).seed("subset") != start


def test_other_seeds_depend_on_the_network_but_not_on_the_protocol():
    start = trajectory().seed("order", 2, 1)
    assert trajectory(protocol=Protocol()).seed("order", 2, 1) == start
    others = {"family": "mlp", "dataset": "mnist", "depth": 20, "width": 4, "dataset_size": 250, "replicate": 1}
    for field, value in others.items():
        assert trajectory(**{field: value}).seed("order", 2, 1) != start, field


def test_no_two_uses_of_randomness_share_a_seed():
    seeds = [
        trajectory(replicate=replicate).seed(purpose, level, epoch)
        for replicate in range(3)
        for purpose in ("order", "augmentation")
        for level in range(31)
        for epoch in range(30)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)  # what a torch.Generator takes


def test_a_sweep_file_expands_to_its_grid_in_the_order_of_cost(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        """
        name = "small"
        [grid]
        family = "cifar_resnet"
        dataset = "fashion_mnist"
        pool = 2
        depth = [14, 8]
        width = [4, 2, 4]
        dataset_size = [1000, 250]
        replicates = 2
        [protocol]
        name = "short"
        epochs = 3
        learning_rate = 1
        milestones = [0.5]
        """
    )
    sweep = load_sweep(file)
    expected = set(itertools.product([8, 14], [2, 4], [250, 1000], range(2)))
    assert {(t.depth, t.width, t.dataset_size, t.replicate) for t in sweep.trajectories} == expected
    assert len(sweep.trajectories) == len(expected)  # the second 4 of `width` adds nothing
    assert {(t.family, t.dataset, t.pool, t.protocol) for t in sweep.trajectories} == {
        ("cifar_resnet", "fashion_mnist", 2, sweep.protocol)
    }
    costs = [(t.replicate, t.dataset_size * t.depth * t.width) for t in sweep.trajectories]
    assert costs == sorted(costs)
    assert sweep.name == "small"
    assert sweep.protocol == Protocol(name="short", epochs=3, learning_rate=1.0, milestones=(0.5,))


def test_a_named_protocol_is_taken_and_overridden():
    named = sweep_from_dict({"name": "x", "grid": GRID, "protocol": {"name": "paper_cifar", "levels": 2}})
    assert named.protocol == dataclasses.replace(PROTOCOLS["paper_cifar"], levels=2)
    assert (named.protocol.epochs, named.protocol.batch_size) == (160, 128)
    assert named.protocol.augmentation == "flip_crop"
    assert sweep_from_dict({"name": "x", "grid": GRID}).protocol == Protocol()


def test_the_source_s_protocol_for_imagenet_changes_its_rate_between_epochs():
    protocol = PROTOCOLS["paper_imagenet"]
    assert (protocol.epochs, protocol.batch_size, protocol.augmentation) == (90, 1024, "resized_crop")
    for denominator in (1, 2, 4, 8, 16, 64):
        size = DATASETS["imagenet"] // denominator
        steps, epoch = protocol.steps(size), protocol.steps_per_epoch(size)
        rates = [learning_rate(protocol, step, steps) for step in range(steps)]
        expected = [0.4 * min(step / (5 * epoch), 1) for step in range(30 * epoch)]
        for lasts, rate in ((30, 0.04), (20, 0.004), (10, 0.0004)):
            expected += [rate] * (lasts * epoch)
        assert rates == pytest.approx(expected, rel=1e-12)
        assert int(protocol.rewind * steps) == 10 * epoch


def test_streamed_datasets_take_no_augmentation_of_those_in_memory():
    grid = {**GRID, "family": "imagenet_resnet", "dataset": "imagenet", "depth": [50]}
    named = sweep_from_dict({"name": "x", "grid": grid, "protocol": {"name": "paper_imagenet"}})
    assert named.protocol == PROTOCOLS["paper_imagenet"]
    with pytest.raises(ImpRunsError, match=r"augmentation = 'flip_crop' must be none or resized_crop for imagenet"):
        sweep_from_dict({"name": "x", "grid": grid, "protocol": {"name": "paper_cifar"}})


def test_every_recorded_sweep_has_a_file_that_loads():
    files = [f for f in (resources.files("imp_runs") / "recorded").iterdir() if f.name.endswith(".toml")]
    assert files
    for file in files:
        with resources.as_file(file) as path:
            sweep = load_sweep(path)
        assert sweep.name == file.name.removesuffix(".toml")
        assert sweep.name.startswith(sweep.protocol.name)
        assert len({t.key for t in sweep.trajectories}) == len(sweep.trajectories) > 0


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"family": "vgg"}, "grid.family = 'vgg' must be one of cifar_resnet, mlp"),
        ({"dataset": "coco"}, "grid.dataset = 'coco' must be one of digits, fashion_mnist"),
        ({"dataset": ["digits"]}, "grid.dataset = ['digits'] must be one of digits"),
        ({"family": "cifar_resnet", "depth": [8, 9]}, "grid.depth 9 must be 6D+2"),
        ({"family": "cifar_resnet", "depth": [2]}, "grid.depth 2 must be 6D+2"),
        ({"depth": [1]}, "grid.depth 1 must be hidden layers + 1, so at least 2, for mlp"),
        ({"family": "cifar_vgg", "depth": [16, 17]}, "grid.depth 17 must be one of 11, 13, 16, 19 for cifar_vgg"),
        (
            {"family": "imagenet_resnet", "depth": [20]},
            "grid.depth 20 must be one of 18, 34, 50, 101, 152 for imagenet_re",
        ),
        ({"family": ["mlp"], "depth": [2]}, "grid.family = ['mlp'] must be one of cifar_resnet"),
        ({"width": []}, "grid.width = [] must be a list of integers >= 1"),
        ({"width": [0]}, "grid.width = [0] must be a list of integers >= 1"),
        ({"width": 8}, "grid.width = 8 must be a list of integers >= 1"),
        ({"dataset_size": [10.5]}, "grid.dataset_size = [10.5] must be a list of integers >= 1"),
        ({"dataset_size": [True]}, "grid.dataset_size = [True] must be a list of integers >= 1"),
        ({"replicates": 0}, "grid.replicates = 0 must be an integer >= 1"),
        ({"replicates": [1]}, "grid.replicates = [1] must be an integer >= 1"),
        ({"pool": 0}, "grid.pool = 0 must be an integer >= 1"),
        ({"seed": 1}, "unknown entry grid.seed; allowed: dataset, dataset_size, depth"),
    ],
)
def test_a_fault_of_the_grid_is_named(grid, message):
    with pytest.raises(ImpRunsError) as caught:
        sweep_from_dict({"name": "x", "grid": {**GRID, **grid}})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("epochs", 0, "must be >= 1"),
        ("epochs", 2.0, "must be of type int"),
        ("epochs", True, "must be of type int"),
        ("batch_size", 0, "must be >= 1"),
        ("learning_rate", 0, "must be > 0"),
        ("learning_rate", float("nan"), "must be > 0"),
        ("learning_rate", "fast", "must be of type float"),
        ("momentum", 1.0, "must be in [0, 1)"),
        ("weight_decay", -1e-4, "must be >= 0"),
        ("milestones", [0.5, 1.0], "must be fractions in (0, 1)"),
        ("milestones", ["half"], "must be of type tuple"),
        ("decay", 0.0, "must be in (0, 1]"),
        ("rewind", 1.0, "must be in [0, 1)"),
        ("prune_fraction", 1.0, "must be in (0, 1)"),
        ("prune_fraction", 0.0, "must be in (0, 1)"),
        ("levels", -1, "must be >= 0"),
        ("augmentation", "mixup", "must be one of none, flip_crop, resized_crop"),
        ("augmentation", "resized_crop", "must be none or flip_crop for digits"),
        ("warmup", 1.0, "must be in [0, 1)"),
        ("precision", "float16", "must be one of float32, tensorfloat32, bfloat16"),
        ("name", ["a"], "must be of type str"),
        ("cooldown", 5, "unknown entry protocol.cooldown; allowed: name, epochs"),
    ],
)
def test_a_fault_of_the_protocol_is_named(entry, value, message):
    with pytest.raises(ImpRunsError) as caught:
        sweep_from_dict({"name": "x", "grid": GRID, "protocol": {entry: value}})
    assert f"protocol.{entry}" in str(caught.value)
    assert message in str(caught.value)


def test_all_faults_of_a_file_are_named_at_once(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        """
        title = "no such entry"
        [grid]
        family = "cifar_resnet"
        dataset = "coco"
        depth = [9]
        width = [-1]
        color = "red"
        [protocol]
        epochs = "many"
        momentum = 2.0
        """
    )
    with pytest.raises(ImpRunsError) as caught:
        load_sweep(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    for part in (
        "unknown entry 'title'",
        "missing entry 'name'",
        "missing entry grid.dataset_size",
        "missing entry grid.replicates",
        "unknown entry grid.color",
        "grid.dataset = 'coco'",
        "grid.depth 9",
        "grid.width = [-1]",
        "protocol.epochs = 'many'",
        "protocol.momentum = 2.0",
    ):
        assert part in message


def test_a_grid_or_protocol_that_is_no_table_is_named():
    with pytest.raises(ImpRunsError) as caught:
        sweep_from_dict({"name": "x", "grid": 3, "protocol": "desktop"})
    assert "grid = 3 must be a table, [grid]" in str(caught.value)
    assert "protocol = 'desktop' must be a table, [protocol]" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'name = "x"\n[grid\n', "not a TOML file"),
        (b"name = \xff\xfe\n", "not a TOML file"),
        (b"", "missing entry 'name'; missing entry 'grid'"),
    ],
)
def test_what_is_no_sweep_file_is_refused(tmp_path, content, message):
    file = tmp_path / "sweep.toml"
    file.write_bytes(content)
    with pytest.raises(ImpRunsError, match=message) as caught:
        load_sweep(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImpRunsError, match="there is no such sweep file"):
        load_sweep(tmp_path / "none.toml")
    with pytest.raises(ImpRunsError, match="give the path of a TOML file"):
        load_sweep(tmp_path)


def test_several_grids_are_united(tmp_path) -> None:
    """Each trajectory once, replicates counted from where a grid says."""
    shared = 'family = "mlp"\ndataset = "digits"\n'
    file = tmp_path / "two.toml"
    file.write_text(
        f'name = "two"\n[[grid]]\n{shared}depth = [2, 3]\nwidth = [8]\ndataset_size = [100]\nreplicates = 2\n'
        f"[[grid]]\n{shared}depth = [2]\nwidth = [8, 16]\ndataset_size = [100]\nreplicates = 2\nfirst_replicate = 1\n"
    )
    made = [(t.depth, t.width, t.replicate) for t in load_sweep(file).trajectories]
    first = {(depth, 8, replicate) for depth in (2, 3) for replicate in (0, 1)}
    second = {(2, width, replicate) for width in (8, 16) for replicate in (1, 2)}
    assert len(made) == len(set(made))
    assert set(made) == first | second
    assert [replicate for *_, replicate in made] == sorted(replicate for *_, replicate in made)


def test_a_grid_has_levels_of_its_own(tmp_path) -> None:
    """They name other trajectories, but for the protocol's; one of two grids goes as far as the longer one."""
    shared = 'family = "mlp"\ndataset = "digits"\nwidth = [8]\ndataset_size = [100]\nreplicates = 1\n'
    file, protocol = tmp_path / "levels.toml", "[protocol]\nlevels = 5\n"

    def made(*grids: str) -> dict[int, Trajectory]:
        file.write_text('name = "x"\n' + "".join(f"[[grid]]\n{shared}{grid}\n" for grid in grids) + protocol)
        return {trajectory.depth: trajectory for trajectory in load_sweep(file).trajectories}

    whole, cut = made("depth = [2, 3]"), made("depth = [2, 3]\nlevels = 2")
    assert {t.last_level for t in whole.values()} == {5}
    assert {t.last_level for t in cut.values()} == {2}
    assert {t.key for t in whole.values()}.isdisjoint(t.key for t in cut.values())
    assert made("depth = [2, 3]\nlevels = 5") == whole
    assert made("depth = [2]\nlevels = 2", "depth = [2, 3]")[2] == whole[2]
    further = made("depth = [2, 3]", "depth = [3]\nlevels = 7", "depth = [3]\nlevels = 1")
    assert (further[2], further[3].last_level) == (whole[2], 7)
    with pytest.raises(ImpRunsError, match=r"grid\.levels = -1 must be an integer >= 0"):
        made("depth = [2]\nlevels = -1")


def test_faults_of_all_grids_are_told_at_once(tmp_path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "bad"\n[[grid]]\nfirst_replicate = -1\n[[grid]]\ndepth = [0]\n')
    with pytest.raises(ImpRunsError, match=r"first_replicate = -1 must be an integer >= 0.*grid\.depth = \[0\]"):
        load_sweep(file)
