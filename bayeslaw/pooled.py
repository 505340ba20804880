"""The joint posterior of several families: each of them as a fit, the population, and families never trained."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.diagnostics import Diagnosis, diagnose, worst_of
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import Prepared, said_of_priors, to_fit
from bayeslaw.frame import CONFIGURATION, Data, Frame, Labels, Rows, label_of, make_frame
from bayeslaw.hierarchy import split_spread
from bayeslaw.laws import split_dense
from bayeslaw.model import EFFECTS, Structure
from bayeslaw.population import draw_exponents, kind_of
from bayeslaw.posterior import Fit
from bayeslaw.precision import in_float64
from bayeslaw.priors import BETWEEN, Prior, restore_priors
from bayeslaw.summary import note_of, summary_table

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

#: What the exponents of a family that was not fitted are called in tables.
NEW = "a new family"


@dataclass(frozen=True)
class PooledFit:
    """Hold the joint posterior of several families and of the population that their exponents come from.

    Attributes:
        families: The fit of each family by label, `"cifar_resnet/digits"`; each predicts and plans like any other. Its
            `priors`, and with them `psense`, are those of what it does not share.
        population: Draws of the population: centre (`phi`, of `gamma`, `alpha` and `beta` the median) and spread
            between families (`between_phi`; of `log gamma`, `log alpha`, `log beta`), each `[chain, draw]`.
        settings: Seed, chains, warm-up, draws, metric, priors, and how far data moved and narrowed the population.
        versions: Versions of the libraries that computed it.
    """

    families: dict[str, Fit]
    population: xr.Dataset
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def labels(self) -> list[str]:
        """The families' labels."""
        return list(self.families)

    def __getitem__(self, family: str | tuple[str, str]) -> Fit:
        """Choose the fit of a family by its label, or by (family, dataset).

        Raises:
            BayeslawError: It was not fitted.
        """
        label = family if isinstance(family, str) else label_of(*family)
        if label not in self.families:
            raise BayeslawError(
                f"{label} was not fitted; there are {', '.join(self.labels)}. For a family never trained take "
                "new_family."
            )
        return self.families[label]

    def summary(self, *, interval: float = 0.9) -> pd.DataFrame:
        """Summarise the population.

        Args:
            interval: Probability of the equal-tailed interval, in (0, 1).

        Returns:
            One row per parameter of the population, columns as in `Fit.summary`. With a handful of families the
            spreads between them are driven by their priors; `driven_by` says so.

        Raises:
            BayeslawError: `interval` is out of range.
        """
        return summary_table(self.population, self.settings, interval=interval)

    @property
    def prior_note(self) -> str:
        """Say in words which parameters the data did not inform, of the population and of every family."""
        notes = {"population": note_of(self.settings)} | {label: fit.prior_note for label, fit in self.families.items()}
        return "\n".join(f"{label}: {note}" for label, note in notes.items())

    @in_float64
    def exponents(self, *, interval: float = 0.9) -> pd.DataFrame:
        """Set the families' exponents beside each other, and beside those of a new family.

        Args:
            interval: Probability of the equal-tailed interval, in (0, 1).

        Returns:
            One row per exponent and family, and one for `a new family`: `mean`, `sd`, `lower`, `upper`, `driven_by`.

        Raises:
            BayeslawError: `interval` is out of range.
        """
        new = draw_exponents(self.population, _generator(0, NEW))
        drawn = xr.Dataset({name: (("chain", "draw"), values) for name, values in new.items()})
        tables = {label: fit.summary(interval=interval) for label, fit in self.families.items()}
        tables[NEW] = summary_table(drawn, _all_driven(new, pooled=list(new)), interval=interval)
        columns = ["mean", "sd", "lower", "upper", "driven_by"]
        rows = {(name, label): table.loc[name, columns] for name in new for label, table in tables.items()}
        return pd.DataFrame(rows).T.rename_axis(["parameter", "family"]).infer_objects()

    def diagnose(self) -> Diagnosis:
        """Judge the draws of the population and of all families, curves included; see `bayeslaw.diagnostics`."""
        statistics = next(iter(self.families.values())).tree["sample_stats"].to_dataset()
        population = diagnose(xr.DataTree.from_dict({"posterior": self.population, "sample_stats": statistics}))
        return worst_of({"population": population} | {label: fit.diagnose() for label, fit in self.families.items()})

    @in_float64
    def new_family(
        self,
        family: str,
        designs: pd.DataFrame,
        *,
        dataset: str = "unknown",
        chance_error: float | None = None,
        classes: int | None = None,
        input_shape: Sequence[int] | None = None,
        priors: Mapping[str, Distribution] | None = None,
        seed: int = 0,
    ) -> Fit:
        """Say what is known of a family of which no network was trained.

        Its exponents are drawn from the population, once per posterior draw; everything else comes from its prior. Its
        predictions are accordingly wide.

        Args:
            family: Its name; those of `bayeslaw.Family` have exact parameter counts.
            designs: Networks that would be trained, with `depth`, `width` and `dataset_size`: the knee and the dense
                error are those of the network at their centre, as in a fit.
            dataset: Label of its dataset.
            chance_error: Error of random guessing, in (0, 1); default 1 - 1 / classes.
            classes: Number of classes, for exact parameter counts.
            input_shape: Channels, height, width of the inputs, for exact parameter counts.
            priors: Distributions of priors that a fit cannot keep (`bayeslaw.priors.STORABLE` lists those it can).
            seed: Seed of what is drawn.

        Returns:
            A fit without runs. Its `summary` says that all is driven by the population or the prior, `predict` works as
            always, with infinite `extrapolation`, and a plan says what it rests on.

        Raises:
            BayeslawError: The family was fitted, its chance error is not known, the designs lack a column, or a prior
                could not be kept and is not given.

        Example:
            >>> designs = pd.DataFrame({"depth": [8, 20], "width": [4, 16], "dataset_size": 1000})
            >>> new = pooled.new_family("cifar_resnet", designs, dataset="svhn", classes=10)  # doctest: +SKIP
            >>> new.predict(designs.assign(density=0.1))  # doctest: +SKIP
        """
        if label_of(family, dataset) in self.families:
            raise BayeslawError(f"{label_of(family, dataset)} was fitted: take it by its label instead of new_family.")
        frame = _frame(family, dataset, designs, _chance(chance_error, classes), classes, input_shape)
        structure = self._structure()
        exponents = draw_exponents(self.population, _generator(seed, f"{frame.label}:exponents"))
        own = self._priors_of_family(structure, priors)
        shape = (self.population.sizes["chain"], self.population.sizes["draw"])
        values = exponents | {
            name: np.asarray(prior.distribution.sample(_key(seed, f"{frame.label}:{name}"), shape))
            for name, prior in own.items()
        }
        values |= split_dense(values) | split_spread(values)
        values["log_eps_up"] = np.log(frame.chance_error * values["plateau"])
        values |= {name: np.zeros((*shape, 0)) for name in ("log_e", "log_e_run", "shift_p", "effect_p")}
        fitted = next(iter(self.families.values())).tree["sample_stats"]
        statistics = {str(name): value.to_numpy() for name, value in fitted.data_vars.items()}
        compared = _all_driven([*own, *exponents], pooled=list(exponents))
        settings = settings_of_family(self.settings, list(exponents), own, compared)
        return to_fit(_without_runs(frame, structure, own), values, statistics, settings)

    def _structure(self) -> Structure:
        """Give every part that any of the families has."""
        structures = [fit.structure for fit in self.families.values()]
        if structures[0].of_runs:
            raise BayeslawError("law = 'single' speaks of fitted networks alone; fit law = 'joint' for a new family.")
        return Structure(
            depth_varies=True,
            width_varies=True,
            has_trajectories=any(one.has_trajectories for one in structures),
            knows_n_test=any(one.knows_n_test for one in structures),
            law=structures[0].law,
            effects=tuple(name for name in EFFECTS if any(name in one.effects for one in structures)),
            noise=structures[0].noise,
            steep=structures[0].steep,
            growth=any(one.growth for one in structures),
            correlated=structures[0].correlated,
            deaths=any(one.deaths for one in structures),
            subsets=any(one.subsets for one in structures),
            curvature=any(one.curvature for one in structures),
        )

    def _priors_of_family(self, structure: Structure, given: Mapping[str, Distribution] | None) -> dict[str, Prior]:
        """Give the priors of what families do not share."""
        left_out = {*structure.without(), *map(str, self.population)}
        stored = {name: entry for name, entry in self.settings["stored_priors"].items() if name not in left_out}
        return restore_priors(stored, law=structure.law, given=given)

    def save(self, path: str | Path) -> None:
        """Write all families and the population to one NetCDF file; `bayeslaw.load_pooled` gives them back."""
        from bayeslaw.fit_file import save_pooled

        save_pooled(self, path)


