"""Where records and checkpoints live: durable, immutable, nothing executable.

```text
STORE/store.json                                    format and protocol, one per store
STORE/sweeps/HASH.json                              what a sweep wants: its trajectories
STORE/trajectories/KEY/config.json                  what is run
STORE/trajectories/KEY/level-000.json               one immutable record per level, while it runs
STORE/trajectories/KEY/checkpoint-001.safetensors   rewinding state and mask of the level to run next
STORE/trajectories/KEY/checkpoint-001.json          its checksum; the checkpoint counts once this is there
STORE/trajectories/KEY/checkpoint-001-000042.*      the same after step 42 of the level, with all that training needs
STORE/trajectories/KEY/running.json                 a sign of life: who runs it and where it is
STORE/trajectories/KEY/failed.json                  why it failed, until it is run again
STORE/trajectories/KEY/records.jsonl                all records, once the last one is there
STORE/trajectories/KEY/done.json                    written after that
STORE/trajectories/KEY/*.damaged                    what was not what had been written, set aside
```

Every JSON file carries its own checksum. A store is a folder that all workers see, or the URL of an object store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imp_runs.config import Protocol, Sweep, Trajectory, digest, protocol_hash
from imp_runs.errors import BusyError, DamagedError, ImpRunsError
from imp_runs.files import (
    check_seal,
    lines_of,
    listing,
    on_disk,
    place,
    read_all,
    read_sealed,
    sealed,
    sealed_lines,
    set_aside_damaged,
    write_durably,
)
from imp_runs.life import Life, alive

if TYPE_CHECKING:
    import torch

#: Of new stores. The first format, still read and continued, has no checksums and keeps one file per record.
FORMAT, FIRST = 2, 1
_KEY = re.compile(r"[0-9a-f]{16}")
#: Columns of a record that a repetition of the same run may change.
VOLATILE = frozenset({"seconds"})


@dataclasses.dataclass(frozen=True)
class Inside:
    """Hold where training stands inside a level.

    Attributes:
        step: Steps taken, counted from the start of the schedule.
        seconds: Time spent on the level.
        state: The network.
        velocity: The optimiser's momentum, `[parameters]`.
    """

    step: int
    seconds: float
    state: dict[str, torch.Tensor]
    velocity: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Hold what a level starts from: its number, the rewinding state and the mask; and how far it has got."""

    level: int
    state: dict[str, torch.Tensor]
    mask: torch.Tensor
    inside: Inside | None = None

    @property
    def name(self) -> str:
        """Name its files, without their endings."""
        return f"checkpoint-{self.level:03d}" + (f"-{self.inside.step:06d}" if self.inside else "")


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ImpRunsError(f"trajectory key {key!r} must be 16 hexadecimal digits.")


def _position(name: str) -> tuple[int, int]:
    """Read level and step (0 before the first) from the name of a checkpoint's file."""
    _, level, *step = name.split(".")[0].split("-")
    return int(level), int(step[0]) if step else 0


