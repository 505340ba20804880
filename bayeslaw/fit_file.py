"""The file of a fit, of one family or of several: NetCDF, written whole or not at all, read back without refitting."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.frame import Frame
from bayeslaw.model import Structure
from bayeslaw.posterior import Fit

if TYPE_CHECKING:
    from bayeslaw.pooled import PooledFit

#: Version of the file that holds a fit.
FORMAT = 6
#: Group of a file that holds several families.
_FAMILIES = "families"


def save(fit: Fit, path: str | Path) -> None:
    """Write the fit of one family; `Fit.save`."""
    _write(_packed(fit), path)


def save_pooled(fit: PooledFit, path: str | Path) -> None:
    """Write the fit of several families; `PooledFit.save`."""
    tree = xr.DataTree.from_dict({"population": fit.population})
    tree[_FAMILIES] = xr.DataTree(children={f"{i:04d}": _packed(own) for i, own in enumerate(fit.families.values())})
    tree.attrs["bayeslaw"] = json.dumps(
        {"format": FORMAT, "settings": fit.settings, "versions": fit.versions}, default=_plain
    )
    _write(tree, path)


def load(path: str | Path, *, family: str | None = None) -> Fit:
    """Read a fit that `Fit.save` wrote, or one family of what `PooledFit.save` wrote.

    Args:
        path: The NetCDF file.
        family: Which family of a pooled fit, as `"cifar_resnet/digits"` (`PooledFit.labels`).

    Returns:
        The fit; its predictions are those of the fit that was saved.

    Raises:
        BayeslawError: The file is missing, damaged, or no fit; or it holds other families than the one named.
    """
    with _reading(path) as tree:
        nodes = tree[_FAMILIES].children.values() if _FAMILIES in tree.children else [tree]
        fits = {fit.frame.label: fit for fit in map(_unpacked, nodes)}
    if family is None and len(fits) > 1:
        raise BayeslawError(
            f"{path} holds {len(fits)} families fitted together ({', '.join(fits)}): choose one of them with family= "
            "(--family), or read all with bayeslaw.load_pooled."
        )
    if family is not None and family not in fits:
        raise BayeslawError(f"{path}: family = {family!r} was not fitted; it holds {', '.join(fits)}.")
    return next(iter(fits.values())) if family is None else fits[family]


def load_pooled(path: str | Path) -> PooledFit:
    """Read what `PooledFit.save` wrote.

    Args:
        path: The NetCDF file.

    Returns:
        The pooled fit; its predictions are those of what was saved.

    Raises:
        BayeslawError: The file is missing, damaged, or holds no pooled fit.
    """
    from bayeslaw.pooled import PooledFit

    with _reading(path) as tree:
        if _FAMILIES not in tree.children:
            raise BayeslawError(f"{path}: holds the fit of one family; read it with bayeslaw.load.")
        about = json.loads(tree.attrs["bayeslaw"])
        families = {fit.frame.label: fit for fit in map(_unpacked, tree[_FAMILIES].children.values())}
        return PooledFit(families, tree["population"].to_dataset(), about["settings"], about["versions"])


def _packed(fit: Fit) -> xr.DataTree:
    """Put the posterior and all else that makes a fit into one tree."""
    tree = fit.tree.copy()
    columns = {str(name): column.tolist() for name, column in fit.runs.items()}
    tree["runs"] = xr.DataTree(xr.Dataset({"json": json.dumps(columns, default=_plain_cell)}))
    about = {
        "format": FORMAT,
        "frame": dataclasses.asdict(fit.frame),
        "structure": dataclasses.asdict(fit.structure),
        "settings": fit.settings,
        "versions": fit.versions,
    }
    tree.attrs["bayeslaw"] = json.dumps(about, default=_plain)
    return tree


def _plain(value: Any) -> Any:
    """Give what JSON has for an array, a NumPy scalar or a missing value."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a fit cannot keep {value!r}, of type {type(value).__name__}")


def _plain_cell(value: Any) -> Any:
    """Give the same for the cell of a column that the model does not read, and the text of anything else."""
    try:
        return _plain(value)
    except TypeError:
        return str(value)


def _unpacked(tree: xr.DataTree) -> Fit:
    """Undo `_packed`, of a tree or of a branch of one."""
    tree = tree.copy()
    tree.orphan()
    tree.name = None
    about = json.loads(tree.attrs.pop("bayeslaw"))
    runs = pd.DataFrame(json.loads(str(tree["runs"]["json"].item())))
    del tree["runs"]
    frame = Frame(**about["frame"] | {"family": _family(about["frame"]["family"])})
    return Fit(tree, runs, frame, _structure(about["structure"]), about["settings"], about["versions"])


def _family(entries: dict[str, Any]) -> Family:
    shape = entries["input_shape"]
    return Family(entries["name"], None if shape is None else tuple(shape), entries["classes"])


def _structure(entries: dict[str, Any]) -> Structure:
    return Structure(**dict[str, Any](entries | {"effects": tuple(entries["effects"])}))


def check_writable(path: str | Path) -> None:
    """Refuse a path that a fit cannot be written to, before time is spent on the fit; makes its folder.

    Raises:
        BayeslawError: It does not end in .nc, is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    if path.suffix != ".nc" or path.is_dir():
        raise BayeslawError(f"{path}: a fit is written to a file ending in .nc, for instance fit.nc; name such a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BayeslawError(
            f"{path}: the folder {path.parent} cannot be written to ({error.strerror}); name a file in another folder."
        ) from None


def _write(tree: xr.DataTree, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    tree.to_netcdf(temporary, engine="h5netcdf")
    digest = _seal(temporary.read_bytes())
    with temporary.open("ab") as file:
        file.write(digest)
    temporary.replace(path)


def _seal(content: bytes) -> bytes:
    """Give the checksum that closes a file; NetCDF readers ignore what follows the data.

    Without it a damaged file can keep the HDF5 library busy for ever.
    """
    return b"bayeslaw:" + hashlib.sha256(content).hexdigest().encode()


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[xr.DataTree]:
    """Read the tree of a sealed file; whatever is wrong with it is a `BayeslawError`."""
    path = Path(path)
    try:
        content = path.read_bytes()
        if not content.endswith(_seal(content[: -len(_seal(b""))])):
            raise BayeslawError(f"{path}: not a fit written by Fit.save, or damaged since; fit again.")
        tree = xr.open_datatree(path, engine="h5netcdf").load()
        found = json.loads(tree.attrs["bayeslaw"])["format"]
        if found != FORMAT:
            raise BayeslawError(f"{path}: format {found}, this version reads {FORMAT}; fit again.")
        yield tree
    except FileNotFoundError:
        raise BayeslawError(f"{path}: there is no such file; give the path of a fit written by Fit.save.") from None
    except BayeslawError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BayeslawError(f"{path}: not a readable fit ({error}); fit again.") from None
