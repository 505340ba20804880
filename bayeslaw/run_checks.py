"""The rules of the run table: what each column must be, and how all faults are found and said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

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
TEXT = frozenset({
    "trajectory", "family", "dataset", "input_shape", "replicate", "subset_id", "kept_by_layer", "status", "protocol",
    "protocol_hash", "precision", "device", "kernels", "versions",
})  # fmt: skip
#: What stands for "no value" in the other columns of a CSV file.
NO_VALUE = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>"]
LARGEST = 2.0**53
#: How many rows of a group of faults the message shows.
_SHOWN = 5

type Mask = npt.NDArray[np.bool_]
type _Numbers = npt.NDArray[np.float64]


def _whole(lowest: int) -> tuple[str, Callable[[_Numbers], Mask]]:
    rule = f"a whole number from {lowest} to 2**53"
    return rule, lambda x: (x >= lowest) & (x <= LARGEST) & (x == np.floor(x))


#: What each number must be.
_RANGES: dict[str, tuple[str, Callable[[_Numbers], Mask]]] = {
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
#: What an input shape must be.
SHAPE = "whole numbers from 1 up, such as 1,8,8"


# Checking


class _Group(NamedTuple):
    """Faults of one column against one rule; row None where the whole column is meant."""

    column: str
    rule: str
    rows: list[int | None]
    values: list[Any]


class Checks:
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
        self._good: dict[str, Mask] = {}

    def has(self, *columns: str) -> bool:
        """Tell whether all the columns are there."""
        return all(column in self.names or column in self.numbers for column in columns)

    def raw(self, column: str) -> pd.Series | None:
        """Give a known column as it came, or None if it is absent or optional and empty."""
        if column not in self.frame:
            return None
        values = column_of(self.frame, column)
        return values if column in REQUIRED or values.notna().to_numpy().any() else None

    def fault(
        self, where: Mask, column: str, rule: str, advice: str = _CORRECT, values: Sequence[Any] | None = None
    ) -> None:
        """Note the rows of a mask as faults of a column; the values are those of all rows."""
        if where.any():
            values = column_of(self.frame, column).tolist() if values is None else values
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

    def doubt(self, column: str, where: Mask) -> None:
        """Use the rows of a mask no further, without calling them faults."""
        self._good[column] = self.good(column) & ~where

    def good(self, *columns: str) -> Mask:
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


def check(checks: Checks, fill: Mapping[str, float]) -> None:
    """Hold a table against every rule; what is wrong is collected in `checks`.

    Args:
        checks: The table, with no fault found yet.
        fill: Values for `n_test` and `chance_error` where the table has none.
    """
    _check_names(checks)
    _check_shapes(checks)
    _check_numbers(checks, fill)
    _check_counts(checks)
    _complete(checks)
    _check_error(checks)
    _check_trajectories(checks)
    _check_repeats(checks)


def _check_names(checks: Checks) -> None:
    for column in ("trajectory", "family", "dataset", "replicate"):
        if (values := checks.raw(column)) is not None:
            checks.names[column] = _as_text(values)
            blank = checks.names[column].isna().to_numpy(dtype=bool)
            checks.fault(blank, column, "present in every row", "Fill the gaps, or drop the column as a whole.")
        elif column in ("family", "dataset"):
            checks.names[column] = pd.Series("unknown", index=checks.frame.index, dtype="str")


def _check_shapes(checks: Checks) -> None:
    """Hold the networks of a family and dataset to one shape of inputs; the column stays as it came."""
    if (values := checks.raw("input_shape")) is None:
        return
    missing = values.isna().to_numpy(dtype=bool)
    checks.fault(missing, "input_shape", "present in every row", "Fill the gaps, or drop the column as a whole.")
    written = values.map(_comparable)
    first = ~written.duplicated()
    shapes = written.map(dict(zip(written[first], map(shape_of, values[first]), strict=True)))
    checks.fault(shapes.isna().to_numpy(dtype=bool) & ~missing, "input_shape", SHAPE)
    use = checks.good("input_shape", "family", "dataset")
    deviating = np.zeros_like(use)
    labels = pd.DataFrame({name: checks.names[name] for name in ("family", "dataset")})
    deviating[use] = _deviating(labels[use].groupby(["family", "dataset"]).ngroup(), shapes[use].map(str))
    advice = "Inputs of another shape are another dataset: give it a name of its own in the column dataset."
    checks.fault(deviating, "input_shape", "constant within a family and dataset", advice)


def _check_numbers(checks: Checks, fill: Mapping[str, float]) -> None:
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


def _check_counts(checks: Checks) -> None:
    for part, whole in (("n_wrong", "n_test"), ("kept", "prunable")):
        if checks.has(part, whole):
            over = checks.good(part, whole) & (checks.numbers[part] > checks.numbers[whole])
            checks.fault(over, part, f"at most {whole}")


def _complete(checks: Checks) -> None:
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


def _check_error(checks: Checks) -> None:
    """Hold the error against the count of wrong answers, which is made where only the error is there."""
    if not checks.has("error"):
        return
    error = checks.numbers["error"]
    if not checks.has("n_test"):
        advice = "Pass n_test=, the number of test examples: then none or all wrong of n_test is data like any other."
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


def _check_trajectories(checks: Checks) -> None:
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
        checks.names["trajectory"] = _name_trajectories(rows_of(design, use)).reindex(design.index)
        checks.doubt("trajectory", ~use)


def _deviating(trajectories: pd.Series, values: pd.Series) -> Mask:
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
    group = runs.groupby(names_of(runs), sort=False).ngroup()
    return pd.Series(np.array(names, dtype=object)[group.to_numpy()], index=runs.index, dtype="str")


def _check_repeats(checks: Checks) -> None:
    advice = (
        'Drop the repeated rows; if they are different runs, add a column "trajectory" or "replicate" that says so.'
    )
    by = "level" if checks.has("level") else "density"
    if checks.has("trajectory", by):
        table = pd.DataFrame({"trajectory": checks.names["trajectory"], by: checks.numbers[by]})
        first = _first_like(rows_of(table, checks.good("trajectory", by)))
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
        name
        for name in names_of(table)
        if isinstance(column_of(table, name).dtype, pd.ArrowDtype | np.dtypes.ObjectDType)
    ]
    plain = [name for name in names_of(table) if name not in odd]
    like = rows_of(table, table.duplicated(plain, keep=False).to_numpy(dtype=bool)) if plain else table
    like = like.assign(**{name: column_of(like, name).map(_comparable) for name in odd})
    again = like.duplicated().to_numpy(dtype=bool)
    group = like.groupby(names_of(like), sort=False, dropna=False).ngroup().to_numpy()
    rows = like.index.to_numpy()
    return dict(zip(rows[again].tolist(), rows[~again][group[again]].tolist(), strict=True))


def _comparable(value: Any) -> str:
    """Write the cell of an object column, perhaps an array, so that equal ones are equal."""
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


# Parsing and finishing


def names_of(frame: pd.DataFrame) -> list[str]:
    """List the names of the columns."""
    return cast("list[str]", frame.columns.tolist())


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """Give one column."""
    return cast("pd.Series", frame[name])


def rows_of(frame: pd.DataFrame, where: Mask) -> pd.DataFrame:
    """Give the rows that a mask names."""
    return cast("pd.DataFrame", frame[where])


def _as_numbers(column: pd.Series) -> tuple[_Numbers, Mask]:
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


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Read the shape of inputs, one number or several; nothing where it is none.

    Example:
        >>> shape_of("[1 8 8]"), shape_of((3, 32, 32)), shape_of(64), shape_of("1x8x8")
        ((1, 8, 8), (3, 32, 32), (64,), None)
    """
    if isinstance(value, str):
        value = value.strip("[]() ").replace(",", " ").split()
    numbers = [_as_number(part) for part in (value if isinstance(value, list | tuple | np.ndarray) else [value])]
    return tuple(int(number) for number in numbers) if numbers and all(map(_is_size, numbers)) else None


