"""Where records and checkpoints live: durable, immutable, nothing executable.

```text
STORE/store.json                                    format and protocol, one per store
STORE/trajectories/KEY/config.json                  what is run
STORE/trajectories/KEY/level-000.json               one immutable record per level
STORE/trajectories/KEY/checkpoint-001.safetensors   rewinding state and mask of the level to run next
STORE/trajectories/KEY/checkpoint-001.json          its checksum; the checkpoint counts once this is there
STORE/trajectories/KEY/done.json                    written after the last record
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imp_runs.config import Protocol, Trajectory, protocol_hash
from imp_runs.errors import ImpRunsError

if TYPE_CHECKING:
    import torch

FORMAT = 1
_KEY = re.compile(r"[0-9a-f]{16}")
#: Columns of a record that a repetition of the same run may change.
VOLATILE = frozenset({"seconds"})


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either all of it is there or none: temporary, fsync, rename, fsync."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a JSON object was expected, not {type(content).__name__}")
        return content
    except ValueError as error:
        raise ImpRunsError(
            f"{path}: damaged ({error}); move the file away and run the sweep again: what it held is recomputed."
        ) from None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Hold what the next level starts from: its number, the rewinding state and the mask."""

    level: int
    state: dict[str, torch.Tensor]
    mask: torch.Tensor


