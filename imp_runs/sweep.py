"""Run what a sweep lacks, with the engine of choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imp_runs.config import Sweep, check_sizes
from imp_runs.engines import ENGINES, Task, run_here
from imp_runs.errors import ImpRunsError
from imp_runs.store import Store
from imp_runs.together import run_together, started_together
from imp_runs.work import Outcome, Settings
from imp_runs.workers import checked_device, checked_kernels, fetch, started


@dataclass(frozen=True)
class Submission:
    """Say what came of a sweep.

    Attributes:
        wanted: Trajectories of the sweep.
        submitted: Those that were run now, or submitted.
        mended: What was damaged in the store and has been computed again, one sentence each.
        jobs: Jobs of a scheduler in which they will run.
    """

    wanted: int
    submitted: int
    mended: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()


def run_sweep(
    sweep: Sweep,
    store: str | Path,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    workers: int | None = None,
    device: str | None = None,
    kernels: str = "auto",
    pack: int | None = None,
    streams: int | None = None,
    engine: str = "local",
    address: str | None = None,
    gpus: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Submission:
    """Run the trajectories of a sweep that a store lacks.

    Args:
        sweep: What to run.
        store: Folder of the store, or the URL of an object store; made if it is not there. With Ray and Slurm all
            workers must see it.
        data_dir: Where the dataset lies, likewise.
        download: Fetch missing dataset files.
        workers: Number of processes; default one per core on a CPU, one on a GPU. With Slurm, how many array tasks run
            at the same time; with Ray, how many trajectories. Processes that `torchrun` started run every trajectory
            together instead.
        device: `"cpu"` or `"cuda"`; default CUDA when there is one here, or when `gpus` asks for one.
        kernels: `"torch"`, `"sparse"` (on a CPU, skipping pruned weights) or `"auto"`, the faster of them.
        pack: How many networks are stacked where trajectories differ in their seeds alone. By default 1, one by one, or
            with the local engine on a GPU what `bench` has found best there.
        streams: How many stacks, of any networks with the same dataset size, are computed side by side, on a GPU each
            on a stream of its own. All that are trained together are one task of Ray or Slurm.
        engine: `"local"`, `"ray"` or `"slurm"`, which returns once all is submitted.
        address: Address of a Ray cluster, such as `"ray://head:10001"` or `"auto"`; default: Ray on this machine.
        gpus: Share of a GPU that a task gets (Ray), or GPUs of an array task (Slurm).
        options: More of the engine: arguments of Ray's `remote`, or of sbatch without the leading `--`.

    Returns:
        What was done or submitted.

    Raises:
        ImpRunsError: The store holds another protocol, the dataset is missing, an argument is not for the engine, or
            trajectories failed (all are named; the others have run).
    """
    _check_engine(engine, address=address, gpus=gpus, options=options)
    if started_together():
        if engine != "local" or pack or streams:
            raise ImpRunsError(
                "torchrun's processes train every network together: leave out --engine, --pack and --streams, or "
                "torchrun."
            )
        count = run_together(sweep, store, data_dir=data_dir, device=device, kernels=kernels)
        return Submission(len(sweep.trajectories), count)
    if str(store).startswith("memory:"):
        raise ImpRunsError(f"{store}: memory is seen by one process only; give a folder or the URL of an object store.")
    device, kernels = "cuda" if gpus and device in (None, "cuda") else checked_device(device), checked_kernels(kernels)
    opened = Store(store, sweep.protocol)
    missing = [(trajectory, opened) for trajectory in sweep.trajectories if not opened.is_whole(trajectory.key)]
    check_sizes(trajectory for trajectory, _ in missing)
    opened.add_sweep(sweep)
    if not missing:
        return Submission(len(sweep.trajectories), 0)
    # What was measured on a GPU here is not known of those of a cluster.
    pack = pack if engine == "local" else pack or 1
    settings = Settings(Path(data_dir).absolute() if data_dir else None, device, kernels, pack, streams)
    if engine == "local":
        outcomes = run_here(missing, sweep.name, settings, workers=workers, download=download)
    else:
        with started("cpu") as pool:
            fetch(pool, (trajectory for trajectory, _ in missing), data_dir, download)
        shared: dict[str, Any] = {"gpus": gpus, "parallel": workers, "options": options or {}}
        if engine == "slurm":
            from imp_runs.on_slurm import submit

            jobs, submitted = submit(opened, [trajectory for trajectory, _ in missing], sweep.name, settings, **shared)
            return Submission(len(sweep.trajectories), submitted, jobs=jobs)
        from imp_runs.on_ray import run_on_ray

        outcomes = run_on_ray(missing, sweep.name, settings, address=address, **shared)
    raise_failures(missing, outcomes)
    return Submission(len(sweep.trajectories), len(missing), tuple(said for o in outcomes for said in o.mended))


def _check_engine(engine: str, **given: Any) -> None:
    """Raise an `ImpRunsError` for an engine that is none, or for what it would not look at."""
    if engine not in ENGINES:
        raise ImpRunsError(f"engine {engine!r} must be one of {', '.join(ENGINES)}.")
    of = {"address": ("ray",), "gpus": ("ray", "slurm"), "options": ("ray", "slurm")}
    for name, value in given.items():
        if value and engine not in of[name]:
            allowed = " or ".join(of[name])
            raise ImpRunsError(f"{name} = {value!r} is for engine {allowed}, not {engine}: give --engine too.")


def raise_failures(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> None:
    """Raise an `ImpRunsError` that names what was not done, and why."""
    trajectories = {t.key: t for t, _ in tasks}
    failures = [f"{trajectories[o.key]}: {o.reason}" for o in outcomes if o.state != "done"]
    if failures:
        raise ImpRunsError(
            f"{len(failures)} of {len(tasks)} trajectories failed, the others are done; run the sweep again to go on "
            "with these:\n" + "\n".join(failures)
        )
