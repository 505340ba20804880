"""What the commands of `bayeslaw` share: options, and how what is given to them is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayeslaw.errors import BayeslawError

if TYPE_CHECKING:
    import pandas as pd


FitArgument = Annotated[Path, typer.Argument(metavar="FIT", help="Fit written by `bayeslaw fit` (.nc).")]
TableOption = Annotated[Path | None, typer.Option("--output", "-o", dir_okay=False, help="Table to write (.csv).")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
FamilyOption = Annotated[
    str | None, typer.Option(help="Which family of a pooled fit, for instance cifar_resnet/digits.")
]
LawOption = Annotated[str, typer.Option(help="joint, parameter_count, sharpness, dip, anchored, sparse or single.")]
CorrelatedOption = Annotated[
    bool, typer.Option("--correlated/--independent", help="Noise is correlated from level to level.")
]
SubsetsOption = Annotated[
    bool | None,
    typer.Option("--subsets/--no-subsets", help="Training subsets have luck; by default where networks share any."),
]
CurvatureOption = Annotated[
    bool, typer.Option("--curvature/--no-curvature", help="The dense law has quadratic terms beside its power laws.")
]


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table into a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def table_of(runs: str, **reading: Any) -> pd.DataFrame:
    """Load a recorded sweep by its name, else the run table of a path."""
    from bayeslaw.runs import load_recorded, load_runs, recorded_names

    return load_recorded(runs) if runs in recorded_names() else load_runs(runs, **reading)


def text_of(table: pd.DataFrame) -> str:
    """Write a table out, numbers with three decimals."""
    return table.to_string(float_format=lambda value: f"{value:.3f}", na_rep="")


def read_numbers(text: str, option: str) -> list[int]:
    """Read whole numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BayeslawError(
            f"{option} {text!r} must be whole numbers separated by commas, for instance 8,14."
        ) from None


def read_floats(text: str, option: str) -> list[float]:
    """Read numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BayeslawError(f"{option} {text!r} must be numbers separated by commas, for instance 1,0.1.") from None


def read_widths(text: str) -> list[float]:
    """Read widths, or the two ends of a range of them."""
    ends = text.split("-")
    if len(ends) != 2:
        return read_floats(text, "--widths")
    from bayeslaw.starts import width_grid

    return width_grid(*(read_floats(end, "--widths")[0] for end in ends)).tolist()


def read_pair(entry: str) -> tuple[str, str]:
    """Read what a table calls one of our columns."""
    ours, separator, yours = entry.partition("=")
    if not separator:
        raise BayeslawError(f"--column {entry!r} must be ours=yours, for instance error=test_err.")
    return ours, yours
