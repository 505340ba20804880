"""The run table: the contract with whoever trains and prunes. Reading it, and refusing it with all its faults at once.

One row is one (trajectory, level): a network of some depth and width, trained on `dataset_size` examples from one seed
and pruned to `density`, and its test error. The table may come from anybody's runner.
"""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

from bayeslaw.errors import BayeslawError, RunTableError

#: Columns that must be there, or follow from others.
REQUIRED = ("depth", "width", "dataset_size", "density", "error")
#: Columns with a known meaning, in the order in which they are returned; all others follow untouched.
COLUMNS = (
    "trajectory", "family", "dataset", "classes", "chance_error", "input_shape", "depth", "width", "dataset_size",
    "replicate", "subset_id", "level", "density", "kept", "prunable", "parameters", "nonzero", "kept_by_layer",
    "nonzero_macs", "error", "n_wrong", "n_test", "epochs", "steps", "status", "protocol", "protocol_hash",
    "precision", "device", "kernels", "versions", "seconds",
)  # fmt: skip
#: What one run is made of: constant within a trajectory, and with the replicate its name.
_DESIGN = ("family", "dataset", "depth", "width", "dataset_size")
#: Columns that a CSV file gives as text, whatever they look like: a key of digits alone is no number.
_TEXT = frozenset({
    "trajectory", "family", "dataset", "input_shape", "replicate", "subset_id", "kept_by_layer", "status", "protocol",
    "protocol_hash", "precision", "device", "kernels", "versions",
})  # fmt: skip
#: What stands for "no value" in the other columns of a CSV file.
_NO_VALUE = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>"]
_LARGEST = 2.0**53
_NAME = re.compile(r"[a-z0-9_]+")
#: How many rows of a group of faults the message shows.
_SHOWN = 5

type _Mask = npt.NDArray[np.bool_]
type _Numbers = npt.NDArray[np.float64]


def _whole(lowest: int) -> tuple[str, Callable[[_Numbers], _Mask]]:
    rule = f"a whole number from {lowest} to 2**53"
    return rule, lambda x: (x >= lowest) & (x <= _LARGEST) & (x == np.floor(x))


