"""The posterior of a fit: its summary, diagnostics, predictions and plan, and its file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.diagnostics import Diagnosis, diagnose
from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION, Frame
from bayeslaw.laws import Law, law_named
from bayeslaw.model import Structure

if TYPE_CHECKING:
    from bayeslaw.plan import Plan

#: A parameter whose posterior variance is more than this share of its prior variance is called prior-driven.
PRIOR_DRIVEN = 0.7
#: Version of the file that holds a fit.
FORMAT = 2
#: Group of a file that holds several fits.
FAMILIES = "families"


@dataclass(frozen=True)
class Fit:
    """Hold the posterior of the joint law for one family, with the data and all that made it.

    Attributes:
        tree: ArviZ DataTree with groups `posterior`, `sample_stats`, `observed_data` and `constant_data`; dimensions
            `chain`, `draw`, `configuration`, `trajectory` and `row`.
        runs: The validated run table that was fitted.
        frame: Family, centres and random-guess error.
        structure: Which parts the model has.
        settings: Seed, chains, warm-up, draws, metric and priors.
        versions: Versions of the libraries that computed it.
    """

    tree: xr.DataTree
    runs: pd.DataFrame
    frame: Frame
    structure: Structure
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def posterior(self) -> xr.Dataset:
        """The posterior draws as a Dataset with dimensions `chain` and `draw`."""
        return self.tree["posterior"].to_dataset()

    @property
    def law(self) -> Law:
        """The law that was fitted."""
        return law_named(self.structure.law)

    @property
    def configurations(self) -> pd.DataFrame:
        """The trained (depth, width, dataset_size), in the order of the posterior's `configuration` dimension."""
        coords = self.tree["posterior"].coords
        return pd.DataFrame({name: coords[name].to_numpy() for name in CONFIGURATION})

    def summary(self, *, interval: float = 0.9) -> pd.DataFrame:
        """Summarise the parameters of the law, the dense law and the noise.

        Args:
            interval: Probability of the equal-tailed interval, in (0, 1).

        Returns:
            One row per parameter: `mean`, `sd`, `lower`, `upper`, `ess_bulk`, `ess_tail`, `r_hat`, `contraction`
            (1 - posterior variance / prior variance, on the unconstrained scale) and `driven_by`, which is `prior`
            where the data reduced the variance by less than 30 %. The prior of a pooled exponent is what all families
            say of a new one; where it drives, that is called `population`.
        """
        return summarise(
            self.posterior, self.settings["contraction"], interval=interval, pooled=self.settings.get("pooled", [])
        )

    def diagnose(self) -> Diagnosis:
        """Judge the draws by R-hat, effective sample sizes, divergences and BFMI; see `bayeslaw.diagnostics`."""
        return diagnose(self.tree)

    def predict(
        self,
        designs: pd.DataFrame,
        *,
        interval: float = 0.9,
        kind: str = "mean",
        seed: int = 0,
        return_draws: bool = False,
    ) -> pd.DataFrame | xr.DataArray:
        """Predict the error of networks, trained or not; see `bayeslaw.predict.predict`."""
        from bayeslaw.predict import predict

        return predict(self, designs, interval=interval, kind=kind, seed=seed, return_draws=return_draws)

    def plan(
        self,
        target_error: float,
        *,
        depths: Any,
        widths: Any,
        dataset_size: int,
        family: Family | None = None,
        parameters: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        confidence: float = 0.9,
        allow_failed: bool = False,
        seed: int = 0,
    ) -> Plan:
        """Choose the network to start from and the density to prune to; see `bayeslaw.plan.plan`."""
        from bayeslaw.plan import plan

        return plan(
            self,
            target_error,
            depths=depths,
            widths=widths,
            dataset_size=dataset_size,
            family=family,
            parameters=parameters,
            confidence=confidence,
            allow_failed=allow_failed,
            seed=seed,
        )

    def save(self, path: str | Path) -> None:
        """Write the fit to one NetCDF file, whole or not at all; `bayeslaw.load` gives it back."""
        write(self.packed(), path)

    def packed(self) -> xr.DataTree:
        """Put the posterior and all else that the file of a fit holds into one tree."""
        tree = self.tree.copy()
        columns = {str(name): column.tolist() for name, column in self.runs.items()}
        tree["runs"] = xr.DataTree(xr.Dataset({"json": json.dumps(columns, default=np.ndarray.tolist)}))
        about = {
            "format": FORMAT,
            "frame": dataclasses.asdict(self.frame),
            "structure": dataclasses.asdict(self.structure),
            "settings": self.settings,
            "versions": self.versions,
        }
        tree.attrs["bayeslaw"] = json.dumps(about)
        return tree

    @classmethod
    def unpacked(cls, tree: xr.DataTree) -> Fit:
        """Undo `packed`, of a tree or of a branch of one."""
        tree = tree.copy()
        tree.orphan()
        tree.name = None
        about = json.loads(tree.attrs.pop("bayeslaw"))
        runs = pd.DataFrame(json.loads(str(tree["runs"]["json"].item())))
        del tree["runs"]
        frame = Frame(**about["frame"] | {"family": _family(about["frame"]["family"])})
        return cls(tree, runs, frame, _structure(about["structure"]), about["settings"], about["versions"])