def _is_size(number: float) -> bool:
    return 1 <= number <= LARGEST and float(number).is_integer()


def _as_text(column: pd.Series) -> pd.Series:
    """Turn names and keys into strings, whole numbers without a fraction, and blank ones into missing values."""
    missing = column.isna()
    if pd.api.types.is_float_dtype(column):
        column = column.map(_plain, na_action="ignore")
    text = column.astype("str")
    return text.mask(missing | (text.str.strip() == ""))


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def finish(checks: Checks) -> pd.DataFrame:
    """Put the columns together, with their types and in their order."""
    done: dict[str, Any] = {}
    for name in [*COLUMNS, *(name for name in names_of(checks.frame) if name not in COLUMNS)]:
        if name in checks.names:
            done[name] = checks.names[name]
        elif name in checks.numbers:
            numbers = checks.numbers[name]
            whole = (np.abs(numbers) <= LARGEST).all() and (numbers == np.floor(numbers)).all()
            done[name] = numbers.astype(np.int64) if whole and name not in _FRACTIONS else numbers
        elif name not in COLUMNS:
            done[name] = column_of(checks.frame, name)
        elif (values := checks.raw(name)) is not None:
            done[name] = values
    if "replicate" in done and done["replicate"].str.fullmatch(r"0|-?[1-9][0-9]{0,17}").all():
        done["replicate"] = done["replicate"].astype(np.int64)
    return pd.DataFrame(done)


# Words


def message_of(checks: Checks, where: str, columns: Mapping[str, str]) -> str:
    """Say all faults, grouped by column and rule, and what to do."""
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


def say_diverged(where: str, diverged: pd.DataFrame) -> str:
    """Say which diverged runs were left out."""
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


def how_to_map(missing: list[str], there: list[str]) -> str:
    """Say how missing columns are mapped from those that are there."""
    mapping = ", ".join(f'"{name}": "<your column>"' for name in missing)
    return (
        f"Say which columns hold what is missing: load_runs(source, columns={{{mapping}}}); the table has "
        f"{listed(there)}. (density also follows from kept and prunable, error from n_wrong and n_test.)"
    )


def listed(names: Iterable[Any]) -> str:
    """Quote names and separate them by commas."""
    return ", ".join(repr(name) for name in names)


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
