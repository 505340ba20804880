"""Ranks that are on disk as soon as they are known, and continued from there."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from bayeslaw.errors import BayeslawError


class RankStore:
    """Hold one row of numbers per data set, in memory and, given a folder, in its `ranks.csv`.

    A row is on disk before the next is begun; a line that was cut short by a kill is dropped on opening, and its data
    set is done again. `settings.json` says what the rows depend on.

    Args:
        folder: Where to keep them; none keeps them in memory.
        settings: What the rows depend on, of JSON types.

    Raises:
        BayeslawError: The folder holds rows of other settings.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._hold_to(settings)
            self._read()

    def add(self, row: dict[str, float]) -> None:
        """Add a row; its `repetition` is the number of the data set."""
        first = not self.rows
        self.rows[int(row["repetition"])] = row
        if self._folder is None:
            return
        with (self._folder / "ranks.csv").open("a", encoding="utf-8", newline="") as file:
            file.write(_lines([row], header=first))
            file.flush()
            os.fsync(file.fileno())

    def table(self, repetitions: int) -> pd.DataFrame:
        """Give the rows of the first data sets, in their order, whichever was done first."""
        rows = [self.rows[i] for i in range(repetitions)]
        return pd.DataFrame(rows).set_index("repetition")

    def close(self, verdict: pd.DataFrame) -> None:
        """Put the file's rows in order, and the verdict beside them."""
        if self._folder is not None:
            _write(self._folder / "ranks.csv", _lines([self.rows[i] for i in sorted(self.rows)], header=True))
            _write(self._folder / "table.csv", verdict.to_csv(float_format="%.6g", lineterminator="\n"))

    def _hold_to(self, settings: dict[str, Any]) -> None:
        assert self._folder is not None
        path = self._folder / "settings.json"
        if not path.exists():
            _write(path, json.dumps(settings, indent=1) + "\n")
            return
        there = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name in settings if there.get(name) != settings[name]]:
            raise BayeslawError(
                f"{self._folder} holds ranks with another {', '.join(other)}; give another folder, or remove this one."
            )

    def _read(self) -> None:
        assert self._folder is not None
        path = self._folder / "ranks.csv"
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            _write(path, whole)
        for row in csv.DictReader(io.StringIO(whole)):
            self.rows[int(row["repetition"])] = {k: _number(v) for k, v in row.items()}


def _lines(rows: list[dict[str, float]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
