"""Sweeps: the same table whatever the workers, only what is missing is run, failures are named, costs estimated."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch

from imp_runs.config import Sweep, load_sweep
from imp_runs.costs import Estimate, bench, costs_of, estimate
from imp_runs.errors import ImpRunsError
from imp_runs.imp import run_trajectory
from imp_runs.packing import ALONE, Way
from imp_runs.store import Store
from imp_runs.sweep import run_sweep
from imp_runs.workers import KERNELS


def changed(sweep: Sweep, **changes) -> Sweep:
    """Give a sweep whose last trajectory differs."""
    *others, last = sweep.trajectories
    return dataclasses.replace(sweep, trajectories=(*others, dataclasses.replace(last, **changes)))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_runs_all_its_trajectories_to_the_end(whole):
    sweep, store = load_sweep(whole.file), Store(whole.store)
    assert store.keys() == sorted(t.key for t in sweep.trajectories)
    assert all(store.is_done(key) for key in store.keys())
    assert whole.table.groupby("trajectory")["level"].agg(list).tolist() == [[0, 1, 2]] * 24
    assert (whole.table["status"] == "trained").all()


def test_one_worker_gives_the_table_of_two_and_a_trajectory_that_runs_elsewhere_is_left_to_it(whole, tmp_path):
    sweep, environment = load_sweep(whole.file), dict(os.environ)
    store = Store(tmp_path, sweep.protocol)
    elsewhere = sweep.trajectories[3]
    with store.locked(elsewhere):
        with pytest.raises(ImpRunsError) as caught:
            run_sweep(sweep, tmp_path, workers=1, device="cpu")
        assert "1 of 24 trajectories failed, the others are done" in str(caught.value)
        assert f"{elsewhere}: " in str(caught.value)
        assert "another process is running this trajectory" in str(caught.value)
        assert [t for t in sweep.trajectories if not store.is_done(t.key)] == [elsewhere]
    before = {path: stamp for path, stamp in files(tmp_path).items() if elsewhere.key not in str(path)}
    run_sweep(sweep, tmp_path, workers=1, device="cpu")
    whole.assert_same(tmp_path)
    assert before.items() <= files(tmp_path).items()  # what was done is not touched again
    assert dict(os.environ) == environment


def test_workers_are_pinned_to_kernels_that_the_machine_does_not_choose(whole):
    # The pin caps the vector width: a wider one would show here.
    assert KERNELS["ATEN_CPU_CAPABILITY"] == "avx2"
    assert whole.table["kernels"].nunique() == 1
    assert not whole.table["kernels"].str.contains("AVX512").any()


def test_a_finished_sweep_costs_nothing(whole):
    sweep, before = load_sweep(whole.file), files(whole.store)
    run_sweep(sweep, whole.store)
    assert estimate(sweep, whole.store) == Estimate(24, 0, 0, 0.0)
    assert files(whole.store) == before


def test_the_estimate_counts_the_steps_that_are_then_run_and_ends_where_nothing_can_be_pruned(toy, digits, tmp_path):
    # What a worker would compute, here without one; test_imp_cli lets a worker compute it for a whole sweep.
    trajectories = [toy(width=1, levels=30, rewind=0.5), toy(dataset_size=60, levels=30, rewind=0.5, replicate=1)]
    store = Store(tmp_path, trajectories[0].protocol)
    for trajectory, (steps, seconds) in zip(trajectories, costs_of(trajectories, None, "cpu", "auto"), strict=True):
        run_trajectory(trajectory, digits, store)
        records = store.records(trajectory.key)
        assert records[-1]["status"] == "exhausted"
        assert steps == sum(record["steps"] for record in records)
        assert seconds > 0


def test_another_protocol_is_refused_by_run_and_estimate(whole):
    sweep = load_sweep(whole.file)
    protocol = dataclasses.replace(sweep.protocol, epochs=2)
    trajectories = tuple(dataclasses.replace(t, protocol=protocol) for t in sweep.trajectories)
    before = files(whole.store)
    for use in (run_sweep, estimate):
        with pytest.raises(ImpRunsError, match=r"another protocol \(epochs = 1, not 2\)"):
            use(Sweep("other", trajectories, protocol), whole.store)
    assert files(whole.store) == before


@pytest.mark.parametrize("use", [run_sweep, estimate])
def test_what_cannot_run_is_refused_before_anything_runs(whole, tmp_path, use):
    sweep = load_sweep(whole.file)
    for changes, message in (
        ({"dataset_size": 1001}, "dataset_size 1001 is more than the 1000 training examples of digits"),
        ({"dataset_size": 5000}, "dataset_size 5000 is more than"),
    ):
        with pytest.raises(ImpRunsError, match=message):
            use(changed(sweep, **changes), tmp_path / "store", device="cpu")
    missing = dataclasses.replace(
        sweep, trajectories=tuple(dataclasses.replace(t, dataset="mnist") for t in sweep.trajectories)
    )
    with pytest.raises(ImpRunsError, match="--data-dir"):
        use(missing, tmp_path / "store", data_dir=tmp_path, device="cpu")
    with pytest.raises(ImpRunsError, match="device 'tpu' must be cpu or cuda"):
        use(sweep, tmp_path / "store", device="tpu")
    assert not (tmp_path / "store").exists() or Store(tmp_path / "store").keys() == []


def test_what_is_streamed_is_not_benched_in_stacks(toy):
    from imp_runs.costs import PACKS, STREAMS, _ways

    assert _ways(toy(), "cpu", None, None) == [Way(pack) for pack in PACKS["cpu"]]
    ways = _ways(toy(), "cuda:0", None, None)
    assert ways == [Way(1, 8), Way(8), Way(8, 8), Way(32), Way(128)]  # no more than 128 networks, unless asked for
    assert {way.pack for way in ways} == set(PACKS["cuda"])
    assert {way.streams for way in ways} == set(STREAMS["cuda"])
    assert _ways(toy(), "cpu", [1, 3], [1, 2]) == [Way(1, 2), Way(3), Way(3, 2)]
    assert _ways(dataclasses.replace(toy(), dataset="imagenet"), "cpu", [3], None) == []


def test_a_stack_that_does_not_fit_the_memory_is_not_the_fastest(toy, monkeypatch):
    """Whatever runs out of it, alone it is an error."""
    from imp_runs import costs

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(costs, "costs_of", full)
    assert costs._cost_of(toy(), None, "cpu", "torch", Way(4)) == (0, np.inf)
    with pytest.raises(torch.OutOfMemoryError):
        costs._cost_of(toy(), None, "cpu", "torch", ALONE)


def test_bench_compares_every_network_with_plain_pytorch(whole, capfd):
    from imp_runs.costs import bench

    table = bench(load_sweep(whole.file), device="cpu", packs=[4], streams=[2])
    said = [line for line in capfd.readouterr().err.splitlines() if "times the plain loop" in line]
    assert [line[: line.index(":")] for line in said] == ["depth 2, width 2", "depth 2, width 3"]
    assert table[["depth", "width", "dataset_size"]].to_numpy().tolist() == [[2, 2, 40], [2, 3, 40]]
    assert table["speedup"].tolist() == pytest.approx((table["per_hour"] / table["torch_per_hour"]).tolist())
    assert (table["examples_per_second"] > 0).all()
    assert set(zip(table["pack"], table["streams"], strict=True)) <= {(1, 1), (4, 2)}
    # A toy MLP of two units: 64 inputs by 2, 2 by 10, six operations each; far from what a product of matrices reaches.
    assert table["gflops"][0] == pytest.approx(6 * 148 * table["examples_per_second"][0] / 1e9)
    assert table["of_peak"].between(0, 0.5).all()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus": 1.0}, r"gpus = 1.0 is for engine ray or slurm, not local"),
        ({"address": "auto", "engine": "slurm"}, r"address = 'auto' is for engine ray, not slurm"),
        ({"options": {"partition": "gpu"}}, r"is for engine ray or slurm, not local: give --engine too"),
    ],
)
def test_what_an_engine_would_not_look_at_is_refused(whole, tmp_path, asked, words):
    with pytest.raises(ImpRunsError, match=words):
        run_sweep(load_sweep(whole.file), tmp_path / "store", device="cpu", **asked)
    assert not (tmp_path / "store").exists()


def test_bench_takes_every_network_at_its_own_largest_size_whatever_its_first_replicate(toy, tmp_path):
    trajectories = (
        toy(width=2, dataset_size=40, replicate=3),
        toy(width=2, dataset_size=20, replicate=3),
        toy(width=3),
    )
    table = bench(Sweep("toy", trajectories, trajectories[0].protocol), device="cpu", packs=[1])
    assert table[["width", "dataset_size"]].to_numpy().tolist() == [[2, 40], [3, 40]]


def test_more_workers_than_trajectories_do_not_make_one_quicker(toy, tmp_path):
    sweep = Sweep("toy", (toy(),), toy().protocol)
    cost = estimate(sweep, device="cpu", workers=1000)
    assert cost.seconds > 1e-4 * cost.steps
