"""Trajectories as Slurm arrays, through submitit: requeued when pre-empted, going on inside the level."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imp_runs import packing
from imp_runs.config import Trajectory
from imp_runs.errors import ImpRunsError, optional
from imp_runs.files import on_disk, read_sealed, sealed, set_aside_damaged, write_durably
from imp_runs.life import stopping_on_signals
from imp_runs.store import Store
from imp_runs.work import Settings, work_all
from imp_runs.workers import KERNELS, steady

#: Tasks of an array at most; Slurm's own default limit is 1001.
TASKS = 1000
#: Minutes that a task may run before it is requeued, and seconds that it is told of it before.
MINUTES, WARNING = 24 * 60, 90
#: Parameters of sbatch that submitit calls by a name of its own.
_KNOWN = {"partition", "qos", "account", "mem", "cpus_per_task", "gres", "constraint", "exclude", "nodelist", "comment"}
_COUNTS = {"cpus_per_task", "time", "signal_delay_s"}


def submit(
    store: Store,
    trajectories: Sequence[Trajectory],
    name: str,
    settings: Settings,
    *,
    gpus: float | None = None,
    parallel: int | None = None,
    options: Mapping[str, Any],
) -> tuple[tuple[str, ...], int]:
    """Submit trajectories as one array, whose tasks each run a share of them; return at once.

    What an earlier submission has in the queue is left out. A task that is pre-empted, or nears its time limit, writes
    a checkpoint inside the level and is requeued.

    Args:
        store: Where they go; all nodes must see it under this path.
        trajectories: What is run.
        name: Name of the job.
        settings: How they are computed.
        gpus: GPUs of a task, a whole number.
        parallel: Most tasks at the same time.
        options: Parameters of sbatch, such as `partition`, `time` (minutes), `mem`; and `tasks`, the size of the array,
            `folder`, where submitit keeps its own files (default: beside the store).

    Returns:
        The jobs, and how many trajectories they run.

    Raises:
        ImpRunsError: submitit is not installed, Slurm is not here, or it refuses the job.
    """
    submitit = optional("submitit", "slurm")
    given = dict(options)
    queued = _queued(store)  # first: what has left the queue since then is done
    missing = [t for t in trajectories if t.key not in queued and not store.is_whole(t.key)]
    if not missing:
        return (), 0
    packs = _packs(missing, store, settings)
    tasks = min(len(packs), _whole("tasks", given.pop("tasks", TASKS)))
    groups = [[t.key for pack in packs[first::tasks] for t, _ in pack.tasks] for first in range(tasks)]
    beside = store.path.absolute() if on_disk(store.path) else Path(name).absolute()
    folder = Path(given.pop("folder", f"{beside}-jobs")).absolute()
    pins = KERNELS if settings.device == "cpu" else {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    parameters: dict[str, Any] = {
        "job_name": name, "time": MINUTES, "cpus_per_task": 1, "array_parallelism": parallel or tasks,
        "signal_delay_s": WARNING, "setup": [f"export {key}={value}" for key, value in pins.items()],
        "additional_parameters": {"requeue": True},
    }  # fmt: skip
    if gpus:
        parameters["gpus_per_node"] = _whole("gpus", gpus)
    for option, value in given.items():
        known = option.replace("-", "_")
        if known in _KNOWN | _COUNTS:
            parameters[known] = _whole(option, value) if known in _COUNTS else value
        else:
            parameters["additional_parameters"][option] = value
    try:
        executor = submitit.SlurmExecutor(folder=str(folder))
        executor.update_parameters(**parameters)
        where = str(beside) if on_disk(store.path) else str(store.path)
        jobs = executor.map_array(Share(where, settings), groups)
    except Exception as error:
        raise ImpRunsError(f"Slurm did not take the job: {error}") from None
    job = jobs[0].job_id.split("_")[0]
    write_durably(_folder(store) / f"{job}.json", sealed({"job": job, "tasks": groups}))
    return (job,), len(missing)


def _packs(trajectories: Sequence[Trajectory], store: Store, settings: Settings) -> list[packing.Share]:
    """Group trajectories into stacks where `Settings.pack` asks for them, else one by one."""
    return packing.shares_of([(trajectory, store) for trajectory in trajectories], settings, len(trajectories))


def _whole(name: str, value: Any) -> int:
    """Read a whole number above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number < 1 or number != int(number):
        hint = {"gpus": "; a share of a GPU is for --engine ray", "time": " of minutes"}.get(name, "")
        raise ImpRunsError(f"{name} = {value} must be a whole number above 0 with Slurm{hint}.")
    return int(number)


def _folder(store: Store) -> Path:
    folder = store.path / "jobs"
    folder.mkdir(exist_ok=True)
    return folder


def _queued(store: Store) -> set[str]:
    """List the trajectories that earlier submissions have in the queue, running or not."""
    set_aside_damaged(_folder(store).glob("*.json"))
    submissions = [read_sealed(path) for path in sorted(_folder(store).glob("*.json"))]
    if not submissions:
        return set()
    alive = set(_ask("squeue", "--noheader", "--array", "--format=%F_%K %A").split())
    keys: set[str] = set()
    for submission in submissions:
        job, tasks = submission["job"], submission["tasks"]
        alone = len(tasks) == 1 and job in alive
        keys |= {key for n, group in enumerate(tasks) if alone or f"{job}_{n}" in alive for key in group}
    return keys


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise ImpRunsError(f"{command[0]} failed ({said}); is Slurm here, and up?") from None


@dataclass(frozen=True)
class Share:
    """Run a share of a store's trajectories in one task of an array.

    Attributes:
        store: The store.
        settings: How they are computed.
    """

    store: str
    settings: Settings

    def __call__(self, keys: list[str]) -> dict[str, str]:
        """Run what is not done of these; give how each ended. A task that is asked to stop ends itself."""
        steady()
        store, states = Store(self.store), {}
        wanted = store.wanted()
        with stopping_on_signals():
            for pack in _packs([wanted[key] for key in keys], store, self.settings):
                for outcome in work_all([t for t, _ in pack.tasks], self.store, self.settings, pack.way):
                    said = f"{wanted[outcome.key]}: {outcome.state} {outcome.reason}".rstrip()
                    print(said, flush=True)  # noqa: T201 - the job's log
                    states[outcome.key] = outcome.state
                if "stopped" in states.values():
                    self._requeue()
                    raise SystemExit(1)
        return states

    @staticmethod
    def _requeue() -> None:
        """Have the task run again, unless Slurm sees to that itself, or somebody cancelled it."""
        task = os.environ["SLURM_JOB_ID"]
        if _ask("squeue", "--noheader", "--format=%T", f"--jobs={task}").strip() == "RUNNING":
            _ask("scontrol", "requeue", task)
