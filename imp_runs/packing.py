"""Which trajectories a process gets at once, and how many of their networks it stacks, as measured before."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imp_runs.config import STREAMED, Trajectory
from imp_runs.files import write_durably
from imp_runs.workers import device_name

if TYPE_CHECKING:
    from imp_runs.store import Store
    from imp_runs.work import Settings

Task = tuple[Trajectory, "Store"]


@dataclass(frozen=True)
class Share:
    """Hold the tasks that a process gets at once, of one store, and how many of their networks are stacked."""

    tasks: Sequence[Task]
    size: int


def alike(trajectory: Trajectory) -> tuple[object, ...]:
    """Give what trajectories must have in common to be of one pack."""
    return tuple(getattr(trajectory, n) for n in ("family", "depth", "width", "dataset", "pool", "dataset_size"))


def shares_of(tasks: Sequence[Task], settings: Settings, workers: int) -> list[Share]:
    """Deal tasks out in their order: one by one, or in packs of those that are alike, as many as workers or more.

    Args:
        tasks: Trajectories and their stores.
        settings: How they are computed; `pack` says how many networks are stacked.
        workers: Processes that wait for shares.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, (trajectory, store) in enumerate(tasks):
        kinds.setdefault((*alike(trajectory), str(store.path)), []).append(place)
    sizes, shares = Choices(settings.device, settings.pack), {}
    for own in kinds.values():
        size = sizes.of(tasks[own[0]][0])
        parts = len(own) if size == 1 else min(workers, -(-len(own) // size))
        shares |= {own[part]: Share([tasks[place] for place in own[part::parts]], size) for part in range(parts)}
    return [shares[first] for first in sorted(shares)]


def choices_file() -> Path:
    """Name the file in which `bench` writes down how many networks are best stacked: a cache, which may be deleted."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bayeslaw" / "packs.json"


class Choices:
    """Say how many networks are stacked on a device.

    Args:
        device: The device.
        pack: What was asked for. By default it is on a GPU what was measured, by what the time of a step depends on; on
            a CPU none are, so that every machine computes the same.
    """

    def __init__(self, device: str, pack: int | None = None) -> None:
        measured = pack is None and device.startswith("cuda")
        self._pack = pack
        self._device, self._known = (device_name(device), _read(choices_file())) if measured else ("", {})

    def of(self, trajectory: Trajectory) -> int:
        """Give how many networks like this one are stacked; 1 where none was asked for and that was not measured."""
        if trajectory.dataset in STREAMED:
            return 1
        size = self._pack or self._known.get(_entry(self._device, trajectory), 1)
        return size if isinstance(size, int) and size >= 1 else 1


def remember(device: str, trajectory: Trajectory, size: int) -> None:
    """Write down how many networks of this kind are best stacked on a GPU."""
    if not device.startswith("cuda"):
        return
    path = choices_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read(path) | {_entry(device_name(device), trajectory): size}
    write_durably(path, json.dumps(known, indent=1, sort_keys=True).encode())


def _entry(device: str, trajectory: Trajectory) -> str:
    own = [f"{n} {getattr(trajectory, n)}" for n in ("family", "depth", "width", "dataset", "pool")]
    return "; ".join([device, *own, f"batch_size {trajectory.protocol.batch_size}"])


def _read(path: Path) -> dict[str, int]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