class Store:
    """A folder of trajectories that share one protocol.

    Args:
        path: The folder.
        protocol: The protocol of what will be written; without it an existing store is opened for reading.

    Raises:
        ImpRunsError: The folder holds another protocol or format, or (without `protocol`) is no store.
    """

    def __init__(self, path: str | Path, protocol: Protocol | None = None) -> None:
        self.path = Path(path)
        marker = self.path / "store.json"
        if not marker.exists():
            if protocol is None:
                raise ImpRunsError(
                    f"{self.path}: no store here (no store.json); run `imp-runs sweep` with --store first."
                )
            self._create(marker, protocol)
        self._check(marker, protocol)

    def _create(self, marker: Path, protocol: Protocol) -> None:
        from filelock import FileLock

        try:
            (self.path / "trajectories").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ImpRunsError(f"{self.path}: a file is in the way; give --store a folder.") from None
        with FileLock(self.path / "lock"):  # two sweeps may begin a store at the same time
            if not marker.exists():
                content = {"format": FORMAT, "protocol": dataclasses.asdict(protocol)}
                write_durably(marker, _json({**content, "protocol_hash": protocol_hash(protocol)}))

    def _check(self, marker: Path, protocol: Protocol | None) -> None:
        content = _read_json(marker)
        if content.get("format") != FORMAT:
            raise ImpRunsError(f"{marker}: format {content.get('format')!r}, this version reads {FORMAT}.")
        if protocol is None or content.get("protocol_hash") == protocol_hash(protocol):
            return
        wanted = json.loads(json.dumps(dataclasses.asdict(protocol)))
        there = content.get("protocol", {})
        differing = [f"{k} = {there.get(k)!r}, not {v!r}" for k, v in wanted.items() if there.get(k) != v]
        raise ImpRunsError(
            f"{self.path}: this store holds runs of another protocol ({'; '.join(differing) or 'older arithmetic'}). "
            "Give the sweep a --store of its own, or the store's own protocol."
        )

    def folder(self, key: str) -> Path:
        """Name the folder of a trajectory; a key is 16 hexadecimal digits, so no path leaves the store."""
        if not _KEY.fullmatch(key):
            raise ImpRunsError(f"trajectory key {key!r} must be 16 hexadecimal digits.")
        return self.path / "trajectories" / key

    @contextlib.contextmanager
    def locked(self, trajectory: Trajectory) -> Iterator[None]:
        """Own a trajectory while it runs; the lock falls with the process that holds it."""
        from filelock import FileLock, Timeout

        folder = self.folder(trajectory.key)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ImpRunsError(f"{folder}: another process is running this trajectory ({trajectory}).") from None
        try:
            if not (folder / "config.json").exists():
                write_durably(folder / "config.json", _json(dataclasses.asdict(trajectory)))
            yield
        finally:
            lock.release()

    def is_done(self, key: str) -> bool:
        """Say whether a trajectory has ended and all its records are there."""
        done = self.folder(key) / "done.json"
        return done.exists() and self.has_records(key, below=_read_json(done).get("levels", -1) + 1)

    def has_records(self, key: str, *, below: int) -> bool:
        """Say whether the records of all levels below one are there; a damaged one may have been moved away."""
        return all(self._record(key, level).exists() for level in range(below))

    def _record(self, key: str, level: int) -> Path:
        return self.folder(key) / f"level-{level:03d}.json"

    def mark_done(self, key: str, *, levels: int, status: str) -> None:
        """Declare a trajectory finished, after its last record."""
        write_durably(self.folder(key) / "done.json", _json({"levels": levels, "status": status}))
        self._drop_checkpoints(key, below=None)

    def write_record(self, key: str, level: int, record: dict[str, Any]) -> None:
        """Write the record of a level; one that is there already must say the same.

        Raises:
            ImpRunsError: A record is there and says something else.
        """
        path = self._record(key, level)
        if not path.exists():
            write_durably(path, _json(record))
            return
        old = _read_json(path)
        new = json.loads(_json(record))
        differing = sorted(k for k in old.keys() | new.keys() if k not in VOLATILE and old.get(k) != new.get(k))
        if differing:
            raise ImpRunsError(
                f"{path}: recomputing this level gave another {', '.join(differing)} (another machine or version?). "
                f"Records are immutable: finish the trajectory where it began, or move {path.parent} away."
            )

    def records(self, key: str) -> list[dict[str, Any]]:
        """Read the records of a trajectory, by level."""
        return [_read_json(path) for path in sorted(self.folder(key).glob("level-*.json"))]

    def keys(self) -> list[str]:
        """List the trajectories that have begun."""
        return sorted(p.name for p in (self.path / "trajectories").iterdir() if _KEY.fullmatch(p.name))

    def write_checkpoint(self, key: str, checkpoint: Checkpoint) -> None:
        """Write what the next level starts from, tensors first, the checksum that makes it count second."""
        import safetensors.torch

        tensors = {f"state.{name}": tensor.cpu() for name, tensor in checkpoint.state.items()}
        content = safetensors.torch.save({**tensors, "mask": checkpoint.mask.cpu()})
        stem = self.folder(key) / f"checkpoint-{checkpoint.level:03d}"
        write_durably(stem.with_suffix(".safetensors"), content)
        summary = {"level": checkpoint.level, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_durably(stem.with_suffix(".json"), _json(summary))
        self._drop_checkpoints(key, below=checkpoint.level)

    def read_checkpoint(self, key: str) -> Checkpoint | None:
        """Read the newest checkpoint of a trajectory, or nothing if it has none.

        Raises:
            ImpRunsError: The checkpoint does not match its checksum or its name.
        """
        import safetensors.torch

        summaries = sorted(self.folder(key).glob("checkpoint-*.json"))
        if not summaries:
            return None
        summary = _read_json(summaries[-1])
        path = summaries[-1].with_suffix(".safetensors")
        content = path.read_bytes() if path.exists() else b""
        checksum = hashlib.sha256(content).hexdigest()
        written = {"level": int(path.stem.split("-")[1]), "bytes": len(content), "sha256": checksum}
        differing = [f"{k} {v}, not {summary.get(k)}" for k, v in written.items() if summary.get(k) != v]
        if differing:
            raise ImpRunsError(
                f"{path}: corrupt checkpoint ({'; '.join(differing)}). "
                f"Delete it and {summaries[-1].name}, then run the sweep again: the trajectory is recomputed from "
                "level 0 and checked against the records that are there; no record is lost."
            )
        tensors = safetensors.torch.load(content)
        mask = tensors.pop("mask")
        state = {name.removeprefix("state."): tensor for name, tensor in tensors.items()}
        return Checkpoint(summary["level"], state, mask)

    def _drop_checkpoints(self, key: str, *, below: int | None) -> None:
        for path in self.folder(key).glob("checkpoint-*"):
            if below is None or int(path.stem.split("-")[1]) < below:
                path.unlink(missing_ok=True)
