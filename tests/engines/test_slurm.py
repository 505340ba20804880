"""A real Slurm on this machine: arrays, a pre-empted job, a signal before the time limit, ten thousand trajectories.

`apt-get install --no-install-recommends slurm-wlm munge`, then as root
`uv run --extra slurm pytest -n0 tests/engines/test_slurm.py`; all daemons are started and ended by the test.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from slurm_here import Slurm

from imp_runs.cli import main
from imp_runs.errors import ImpRunsError
from imp_runs.files import read_sealed
from imp_runs.status import status_of
from imp_runs.store import Store
from imp_runs.sweep import run_sweep


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    running = Slurm(folder)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def inside(store: Path) -> list[Path]:
    """List checkpoints inside a level."""
    return list(store.glob("trajectories/*/checkpoint-*-*.json"))


def done(store: Path) -> int:
    return len(list(store.glob("trajectories/*/done.json")))


def test_preempted_tasks_write_checkpoints_are_requeued_and_end_with_the_same_table(
    slurm, whole, wait, tmp_path, capsys
):
    store, arguments = tmp_path / "store", ["--device", "cpu", "--engine", "slurm", "--option", "tasks=2"]

    def command() -> str:
        sys.argv = ["imp-runs", "sweep", str(whole.file), "--store", str(store), *arguments]
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code
        return capsys.readouterr().out

    said = command()
    assert "6 of 6 trajectories submitted" in said
    wait(lambda: len(list(store.glob("trajectories/*/running.json"))) == 2, 240, "both tasks at work")
    assert len(status_of(store).running) == 2

    said = slurm.ask("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 200")
    began = time.monotonic()
    wait(lambda: len(inside(store)) == 2, 60, "checkpoints inside the level")
    with capsys.disabled():
        print(f"both checkpoints {time.monotonic() - began:.1f} s after the other job was submitted")
    steps = {path.parent.name: read_sealed(path)["step"] for path in inside(store)}
    assert all(0 < step < 600 for step in steps.values())
    wait(
        lambda: sorted(slurm.states().values()) == ["PENDING", "PENDING", "RUNNING"], 60, "the tasks in the queue again"
    )
    assert done(store) < 6
    assert "0 of 6 trajectories submitted" in command()  # they are in the queue
    slurm.ask("scancel", said.split()[-1])

    wait(lambda: done(store) == 6 and not slurm.states(), 400, "the end of the requeued tasks")
    whole.assert_same(store)
    assert inside(store) == []
    assert status_of(store).failed == {}
    assert "is missing" in command()


def test_a_task_that_is_warned_of_its_time_limit_requeues_itself(slurm, whole, wait, tmp_path):
    store = tmp_path / "store"
    sweep = dataclasses.replace(whole.sweep, trajectories=whole.sweep.trajectories[:2])
    submitted = run_sweep(sweep, store, device="cpu", engine="slurm", options={"tasks": 1})
    (job,) = submitted.jobs
    wait(lambda: bool(list(store.glob("trajectories/*/level-*.json"))), 240, "a record")
    slurm.ask("scancel", "--signal=USR2", f"{job}_0", check=False)  # what Slurm sends before the limit
    slurm.ask("scancel", "--signal=USR2", job, check=False)
    wait(lambda: len(inside(store)) == 1, 60, "a checkpoint inside the level")
    wait(lambda: "PENDING" in slurm.states().values() or done(store) == 2, 60, "the task in the queue again")
    wait(lambda: done(store) == 2 and not slurm.states(), 300, "the end of the requeued task")
    keys = [trajectory.key for trajectory in sweep.trajectories]
    assert all(Store(store).is_whole(key) for key in keys)
    columns = ["n_wrong", "kept", "kept_by_layer", "steps"]
    expected = whole.table[whole.table["trajectory"].isin(keys)]
    from imp_runs.table import make_table

    assert make_table(store)[columns].to_numpy().tolist() == expected[columns].to_numpy().tolist()


def test_stacks_stay_together_in_a_task(slurm, whole, wait, tmp_path):
    store = tmp_path / "store"
    submitted = run_sweep(whole.sweep, store, device="cpu", engine="slurm", pack=3, options={"tasks": 5})
    (job,) = submitted.jobs
    assert [len(group) for group in read_sealed(store / "jobs" / f"{job}.json")["tasks"]] == [3, 3]
    wait(lambda: done(store) == 6 and not slurm.states(), 400, "the end of both stacks")
    whole.assert_stacked(store, 3)


def test_ten_thousand_trajectories_are_one_command(slurm, whole, tmp_path):
    first = whole.sweep.trajectories[0]
    many = tuple(dataclasses.replace(first, replicate=replicate) for replicate in range(10_000))
    sweep, store = dataclasses.replace(whole.sweep, trajectories=many), tmp_path / "store"
    began, cpu = time.monotonic(), time.process_time()
    submitted = run_sweep(sweep, store, device="cpu", engine="slurm", workers=50, options={"hold": True})
    print(f"10,000 submitted: {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU here")
    assert submitted.submitted == 10_000
    assert len(slurm.states()) == 1000
    (job,) = submitted.jobs
    groups = read_sealed(store / "jobs" / f"{job}.json")["tasks"]
    assert sorted(key for group in groups for key in group) == sorted(t.key for t in many)
    began, cpu = time.monotonic(), time.process_time()
    assert run_sweep(sweep, store, device="cpu", engine="slurm", workers=50).submitted == 0
    print(f"again: {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU here")
    assert len(status_of(store).waiting) == 10_000
    slurm.ask("scancel", job)


def test_what_slurm_refuses_is_said(slurm, whole, tmp_path):
    with pytest.raises(ImpRunsError, match=r"Slurm did not take the job: .*partition"):
        run_sweep(whole.sweep, tmp_path / "store", device="cpu", engine="slurm", options={"partition": "none"})
    with pytest.raises(ImpRunsError, match=r"gpus = 0\.5 must be a whole number with Slurm"):
        run_sweep(whole.sweep, tmp_path / "store", device="cpu", engine="slurm", gpus=0.5)
