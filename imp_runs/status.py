"""How far the trajectories of a store have got, which failed and why, and how long the rest will take."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imp_runs.config import Trajectory
from imp_runs.errors import DamagedError
from imp_runs.files import check_seal, on_disk, read_all, read_sealed
from imp_runs.life import STALE, read_life
from imp_runs.store import Store

#: How many running, failed and diverged trajectories are named in the text of a status.
_NAMED = 20


@dataclass(frozen=True)
class Status:
    """Say how far a store has got.

    Attributes:
        done: Trajectories that have ended.
        running: Those that show signs of life, each with its last sign.
        failed: Those that failed, each with the reason and the file to open.
        waiting: Those that a sweep wants and nobody runs: not begun, or interrupted.
        diverged: Those done ones that ended early because the loss was no longer finite.
        records: Levels recorded.
        levels: Levels that all trajectories together have, those that ended early counted as far as they got.
        seconds: Time that the rest will take with as many processes as run trajectories at present (at least one); none
            while nothing is known of any run's time.
    """

    done: tuple[str, ...]
    running: dict[Trajectory, dict[str, Any]]
    failed: dict[Trajectory, str]
    waiting: tuple[Trajectory, ...]
    diverged: tuple[Trajectory, ...]
    records: int
    levels: int
    seconds: float | None

    def __str__(self) -> str:
        left = "unknown until a level has been recorded" if self.seconds is None else f"about {duration(self.seconds)}"
        if self.seconds and not self.running:
            left += " with one worker; none is running"
        total = len(self.done) + len(self.running) + len(self.failed) + len(self.waiting)
        lines = [
            f"trajectories  {total}",
            f"done          {len(self.done)}" + (f" ({len(self.diverged)} diverged)" if self.diverged else ""),
            f"running       {len(self.running)}",
            f"failed        {len(self.failed)}",
            f"waiting       {len(self.waiting)}",
            f"records       {self.records} of {self.levels}",
            f"time left     {left}",
        ]
        now = time.time()
        for trajectory, life in list(self.running.items())[:_NAMED]:
            place = f"on {life.get('host')}" + (f", job {life['job']}" if life.get("job") else "")
            ago = duration(max(0.0, now - float(life["updated"])))
            lines.append(
                f"running: {trajectory}: level {life.get('level')} of {trajectory.last_level}, {place}, {ago} ago"
            )
        for trajectory, reason in list(self.failed.items())[:_NAMED]:
            lines.append(f"failed: {trajectory}: {reason}")
        for trajectory in self.diverged[:_NAMED]:
            lines.append(
                f"diverged: {trajectory}: the loss was not finite; it ends there, choose a smaller learning_rate"
            )
        hidden = sum(max(0, len(some) - _NAMED) for some in (self.running, self.failed, self.diverged))
        return "\n".join([*lines, *([f"... and {hidden} more"] if hidden else [])])


def status_of(store: Store | str | Path) -> Status:
    """Look at a store, without disturbing who writes to it.

    Args:
        store: The store, its folder or its URL.

    Returns:
        Its status. The time left is, for every level that is still to be run, the mean time of the recorded levels of
        the same network and dataset size, or where there are none, of all, scaled by examples, depth and width. A
        network whose runs ended before their last level is expected to end there again.

    Raises:
        ImpRunsError: The folder is no store, or the description of a trajectory in it is damaged.
    """
    store = store if isinstance(store, Store) else Store(store)
    contents, wanted = store.contents(), store.wanted()
    wanted |= {key: store.trajectory(key) for key in contents.keys() - wanted.keys() if "config.json" in contents[key]}
    ended, failed = _ended(store, contents)
    running: dict[Trajectory, dict[str, Any]] = {}
    waiting, now, seconds = [], time.time(), _seconds_per_level(store, contents, wanted, ended)
    lengths = _levels_there_are(wanted, ended)
    levels = records = 0
    left: float | None = 0.0
    for key, trajectory in wanted.items():
        if key in ended:
            records, levels = records + ended[key]["levels"] + 1, levels + ended[key]["levels"] + 1
            continue
        recorded = sum(name.startswith("level-") and name.endswith(".json") for name in contents.get(key, ()))
        records, levels = records + recorded, levels + trajectory.last_level + 1
        still = max(lengths.get(_network(trajectory), trajectory.last_level + 1) - recorded, 1)
        left = None if left is None or not seconds else left + still * seconds[trajectory]
        life = read_life(store.folder(key) / "running.json") if "running.json" in contents.get(key, ()) else None
        if life and now - float(life.get("updated", 0)) < STALE:
            running[trajectory] = life
        elif key not in failed:
            waiting.append(trajectory)
    processes = {(life.get("host"), life.get("process")) for life in running.values()}
    return Status(
        tuple(sorted(ended)),
        running,
        {wanted[key]: reason for key, reason in failed.items() if key in wanted and wanted[key] not in running},
        tuple(waiting),
        tuple(wanted[key] for key, done in ended.items() if done["status"] == "diverged" and key in wanted),
        records,
        levels,
        None if left is None else left / max(len(processes), 1),
    )


def _ended(store: Store, contents: dict[str, set[str]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read how trajectories ended, and why those failed that did."""
    done = [store.folder(key) / "done.json" for key, names in contents.items() if "done.json" in names]
    ended, failed = {}, {}
    for path, content in read_all(done):
        key = path.parent.name
        try:
            ended[key] = read_sealed(path, strict=False, content=content)
            if not store.has_records(key, below=ended[key]["levels"] + 1):
                del ended[key]
        except DamagedError as damage:
            failed[key] = str(damage)
    packed = [store.folder(key) / "records.jsonl" for key in ended if "records.jsonl" in contents[key]]
    for path, content in read_all(packed) if on_disk(store.path) else ():  # object stores have checksums of their own
        try:
            check_seal(path, content)
        except DamagedError as damage:
            failed[path.parent.name] = str(damage)
            del ended[path.parent.name]
    for key, names in contents.items():
        if "failed.json" in names and key not in ended:
            path = store.folder(key) / "failed.json"
            try:
                failed[key] = f"{store.failure(key)} (open {path})"
            except DamagedError as damage:
                failed[key] = str(damage)
            except FileNotFoundError:  # it has just been begun again
                continue
    return ended, failed


