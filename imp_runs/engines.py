"""Engines: who runs trajectories, and what is shown meanwhile; this machine, unless told otherwise."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from imp_runs.life import read_life
from imp_runs.packing import ALONE, Share, Task, shares_of
from imp_runs.store import Store
from imp_runs.work import Outcome, Settings, fail, work_all
from imp_runs.workers import default_workers, fetch, one_process, pinned, send

ENGINES = ("local", "ray", "slurm")
#: How often a trajectory is begun in one sweep when the process that runs it dies.
ATTEMPTS = 3
#: Seconds that workers have to write their checkpoints when a sweep is stopped.
GRACE = 10.0


def run_here(
    tasks: Sequence[Task],
    name: str,
    settings: Settings,
    *,
    workers: int | None = None,
    download: bool = False,
) -> list[Outcome]:
    """Run trajectories in processes of this machine.

    A process that dies takes only its own trajectories with it, one or a pack, which are begun again, up to `ATTEMPTS`
    times. Those that another sweep is running are tried once more at the end.

    Args:
        tasks: Trajectories, one or more, and the stores that they go to.
        name: What the progress bar calls them.
        settings: How they are computed.
        workers: Number of processes; default one per core on a CPU, one on a GPU.
        download: Fetch missing dataset files.

    Returns:
        How every trajectory ended.

    Raises:
        ImpRunsError: No dataset could be read.
        KeyboardInterrupt: Interrupted; the workers have written checkpoints.
    """
    workers = workers or default_workers(settings.device)
    shares = shares_of(tasks, settings, workers)
    workers = min(workers, len(shares))
    waiting: queue.SimpleQueue[tuple[Share, int]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    with pinned(settings.device):
        slots = [_Slot(waiting, ended, settings) for _ in range(workers)]
        try:
            fetch(slots[0].pool, (t for t, _ in tasks), settings.data_dir, download)
            for share in shares:
                waiting.put((share, 1))
            for slot in slots:
                slot.start()
            with Bars(tasks, name, workers) as bars:
                return _collect(tasks, waiting, ended, slots, bars)
        finally:
            _stop(slots)


class _Slot(threading.Thread):
    """Give one worker process one share after the other, and a new process where one dies."""

    def __init__(self, waiting: queue.SimpleQueue, ended: queue.SimpleQueue, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.pool, self.stopped = one_process(), False
        self.running: Sequence[Task] = ()
        self._waiting, self._ended, self._settings = waiting, ended, settings

    def run(self) -> None:
        while not self.stopped:
            try:
                share, attempt = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            self.running = share.tasks
            outcomes = self._run(share, attempt)
            self.running = ()
            for outcome in outcomes:
                self._ended.put(outcome)

    def _run(self, share: Share, attempt: int) -> list[Outcome]:
        trajectories, store = [trajectory for trajectory, _ in share.tasks], share.tasks[0][1]
        processes: list[Any] = []
        try:
            future = self.pool.submit(work_all, trajectories, store.path, self._settings, share.way)
            processes = list((self.pool._processes or {}).values())
            outcomes = future.result()
            if not any(outcome.state == "stopped" for outcome in outcomes):
                return outcomes
            ending = "was asked to stop"
        except Exception:  # the process died: whatever goes wrong in a run itself is an outcome
            for process in processes:
                process.join(5.0)
            ending = next((died_of(p.exitcode) for p in processes if p.exitcode), "died")
        if self.stopped:
            return []
        self.pool = one_process()
        if attempt < ATTEMPTS:
            self._waiting.put((share, attempt + 1))
            return []
        reason = f"its process {ending}, {ATTEMPTS} times: run the sweep again, with fewer workers if memory is short"
        return [fail(trajectory, store.path, reason) for trajectory in trajectories]


def died_of(code: int) -> str:
    """Say how a process with this exit code ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _collect(
    tasks: Sequence[Task], waiting: queue.SimpleQueue, ended: queue.SimpleQueue, slots: list[_Slot], bars: Bars
) -> list[Outcome]:
    """Wait for the end of all; those that run elsewhere are tried once more when all others have ended."""
    pending, later, tried, outcomes = {t.key: (t, store) for t, store in tasks}, set(), set(), []
    while pending:
        try:
            outcome = ended.get(timeout=0.2)
        except queue.Empty:
            bars.show([task for slot in slots for task in slot.running])
            continue
        if outcome.state == "busy" and outcome.key not in tried:
            tried.add(outcome.key)
            later.add(outcome.key)
        else:
            del pending[outcome.key]
            outcomes.append(outcome)
            bars.count(outcome)
        if later == pending.keys():
            for key in later:
                waiting.put((Share([pending[key]], ALONE), ATTEMPTS))
            later = set()
    return outcomes


