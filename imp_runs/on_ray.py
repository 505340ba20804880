"""Trajectories as Ray tasks: fractions of a GPU, retries where a node dies, any cluster."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from imp_runs.config import Trajectory
from imp_runs.engines import Bars, Task
from imp_runs.errors import optional
from imp_runs.life import forget
from imp_runs.store import Store
from imp_runs.work import Outcome, Settings, fail, reason_of, work
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
    """Run trajectories as Ray tasks, one CPU each, and wait for their end.

    Args:
        tasks: Trajectories and the stores that they go to, which all nodes must see.
        name: What the progress bar calls them.
        settings: How they are computed.
        address: Address of the cluster; default: Ray on this machine.
        gpus: Share of a GPU that each gets.
        parallel: Most that Ray is given at the same time; default all.
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
    task = ray.remote(_one).options(**given)
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


def _one(trajectory: Trajectory, store: str, settings: Settings) -> Outcome:
    """Run a trajectory in a worker of Ray, which may have run others."""
    forget()
    steady()
    return work(trajectory, store, settings)


class _Run:
    """Give Ray what is to be run, and collect how it ended."""

    def __init__(self, ray: Any, task: Any, tasks: Sequence[Task], settings: Settings, parallel: int) -> None:
        self._ray, self._task, self._settings, self._parallel = ray, task, settings, parallel
        self._tasks = {trajectory.key: (trajectory, store) for trajectory, store in tasks}
        self._waiting = [(0.0, key) for key in reversed(self._tasks)]
        self._given: dict[Any, str] = {}
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
                    outcome = self._outcome(reference)
                    if outcome:
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
            when, key = self._waiting.pop()
            if when > now:
                later.append((when, key))
                continue
            trajectory, store = self._tasks[key]
            self._given[self._task.remote(trajectory, str(_seen(store)), self._settings)] = key
        self._waiting[:0] = later

    def _outcome(self, reference: Any) -> Outcome | None:
        """Give how a task ended, or nothing where it is to be tried again."""
        key = self._given.pop(reference)
        trajectory, store = self._tasks[key]
        try:
            outcome = self._ray.get(reference)
        except Exception as error:  # the worker or its node died once more than Ray tries
            return fail(trajectory, store.path, reason_of(error), str(error))
        now = time.monotonic()
        if outcome.state in ("busy", "stopped") and now - self._held.setdefault(key, now) < PATIENCE:
            self._waiting.insert(0, (now + AGAIN, key))
            return None
        return outcome

    def _running(self) -> list[Task]:
        here = {id(store): store for _, store in self._tasks.values()}
        names = {key: files for store in here.values() for key, files in store.contents().items()}
        keys = [key for key in self._given.values() if "running.json" in names.get(key, ())]
        return [self._tasks[key] for key in keys[:LINES]]


def _seen(store: Store) -> Any:
    """Give the path of a store as other processes need it."""
    return store.path.absolute() if hasattr(store.path, "absolute") else store.path
