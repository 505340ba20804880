"""The posterior of a fit: its summary, diagnostics, predictions and plan, and its file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
    from numpyro.distributions import Distribution

    from bayeslaw.plan import Plan
    from bayeslaw.priors import Prior

#: A parameter whose posterior variance is more than this share of its prior variance is called prior-driven, unless its
#: mean moved by more than so many prior standard deviations: pressed against an end of its range it keeps its variance
#: on the unconstrained scale.
PRIOR_DRIVEN, MOVED = 0.7, 1.0
#: Version of the file that holds a fit.
FORMAT = 3


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

    def priors(self, given: Mapping[str, Distribution] | None = None) -> dict[str, Prior]:
        """Give the priors of the fit, by parameter name; `prior_table` lists them.

        Args:
            given: Distributions of priors that a fit cannot keep (`bayeslaw.priors.STORABLE` lists those it can).

        Raises:
            BayeslawError: A prior could not be kept and is not given.
        """
        from bayeslaw.priors import restore_priors

        return restore_priors(self.settings["stored_priors"], law=self.structure.law, given=given)

    @property
    def prior_driven(self) -> list[str]:
        """Names of the parameters that the data did not inform.

        Their variance fell by less than 30 % and their mean moved by less than one standard deviation of the prior,
        both on the unconstrained scale (`contraction` and `shift` of the summary).
        """
        shift = self.settings["shift"]
        names = self.settings["contraction"].items()
        return [name for name, value in names if value < 1 - PRIOR_DRIVEN and abs(shift[name]) < MOVED]

    @property
    def prior_note(self) -> str:
        """Say in words which parameters the data did not inform."""
        if not self.prior_driven:
            return "The data informed every parameter."
        contraction = self.settings["contraction"]
        named = [f"{name} (variance {-contraction[name]:+.0%})" for name in self.prior_driven]
        return (
            f"Driven by the prior, not informed by the data: {', '.join(named)}. What depends on them rests on their "
            "priors (bayeslaw.prior_table)."
        )

    def summary(
        self,
        *,
        interval: float = 0.9,
        baseline: bool = False,
        repetitions: int = 100,
        seed: int = 0,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Summarise the parameters of the law, the dense law and the noise.

        Args:
            interval: Probability of the equal-tailed intervals, in (0, 1).
            baseline: Add the paper's way beside the posterior: `least_squares`, its estimate of `gamma`, `phi`, `psi`,
                `p_prime` and `eps_up` from the same runs, in the same units, with `least_squares_lower` and
                `least_squares_upper`, the percentile interval of the bootstrap over trajectories. It is the joint law's
                whatever law was fitted; an exponent whose axis does not vary has none.
            repetitions: Refits of that bootstrap.
            seed: Seed of its starting points and resampling.
            progress: Show its progress where standard error is a terminal and it takes more than two seconds.

        Returns:
            One row per parameter: `mean`, `sd`, `lower`, `upper`, `ess_bulk`, `ess_tail`, `r_hat`, `contraction`
            (1 - posterior variance / prior variance), `shift` (of the mean, in prior standard deviations; both on the
            unconstrained scale) and `driven_by`, which is `prior` for the parameters of `prior_driven`.

        Raises:
            BayeslawError: With `baseline`, as `bayeslaw.least_squares` does.
        """
        import arviz as az

        posterior = self.posterior
        scalars = [name for name in posterior.data_vars if posterior[name].ndim == 2]
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
        for name in ("contraction", "shift"):
            table[name] = pd.Series(self.settings[name], dtype=float).reindex(table.index)
        driven = np.where(table.index.isin(self.prior_driven), "prior", "data")
        table["driven_by"] = np.where(table["contraction"].isna(), "", driven)
        if baseline:
            from bayeslaw.bootstrapping import baseline_table

            table = table.join(
                baseline_table(self.runs, interval=interval, repetitions=repetitions, seed=seed, progress=progress)
            )
        return table.rename_axis("parameter")

    def psense(
        self,
        *,
        quantities: Mapping[str, Any] | None = None,
        prior_var_names: Sequence[str] | None = None,
        priors: Mapping[str, Distribution] | None = None,
        threshold: float = 0.05,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Say how strongly parameters depend on priors and on data; see `bayeslaw.sensitivity.psense`."""
        from bayeslaw.sensitivity import psense

        return psense(
            self,
            quantities=quantities,
            prior_var_names=prior_var_names,
            priors=priors,
            threshold=threshold,
            progress=progress,
        )

    def diagnose(self) -> Diagnosis:
        """Judge the draws of parameters and of trained curves: R-hat, effective sample sizes, divergences and BFMI.

        See `bayeslaw.diagnostics`; the curves are `bayeslaw.predict.trained_curves`.
        """
        from bayeslaw.predict import trained_curves

        return diagnose(self.tree, trained_curves(self))

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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
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


def load(path: str | Path) -> Fit:
    """Read a fit that `Fit.save` wrote.

    Args:
        path: The NetCDF file.

    Returns:
        The fit; its predictions are those of the fit that was saved.

    Raises:
        BayeslawError: The file is missing, damaged, or no fit.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if not content.endswith(_seal(content[: -len(_seal(b""))])):
            raise BayeslawError(f"{path}: not a fit written by Fit.save, or damaged since; fit again.")
        tree = xr.open_datatree(path, engine="h5netcdf").load()
        about = json.loads(tree.attrs.pop("bayeslaw"))
        if about["format"] != FORMAT:
            raise BayeslawError(f"{path}: format {about['format']}, this version reads {FORMAT}; fit again.")
        runs = pd.DataFrame(json.loads(str(tree["runs"]["json"].item())))
        del tree["runs"]
        frame = Frame(**about["frame"] | {"family": _family(about["frame"]["family"])})
        return Fit(tree, runs, frame, _structure(about["structure"]), about["settings"], about["versions"])
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
