"""Which trajectories a process gets at once, and how many of their networks it trains together."""

from __future__ import annotations

import json
import os
from collections import Counter
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
class Way:
    """Say how networks are trained together.

    Attributes:
        pack: Networks of one architecture that are stacked: the same operations compute them.
        streams: Stacks, of any architectures, that are computed side by side.
    """

    pack: int = 1
    streams: int = 1


#: One network after the other.
ALONE = Way()

#: What is trained side by side on a GPU where nothing was measured: networks of these families, of other images than
#: those of the dataset. It is as many as come to this depth x width x batch size, but no more than MOST: eight of
#: ResNet-20 with 64 channels and batches of 64, which on an H100 took half the time of one after the other in float32,
#: and less of it in bfloat16, and gave the same table, bit for bit.
TOGETHER, LARGE = ("cifar_resnet", "mlp"), "tinyimagenet"
LOAD, MOST = 20 * 64 * 64 * 8, 8


@dataclass(frozen=True)
class Share:
    """Hold the tasks that a process gets at once, of one store, and how their networks are trained together."""

    tasks: Sequence[Task]
    way: Way


def alike(trajectory: Trajectory) -> tuple[object, ...]:
    """Give what trajectories must have in common to be trained together: they take the same steps."""
    return trajectory.dataset, trajectory.pool, trajectory.dataset_size, trajectory.protocol


def architecture(trajectory: Trajectory) -> tuple[object, ...]:
    """Give what trajectories must have in common besides to be of one stack."""
    return trajectory.family, trajectory.depth, trajectory.width


def shares_of(tasks: Sequence[Task], settings: Settings, workers: int) -> list[Share]:
    """Deal tasks out in their order: one by one, or those together that may be, to as many workers or more.

    Args:
        tasks: Trajectories and their stores.
        settings: How they are computed; `pack` and `streams` say how many networks are trained together.
        workers: Processes that wait for shares.
    """
    choices = Choices(settings.device, settings.pack, settings.streams)
    ways = ways_of([trajectory for trajectory, _ in tasks], choices)
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, ((trajectory, store), way) in enumerate(zip(tasks, ways, strict=True)):
        stack = architecture(trajectory) if way.streams == 1 else ()
        kinds.setdefault((way, *alike(trajectory), *stack, str(store.path)), []).append(place)
    shares = {}
    for (way, *_), own in kinds.items():
        assert isinstance(way, Way)
        parts = len(own) if way == ALONE else min(workers, -(-len(own) // (way.pack * way.streams)))
        shares |= {own[part]: Share([tasks[place] for place in own[part::parts]], way) for part in range(parts)}
    return [shares[first] for first in sorted(shares)]


def choices_file() -> Path:
    """Name the file in which `bench` writes down how many networks are best stacked: a cache, which may be deleted."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bayeslaw" / "packs.json"


class Choices:
    """Say how networks are trained together on a device.

    Args:
        device: The device.
        pack: What was asked for. By default it is on a GPU what was measured, by what the time of a step depends on, or
            else what `unmeasured` says; on a CPU one after the other, so that every machine computes the same.
        streams: Likewise.
    """

    def __init__(self, device: str, pack: int | None = None, streams: int | None = None) -> None:
        chosen = pack is None and streams is None and device.startswith("cuda")
        self._asked = None if chosen else Way(pack or 1, streams or 1)
        self._device, self._known = (device_name(device), _read(choices_file())) if chosen else ("", {})

    def of(self, trajectory: Trajectory, there: int) -> Way:
        """Give the way for a network like this one.

        Args:
            trajectory: The trajectory.
            there: Trajectories of its architecture. Where they are fewer than were best stacked, more stacks lie side
                by side.
        """
        if trajectory.dataset in STREAMED:
            return ALONE
        if self._asked:
            return self._asked
        known = self._known.get(_entry(self._device, trajectory))
        if isinstance(known, list) and len(known) == 2 and all(isinstance(n, int) and n >= 1 for n in known):
            best = Way(*known)
        else:
            best = unmeasured(trajectory)
        pack = min(best.pack, there)
        return Way(pack, -(-best.pack * best.streams // pack))


def unmeasured(trajectory: Trajectory) -> Way:
    """Give a way that is better on most GPUs than one after the other: small networks side by side, none in stacks."""
    load = trajectory.depth * trajectory.width * trajectory.protocol.batch_size
    if trajectory.family not in TOGETHER or trajectory.dataset == LARGE:
        return ALONE
    return Way(streams=max(1, min(MOST, int(LOAD / load))))


def ways_of(trajectories: Sequence[Trajectory], choices: Choices) -> list[Way]:
    """Give the way for every trajectory, beside the others of its architecture that may be of its stack."""
    stacks = [(*alike(trajectory), *architecture(trajectory)) for trajectory in trajectories]
    there = Counter(stacks)
    return [choices.of(trajectory, there[stack]) for trajectory, stack in zip(trajectories, stacks, strict=True)]


def remember(device: str, trajectory: Trajectory, way: Way) -> None:
    """Write down how networks of this kind are best trained together on a GPU."""
    if not device.startswith("cuda"):
        return
    path = choices_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read(path) | {_entry(device_name(device), trajectory): [way.pack, way.streams]}
    write_durably(path, json.dumps(known, indent=1, sort_keys=True).encode())


def _entry(device: str, trajectory: Trajectory) -> str:
    own = [f"{n} {getattr(trajectory, n)}" for n in ("family", "depth", "width", "dataset", "pool")]
    training = f"batch_size {trajectory.protocol.batch_size}; {trajectory.protocol.precision}"
    return "; ".join([device, *own, training])


def _read(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