def settings_of_family(
    settings: Mapping[str, Any], pooled: list[str], own: Mapping[str, Prior], compared: Mapping[str, Any]
) -> dict[str, Any]:
    """Turn the settings of a pooled fit into those of the fit of a family.

    Args:
        settings: Of the pooled fit.
        pooled: Exponents that come from the population.
        own: Priors of what it does not share.
        compared: `contraction` and `shift` of its parameters.
    """
    said = said_of_priors(own)
    for name in pooled:
        said["priors"][name] = f"{kind_of(name).__name__}(population, {BETWEEN}{name})"
    return dict(settings) | {"pooled": pooled, **said, **compared}


def _all_driven(names: Iterable[str], *, pooled: list[str]) -> dict[str, Any]:
    """Say of parameters that no data moved or narrowed them."""
    unmoved = dict.fromkeys(names, 0.0)
    return {"contraction": unmoved, "shift": unmoved, "pooled": pooled}


def _frame(
    family: str,
    dataset: str,
    designs: pd.DataFrame,
    chance_error: float,
    classes: int | None,
    input_shape: Sequence[int] | None,
) -> Frame:
    """Centre the covariates on networks that would be trained."""
    missing = [name for name in CONFIGURATION if name not in designs]
    if missing or designs.empty:
        what = f"lack {', '.join(missing)}" if missing else "have no rows"
        raise BayeslawError(f"designs {what}; give one row per network with {', '.join(CONFIGURATION)}.")
    wrong = [name for name in CONFIGURATION if not (pd.to_numeric(designs[name], errors="coerce") > 0).all()]
    if wrong:
        raise BayeslawError(f"designs: {', '.join(wrong)} must be above 0 in every row.")
    shape = None if input_shape is None else ",".join(str(part) for part in input_shape)
    about = {"family": family, "dataset": dataset, "input_shape": shape, "classes": classes}
    return make_frame(designs.assign(**about), chance_error)


