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
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError, RunTableError
from bayeslaw.run_checks import (
    COLUMNS,
    LARGEST,
    NO_VALUE,
    REQUIRED,
    TEXT,
    Checks,
    Mask,
    check,
    column_of,
    finish,
    first_line,
    how_to_map,
    listed,
    message_of,
    names_of,
    rows_of,
    say_diverged,
)

_NAME = re.compile(r"[a-z0-9_]+")


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
        dataset_size int64 if all whole, else float64; counts int64; trajectory, family and dataset strings. Of
        trajectories that one seed made (one network, `replicate` and `protocol_hash`) only the longest is kept, with a
        warning: the others are parts of it.

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
    checks = Checks(rows_of(frame, kept), np.flatnonzero(kept))
    if not kept.any():
        checks.fault_whole("(all columns)", "filled in one row or more")
        status = " (all have the status 'diverged')" if len(kept) else ""
        message = f"{where}: no rows to fit{status}; a run table has one row per (trajectory, level)."
        raise RunTableError(message, checks.table())
    check(checks, fill)
    if missing := [name for name in REQUIRED if not checks.has(name)]:
        for name in missing:
            checks.fault_whole(name, "a column of the table")
        checks.advise(how_to_map(missing, [columns.get(name, name) for name in names_of(frame)]))
    if checks.groups:
        raise RunTableError(message_of(checks, where, columns), checks.table())
    if not kept.all():
        warnings.warn(say_diverged(where, rows_of(frame, ~kept)), UserWarning, stacklevel=2)
    return _told_once(finish(checks), where)


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
        raise BayeslawError(f"the run table has no column {listed(absent)}; pass it through load_runs first.")
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
        if isinstance(n_test, bool) or not isinstance(n_test, Integral) or not 1 <= n_test <= LARGEST:
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
        return _read_csv(path, {columns.get(name, name) for name in TEXT})
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (ValueError, TypeError, KeyError, NotImplementedError, OSError) as error:
        raise BayeslawError(
            f"{path}: not a readable Parquet file ({first_line(error)}). It may be truncated or only half copied: "
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
                na_values={name: [""] if name in text else NO_VALUE for name in names},
                low_memory=False,
            )
    except pd.errors.EmptyDataError:
        raise BayeslawError(f"{path}: the file is empty; write the table again, with a header line.") from None
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise BayeslawError(
            f"{path}: not a readable CSV file ({first_line(error)}). Needed is UTF-8 text, a header line, fields "
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
    _refuse_repeated(names_of(frame), where)
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    return pd.DataFrame(frame.reset_index(level=named) if named else frame).reset_index(drop=True)


def _refuse_repeated(names: list[str], where: str) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise BayeslawError(f"{where}: more than one column is named {listed(repeated)}; rename or drop the others.")


def _rename(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """Give columns our names; report all that is wrong with the mapping at once."""
    wrong = []
    if unknown := [ours for ours in columns if ours not in COLUMNS]:
        wrong.append(f"{listed(unknown)} is none of our names, which are {listed(COLUMNS)}")
        if all(columns[name] in COLUMNS for name in unknown):
            wrong.append(f'the mapping goes from our name to yours: {{"{columns[unknown[0]]}": "{unknown[0]}"}}')
    if absent := [theirs for theirs in columns.values() if theirs not in frame]:
        wrong.append(f"the table has no column {listed(absent)}; it has {listed(names_of(frame))}")
    if twice := [theirs for theirs, count in Counter(columns.values()).items() if count > 1]:
        wrong.append(f"{listed(twice)} is mapped to more than one name")
    if taken := [ours for ours in columns if ours in frame and ours not in columns.values()]:
        wrong.append(f"the table already has a column {listed(taken)} of its own; drop or rename that, or map it too")
    if wrong:
        raise BayeslawError(f"{where}: columns= does not fit the table: {'; '.join(wrong)}.")
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


def _diverged(frame: pd.DataFrame) -> Mask:
    if "status" not in frame:
        return np.zeros(len(frame), dtype=bool)
    return np.array(column_of(frame, "status").astype("str") == "diverged", dtype=bool)


def _told_once(runs: pd.DataFrame, where: str) -> pd.DataFrame:
    """Keep the longest of the trajectories that one seed made: the others are no further evidence."""
    if not {"replicate", "protocol_hash"} <= set(runs):
        return runs
    shape = [runs["input_shape"].astype(str)] if "input_shape" in runs else []
    names = ["family", "dataset", "depth", "width", "dataset_size", "replicate", "protocol_hash"]
    lengths = runs.groupby([*names, *shape, "trajectory"], sort=False, dropna=False).size().rename("rows").reset_index()
    longest = lengths.sort_values("rows", ascending=False, kind="stable")
    longest = longest.drop_duplicates([*names, *(part.name for part in shape)])["trajectory"]
    if len(longest) == len(lengths):
        return runs
    warnings.warn(
        f"{where}: {len(lengths) - len(longest)} of {len(lengths)} trajectories repeat another one of the same "
        "network, replicate and protocol, as far as they go; the longest of each is kept.",
        UserWarning,
        stacklevel=3,
    )
    return runs[runs["trajectory"].isin(longest)].reset_index(drop=True)


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
        there = f"there are {listed(names)}" if names else f"there are none in {folder}"
        raise BayeslawError(f"no recorded sweep is named {name!r}; {there}.")
    return load_runs(folder / f"{name}.parquet")