def _seconds_per_level(
    store: Store, contents: dict[str, set[str]], wanted: dict[str, Trajectory], ended: dict[str, dict[str, Any]]
) -> dict[Trajectory, float]:
    """Say how long a level of every trajectory takes, from the levels recorded."""
    known = [
        (wanted[key], done["levels"] + 1, done["seconds"])
        for key, done in ended.items()
        if "seconds" in done and key in wanted
    ]
    for key in contents.keys() & wanted.keys() - ended.keys():
        times: list[float] = []
        with contextlib.suppress(DamagedError):
            times = [record.get("seconds", 0.0) for record in store.records(key)]
        if times:
            known.append((wanted[key], len(times), sum(times)))
    if not known:
        return {}
    same: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for trajectory, levels, taken in known:
        same.setdefault(_network(trajectory), []).append((levels, taken))
    rate = sum(taken for *_, taken in known) / sum(levels * _size(trajectory) for trajectory, levels, _ in known)
    means = {network: sum(taken for _, taken in own) / sum(n for n, _ in own) for network, own in same.items()}
    return {t: means.get(_network(t), rate * _size(t)) for t in wanted.values()}


def _levels_there_are(wanted: dict[str, Trajectory], ended: dict[str, dict[str, Any]]) -> dict[tuple[Any, ...], int]:
    """Say by network after how many levels nothing was left to prune, where that has been seen."""
    exhausted = [key for key, done in ended.items() if done["status"] == "exhausted" and key in wanted]
    return {_network(wanted[key]): ended[key]["levels"] + 1 for key in exhausted}


def _network(trajectory: Trajectory) -> tuple[Any, ...]:
    t = trajectory
    return t.family, t.dataset, t.pool, t.depth, t.width, t.dataset_size


def _size(trajectory: Trajectory) -> int:
    return trajectory.dataset_size * trajectory.depth * trajectory.width


def duration(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> duration(754)
        '12 min 34 s'
    """
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