class Store:
    """A folder of trajectories that share one protocol.

    Args:
        path: The folder, or the URL of an object store.
        protocol: The protocol of what will be written; without it an existing store is opened for reading.

    Raises:
        ImpRunsError: The folder holds another protocol or format, or (without `protocol`) is no store.
    """

    def __init__(self, path: str | Path, protocol: Protocol | None = None) -> None:
        self.path = place(path)
        marker = self.path / "store.json"
        if not marker.exists():
            if protocol is None:
                raise ImpRunsError(
                    f"{self.path}: no store here (no store.json); run `imp-runs sweep` with --store first."
                )
            self._create(marker, protocol)
        self._check(marker, protocol)

    def _create(self, marker: Path, protocol: Protocol) -> None:
        content = sealed({
            "format": FORMAT, "protocol": dataclasses.asdict(protocol), "protocol_hash": protocol_hash(protocol)
        })  # fmt: skip
        if not on_disk(self.path):
            write_durably(marker, content)
            return
        try:
            (self.path / "trajectories").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ImpRunsError(f"{self.path}: a file is in the way; give --store a folder.") from None
        with self._alone():  # two sweeps may begin a store at the same time
            if not marker.exists():
                write_durably(marker, content)

    def _check(self, marker: Path, protocol: Protocol | None) -> None:
        try:
            content = read_sealed(marker, strict=False)
            self.format = content.get("format")
            if self.format == FORMAT:
                check_seal(marker, marker.read_bytes())
        except DamagedError:
            raise DamagedError(
                marker,
                f"{marker}: damaged, it does not match its checksum. Move it away and run the sweep that began this "
                "store again: it is written anew, and no record is lost.",
            ) from None
        self._protocol = content.get("protocol", {})
        later = self._protocol.keys() - {field.name for field in dataclasses.fields(Protocol)}
        if self.format not in (FIRST, FORMAT) or later:
            what = f"a protocol with {', '.join(sorted(later))}" if later else f"format {self.format!r}"
            raise ImpRunsError(
                f"{marker}: {what}, this version reads formats {FIRST} and {FORMAT} and its own protocols; "
                "use the version of imp_runs that wrote it, or another --store."
            )
        if protocol is None or content.get("protocol_hash") == protocol_hash(protocol):
            return
        wanted = json.loads(json.dumps(dataclasses.asdict(protocol)))
        there = self._protocol
        differing = [f"{k} = {there.get(k)!r}, not {v!r}" for k, v in wanted.items() if there.get(k) != v]
        raise ImpRunsError(
            f"{self.path}: this store holds runs of another protocol ({'; '.join(differing) or 'older arithmetic'}). "
            "Give the sweep a --store of its own, or the store's own protocol."
        )

    @property
    def protocol(self) -> Protocol:
        """The protocol of all that is in the store."""
        described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self._protocol.items()}
        return Protocol(**described)

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def add_sweep(self, sweep: Sweep) -> str:
        """Write down what a sweep wants, so that `status` and every worker know it; give the name of the entry.

        Entries that are damaged, of this sweep or another, are set aside.
        """
        rows = []
        for trajectory in sweep.trajectories:
            rows.append({"key": trajectory.key, **trajectory.described})
        name = digest([sweep.name, rows])
        path, content = self.path / "sweeps" / f"{name}.json", sealed({"name": sweep.name, "trajectories": rows})
        with self._alone():
            path.parent.mkdir(exist_ok=True)
            set_aside_damaged(path.parent.glob("*.json"))
            if not path.exists():
                write_durably(path, content)
        return name

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other sweeps from writing to the store itself; an object store needs no such care."""
        if not on_disk(self.path):
            yield
            return
        from filelock import FileLock

        with FileLock(self.path / "lock"):
            yield

    def wanted(self) -> dict[str, Trajectory]:
        """Give the trajectories that the sweeps of the store want, by key."""
        folder, protocol = self.path / "sweeps", self.protocol
        found = {}
        for path in sorted(folder.glob("*.json")) if folder.exists() else []:
            for row in read_sealed(path)["trajectories"]:
                key = row.pop("key")
                _check_key(key)
                found[key] = Trajectory(**row, protocol=protocol)
        return found

    # --- one trajectory -----------------------------------------------------------------------------------------------

    def folder(self, key: str) -> Path:
        """Name the folder of a trajectory; a key is 16 hexadecimal digits, so no path leaves the store."""
        _check_key(key)
        folder = self.path / "trajectories" / key
        if folder.is_symlink():
            raise ImpRunsError(f"{folder}: a link, which may point outside the store; put the folder itself here.")
        return folder

    @contextlib.contextmanager
    def locked(self, trajectory: Trajectory) -> Iterator[None]:
        """Own a trajectory while it runs.

        On a disk by a lock that falls with the process that holds it; in an object store by the sign of life of
        another run, which goes stale: two that begin at the very same moment both run, and write the same.

        Raises:
            BusyError: Another process is running it.
        """
        folder = self.folder(trajectory.key)
        busy = BusyError(f"{folder}: another process is running this trajectory ({trajectory}).")
        if not on_disk(folder):
            if alive(folder / "running.json"):
                raise busy
            self._begin(trajectory)
            yield
            return
        from filelock import FileLock, Timeout

        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise busy from None
        try:
            self._begin(trajectory)
            yield
        finally:
            lock.release()

    def life(self, key: str) -> Life:
        """Give what leaves the signs of life of a trajectory."""
        return Life(self.folder(key) / "running.json")

    def _begin(self, trajectory: Trajectory) -> None:
        folder = self.folder(trajectory.key)
        if not (folder / "config.json").exists():
            write_durably(
                folder / "config.json",
                sealed({**trajectory.described, "protocol": dataclasses.asdict(trajectory.protocol)}),
            )
        (folder / "failed.json").unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        return read_sealed(path, strict=self.format != FIRST)

    def trajectory(self, key: str) -> Trajectory:
        """Give the description of a trajectory that has begun."""
        described: dict[str, Any] = {**self._read(self.folder(key) / "config.json"), "protocol": self.protocol}
        return Trajectory(**described)

    def is_done(self, key: str) -> bool:
        """Say whether a trajectory has ended and all its records are there."""
        done = self.folder(key) / "done.json"
        return done.exists() and self.has_records(key, below=self._read(done).get("levels", -1) + 1)

    def is_whole(self, key: str) -> bool:
        """Say whether a trajectory has ended and nothing of it is damaged; what is will be mended by the next run."""
        packed = self.folder(key) / "records.jsonl"
        try:
            if on_disk(packed) and packed.exists():  # object stores have checksums of their own
                check_seal(packed, packed.read_bytes())
            return self.is_done(key)
        except DamagedError:
            return False

    def has_records(self, key: str, *, below: int) -> bool:
        """Say whether the records of all levels below one are there; a damaged one may have been set aside."""
        if (self.folder(key) / "records.jsonl").exists():
            return True
        return all(self._record(key, level).exists() for level in range(below))

    def _record(self, key: str, level: int) -> Path:
        return self.folder(key) / f"level-{level:03d}.json"

    def mark_done(self, key: str, *, levels: int, status: str) -> None:
        """Declare a trajectory finished, after its last record, and put its records into one file."""
        folder, records = self.folder(key), self.records(key)
        if self.format != FIRST:
            write_durably(folder / "records.jsonl", sealed_lines(records))
        seconds = sum(record.get("seconds", 0.0) for record in records)
        write_durably(folder / "done.json", sealed({"levels": levels, "status": status, "seconds": seconds}))
        if self.format != FIRST:
            for path in folder.glob("level-*.json"):
                path.unlink(missing_ok=True)
        self._drop(key, below=(math.inf, 0))

    def mark_failed(self, key: str, reason: str, details: str = "") -> Path:
        """Write down why a trajectory failed; give the file that says so."""
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "failed.json"
        write_durably(path, sealed({"reason": reason, "details": details.splitlines()}))
        return path

    def failure(self, key: str) -> str:
        """Give the reason for which a trajectory failed."""
        return str(self._read(self.folder(key) / "failed.json").get("reason"))

    def mend(self, key: str) -> list[str]:
        """Set aside every file of a trajectory that is not what was written; say what and why.

        A run then computes again what they held, and checks it against the records that are there.
        """
        folder, said = self.folder(key), []
        for path in sorted(folder.iterdir()):
            if path.name == "running.json" or path.suffix not in {".json", ".jsonl"}:
                continue
            try:
                self._verify(path)
            except DamagedError as damage:
                aside = [path, path.with_suffix(".safetensors")]
                for one in aside:
                    if one.exists():
                        one.rename(one.with_name(f"{one.name}.damaged"))
                said.append(f"{damage} Now it is {path.name}.damaged.")
        return said

    def _verify(self, path: Path) -> None:
        if path.suffix == ".jsonl":
            check_seal(path, path.read_bytes())
        elif path.name.startswith("checkpoint-"):
            self._checked(path)
        else:
            self._read(path)

    # --- records ------------------------------------------------------------------------------------------------------

    def write_record(self, key: str, level: int, record: dict[str, Any]) -> None:
        """Write the record of a level; one that is there already must say the same.

        Raises:
            ImpRunsError: A record is there and says something else.
        """
        path, packed = self._record(key, level), self.folder(key) / "records.jsonl"
        if path.exists():
            old = self._read(path)
        elif packed.exists() and (records := lines_of(packed, packed.read_bytes())[level : level + 1]):
            path, old = packed, records[0]
        else:
            write_durably(path, sealed(record))
            return
        new = json.loads(json.dumps(record))
        differing = sorted(k for k in old.keys() | new.keys() if k not in VOLATILE and old.get(k) != new.get(k))
        if differing:
            said = ", ".join(
                f"{k} ({new.get(k)!r}, not {old.get(k)!r})" if k in ("kernels", "device") else k for k in differing
            )
            raise ImpRunsError(
                f"{path}: recomputing this level gave another {said} (another machine or version, or another --pack, "
                "--streams or --kernels?). Records are immutable: finish the trajectory as it began, or move "
                f"{path.parent} away."
            )

    def records(self, key: str) -> list[dict[str, Any]]:
        """Read the records of a trajectory, by level."""
        packed = self.folder(key) / "records.jsonl"
        if not packed.exists():
            try:
                return [self._read(path) for path in sorted(self.folder(key).glob("level-*.json"))]
            except FileNotFoundError:  # its writer has just put them into one file
                pass
        return lines_of(packed, packed.read_bytes())

    def last_record(self, key: str) -> dict[str, Any] | None:
        """Give the record of the highest level, if those of all levels before it are there."""
        records = self.records(key)
        return records[-1] if records and len(records) == records[-1]["level"] + 1 else None

    def all_records(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Read the records of all trajectories, one after the other."""
        packed = {}
        for key, names in sorted(self.contents().items()):
            if "records.jsonl" in names:
                packed[key] = self.folder(key) / "records.jsonl"
            else:
                yield key, self.records(key)
        for path, content in read_all(list(packed.values())):
            yield path.parent.name, lines_of(path, content)

    def keys(self) -> list[str]:
        """List the trajectories that have begun."""
        return sorted(self.contents())

    def contents(self) -> dict[str, set[str]]:
        """List the trajectories that have begun, each with the names of its files, in one pass."""
        return {key: names for key, names in listing(self.path / "trajectories").items() if _KEY.fullmatch(key)}

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def write_checkpoint(self, key: str, checkpoint: Checkpoint, *, pending: bool = False) -> None:
        """Write what a level starts from, or goes on from, tensors first, the checksum that makes it count second.

        Args:
            key: The trajectory.
            checkpoint: What takes the place of those of levels below, and of earlier ones inside its own.
            pending: Keep those of levels below: their records are still to be written.
        """
        import safetensors.torch

        inside = checkpoint.inside
        tensors = {f"state.{name}": tensor.cpu() for name, tensor in checkpoint.state.items()}
        tensors["mask"] = checkpoint.mask.cpu()
        if inside:
            tensors |= {f"inside.{name}": tensor.cpu() for name, tensor in inside.state.items()}
            tensors["velocity"] = inside.velocity.cpu()
        content = safetensors.torch.save(tensors)
        path = self.folder(key) / checkpoint.name
        write_durably(path.with_name(f"{path.name}.safetensors"), content)
        summary = {"level": checkpoint.level, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if inside:
            summary |= {"step": inside.step, "seconds": inside.seconds}
        write_durably(path.with_name(f"{path.name}.json"), sealed(summary))
        if inside:  # what the level started from stays: should this one be damaged, a level is lost, no more
            self._drop(key, above=(checkpoint.level, 0), below=_position(path.name))
        if not pending:
            self.drop_checkpoints(key, below=checkpoint.level)

    def read_checkpoint(self, key: str, *, recorded: bool = False) -> Checkpoint | None:
        """Read the newest checkpoint of a trajectory, or nothing if it has none.

        Args:
            key: The trajectory.
            recorded: Take the newest of those of which all levels before them are recorded.

        Raises:
            DamagedError: The checkpoint does not match its checksum or its name.
        """
        summaries = sorted(self.folder(key).glob("checkpoint-*.json"), key=lambda path: _position(path.name))
        if recorded:
            summaries = [path for path in summaries if self.has_records(key, below=_position(path.name)[0])]
        if not summaries:
            return None
        summary, tensors = self._checked(summaries[-1])
        parts: dict[str, dict[str, torch.Tensor]] = {"state": {}, "inside": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.get(part, {})[rest] = tensor
        inside = None
        if "step" in summary:
            inside = Inside(summary["step"], summary["seconds"], parts["inside"], tensors["velocity"])
        return Checkpoint(summary["level"], parts["state"], tensors["mask"], inside)

    def _checked(self, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Read the summary and the tensors of a checkpoint, which must match."""
        import safetensors
        import safetensors.torch

        summary = self._read(path)
        file = path.with_suffix(".safetensors")
        content = file.read_bytes() if file.exists() else b""
        (level, step), checksum = _position(path.name), hashlib.sha256(content).hexdigest()
        written = {"level": level, "bytes": len(content), "sha256": checksum} | ({"step": step} if step else {})
        differing = [f"{k} {v}, not {summary.get(k)}" for k, v in written.items() if summary.get(k) != v]
        tensors: dict[str, torch.Tensor] = {}
        try:
            tensors = {} if differing else safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            differing = [str(error)]
        if differing or "mask" not in tensors:
            raise DamagedError(
                path,
                f"{file}: corrupt checkpoint ({'; '.join(differing)}). Run the sweep again: it is set aside, what "
                "is missing is recomputed and checked against the records that are there; no record is lost.",
            )
        return summary, tensors

    def drop_checkpoints(self, key: str, *, below: int) -> None:
        """Drop the checkpoints of levels below one, once these are recorded."""
        self._drop(key, below=(below, 0))

    def _drop(self, key: str, *, below: tuple[float, int], above: tuple[int, int] = (-1, 0)) -> None:
        for path in self.folder(key).glob("checkpoint-*"):
            if not path.name.endswith(".damaged") and above < _position(path.name) < below:
                path.unlink(missing_ok=True)