def summarise(
    posterior: xr.Dataset, contraction: Mapping[str, float], *, interval: float, pooled: Collection[str] = ()
) -> pd.DataFrame:
    """Summarise the parameters that are one number per draw; see `Fit.summary`.

    Args:
        posterior: The draws.
        contraction: How far data narrowed each parameter.
        interval: Probability of the equal-tailed interval.
        pooled: Parameters whose prior is the population's.

    Raises:
        BayeslawError: `interval` is out of range.
    """
    import arviz as az

    if not 0 < interval < 1:
        raise BayeslawError(f"interval = {interval} must be in (0, 1), for instance 0.9.")
    scalars = [str(name) for name in posterior.data_vars if posterior[name].ndim == 2]
    values = posterior[scalars]
    tail = (1 - interval) / 2
    quantiles = values.quantile([tail, 1 - tail], dim=("chain", "draw"))
    columns = {
        "mean": values.mean(("chain", "draw")),
        "sd": values.std(("chain", "draw"), ddof=1),
        "lower": quantiles.isel(quantile=0),
        "upper": quantiles.isel(quantile=1),
        "ess_bulk": az.ess(values, method="bulk"),
        "ess_tail": az.ess(values, method="tail"),
        "r_hat": az.rhat(values),
    }
    table = pd.DataFrame({name: {k: float(v[k]) for k in scalars} for name, v in columns.items()})
    table["contraction"] = pd.Series(dict(contraction), dtype=float).reindex(table.index)
    other = np.where(table.index.isin(list(pooled)), "population", "prior")
    driven = np.where(table["contraction"] < 1 - PRIOR_DRIVEN, other, "data")
    table["driven_by"] = np.where(table["contraction"].isna(), "", driven)
    return table.rename_axis("parameter")


def write(tree: xr.DataTree, path: str | Path) -> None:
    """Write a tree to one sealed NetCDF file, whole or not at all."""
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
    with reading(path) as tree:
        if FAMILIES not in tree.children:
            fits = [Fit.unpacked(tree)]
        else:
            fits = [Fit.unpacked(node) for node in tree[FAMILIES].children.values()]
    labels = [fit.frame.label for fit in fits]
    if family is None and len(fits) > 1:
        raise BayeslawError(
            f"{path} holds {len(fits)} families fitted together ({', '.join(labels)}): choose one of them with "
            "family= (--family), or read all with bayeslaw.load_pooled."
        )
    if family is not None and family not in labels:
        raise BayeslawError(f"{path}: family = {family!r} was not fitted; it holds {', '.join(labels)}.")
    return fits[0 if family is None else labels.index(family)]


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[xr.DataTree]:
    """Read the tree of a sealed file; what goes wrong with it is one kind of error.

    Raises:
        BayeslawError: The file is missing, damaged, or no fit.
    """
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


def _family(entries: dict[str, Any]) -> Family:
    shape = entries["input_shape"]
    return Family(entries["name"], None if shape is None else tuple(shape), entries["classes"])


def _structure(entries: dict[str, Any]) -> Structure:
    return Structure(**dict[str, Any](entries | {"effects": tuple(entries["effects"])}))
