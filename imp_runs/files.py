"""Files of a store: written whole or not at all, with a checksum inside, on a disk or in an object store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from imp_runs.errors import DamagedError, ImpRunsError, optional

#: How many objects are asked for at once.
TOGETHER = 256


def place(where: str | Path) -> Path:
    """Give the path of a folder, or of an object store's URL.

    Args:
        where: A folder, `file://...`, or any URL that fsspec knows (`s3://`, `gs://`, `az://`, `memory://`, ...).

    Returns:
        A `Path`; for an object store one of universal_pathlib, which behaves like it.

    Raises:
        ImpRunsError: universal_pathlib, or the library of that object store, is not installed, or the URL is of no kind
            that is known.

    Example:
        >>> place("file:///tmp/runs").as_posix()
        '/tmp/runs'
    """
    if "://" not in str(where):
        return Path(where)
    url = urlparse(str(where))
    if url.scheme == "file":
        if url.netloc not in ("", "localhost"):
            raise ImpRunsError(f"{where}: a file on another host; a folder here is file:///FOLDER, or just its path.")
        return Path(url2pathname(url.path))
    upath = optional("upath", "cloud")
    try:
        path = upath.UPath(str(where))
        path.fs  # noqa: B018 - made on first use
    except (ValueError, ImportError) as error:
        raise ImpRunsError(
            f"{where}: this URL cannot be opened ({error}); give one that fsspec knows, with its library installed, or "
            "a folder."
        ) from None
    return path


def on_disk(path: Path) -> bool:
    """Say whether a path is one of this machine's file systems, where files can be locked and made durable."""
    return isinstance(path, Path)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either all of it is there or none.

    On a disk: temporary, fsync, rename, fsync. An object store has an object whole or not at all by itself.
    """
    if not on_disk(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb", opener=_no_link) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it would take the room
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_output(path: str | Path, what: str, endings: Sequence[str]) -> Path:
    """See that a file can be written, before the work of which it is to hold the result; its folder is made.

    Args:
        path: The file.
        what: What it is called in the error.
        endings: Those that are allowed.

    Returns:
        The path.

    Raises:
        ImpRunsError: The path is a folder, has another ending, or its folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ImpRunsError(f"{path}: a folder; name the file, for instance {path / f'{what}{endings[0]}'}.")
    if path.suffix not in endings:
        allowed = (" or " if len(endings) == 2 else ", ").join(endings)
        raise ImpRunsError(f"{path}: the {what} can be written as {allowed}; change the ending.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ImpRunsError(f"{path}: cannot be written ({error.strerror}); give a file in another folder.") from None
    return path


def write_quickly(path: Path, content: bytes) -> None:
    """Write a file that may be lost; who reads it must bear with half of it."""
    if not on_disk(path):
        path.write_bytes(content)
        return
    with os.fdopen(_no_link(str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(content)


def _no_link(path: str, flags: int) -> int:
    """Open a file that is no link, so that nothing outside the store is written through one."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


_MARK = b',\n "checksum": "'


def sealed(value: dict[str, Any]) -> bytes:
    """Write a JSON object whose last entry, `checksum`, is the SHA-256 of all before it."""
    body = json.dumps(value, indent=1, sort_keys=True).encode().removesuffix(b"\n}")
    return body + _MARK + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def check_seal(path: Path, content: bytes) -> None:
    """Raise `DamagedError` unless a file is what `sealed` or `sealed_lines` wrote."""
    body, mark, rest = content.rpartition(_LINE if path.suffix == ".jsonl" else _MARK)
    ending = b'"}\n' if path.suffix == ".jsonl" else b'"\n}\n'
    if not mark or rest != hashlib.sha256(body).hexdigest().encode() + ending:
        raise _damaged(path, "it does not match its checksum")


def read_sealed(path: Path, *, strict: bool = True, content: bytes | None = None) -> dict[str, Any]:
    """Read what `sealed` wrote, without its checksum.

    Args:
        path: The file.
        strict: Refuse a file without a checksum, as the first format of stores had them.
        content: What is in it, where that has been read already.

    Raises:
        DamagedError: The file is cut short, changed, or no JSON object.
    """
    content = path.read_bytes() if content is None else content
    if strict or _MARK in content:
        check_seal(path, content)
    try:
        value = json.loads(content)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"a JSON object was expected, not {type(value).__name__}")
    value.pop("checksum", None)
    return value


def set_aside_damaged(paths: Iterable[Path]) -> None:
    """Rename what `sealed` wrote and is damaged now, so that it can be written again."""
    for path in list(paths):
        try:
            read_sealed(path)
        except DamagedError:
            path.rename(path.with_name(f"{path.name}.damaged"))


_LINE = b'\n{"checksum": "'


def sealed_lines(values: Iterable[dict[str, Any]]) -> bytes:
    """Write JSON objects line by line, with a last line that holds the SHA-256 of all before it."""
    body = b"\n".join(json.dumps(value, sort_keys=True).encode() for value in values)
    return body + _LINE + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def lines_of(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Read what `sealed_lines` wrote.

    Raises:
        DamagedError: The content does not match its checksum.
    """
    check_seal(path, content)
    return [json.loads(line) for line in content.splitlines()[:-1]]


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(
        path,
        f"{path}: damaged ({reason}). Run the sweep again: the file is set aside and what it held is recomputed.",
    )


def read_all(paths: list[Path]) -> Iterator[tuple[Path, bytes]]:
    """Read many files; from an object store many at once."""
    if not paths or on_disk(paths[0]):
        yield from ((path, path.read_bytes()) for path in paths)
        return
    for first in range(0, len(paths), TOGETHER):
        some: Any = paths[first : first + TOGETHER]
        contents = some[0].fs.cat([path.path for path in some])
        yield from ((path, contents[path.path]) for path in some)


def listing(folder: Path) -> dict[str, set[str]]:
    """List the folders in a folder, each with the names of its files."""
    found: dict[str, set[str]] = {}
    if on_disk(folder):
        with os.scandir(folder) as inner:
            for entry in inner:
                if entry.is_dir(follow_symlinks=False):
                    found[entry.name] = set(os.listdir(entry.path))  # noqa: PTH208 - ten thousand folders
        return found
    remote: Any = folder
    for path in remote.fs.find(remote.path):
        *_, inside, name = path.split("/")
        found.setdefault(inside, set()).add(name)
    return found