#: What each number must be.
_RANGES: dict[str, tuple[str, Callable[[_Numbers], _Mask]]] = {
    "depth": ("above 0", lambda x: x > 0),
    "width": ("above 0", lambda x: x > 0),
    "dataset_size": ("above 0", lambda x: x > 0),
    "density": ("in (0, 1]", lambda x: (x > 0) & (x <= 1)),
    "error": ("in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "chance_error": ("in (0, 1)", lambda x: (x > 0) & (x < 1)),
    "classes": _whole(2),
    "n_test": _whole(1),
    "n_wrong": _whole(0),
    "level": _whole(0),
    "kept": _whole(0),
    "prunable": _whole(0),
    "parameters": _whole(0),
    "nonzero": _whole(0),
}
#: Numbers that stay fractions even where all are whole.
_FRACTIONS = ("density", "error", "chance_error")
#: What is likely to have happened where a number is out of its range.
_ADVICE = {
    "density": "density is the fraction of prunable weights kept, 1 - sparsity: divide percentages by 100, and leave "
    "out levels at which nothing is left.",
    "error": "error is a fraction, 1 - accuracy: divide percentages by 100.",
    "chance_error": "chance_error is the error of guessing, 1 - 1/classes for balanced classes.",
}
_CORRECT = "Correct these values, or leave the rows out."


def load_runs(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    n_test: int | None = None,
    chance_error: float | None = None,
) -> pd.DataFrame:
    """Read a run table, check all of it, and complete what follows from what is there.

    What is completed: `family` and `dataset` are "unknown" where absent; `density` is kept / prunable; `error` is
    n_wrong / n_test; `n_wrong` is error * n_test, rounded; `chance_error` is 1 - 1/classes; `trajectory` is made of
    family, dataset, depth, width, dataset_size and replicate. An optional column without any value counts as
    absent. Rows whose `status` is "diverged" are left out, with a warning. Loading what was loaded changes nothing.
    300,000 rows in memory take about half a second (measured on a 2-core machine).

    Args:
        source: Path to a .parquet or .csv file, or a DataFrame (left as it is; named index levels become columns).
            Needed are depth, width, dataset_size (all above 0), density in (0, 1] and error, a fraction in [0, 1];
            an error of exactly 0 only where `n_test` is known. Without `trajectory` and `replicate` there will be no
            trajectory effects.
        columns: Our name -> the table's own, for columns that are named otherwise.
        n_test: Number of test examples, where the table does not say.
        chance_error: Error of guessing, in (0, 1), where the table does not say.

    Returns:
        A new DataFrame, one row per (trajectory, level), rows in the order of the source: first the columns known by
        `COLUMNS`, then the others, untouched. density, error and chance_error are float64; depth, width and
        dataset_size int64 if all whole, else float64; counts int64; trajectory, family and dataset strings.

    Raises:
        RunTableError: The table breaks a rule; its `faults` list each one by row, column, value and rule. Correct them
            all and load again.
        BayeslawError: The file cannot be read, or an argument is wrong; the message says what to do.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"depth": 8, "channels": 4, "dataset_size": 1000, "density": [1.0, 0.8],
        ...                       "test_err": [0.12, 0.13], "seed": 0})
        >>> runs = load_runs(table, columns={"width": "channels", "error": "test_err", "replicate": "seed"}, n_test=500)
        >>> runs[["depth", "width", "density", "error", "n_wrong", "n_test"]]
           depth  width  density  error  n_wrong  n_test
        0      8      4      1.0   0.12       60     500
        1      8      4      0.8   0.13       65     500
        >>> runs["trajectory"][0]
        'unknown/unknown/depth=8/width=4/dataset_size=1000/replicate=0'
    """
    fill = _check_arguments(columns, n_test, chance_error)
    columns = dict(columns or {})
    where = "the run table" if isinstance(source, pd.DataFrame) else str(source)
    frame = _rename(_read(source, columns), columns, where)
    kept = ~_diverged(frame)
    checks = _Checks(_rows(frame, kept), np.flatnonzero(kept))
    if not kept.any():
        checks.fault_whole("(all columns)", "filled in one row or more")
        status = " (all have the status 'diverged')" if len(kept) else ""
        message = f"{where}: no rows to fit{status}; a run table has one row per (trajectory, level)."
        raise RunTableError(message, checks.table())
    _check_names(checks)
    _check_numbers(checks, fill)
    _check_counts(checks)
    _complete(checks)
    _check_error(checks)
    _check_trajectories(checks)
    _check_repeats(checks)
    if missing := [name for name in REQUIRED if not checks.has(name)]:
        for name in missing:
            checks.fault_whole(name, "a column of the table")
        checks.advise(_how_to_map(missing, [columns.get(name, name) for name in _names(frame)]))
    if checks.groups:
        raise RunTableError(_message(checks, where, columns), checks.table())
    if not kept.all():
        warnings.warn(_say_diverged(where, _rows(frame, ~kept)), UserWarning, stacklevel=2)
    return _finish(checks)


def load_recorded(name: str) -> pd.DataFrame:
    """Load a recorded sweep that comes with the package.

    Args:
        name: One of `recorded_names`.

    Returns:
        Its run table, as `load_runs` gives it.

    Raises:
        BayeslawError: There is no such sweep (the message lists those there are), or the package data is missing.

    Example:
        >>> for name in recorded_names():
        ...     runs = load_recorded(name)
    """
    return _load_recorded(name, recorded_folder())


def recorded_names() -> list[str]:
    """List the recorded sweeps that come with the package, in alphabetical order.

    Returns:
        Names for `load_recorded`.

    Raises:
        BayeslawError: The package data is missing; install again.

    Example:
        >>> names = recorded_names()
    """
    return _recorded_names(recorded_folder())


def families(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """List the distinct (family, dataset) pairs of a run table, in alphabetical order.

    Args:
        runs: A table from `load_runs`.

    Returns:
        Pairs of names.

    Raises:
        BayeslawError: The columns are missing; pass the table through `load_runs` first.

    Example:
        >>> import pandas as pd
        >>> runs = load_runs(pd.DataFrame({"depth": [8, 14], "width": 4, "dataset_size": 1000, "density": 1.0,
        ...                                "error": 0.1, "dataset": "digits"}))
        >>> families(runs)
        [('unknown', 'digits')]
    """
    if absent := [name for name in ("family", "dataset") if name not in runs]:
        raise BayeslawError(f"the run table has no column {_listed(absent)}; pass it through load_runs first.")
    return sorted(
        {(str(family), str(dataset)) for family, dataset in zip(runs["family"], runs["dataset"], strict=True)}
    )


# Reading


def _check_arguments(
    columns: Mapping[str, str] | None, n_test: int | None, chance_error: float | None
) -> dict[str, float]:
    """Check what `load_runs` was given beside the table, and return the values that fill columns."""
    fill: dict[str, float] = {}
    if columns is not None and not isinstance(columns, Mapping):
        raise BayeslawError(
            f'columns= maps our names to yours, such as {{"error": "test_err"}}; got {type(columns).__name__}.'
        )
    if n_test is not None:
        if isinstance(n_test, bool) or not isinstance(n_test, Integral) or not 1 <= n_test <= _LARGEST:
            raise BayeslawError(f"n_test= is the number of test examples, a whole number from 1 up; got {n_test!r}.")
        fill["n_test"] = float(n_test)
    if chance_error is not None:
        if isinstance(chance_error, bool) or not isinstance(chance_error, Real) or not 0 < chance_error < 1:
            raise BayeslawError(
                f"chance_error= is the error of guessing, in (0, 1), such as 0.9 for ten classes; got {chance_error!r}."
            )
        fill["chance_error"] = float(chance_error)
    return fill


def _read(source: object, columns: Mapping[str, str]) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        return _flat(source, "the run table")
    if not isinstance(source, str | os.PathLike):
        raise BayeslawError(
            f"a run table is a path to a .parquet or .csv file or a pandas DataFrame; got {type(source).__name__}. "
            "Turn it into a DataFrame first: pandas.DataFrame(...), or .to_pandas() where there is one."
        )
    path = Path(source)
    if path.suffix.lower() not in {".parquet", ".csv"}:
        raise BayeslawError(f"{path}: a run table is read from .parquet or .csv; save it as one of these.")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise BayeslawError(f"{path}: {what}; give the path of the table's file (working folder: {Path.cwd()}).")
    if path.suffix.lower() == ".csv":
        return _read_csv(path, {columns.get(name, name) for name in _TEXT})
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (ValueError, TypeError, KeyError, NotImplementedError, OSError) as error:
        raise BayeslawError(
            f"{path}: not a readable Parquet file ({_first_line(error)}). It may be truncated or only half copied: "
            "write or copy it again; if it is a CSV file, name it .csv."
        ) from error
    return _flat(frame, str(path))


def _read_csv(path: Path, text: set[str]) -> pd.DataFrame:
    """Read a CSV file: keys and names stay the text they are, numbers come back as they were written."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            names = [str(name) for name in header.to_numpy()[0]]
            frame = pd.read_csv(
                path,
                encoding="utf-8-sig",
                dtype={name: str for name in names if name in text},
                keep_default_na=False,
                na_values={name: [""] if name in text else _NO_VALUE for name in names},
                low_memory=False,
            )
    except pd.errors.EmptyDataError:
        raise BayeslawError(f"{path}: the file is empty; write the table again, with a header line.") from None
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise BayeslawError(
            f"{path}: not a readable CSV file ({_first_line(error)}). Needed is UTF-8 text, a header line, fields "
            "separated by commas, the same number in each line: write it again, or save it as .parquet."
        ) from error
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
        raise BayeslawError(f"{path}: the fields are separated by {other[0]!r}; separate them by commas.")
    _refuse_repeated([name for name in names if name], str(path))
    if len(frame) and not isinstance(frame.index, pd.RangeIndex):
        raise BayeslawError(
            f"{path}: the lines have more fields than the header has names ({len(names)}); name each column."
        )
    return frame


def _flat(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Copy a table with its named index levels as columns, and refuse what is no flat table."""
    if frame.columns.nlevels > 1:
        raise BayeslawError(f"{where}: the columns have {frame.columns.nlevels} levels of names; flatten them to one.")
    _refuse_repeated(_names(frame), where)
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    return pd.DataFrame(frame.reset_index(level=named) if named else frame).reset_index(drop=True)


def _refuse_repeated(names: list[str], where: str) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise BayeslawError(f"{where}: more than one column is named {_listed(repeated)}; rename or drop the others.")


def _rename(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """Give columns our names; report all that is wrong with the mapping at once."""
    wrong = []
    if unknown := [ours for ours in columns if ours not in COLUMNS]:
        wrong.append(f"{_listed(unknown)} is none of our names, which are {_listed(COLUMNS)}")
        if all(columns[name] in COLUMNS for name in unknown):
            wrong.append(f'the mapping goes from our name to yours: {{"{columns[unknown[0]]}": "{unknown[0]}"}}')
    if absent := [theirs for theirs in columns.values() if theirs not in frame]:
        wrong.append(f"the table has no column {_listed(absent)}; it has {_listed(_names(frame))}")
    if twice := [theirs for theirs, count in Counter(columns.values()).items() if count > 1]:
        wrong.append(f"{_listed(twice)} is mapped to more than one name")
    if taken := [ours for ours in columns if ours in frame and ours not in columns.values()]:
        wrong.append(f"the table already has a column {_listed(taken)} of its own; drop or rename that, or map it too")
    if wrong:
        raise BayeslawError(f"{where}: columns= does not fit the table: {'; '.join(wrong)}.")
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


def _diverged(frame: pd.DataFrame) -> _Mask:
    if "status" not in frame:
        return np.zeros(len(frame), dtype=bool)
    return np.array(_column(frame, "status").astype("str") == "diverged", dtype=bool)


# Checking


class _Group(NamedTuple):
    """Faults of one column against one rule; row None where the whole column is meant."""

    column: str
    rule: str
    rows: list[int | None]
    values: list[Any]


class _Checks:
    """A table under check: as it came, what is made of it, which cells broke a rule, and all faults so far.

    A known column is in `names` or in `numbers` once it was parsed or completed; an optional one without any value is
    in neither.
    """

    def __init__(self, frame: pd.DataFrame, rows: npt.NDArray[np.intp]) -> None:
        self.frame = frame.reset_index(drop=True)
        self.rows = rows
        self.names: dict[str, pd.Series] = {}
        self.numbers: dict[str, _Numbers] = {}
        self.groups: list[_Group] = []
        self.advice: list[str] = []
        self._good: dict[str, _Mask] = {}

    def has(self, *columns: str) -> bool:
        """Tell whether all the columns are there."""
        return all(column in self.names or column in self.numbers for column in columns)

    def raw(self, column: str) -> pd.Series | None:
        """Give a known column as it came, or None if it is absent or optional and empty."""
        if column not in self.frame:
            return None
        values = _column(self.frame, column)
        return values if column in REQUIRED or values.notna().to_numpy().any() else None

    def fault(
        self, where: _Mask, column: str, rule: str, advice: str = _CORRECT, values: Sequence[Any] | None = None
    ) -> None:
        """Note the rows of a mask as faults of a column; the values are those of all rows."""
        if where.any():
            values = _column(self.frame, column).tolist() if values is None else values
            rows = np.flatnonzero(where).tolist()
            self.groups.append(_Group(column, rule, self.rows[where].tolist(), [values[row] for row in rows]))
            self.advise(advice)
            self.doubt(column, where)

    def fault_whole(self, column: str, rule: str) -> None:
        """Note a fault of a column as a whole."""
        self.groups.append(_Group(column, rule, [None], [None]))

    def advise(self, advice: str) -> None:
        """Say what to do, once."""
        if advice not in self.advice:
            self.advice.append(advice)

    def doubt(self, column: str, where: _Mask) -> None:
        """Use the rows of a mask no further, without calling them faults."""
        self._good[column] = self.good(column) & ~where

    def good(self, *columns: str) -> _Mask:
        """Mask the rows in which none of the columns has broken a rule so far."""
        mask = np.ones(len(self.frame), dtype=bool)
        for column in columns:
            mask &= self._good.get(column, True)
        return mask

    def table(self) -> pd.DataFrame:
        """List all faults by row, those of whole columns first."""
        faults = pd.concat(
            pd.DataFrame(
                {
                    "row": pd.array(group.rows, dtype="Int64"),
                    "column": group.column,
                    "value": pd.Series(group.values, dtype=object),
                    "rule": group.rule,
                }
            )
            for group in self.groups
        )
        return faults.sort_values("row", kind="stable", na_position="first", ignore_index=True)


def _check_names(checks: _Checks) -> None:
    for column in ("trajectory", "family", "dataset", "replicate"):
        if (values := checks.raw(column)) is not None:
            checks.names[column] = _as_text(values)
            blank = checks.names[column].isna().to_numpy(dtype=bool)
            checks.fault(blank, column, "present in every row", "Fill the gaps, or drop the column as a whole.")
        elif column in ("family", "dataset"):
            checks.names[column] = pd.Series("unknown", index=checks.frame.index, dtype="str")


def _check_numbers(checks: _Checks, fill: Mapping[str, float]) -> None:
    for column, (rule, allowed) in _RANGES.items():
        if (values := checks.raw(column)) is None:
            if column in fill:
                checks.numbers[column] = np.full(len(checks.frame), fill[column])
            continue
        numbers, missing = _as_numbers(values)
        wrong = np.isnan(numbers) & ~missing
        if column in fill:
            numbers[missing], missing = fill[column], np.zeros_like(missing)
        checks.numbers[column] = numbers
        gaps = "Fill the gaps, or leave the rows out."
        if column not in REQUIRED:
            by_argument = f" with {column}=" if column in ("n_test", "chance_error") else ""
            gaps = f"Fill the gaps{by_argument}, or drop the column as a whole."
        checks.fault(wrong, column, "a number")
        checks.fault(missing, column, "present in every row", gaps)
        checks.fault(np.isinf(numbers), column, "finite")
        outside = np.isfinite(numbers) & ~allowed(numbers)
        checks.fault(outside, column, rule, _ADVICE.get(column, _CORRECT))


def _check_counts(checks: _Checks) -> None:
    for part, whole in (("n_wrong", "n_test"), ("kept", "prunable")):
        if checks.has(part, whole):
            over = checks.good(part, whole) & (checks.numbers[part] > checks.numbers[whole])
            checks.fault(over, part, f"at most {whole}")


def _complete(checks: _Checks) -> None:
    """Derive the columns that follow from others; what follows from a fault is no fault of its own."""
    for column, part, whole in (("density", "kept", "prunable"), ("error", "n_wrong", "n_test")):
        if not checks.has(column) and checks.has(part, whole):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = checks.numbers[part] / checks.numbers[whole]
            checks.numbers[column] = ratio
            checks.doubt(column, ~checks.good(part, whole))
            rule, allowed = _RANGES[column]
            checks.fault(checks.good(column) & ~allowed(ratio), column, rule, _ADVICE[column], ratio.tolist())
    if not checks.has("chance_error") and checks.has("classes"):
        with np.errstate(divide="ignore"):
            checks.numbers["chance_error"] = 1 - 1 / checks.numbers["classes"]


def _check_error(checks: _Checks) -> None:
    """Hold the error against the count of wrong answers, which is made where only the error is there."""
    if not checks.has("error"):
        return
    error = checks.numbers["error"]
    if not checks.has("n_test"):
        advice = "Pass n_test=, the number of test examples: then 0 wrong of n_test is data like any other."
        zero = checks.good("error") & (error == 0)
        checks.fault(zero, "error", "above 0 unless n_test is known: pass n_test=", advice)
        one = checks.good("error") & (error == 1)
        checks.fault(one, "error", "below 1 unless n_test is known: pass n_test=", advice)
    elif not checks.has("n_wrong"):
        checks.numbers["n_wrong"] = np.rint(error * checks.numbers["n_test"])
    else:
        advice = (
            "Where error and n_wrong come from different evaluations, keep one of them: each follows from the other."
        )
        off = np.abs(error * checks.numbers["n_test"] - checks.numbers["n_wrong"]) > 0.51
        off &= checks.good("error", "n_wrong", "n_test")
        checks.fault(off, "error", "n_wrong / n_test to within half a test example", advice)


def _check_trajectories(checks: _Checks) -> None:
    """Hold a trajectory to one design, or name trajectories by design and replicate."""
    if checks.has("trajectory"):
        for column in _DESIGN:
            if checks.has(column):
                advice = (
                    "A trajectory is one seed of one network through all its levels. Where the column only numbers the "
                    'seeds, name it so: columns={"replicate": "<your column>"}.'
                )
                use = checks.good("trajectory", column)
                deviating = np.zeros_like(use)
                values = checks.names[column] if column in checks.names else pd.Series(checks.numbers[column])
                deviating[use] = _deviating(checks.names["trajectory"][use], values[use])
                checks.fault(deviating, column, "constant within a trajectory", advice)
    elif checks.has(*_DESIGN, "replicate"):
        use = checks.good(*_DESIGN, "replicate")
        by = [*_DESIGN, "replicate"]
        design = pd.DataFrame({name: checks.names.get(name, checks.numbers.get(name)) for name in by})
        checks.names["trajectory"] = _name_trajectories(_rows(design, use)).reindex(design.index)
        checks.doubt("trajectory", ~use)


def _deviating(trajectories: pd.Series, values: pd.Series) -> _Mask:
    """Mask the values that are not the commonest of their trajectory (among equally common ones: the smallest)."""
    of, _ = pd.factorize(trajectories)
    value, distinct = pd.factorize(values, sort=True)
    size = max(len(distinct), 1)
    pairs, counts = np.unique(of * size + value, return_counts=True)
    pairs = pairs[np.lexsort((pairs, -counts, pairs // size))]
    _, commonest = np.unique(pairs // size, return_index=True)
    return value != (pairs[commonest] % size)[of]


def _name_trajectories(runs: pd.DataFrame) -> pd.Series:
    """Name each run by its design and replicate; quoted, so that different ones never share a name."""
    names = [
        f"{quote(family, safe='')}/{quote(dataset, safe='')}/depth={_plain(depth)}/width={_plain(width)}"
        f"/dataset_size={_plain(size)}/replicate={quote(replicate, safe='')}"
        for family, dataset, depth, width, size, replicate in runs.drop_duplicates().itertuples(index=False)
    ]
    group = runs.groupby(_names(runs), sort=False).ngroup()
    return pd.Series(np.array(names, dtype=object)[group.to_numpy()], index=runs.index, dtype="str")


def _check_repeats(checks: _Checks) -> None:
    advice = (
        'Drop the repeated rows; if they are different runs, add a column "trajectory" or "replicate" that says so.'
    )
    by = "level" if checks.has("level") else "density"
    if checks.has("trajectory", by):
        table = pd.DataFrame({"trajectory": checks.names["trajectory"], by: checks.numbers[by]})
        first = _first_like(_rows(table, checks.good("trajectory", by)))
        column, rule = by, "unlike the others of its trajectory"
    elif not checks.has("trajectory") and not checks.has("replicate"):
        first = _first_like(checks.frame)
        column, rule = "(all columns)", "unlike those of every other row"
    else:
        return
    repeats, values = np.zeros(len(checks.frame), dtype=bool), [""] * len(checks.frame)
    for row, like in first.items():
        value = f"{_plain(checks.numbers[by][row])} " if column == by else ""
        repeats[row], values[row] = True, f"{value}as in row {checks.rows[like]}"
    checks.fault(repeats, column, rule, advice, values)


def _first_like(table: pd.DataFrame) -> dict[int, int]:
    """Give the rows that repeat an earlier one, each with the first like it."""
    odd = [
        name for name in _names(table) if isinstance(_column(table, name).dtype, pd.ArrowDtype | np.dtypes.ObjectDType)
    ]
    plain = [name for name in _names(table) if name not in odd]
    like = _rows(table, table.duplicated(plain, keep=False).to_numpy(dtype=bool)) if plain else table
    like = like.assign(**{name: _column(like, name).map(_comparable) for name in odd})
    again = like.duplicated().to_numpy(dtype=bool)
    group = like.groupby(_names(like), sort=False, dropna=False).ngroup().to_numpy()
    rows = like.index.to_numpy()
    return dict(zip(rows[again].tolist(), rows[~again][group[again]].tolist(), strict=True))


def _comparable(value: Any) -> str:
    """Write the cell of an object column, perhaps an array, so that equal ones are equal."""
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


# Parsing and finishing


def _names(frame: pd.DataFrame) -> list[str]:
    return cast("list[str]", frame.columns.tolist())


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return cast("pd.Series", frame[name])


def _rows(frame: pd.DataFrame, where: _Mask) -> pd.DataFrame:
    return cast("pd.DataFrame", frame[where])


def _as_numbers(column: pd.Series) -> tuple[_Numbers, _Mask]:
    """Parse a column; what is no number is NaN, and what was missing from the start is told apart."""
    missing = column.isna().to_numpy(dtype=bool)
    if pd.api.types.is_integer_dtype(column) or pd.api.types.is_float_dtype(column):
        numbers = np.array(column.to_numpy(dtype=float, na_value=np.nan))
        return numbers, missing | np.isnan(numbers)
    if isinstance(column.dtype, pd.StringDtype):
        return np.array(pd.to_numeric(column, errors="coerce"), dtype=float), missing
    return np.array([_as_number(value) for value in column], dtype=float), missing


def _as_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | Decimal | str):
        return np.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return np.nan


def _as_text(column: pd.Series) -> pd.Series:
    """Turn names and keys into strings, whole numbers without a fraction, and blank ones into missing values."""
    missing = column.isna()
    if pd.api.types.is_float_dtype(column):
        column = column.map(_plain, na_action="ignore")
    text = column.astype("str")
    return text.mask(missing | (text.str.strip() == ""))


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _finish(checks: _Checks) -> pd.DataFrame:
    """Put the columns together, with their types and in their order."""
    done: dict[str, Any] = {}
    for name in [*COLUMNS, *(name for name in _names(checks.frame) if name not in COLUMNS)]:
        if name in checks.names:
            done[name] = checks.names[name]
        elif name in checks.numbers:
            numbers = checks.numbers[name]
            whole = (np.abs(numbers) <= _LARGEST).all() and (numbers == np.floor(numbers)).all()
            done[name] = numbers.astype(np.int64) if whole and name not in _FRACTIONS else numbers
        elif name not in COLUMNS:
            done[name] = _column(checks.frame, name)
        elif (values := checks.raw(name)) is not None:
            done[name] = values
    if "replicate" in done and done["replicate"].str.fullmatch(r"0|-?[1-9][0-9]{0,17}").all():
        done["replicate"] = done["replicate"].astype(np.int64)
    return pd.DataFrame(done)


# Recorded sweeps


def recorded_folder() -> Path:
    """Find the folder of the recorded sweeps and of the TOML files that made them.

    Returns:
        The folder, found without importing the package that holds it.

    Raises:
        BayeslawError: The folder is not there.
    """
    try:
        spec = importlib.util.find_spec("imp_runs")
    except ValueError:
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "recorded").is_dir():
            return Path(folder) / "recorded"
    raise BayeslawError(
        "the recorded sweeps, in the folder imp_runs/recorded of this distribution, are not where Python finds "
        "packages; install again: pip install --force-reinstall bayeslaw."
    )


def _recorded_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.parquet") if _NAME.fullmatch(path.stem))


def _load_recorded(name: str, folder: Path) -> pd.DataFrame:
    names = _recorded_names(folder)
    if name not in names:
        there = f"there are {_listed(names)}" if names else f"there are none in {folder}"
        raise BayeslawError(f"no recorded sweep is named {name!r}; {there}.")
    return load_runs(folder / f"{name}.parquet")


# Words


def _message(checks: _Checks, where: str, columns: Mapping[str, str]) -> str:
    lines = [
        f"{where}: {_count(sum(len(group.rows) for group in checks.groups), 'fault')} "
        "(rows are counted from 0, the header not among them).",
        "",
    ]
    for column, rule, rows, values in checks.groups:
        label = f"{column} (your {columns[column]!r})" if columns.get(column, column) != column else column
        if rows == [None]:
            lines.append(f"- {label} must be {rule}: it is missing.")
            continue
        shown = [f"row {row}: {_shown(value)}" for row, value in zip(rows[:_SHOWN], values[:_SHOWN], strict=True)]
        more = f", and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        lines.append(f"- {label} must be {rule}; {_count(len(rows), 'fault')}: {', '.join(shown)}{more}.")
    lines += ["", "What to do:", *(f"- {advice}" for advice in checks.advice)]
    return "\n".join([*lines, "- All faults are in the table `faults` of this exception: row, column, value, rule."])


def _shown(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "missing"
    text = str(value)
    text = text if text and text == text.strip() else repr(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _say_diverged(where: str, diverged: pd.DataFrame) -> str:
    naming = ["trajectory"] if "trajectory" in diverged else [n for n in (*_DESIGN, "replicate") if n in diverged]
    named = diverged[naming].astype("str").drop_duplicates()
    names = [
        ", ".join(row if naming == ["trajectory"] else [f"{n}={v}" for n, v in zip(naming, row, strict=True)])
        for row in named.itertuples(index=False)
    ]
    rows, runs = _count(len(diverged), "row"), _count(len(names), "trajector", "y", "ies")
    return f"{where}: left out {rows} with the status 'diverged', of {runs}: {'; '.join(names)}."


def _count(number: int, noun: str, one: str = "", many: str = "s") -> str:
    return f"{number} {noun}{one if number == 1 else many}"


def _how_to_map(missing: list[str], there: list[str]) -> str:
    mapping = ", ".join(f'"{name}": "<your column>"' for name in missing)
    return (
        f"Say which columns hold what is missing: load_runs(source, columns={{{mapping}}}); the table has "
        f"{_listed(there)}. (density also follows from kept and prunable, error from n_wrong and n_test.)"
    )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
