"""Sweeps as files: the TOML that `imp-runs sweep` takes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, rounds_at

#: Share of the weights that a round prunes.
PRUNED = 0.2


def write_sweep(
    path: str | Path, chosen: pd.DataFrame, *, template: str | Path, runs: pd.DataFrame | None = None
) -> Path:
    """Write chosen trajectories as a sweep under a template's protocol; see `bayeslaw.design.Suggestion.to_sweep`."""
    content = read_sweep(template)
    check_rounds(content, template)
    if chosen.empty:
        raise BayeslawError("nothing is suggested, so there is no sweep to write.")
    if (parts := chosen[CONFIGURATION] % 1 != 0).any(axis=None):
        row = chosen[parts.any(axis=1)].iloc[0]
        raise BayeslawError(
            f"depth {row['depth']:g}, width {row['width']:g}, dataset_size {row['dataset_size']:g} is no network that "
            "can be trained: all three must be whole numbers."
        )
    first = content["grid"][0] if isinstance(content["grid"], list) else content["grid"]
    shared = {name: first[name] for name in ("family", "dataset", "pool") if name in first}
    grid = []
    for _, own in chosen.groupby(CONFIGURATION, sort=False):
        network = own[CONFIGURATION].iloc[0].astype(int).tolist()
        entry = shared | {name: [value] for name, value in zip(CONFIGURATION, network, strict=True)}
        for replicate, row in enumerate(own.to_dict("records"), _replicates(runs, network)):
            levels = {"levels": int(rounds_at(row["density"]))} if "density" in row else {}
            grid.append(entry | {"first_replicate": replicate, "replicates": 1} | levels)
    protocol = content.get("protocol", {})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(toml_of({"name": content["name"], "grid": grid, "protocol": protocol}), encoding="utf-8")
    return path


def _replicates(runs: pd.DataFrame | None, network: list[int]) -> int:
    """Count from the replicates that a network has already."""
    if runs is None or "replicate" not in runs:
        return 0
    own = runs[(runs[CONFIGURATION] == network).all(axis=1)]
    return 0 if own.empty else int(own["replicate"].max()) + 1


def read_sweep(path: str | Path) -> dict[str, Any]:
    """Read a sweep's file.

    Raises:
        BayeslawError: There is none, or it is none.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BayeslawError(f"{path}: not a readable sweep ({error}); give the TOML file of a sweep.") from None
    if missing := [name for name in ("name", "grid") if name not in content]:
        raise BayeslawError(f"{path}: not a sweep, it lacks {' and '.join(missing)}; give the TOML file of a sweep.")
    return content


def check_rounds(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a sweep whose rounds are none of 20 %, in which plans count.

    Raises:
        BayeslawError: They are not.
    """
    protocol = content.get("protocol", {})
    share = protocol.get("prune_fraction", PRUNED) if isinstance(protocol, Mapping) else PRUNED
    if share != PRUNED:
        raise BayeslawError(
            f"{path}: prune_fraction = {share}, but plans and their prices count in rounds of {PRUNED:.0%}; give a "
            "sweep with those."
        )


def check_origin(path: str | Path, family: str, dataset: str) -> None:
    """Refuse a sweep of other networks or other data than a fit's: its runs would be none of that fit's law.

    Args:
        path: TOML file of the sweep.
        family: Family of the fitted runs.
        dataset: Their dataset.

    Raises:
        BayeslawError: A grid of the sweep says otherwise, or it is none.
    """
    content = read_sweep(path)
    for grid in content["grid"] if isinstance(content["grid"], list) else [content["grid"]]:
        there = {name: str(grid.get(name)) for name in ("family", "dataset")}
        if there != {"family": family, "dataset": dataset}:
            raise BayeslawError(
                f"{path} sweeps {there['family']} on {there['dataset']}, but the fit is of {family} on {dataset}: give "
                "the TOML file of a sweep of the same family and dataset."
            )


def toml_of(content: Mapping[str, Any]) -> str:
    """Write values, then tables and lists of tables, of one level each.

    Example:
        >>> print(toml_of({"name": "toy", "grid": [{"depth": [8]}], "protocol": {"levels": 3}}))
        name = "toy"
        <BLANKLINE>
        [[grid]]
        depth = [8]
        <BLANKLINE>
        [protocol]
        levels = 3
        <BLANKLINE>
    """
    tables, lines = [], []
    for key, value in content.items():
        if isinstance(value, Mapping):
            tables.append((f"[{key}]", value))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables += [(f"[[{key}]]", table) for table in value]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    for header, table in tables:
        lines += ["", header, *(f"{name} = {json.dumps(entry)}" for name, entry in table.items())]
    return "\n".join(lines) + "\n"
