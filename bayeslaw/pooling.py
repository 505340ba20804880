r"""Several families at once: exponents pooled between architectures and datasets, and predictions for a new one.

A family is an architecture trained on a dataset. Each has its own plateaus, knee, spreads and noise; what it may share
with others is how error scales: gamma, phi, psi, alpha, beta. They are pooled in part: drawn from a population whose
centre and spread are inferred too (`bayeslaw.population`), so that a family with few runs borrows from the others, one
with many keeps its own, and a family never trained gets the population's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import xarray as xr

from bayeslaw.density import Shapes, constrain, flat_potential, prior_middles, shapes_of, unraveller
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import FEW_WARMUP, PACKAGE, Prepared, contraction, prepare, starts_of, to_fit, versions
from bayeslaw.frame import check_one_family, label_of
from bayeslaw.hierarchy import spread_variances
from bayeslaw.laplace import Laplace, laplace
from bayeslaw.pooled import PooledFit, settings_in_family, values_in_family
from bayeslaw.population import (
    Part,
    PooledContext,
    Told,
    displace,
    key_of,
    location,
    nothing_told,
    place,
    pooled_estimate,
    pooled_potential,
    population_at,
    relative_potential,
    spread_moments,
    told_by,
    values_of,
)
from bayeslaw.posterior import Fit
from bayeslaw.priors import ON_LINE, Prior, describe_prior, exponents_of, resolve_priors
from bayeslaw.runs import load_runs
from bayeslaw.sampler import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

#: Fewer families than this hardly tell how far exponents spread between families.
FEW_FAMILIES = 5


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
    resolved = resolve_priors(priors, law=parts["law"], pool="family")
    names = exponents_of(parts["law"])
    population = {name: resolved[name] for name in (*names, *(f"between_{name}" for name in names))}
    own = {name: prior for name, prior in resolved.items() if name not in population}
    drawn = {name: _prior_given_population(name, resolved[name]) for name in names}
    prepared = [prepare(table, parts, {**own, **drawn}, pooled=True) for table in tables]
    _warn_of_few(prepared)
    few = any(family.few for family in prepared)
    sampling = {"seed": seed, "chains": chains, "warmup": max(warmup, FEW_WARMUP) if few else warmup, "draws": draws}
    joint = _Joint(prepared, population, names)
    positions, statistics = joint.sample(**sampling, **fine)
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
    unshared = {name: prior for family in prepared for name, prior in family.priors.items() if name in own}
    prior = _prior_draws(unshared, seed + 1 + len(prepared), (chains, draws))
    return PooledFit(families, _dataset(of_population), _dataset(prior), settings, versions())


def _warn_of_few(families: Sequence[Prepared]) -> None:
    if len(families) < FEW_FAMILIES:
        warnings.warn(
            f"{len(families)} families hardly tell how far exponents spread between families: the spreads (between_*) "
            "lean on their priors, and so do predictions for a new family. PooledFit.summary says how far.",
            skip_file_prefixes=(PACKAGE,),
        )


def _prior_draws(priors: Mapping[str, Prior], seed: int, shape: tuple[int, int]) -> dict[str, NDArray]:
    """Draw from the priors of what families do not share; a file then needs no distributions."""
    keys = jax.random.split(jax.random.PRNGKey(seed), len(priors))
    return {
        name: np.asarray(priors[name].distribution.sample(key, shape))
        for name, key in zip(sorted(priors), keys, strict=True)
    }


def _dataset(values: Mapping[str, NDArray]) -> xr.Dataset:
    chains, draws = next(iter(values.values())).shape
    coords = {"chain": np.arange(chains), "draw": np.arange(draws)}
    return xr.Dataset({name: (("chain", "draw"), value) for name, value in values.items()}, coords)


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
        variances = dict.fromkeys((f"between_{name}" for name in self.exponents), 1.0)  # `_relative` has better
        for k, (part, family) in enumerate(zip(self.parts, self.prepared, strict=True)):
            if part.centred:
                own = spread_variances(family.data)
                variances |= {key_of(k, name): value for name, value in own.items() if name in family.priors}
        plain, estimate = pooled_potential(self.parts), pooled_estimate(self.parts)
        found = laplace(plain, self.context, self.starts, estimate, variances)
        context = self.context._replace(told=self._told(found))
        centre, factor = self._relative(context, found)
        target = flat_potential(relative_potential(self.parts), self.shapes)
        sampled = sample(target, context, centre, factor, adapt_metric=self._adapted(), **settings)
        placed, _ = place(context, _named(self.shapes, sampled.positions))
        return _flat(placed, self.shapes), sampled.statistics

    def _adapted(self) -> bool | tuple[int, ...]:
        """Number the parameters of families with few configurations, whose metric is adapted, and of the population."""
        if all(part.centred for part in self.parts):
            return False
        index = _named(self.shapes, np.arange(sum(math.prod(shape) for _, shape in self.shapes)))
        keys = [*self.context.population]
        for k, part in enumerate(self.parts):
            keys += [] if part.centred else [key_of(k, name) for name in values_of(k, index)]
        return tuple(int(i) for key in keys for i in np.ravel(index[key]))

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
        centre = _flat(relative, self.shapes)
        for name, told in context.told.items():
            row = int(index[f"between_{name}"])
            centre[row], factor[row, row] = spread_moments(context.population[f"between_{name}"], told)
        return centre, factor

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
    about = settings_in_family(settings, pooled, narrowed, {k: describe_prior(prior) for k, prior in own.items()})
    return to_fit(family, {**values, **values_in_family(population)}, statistics, about)


def _contraction(name: str, own: NDArray, population: Mapping[str, NDArray]) -> float:
    """Compare the posterior variance of a family's exponent with what all families say of a new one."""
    expected = np.var(np.asarray(location(name, population[name]))) + np.mean(population[f"between_{name}"] ** 2)
    return float(1 - np.var(np.asarray(location(name, own))) / expected)
