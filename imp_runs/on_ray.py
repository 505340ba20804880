"""Trajectories as Ray tasks, or stacks of them: fractions of a GPU, retries where a node dies, any cluster."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from imp_runs.config import Trajectory
from imp_runs.engines import Bars
from imp_runs.errors import optional
from imp_runs.life import forget
from imp_runs.packing import Share, Task, Way, shares_of
from imp_runs.store import Store
from imp_runs.work import Outcome, Settings, fail, reason_of, work_all
from imp_runs.workers import KERNELS, steady

#: How often Ray begins a task again when its worker or its node dies.
RETRIES = 5
#: Seconds between two tries of a trajectory that another process still holds, and for how long it is tried.
AGAIN, PATIENCE = 5.0, 120.0
#: Lines shown for running trajectories.
LINES = 8


def run_on_ray(
    tasks: Sequence[Task],
    name: str,
    settings: Settings,
    *,
    address: str | None = None,
    gpus: float | None = None,
    parallel: int | None = None,
    options: Mapping[str, Any],
) -> list[Outcome]:
    """Run trajectories as Ray tasks, one CPU each, and wait for their end; with `Settings.pack` a task is a stack.

    Args:
        tasks: Trajectories and the stores that they go to, which all nodes must see.
        name: What the progress bar calls them.
        settings: How they are computed.
        address: Address of the cluster; default: Ray on this machine.
        gpus: Share of a GPU that each task gets.
        parallel: Most tasks that Ray is given at the same time; default all.
        options: More options of a Ray task, `num_cpus`, `resources`, `max_retries`, ...; texts are read as JSON.

    Returns:
        How every trajectory ended.

    Raises:
        ImpRunsError: Ray is not installed.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # nodes have their own installation
    ray = optional("ray", "ray")
    mine = not ray.is_initialized()
    if mine:
        client = "://" in (address or "")  # a remote client takes no settings
        quiet: dict[str, Any] = {} if client else {"logging_level": logging.ERROR, "log_to_driver": False}
        ray.init(address=address, **quiet)
    pins = KERNELS if settings.device == "cpu" else {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    given = {"num_cpus": 1, "num_gpus": gpus or 0, "max_retries": RETRIES, "runtime_env": {"env_vars": pins}}
    given |= {option: _value(text) for option, text in options.items()}
    task = ray.remote(_run).options(**given)
    try:
        return _Run(ray, task, tasks, settings, parallel or len(tasks)).wait(name)
    finally:
        if mine:
            ray.shutdown()


def _value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _run(trajectories: Sequence[Trajectory], store: str, settings: Settings, way: Way) -> list[Outcome]:
    """Run a share in a worker of Ray, which may have run others."""
    forget()
    steady()
    return work_all(trajectories, store, settings, way)


class _Run:
    """Give Ray what is to be run, and collect how it ended."""

    def __init__(self, ray: Any, task: Any, tasks: Sequence[Task], settings: Settings, parallel: int) -> None:
        self._ray, self._task, self._settings, self._parallel = ray, task, settings, parallel
        self._tasks = {trajectory.key: (trajectory, store) for trajectory, store in tasks}
        self._waiting = [(0.0, share) for share in reversed(shares_of(tasks, settings, len(tasks)))]
        self._given: dict[Any, Share] = {}
        self._held: dict[str, float] = {}

    def wait(self, name: str) -> list[Outcome]:
        outcomes: list[Outcome] = []
        looked = 0.0
        with Bars(list(self._tasks.values()), name, LINES) as bars:
            while len(outcomes) < len(self._tasks):
                self._give()
                given = list(self._given)
                ready, _ = self._ray.wait(given, num_returns=min(len(given), 100), timeout=1.0) if given else ([], [])
                if not given:
                    time.sleep(0.5)
                for reference in ready:
                    for outcome in self._ended(reference):
                        outcomes.append(outcome)
                        bars.count(outcome)
                if bars.shown and time.monotonic() - looked > AGAIN:
                    bars.show(self._running())
                    looked = time.monotonic()
        return outcomes

    def _give(self) -> None:
        now = time.monotonic()
        later = []
        while self._waiting and len(self._given) < self._parallel:
            when, share = self._waiting.pop()
            if when > now:
                later.append((when, share))
                continue
            trajectories, store = [trajectory for trajectory, _ in share.tasks], str(_seen(share.tasks[0][1]))
            self._given[self._task.remote(trajectories, store, self._settings, share.way)] = share
        self._waiting[:0] = later

    def _ended(self, reference: Any) -> list[Outcome]:
        """Give how the trajectories of a task ended, but for those that are to be tried again."""
        share = self._given.pop(reference)
        try:
            outcomes = self._ray.get(reference)
        except Exception as error:  # the worker or its node died once more than Ray tries
            return [fail(t, store.path, reason_of(error), str(error)) for t, store in share.tasks]
        now = time.monotonic()
        again = [o.key for o in outcomes if o.state in ("busy", "stopped")]
        again = [key for key in again if now - self._held.setdefault(key, now) < PATIENCE]
        if again:
            self._waiting.insert(0, (now + AGAIN, Share([self._tasks[key] for key in again], share.way)))
        return [outcome for outcome in outcomes if outcome.key not in again]

    def _running(self) -> list[Task]:
        here = {id(store): store for _, store in self._tasks.values()}
        names = {key: files for store in here.values() for key, files in store.contents().items()}
        given = [task for share in self._given.values() for task in share.tasks]
        return [task for task in given if "running.json" in names.get(task[0].key, ())][:LINES]


def _seen(store: Store) -> Any:
    """Give the path of a store as other processes need it."""
    return store.path.absolute() if hasattr(store.path, "absolute") else store.path
