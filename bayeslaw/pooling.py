r"""Several families at once: exponents pooled between architectures and datasets, and predictions for a new one.

A family is an architecture trained on a dataset. Each has its own plateaus, knee, spreads and noise; what it may share
with others is how error scales: gamma, phi, psi, alpha, beta. They are pooled in part: drawn from a population whose
centre and spread are inferred too (`bayeslaw.population`), so that a family with few runs borrows from the others, one
with many keeps its own, and a family never trained gets the population's.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import xarray as xr

from bayeslaw.density import Shapes, constrain, flat_potential, prior_middles, shapes_of, unraveller
from bayeslaw.diagnostics import Diagnosis, diagnose, worst_of
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import FEW_WARMUP, PACKAGE, Prepared, contraction, prepare, starts_of, to_fit, versions
from bayeslaw.frame import CONFIGURATION, Data, check_one_family, label_of, make_frame
from bayeslaw.hierarchy import split_spread, spread_variances
from bayeslaw.laplace import Laplace, laplace
from bayeslaw.laws import split_dense
from bayeslaw.model import EFFECTS, Structure
from bayeslaw.population import (
    Part,
    PooledContext,
    Told,
    between_variance,
    displace,
    draw_exponents,
    key_of,
    location,
    nothing_told,
    place,
    pooled_estimate,
    pooled_potential,
    population_at,
    relative_potential,
    told_by,
    values_of,
)
from bayeslaw.posterior import FAMILIES, FORMAT, Fit, reading, summarise, write
from bayeslaw.precision import in_float64
from bayeslaw.priors import ON_LINE, Prior, describe_prior, exponents_of, resolve_priors
from bayeslaw.runs import load_runs
from bayeslaw.sampler import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

#: Fewer families than this hardly tell how far exponents spread between families.
FEW_FAMILIES = 5


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
        rng = _generator(0, "a new family")
        new = {str(name): (("chain", "draw"), draw_exponents(self.population, str(name), rng)) for name in names}
        tables = {label: fit.summary(interval=interval) for label, fit in self.families.items()}
        tables["a new family"] = summarise(xr.Dataset(new), dict.fromkeys(new, 0.0), interval=interval, pooled=new)
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
        own = self._prepared(family, designs, dataset, _chance(chance_error, classes), classes, input_shape)
        shape = (self.population.sizes["chain"], self.population.sizes["draw"])
        pooled = [name for name in exponents_of(own.structure.law) if name in self.population]
        values = _population_values(self.population)
        for name in self.prior:
            draws = self.prior[name].to_numpy().ravel()
            values[str(name)] = _generator(seed, f"{own.label}:{name}").permutation(draws).reshape(shape)
        for name in pooled:
            values[name] = draw_exponents(self.population, name, _generator(seed, f"{own.label}:{name}"))
        values |= split_dense(values)
        values |= split_spread({k: values[k] for k in ("spread_np", "share_np") if k in values})
        values["log_eps_up"] = np.log(own.frame.chance_error * values["plateau"])
        values |= {name: np.zeros((*shape, 0)) for name in ("log_e", "log_e_run", "effect_p")}
        first = next(iter(self.families.values()))
        statistics = {str(k): v.to_numpy() for k, v in first.tree["sample_stats"].data_vars.items()}
        settings = self.settings | {"pooled": pooled, "contraction": dict.fromkeys((*pooled, *self.prior), 0.0)}
        return to_fit(own, values, statistics, settings)

    def _prepared(
        self,
        family: str,
        designs: pd.DataFrame,
        dataset: str,
        chance_error: float,
        classes: int | None,
        input_shape: Sequence[int] | None,
    ) -> Prepared:
        """Make a family without runs, with every part that any of the fitted families has."""
        if label_of(family, dataset) in self.families:
            raise BayeslawError(f"{label_of(family, dataset)} was fitted: take it by its label instead of new_family.")
        structures = [fit.structure for fit in self.families.values()]
        if structures[0].of_runs:
            raise BayeslawError("law = 'single' speaks of fitted networks alone; fit law = 'joint' for a new family.")
        missing = [name for name in CONFIGURATION if name not in designs]
        if missing or designs.empty:
            what = f"lack {', '.join(missing)}" if missing else "have no rows"
            raise BayeslawError(f"designs {what}; give one row per network with {', '.join(CONFIGURATION)}.")
        structure = Structure(
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
        shape = None if input_shape is None else ",".join(str(part) for part in input_shape)
        about = {"family": family, "dataset": dataset, "input_shape": shape, "classes": classes}
        frame = make_frame(designs.assign(**about), chance_error)
        runs = pd.DataFrame({name: np.zeros(0) for name in (*CONFIGURATION, "density", "error")})
        nothing = np.zeros(0)
        data = Data(*[nothing] * 9, log_chance=float(np.log(chance_error)))
        return Prepared(runs, frame, structure, data, runs[CONFIGURATION], pd.Index([]), {}, few=True)

    def save(self, path: str | Path) -> None:
        """Write all families and the population to one NetCDF file; `bayeslaw.load_pooled` gives them back."""
        tree = xr.DataTree.from_dict({"population": self.population, "prior": self.prior})
        about = {"format": FORMAT, "settings": self.settings, "versions": self.versions}
        tree.attrs["bayeslaw"] = json.dumps(about)
        tree[FAMILIES] = xr.DataTree(
            children={str(i): fit.packed() for i, fit in enumerate(self.families.values())},
        )
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


def fit_families(
    runs: Any,
    *,
    parts: Mapping[str, Any],
    priors: Mapping[str, Distribution] | None,
    n_test: int | None,
    chance_error: float | None,
    seed: int,
    chains: int,
    warmup: int,
    draws: int,
    **fine: Any,
) -> PooledFit:
    """Fit several families together; `bayeslaw.fit(pool="family")` with its arguments checked.

    Args:
        runs: Run table of all families, or several tables.
        parts: What `structure_of` is asked for.
        priors: Distributions by parameter name: of the population for exponents and their spreads between families, of
            every family for all else.
        n_test: Number of test examples, for tables that do not say.
        chance_error: Error of guessing, likewise.
        seed: Seed of everything random.
        chains: Number of chains.
        warmup: Transitions dropped per chain.
        draws: Transitions kept per chain.
        fine: Other settings of `sample`.

    Raises:
        RunTableError: A table is faulty.
        BayeslawError: There is one family only, or what is asked for does not fit a family.
    """
    tables = split_families(runs, n_test=n_test, chance_error=chance_error)
    law = parts["law"]
    resolved = resolve_priors(priors, law=law, pool="family")
    names = exponents_of(law)
    drawn = {name: _prior_given_population(name, resolved[name]) for name in names}
    population = {name: resolved[name] for name in (*names, *(f"between_{name}" for name in names))}
    own = {name: prior for name, prior in resolved.items() if name not in population}
    prepared = [prepare(table, parts, {**own, **drawn}, pooled=True) for table in tables]
    if len(prepared) < FEW_FAMILIES:
        warnings.warn(
            f"{len(prepared)} families hardly tell how far exponents spread between families: the spreads (between_*) "
            "lean on their priors, and so do predictions for a new family. PooledFit.summary says how far.",
            skip_file_prefixes=(PACKAGE,),
        )
    few = all(family.few for family in prepared)
    sampling = {"seed": seed, "chains": chains, "warmup": max(warmup, FEW_WARMUP) if few else warmup, "draws": draws}
    joint = _Joint(prepared, population, names)
    positions, statistics = joint.sample(adapt_metric=few, **sampling, **fine)
    of_population, of_families = joint.constrain(positions, seed=seed + 1)
    settings = sampling | {
        "metric": "adapted" if few else "laplace",
        "priors": {name: describe_prior(prior) for name, prior in resolved.items()},
        "contraction": contraction(of_population, population),
    }
    families = {
        family.frame.label: _family_fit(family, values, of_population, statistics, settings)
        for family, values in zip(prepared, of_families, strict=True)
    }
    coords = {"chain": np.arange(chains), "draw": np.arange(draws)}
    dimensions = ("chain", "draw")
    unshared = {name for family in prepared for name in family.priors} - set(names)
    keys = dict(zip(sorted(unshared), jax.random.split(jax.random.PRNGKey(seed + 2), len(unshared)), strict=True))
    prior = {
        name: (dimensions, np.asarray(own[name].distribution.sample(key, (chains, draws))))
        for name, key in keys.items()
    }
    shared = {name: (dimensions, values) for name, values in of_population.items()}
    return PooledFit(families, xr.Dataset(shared, coords), xr.Dataset(prior, coords), settings, versions())


def split_families(runs: Any, *, n_test: int | None, chance_error: float | None) -> list[pd.DataFrame]:
    """Read one run table or several, and split them into one per (family, dataset), in alphabetical order.

    Tables are read one by one, and a family's again alone, so that families need not have the same optional columns.

    Raises:
        RunTableError: A table is faulty.
        BayeslawError: There is no table, or one family only.
    """
    given = list(runs) if isinstance(runs, list | tuple) else [runs]
    tables = [load_runs(table, n_test=n_test, chance_error=chance_error) for table in given]
    labelled = [
        (label_of(str(family), str(dataset)), rows)
        for table in tables
        for (family, dataset), rows in table.groupby(["family", "dataset"])
    ]
    labels = sorted({label for label, _ in labelled})
    if len(labels) < 2:
        there = f"is one family ({labels[0]})" if labels else "are no runs"
        raise BayeslawError(
            f"pool = 'family' needs two (family, dataset) or more, and there {there}; fit it without pool."
        )
    split = [load_runs(pd.concat([rows for own, rows in labelled if own == label])) for label in labels]
    for table in split:
        check_one_family(table)
    return split


class _Joint:
    """Hold the joint density of several families with where to search its mode."""

    def __init__(self, prepared: Sequence[Prepared], priors: Mapping[str, Prior], exponents: Sequence[str]) -> None:
        self.prepared, self.exponents = prepared, exponents
        self.parts = tuple(Part(family.structure, not family.few) for family in prepared)
        distributions = {name: prior.distribution for name, prior in priors.items()}
        nothing = dict.fromkeys(exponents, nothing_told(len(prepared)))
        self.context = PooledContext(tuple(family.context for family in prepared), distributions, nothing)
        self.starts = self._starts()
        self.shapes = shapes_of(self.starts[0])

    def _starts(self) -> list[dict[str, Any]]:
        middles = prior_middles(self.context.population)
        centres = population_at(self.context.population, middles)
        starts: list[dict[str, Any]] = [dict(middles) for _ in range(3)]
        for k, family in enumerate(self.prepared):
            for start, own in zip(starts, starts_of(family), strict=True):
                own |= {name: jnp.asarray(location(name, centres[name])) for name in self.exponents}
                start |= {key_of(k, name): value for name, value in own.items()}
        return starts

    def sample(self, **settings: Any) -> tuple[NDArray, dict[str, NDArray]]:
        """Find the Laplace metric, and sample: positions `[chains, draws, dimensions]` and statistics."""
        variances = {f"between_{name}": between_variance(len(self.parts)) for name in self.exponents}
        for k, (part, family) in enumerate(zip(self.parts, self.prepared, strict=True)):
            if part.centred:
                own = spread_variances(family.data)
                variances |= {key_of(k, name): value for name, value in own.items() if name in family.priors}
        plain, estimate = pooled_potential(self.parts), pooled_estimate(self.parts)
        found = laplace(plain, self.context, self.starts, estimate, variances)
        context = self.context._replace(told=self._told(found))
        centre, factor = self._relative(context, found)
        target = flat_potential(relative_potential(self.parts), self.shapes)
        sampled = sample(target, context, centre, factor, **settings)
        placed, _ = place(context, _named(self.shapes, sampled.positions))
        return _flat(placed, self.shapes), sampled.statistics

    def _told(self, found: Laplace) -> dict[str, Told]:
        """Tell what the runs say about the exponents from the joint mode and its covariance."""
        mode, covariance = _named(self.shapes, found.mode), found.factor @ found.factor.T
        index = _named(self.shapes, np.arange(len(found.mode)))
        population = population_at(self.context.population, mode)
        told = {}
        for name in self.exponents:
            keys = [name, *(key_of(k, name) for k in range(len(self.parts)))]
            rows = np.array([int(index[key]) for key in keys])
            prior, spread = self.context.population[name], float(population[f"between_{name}"])
            told[name] = told_by(prior, name, spread, found.mode[rows], covariance[np.ix_(rows, rows)])
        return told

    def _relative(self, context: PooledContext, found: Laplace) -> tuple[NDArray, NDArray]:
        """Carry mode and factor over to relative coordinates, which at one spread are linear in the plain ones."""
        mode = _named(self.shapes, found.mode)
        relative = displace(context, mode)
        index = _named(self.shapes, np.arange(len(found.mode)))
        keys = [*self.exponents, *(key_of(k, name) for k in range(len(self.parts)) for name in self.exponents)]
        rows = np.array([int(index[key]) for key in keys])

        def placed(z: jax.Array) -> jax.Array:
            moved, _ = place(context, {**relative, **dict(zip(keys, z, strict=True))})
            return jnp.stack([moved[key] for key in keys])

        slope = np.asarray(jax.jacfwd(placed)(jnp.stack([jnp.asarray(relative[key]) for key in keys])))
        factor = found.factor.copy()
        factor[rows] = np.linalg.solve(slope, factor[rows])
        return _flat(relative, self.shapes), factor

    def constrain(self, positions: NDArray, *, seed: int) -> tuple[dict[str, NDArray], list[dict[str, NDArray]]]:
        """Turn flat positions into named parameters of the population and of each family."""
        values = _named(self.shapes, positions)
        population = {name: np.asarray(v) for name, v in population_at(self.context.population, values).items()}
        families = []
        for k, (part, family) in enumerate(zip(self.parts, self.prepared, strict=True)):
            own = values_of(k, values)
            shapes = shapes_of({name: value[0, 0] for name, value in own.items()})
            families.append(constrain(*part, shapes, family.context, _flat(own, shapes), seed=seed + k))
        return population, families


def _named(shapes: Shapes, positions: NDArray) -> dict[str, NDArray]:
    """Cut flat positions `[..., dimensions]` into named values."""
    numbers = unraveller(shapes)(jnp.arange(positions.shape[-1], dtype=float))
    return {name: positions[..., np.asarray(index, int)] for name, index in numbers.items()}


def _flat(values: Mapping[str, Any], shapes: Shapes) -> NDArray:
    """Undo `_named`."""
    parts = [np.asarray(values[name]).reshape(*_leading(values[name], shape), -1) for name, shape in shapes]
    return np.concatenate(parts, axis=-1)


def _leading(value: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return np.shape(value)[: np.ndim(value) - len(shape)]


def _prior_given_population(name: str, centre: Prior) -> Prior:
    """Stand for the distribution that a family's exponent is drawn from; the joint density puts the population's."""
    kind = dist.Normal if name in ON_LINE else dist.LogNormal
    return Prior(kind(0.0, 1.0), centre.meaning, "the population")


def _family_fit(
    family: Prepared,
    values: dict[str, NDArray],
    population: Mapping[str, NDArray],
    statistics: Mapping[str, NDArray],
    settings: dict[str, Any],
) -> Fit:
    """Put a family's draws together with those of the population to a fit."""
    pooled = [name for name in population if name in family.priors]
    own = {name: prior for name, prior in family.priors.items() if name not in pooled}
    narrowed = contraction(values, own) | {name: _contraction(name, values[name], population) for name in pooled}
    narrowed |= {_named_in_family(name): value for name, value in settings["contraction"].items()}
    priors = {name: describe_prior(prior) for name, prior in own.items()}
    for name in pooled:
        kind = "Normal" if name in ON_LINE else "LogNormal"
        priors[name] = f"{kind}(population_{name}, between_{name})"
    priors |= {_named_in_family(name): settings["priors"][name] for name in population}
    about = settings | {"priors": priors, "contraction": narrowed, "pooled": pooled}
    return to_fit(family, {**values, **_population_values(population)}, statistics, about)


def _population_values(population: Mapping[Any, Any]) -> dict[str, Any]:
    return {_named_in_family(str(name)): np.asarray(population[name]) for name in population}


def _named_in_family(name: str) -> str:
    """Tell the population's centre from the family's own exponent."""
    return name if name.startswith("between_") else f"population_{name}"


def _contraction(name: str, own: NDArray, population: Mapping[str, NDArray]) -> float:
    """Compare the posterior variance of a family's exponent with what all families say of a new one."""
    expected = np.var(np.asarray(location(name, population[name]))) + np.mean(population[f"between_{name}"] ** 2)
    return float(1 - np.var(np.asarray(location(name, own))) / expected)


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