def _stop(slots: list[_Slot]) -> None:
    """Ask all workers to stop, wait while they write their checkpoints, and end them."""
    for slot in slots:
        slot.stopped = True
        send(slot.pool, signal.SIGTERM if slot.running else signal.SIGKILL)
    end = time.monotonic() + GRACE
    for slot in slots:
        if slot.is_alive():
            slot.join(max(0.0, end - time.monotonic()))
        send(slot.pool, signal.SIGKILL)
        slot.pool.shutdown(wait=False, cancel_futures=True)


class Bars:
    """Show the levels done of all trajectories, with the time left, and below a line for each that is running.

    On what is no terminal nothing is shown.

    Args:
        tasks: Trajectories and their stores.
        name: What the whole is called.
        lines: How many lines there are for running ones.
    """

    def __init__(self, tasks: Sequence[Task], name: str, lines: int) -> None:
        self._tasks, self._name = {t.key: (t, store) for t, store in tasks}, name
        self._levels = {key: levels_of(store, key) for key, (_, store) in self._tasks.items()}
        self._lines, self.shown = max(0, lines), sys.stderr.isatty()

    def __enter__(self) -> Bars:
        from tqdm import tqdm

        total = sum(t.last_level + 1 for t, _ in self._tasks.values())
        there = sum(self._levels.values())
        options: dict[str, Any] = {"disable": None, "file": sys.stderr}
        self._total: Any = tqdm(total=total, initial=there, desc=self._name, unit="level", smoothing=0.05, **options)
        options |= {"total": 1, "bar_format": "{desc}", "leave": False}
        self._bars: list[Any] = [tqdm(position=n + 1, **options) for n in range(self._lines)]
        return self

    def __exit__(self, *_: object) -> None:
        for bar in reversed([self._total, *self._bars]):
            bar.close()

    def show(self, running: Iterable[Task]) -> None:
        """Show where the running trajectories are."""
        if not self.shown:
            return
        lines = []
        for trajectory, store in running:
            # Where several are trained at once, one that has ended has no files of single levels any more.
            done = max(self._levels[trajectory.key], levels_of(store, trajectory.key))
            self._levels[trajectory.key] = done
            life = read_life(store.folder(trajectory.key) / "running.json") or {}
            inside = f", step {life['step']} of {life['steps']}" if life.get("level") is not None else ""
            lines.append(f"  {trajectory}: level {self._levels[trajectory.key]} of {trajectory.last_level}{inside}")
        for bar, line in zip(self._bars, [*lines, *[""] * self._lines], strict=False):
            if bar.desc != line:
                bar.set_description_str(line)
        self._total.update(sum(self._levels.values()) - self._total.n)

    def count(self, outcome: Outcome) -> None:
        """Count a trajectory that has ended, whether all its levels were run or not."""
        if outcome.state == "done":
            trajectory, _ = self._tasks[outcome.key]
            self._levels[outcome.key] = trajectory.last_level + 1
            self._total.update(sum(self._levels.values()) - self._total.n)
        elif outcome.state == "failed" and self.shown:
            self._total.write(f"failed: {self._tasks[outcome.key][0]}: {outcome.reason}", file=sys.stderr)


def levels_of(store: Store, key: str) -> int:
    """Count the levels of a trajectory that are done."""
    folder = store.folder(key)
    return len(list(folder.glob("level-*.json"))) if folder.exists() else 0
