"""The joint posterior of several families: each of them as a fit, the population, and families never trained."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.diagnostics import Diagnosis, diagnose, worst_of
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import Prepared, to_fit
from bayeslaw.frame import CONFIGURATION, Data, Frame, label_of, make_frame
from bayeslaw.hierarchy import split_spread
from bayeslaw.laws import split_dense
from bayeslaw.model import EFFECTS, Structure
from bayeslaw.population import draw_exponents
from bayeslaw.posterior import FAMILIES, FORMAT, Fit, reading, summarise, write
from bayeslaw.precision import in_float64
from bayeslaw.priors import ON_LINE, exponents_of

#: What the exponents of a family that was not fitted are called in tables.
NEW = "a new family"


@dataclass(frozen=True)
class PooledFit:
    """Hold the joint posterior of several families and of the population that their exponents come from.

    Attributes:
        families: The fit of each family by label, `"cifar_resnet/digits"`; each predicts and plans like any other. Its
            posterior also has the population, as `population_phi`, `between_phi` and so on.
        population: Draws of the population: centre (`phi`, of `gamma`, `alpha` and `beta` the median) and spread
            between families (`between_phi`; of `log gamma`, `log alpha`, `log beta`), each `[chain, draw]`.
        prior: Draws from the priors of what families do not share, each `[chain, draw]`.
        settings: Seed, chains, warm-up, draws, metric, priors and contraction.
        versions: Versions of the libraries that computed it.
    """

    families: dict[str, Fit]
    population: xr.Dataset
    prior: xr.Dataset
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
        """
        return summarise(self.population, self.settings["contraction"], interval=interval)

    @in_float64
    def exponents(self, *, interval: float = 0.9) -> pd.DataFrame:
        """Set the families' exponents beside each other, and beside those of a new family.

        Args:
            interval: Probability of the equal-tailed interval, in (0, 1).

        Returns:
            One row per exponent and family, and one for `a new family`: `mean`, `sd`, `lower`, `upper`, `driven_by`.
        """
        columns = ["mean", "sd", "lower", "upper", "driven_by"]
        names = [name for name in self.population.data_vars if not str(name).startswith("between_")]
        rng = _generator(0, NEW)
        new = {str(name): (("chain", "draw"), draw_exponents(self.population, str(name), rng)) for name in names}
        tables = {label: fit.summary(interval=interval) for label, fit in self.families.items()}
        tables[NEW] = summarise(xr.Dataset(new), dict.fromkeys(new, 0.0), interval=interval, pooled=new)
        rows = {
            (name, label): table.loc[name, columns]
            for name in new
            for label, table in tables.items()
            if name in table.index
        }
        return pd.DataFrame(rows).T.rename_axis(["parameter", "family"]).infer_objects()

    def diagnose(self) -> Diagnosis:
        """Judge the draws of all parameters of all families and of the population; see `bayeslaw.diagnostics`."""
        return worst_of({label: diagnose(fit.tree) for label, fit in self.families.items()})

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
            seed: Seed of what is drawn.

        Returns:
            A fit without runs. Its `summary` says that all is driven by the population or the prior, `predict` works as
            always, with infinite `extrapolation`, and a plan says what it rests on.

        Raises:
            BayeslawError: The family was fitted, its chance error is not known, or the designs lack a column.

        Example:
            >>> designs = pd.DataFrame({"depth": [8, 20], "width": [4, 16], "dataset_size": 1000})
            >>> new = pooled.new_family("cifar_resnet", designs, dataset="svhn", classes=10)  # doctest: +SKIP
            >>> new.predict(designs.assign(density=0.1))  # doctest: +SKIP
        """
        if label_of(family, dataset) in self.families:
            raise BayeslawError(f"{label_of(family, dataset)} was fitted: take it by its label instead of new_family.")
        frame = _frame(family, dataset, designs, _chance(chance_error, classes), classes, input_shape)
        own = _without_runs(frame, self._structure())
        shape = (self.population.sizes["chain"], self.population.sizes["draw"])
        pooled = [name for name in exponents_of(own.structure.law) if name in self.population]
        values = values_in_family(self.population)
        for name in self.prior:
            draws = self.prior[name].to_numpy().ravel()
            values[str(name)] = _generator(seed, f"{frame.label}:{name}").permutation(draws).reshape(shape)
        for name in pooled:
            values[name] = draw_exponents(self.population, name, _generator(seed, f"{frame.label}:{name}"))
        values |= split_dense(values) | split_spread({k: values[k] for k in ("spread_np", "share_np") if k in values})
        values["log_eps_up"] = np.log(frame.chance_error * values["plateau"])
        values |= {name: np.zeros((*shape, 0)) for name in ("log_e", "log_e_run", "effect_p")}
        fitted = next(iter(self.families.values())).tree["sample_stats"]
        statistics = {str(name): value.to_numpy() for name, value in fitted.data_vars.items()}
        contraction = dict.fromkeys((*pooled, *(str(name) for name in self.prior)), 0.0)
        settings = settings_in_family(self.settings, pooled, contraction, self.settings["priors"])
        return to_fit(own, values, statistics, settings)

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
        )

    def save(self, path: str | Path) -> None:
        """Write all families and the population to one NetCDF file; `bayeslaw.load_pooled` gives them back."""
        tree = xr.DataTree.from_dict({"population": self.population, "prior": self.prior})
        tree[FAMILIES] = xr.DataTree(children={f"{i:04d}": f.packed() for i, f in enumerate(self.families.values())})
        about = {"format": FORMAT, "settings": self.settings, "versions": self.versions}
        tree.attrs["bayeslaw"] = json.dumps(about)
        write(tree, path)


def load_pooled(path: str | Path) -> PooledFit:
    """Read what `PooledFit.save` wrote.

    Args:
        path: The NetCDF file.

    Returns:
        The pooled fit; its predictions are those of what was saved.

    Raises:
        BayeslawError: The file is missing, damaged, or holds no pooled fit.
    """
    with reading(path) as tree:
        if FAMILIES not in tree.children:
            raise BayeslawError(f"{path}: holds the fit of one family; read it with bayeslaw.load.")
        about = json.loads(tree.attrs["bayeslaw"])
        fits = [Fit.unpacked(node) for node in tree[FAMILIES].children.values()]
        population, prior = (tree[name].to_dataset() for name in ("population", "prior"))
        families = {fit.frame.label: fit for fit in fits}
        return PooledFit(families, population, prior, about["settings"], about["versions"])


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


def _without_runs(frame: Frame, structure: Structure) -> Prepared:
    """Make a family of which nothing was measured."""
    runs = pd.DataFrame({name: np.zeros(0) for name in (*CONFIGURATION, "density", "error")})
    data = Data(*[np.zeros(0)] * 9, log_chance=float(np.log(frame.chance_error)))
    return Prepared(runs, frame, structure, data, runs[CONFIGURATION], pd.Index([]), {}, few=True)


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


def values_in_family(population: Mapping[Any, Any]) -> dict[str, Any]:
    """Give the population's parameters the names that they have in the fit of a family."""
    return {name_in_family(str(name)): np.asarray(population[name]) for name in population}


def name_in_family(name: str) -> str:
    """Tell the population's centre from the family's own exponent."""
    return name if name.startswith("between_") else f"population_{name}"


def settings_in_family(
    settings: Mapping[str, Any], pooled: Sequence[str], contraction: Mapping[str, float], priors: Mapping[str, str]
) -> dict[str, Any]:
    """Turn the settings of a pooled fit into those of the fit of a family.

    Args:
        settings: Of the pooled fit.
        pooled: Exponents that come from the population.
        contraction: Of the family's own parameters.
        priors: Descriptions of the priors of what it does not share; others are left out.
    """
    own = {name: text for name, text in priors.items() if name in contraction}
    for name in pooled:
        own[name] = f"{'Normal' if name in ON_LINE else 'LogNormal'}(population_{name}, between_{name})"
    shared = settings["contraction"]
    return dict(settings) | {
        "pooled": list(pooled),
        "priors": own | {name_in_family(name): settings["priors"][name] for name in shared},
        "contraction": {**contraction, **{name_in_family(name): value for name, value in shared.items()}},
    }