def _without_runs(frame: Frame, structure: Structure, priors: dict[str, Prior]) -> Prepared:
    """Make a family of which nothing was measured."""
    nothing = np.zeros(0, int)
    runs = pd.DataFrame({name: np.zeros(0) for name in (*CONFIGURATION, "density", "error")})
    arrays = [nothing] * (len(Data._fields) - 2 - len(Data._field_defaults))
    data = Data(*arrays, log_chance=float(np.log(frame.chance_error)), dead=np.zeros(2))
    labels = Labels(runs[CONFIGURATION], pd.Index([]), Rows(*[nothing] * len(Rows._fields)))
    return Prepared(runs, frame, structure, data, labels, priors, few=True)


def _chance(chance_error: float | None, classes: int | None) -> float:
    if chance_error is None and classes is not None and classes >= 2:
        return 1 - 1 / classes
    if chance_error is None or not 0 < chance_error < 1:
        raise BayeslawError(
            f"chance_error = {chance_error}, classes = {classes}: a new family needs the error of guessing, in (0, 1), "
            "or its number of classes, 2 or more."
        )
    return chance_error


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _key(seed: int, purpose: str) -> jax.Array:
    return jax.random.fold_in(jax.random.PRNGKey(seed), zlib.crc32(purpose.encode()))
