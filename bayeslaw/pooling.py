"""Several families at once: exponents pooled between architectures and datasets.

A family is an architecture trained on a dataset. Each has its own plateaus, knee, spreads and noise; what it may share
with others is how error scales: gamma, phi, psi, alpha, beta. They are pooled in part: drawn from a population whose
centre and spread are inferred too (`bayeslaw.population`), so that a family with few runs borrows from the others, one
with many keeps its own, and a family never trained gets the population's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.compiled import make_room
from bayeslaw.density import constrain, flat_potential, positions_of, shapes_of
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import (
    PACKAGE,
    SHORT_STEPS,
    Prepared,
    prepare,
    said_of_priors,
    starts_of,
    to_fit,
    versions,
    warmup_for,
)
from bayeslaw.frame import check_one_family, label_of
from bayeslaw.hierarchy import groups_of, spread_variances
from bayeslaw.laplace import laplace_recentred
from bayeslaw.pooled import PooledFit, settings_of_family
from bayeslaw.population import (
    Part,
    PooledContext,
    key_of,
    kind_of,
    location,
    population_at,
    values_of,
)
from bayeslaw.posterior import Fit
from bayeslaw.priors import BETWEEN, Prior, exponents_of, resolve_priors
from bayeslaw.relative import (
    make_relative,
    plain_draws,
    recentre_families,
    relative_estimate,
    relative_potential,
    straighten_families,
    unplaced,
)
from bayeslaw.runs import load_runs
from bayeslaw.sampler import sample
from bayeslaw.unconstrained import against_prior, prior_middles

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

#: Fewer families than this hardly tell how far exponents spread between families.
FEW_FAMILIES = 5


def fit_families(
    tables: Sequence[pd.DataFrame],
    parts: Mapping[str, Any],
    priors: Mapping[str, Distribution] | None,
    sampling: dict[str, Any],
    progress: bool,
) -> PooledFit:
    """Fit several families together: `bayeslaw.fit(pool="family")` with its arguments checked.

    Args:
        tables: The validated runs of each family (`split_families`).
        parts: What `structure_of` is asked for.
        priors: Distributions by parameter name: of the population for exponents and their spreads between families, of
            every family for all else.
        sampling: Seed, chains, warm-up, draws and, where it is asked for, the acceptance rate.
        progress: Show a progress bar.

    Raises:
        BayeslawError: Priors are unknown, or what is asked for does not fit a family.
    """
    resolved = resolve_priors(priors, law=parts["law"], pool="family")
    exponents = exponents_of(parts["law"])
    shared = {name: resolved[name] for name in (*exponents, *(f"{BETWEEN}{x}" for x in exponents))}
    own = {name: prior for name, prior in resolved.items() if name not in shared}
    drawn = {name: _from_population(name, resolved[name]) for name in exponents}
    families = [prepare(table, parts, {**own, **drawn}, pooled=True) for table in tables]
    make_room(tuple(family.shape for family in families))
    _warn_of_few(families)
    # A family with few runs makes the joint posterior narrow in places.
    careful = max(sampling["target_acceptance"] or SHORT_STEPS, SHORT_STEPS)
    sampling = sampling | {"warmup": warmup_for(families, sampling["warmup"]), "target_acceptance": careful}
    population, values, statistics = _sample(families, shared, **sampling, progress=progress)
    settings = sampling | {"metric": "laplace", **said_of_priors(resolved), **against_prior(population, shared)}
    fits = {
        family.frame.label: _family_fit(family, value, population, statistics, settings)
        for family, value in zip(families, values, strict=True)
    }
    chains, draws = population[exponents[0]].shape
    coords = {"chain": np.arange(chains), "draw": np.arange(draws)}
    variables = {name: (("chain", "draw"), value) for name, value in population.items()}
    return PooledFit(fits, xr.Dataset(variables, coords), settings, dict(versions()))


def split_families(runs: Any, *, n_test: int | None, chance_error: float | None) -> list[pd.DataFrame]:
    """Read one run table or several, and split them into one per (family, dataset), in alphabetical order.

    Tables are read one by one, and a family's again alone, so that families need not have the same optional columns.

    Args:
        runs: Run table of all families, or a list of tables.
        n_test: Number of test examples, for tables that do not say.
        chance_error: Error of random guessing, likewise.

    Returns:
        The validated runs of each family.

    Raises:
        RunTableError: A table is faulty.
        BayeslawError: There is no table, or one family only.
    """
    given = list(runs) if isinstance(runs, list | tuple) else [runs]
    found: dict[str, list[pd.DataFrame]] = {}
    for table in given:
        loaded = load_runs(table, n_test=n_test, chance_error=chance_error)
        for (family, dataset), rows in loaded.groupby(["family", "dataset"]):
            found.setdefault(label_of(str(family), str(dataset)), []).append(rows)
    if len(found) < 2:
        there = f"is one family ({', '.join(found)})" if found else "are no runs"
        raise BayeslawError(
            f"pool = 'family' needs two (family, dataset) or more, and there {there}; fit it without pool."
        )
    split = [load_runs(pd.concat(found[label])) for label in sorted(found)]
    for table in split:
        check_one_family(table)
    return split


def _from_population(name: str, centre: Prior) -> Prior:
    """Stand for the distribution that a family's exponent is drawn from; the joint density puts the population's."""
    return Prior(kind_of(name)(0.0, 1.0), centre.meaning, "the population")


def _warn_of_few(families: Sequence[Prepared]) -> None:
    if len(families) < FEW_FAMILIES:
        warnings.warn(
            f"{len(families)} families hardly tell how far exponents spread between families: the spreads (between_*) "
            "lean on their priors, and so do predictions for a new family. PooledFit.summary says how far.",
            skip_file_prefixes=(PACKAGE,),
        )


def _sample(
    families: Sequence[Prepared], shared: Mapping[str, Prior], *, seed: int, **settings: Any
) -> tuple[dict[str, NDArray], list[dict[str, NDArray]], dict[str, NDArray]]:
    """Find the Laplace axes and sample: draws of the population and of each family, and the sampler's statistics."""
    parts = tuple(Part(family.structure, not family.few) for family in families)
    priors = {name: prior.distribution for name, prior in shared.items()}
    context = PooledContext(tuple(family.context for family in families), priors)
    variances, groups = _spreads_and_groups(families, context)
    relative = unplaced(context, [family.data for family in families])
    starts = [straighten_families(relative, start) for start in _starts(families, context)]
    shapes, density = shapes_of(starts[0]), relative_potential(parts)
    where = positions_of(shapes)
    relative, found = laplace_recentred(
        density,
        relative,
        starts,
        relative_estimate(parts),
        variances,
        groups,
        lambda context, found: recentre_families(context, parts, found, where),
    )
    relative, centre, axes = make_relative(relative, found, where)
    sampled = sample(*flat_potential(density, relative, shapes), centre, axes, seed=seed, **settings)
    plain = plain_draws(relative, where, sampled.positions)
    population = {name: np.asarray(value) for name, value in population_at(priors, plain).items()}
    values = []
    for k, (part, family) in enumerate(zip(parts, families, strict=True)):
        own = values_of(k, plain)
        of_family = shapes_of({name: value[0, 0] for name, value in own.items()})
        flat = np.concatenate([own[name].reshape(*own[name].shape[:2], -1) for name, _ in of_family], axis=-1)
        values.append(constrain(*part, of_family, family.context, flat, seed=seed + 1 + k))
    return population, values, sampled.statistics


def _starts(families: Sequence[Prepared], context: PooledContext) -> list[dict[str, Any]]:
    """Give unconstrained values to search the joint mode from: exponents in the middle of the population's prior."""
    middles = prior_middles(context.population)
    centres = population_at(context.population, middles)
    exponents = {name: jnp.asarray(location(name, centres[name])) for name in context.exponents}
    starts: list[dict[str, Any]] = [dict(middles) for _ in range(3)]
    for k, family in enumerate(families):
        for start, own in zip(starts, starts_of(family), strict=True):
            start |= {key_of(k, name): value for name, value in (own | exponents).items()}
    return starts


def _spreads_and_groups(
    families: Sequence[Prepared], context: PooledContext
) -> tuple[dict[str, float], dict[str, NDArray]]:
    """Give the variances of the spreads' estimates, and the configuration of every effect, numbered through families.

    What a family with few configurations has is estimated with everything else: its effects are standardised.
    """
    variances = {f"{BETWEEN}{name}": 1 / (1 + len(families)) for name in context.exponents}
    groups: dict[str, NDArray] = {}
    for k, family in enumerate(families):
        if family.few:
            continue
        own = spread_variances(family.data, family.priors)
        variances |= {key_of(k, name): value for name, value in own.items()}
        start = 1 + max((int(group.max()) for group in groups.values()), default=-1)
        groups |= {key_of(k, name): start + np.asarray(group) for name, group in groups_of(family.data).items()}
    return variances, groups


def _family_fit(
    family: Prepared,
    values: dict[str, NDArray],
    population: Mapping[str, NDArray],
    statistics: Mapping[str, NDArray],
    settings: dict[str, Any],
) -> Fit:
    """Put a family's draws together to a fit."""
    pooled = [name for name in population if name in family.priors]
    own = {name: prior for name, prior in family.priors.items() if name not in pooled}
    compared = against_prior(values, own)
    for name in pooled:
        compared["contraction"][name], compared["shift"][name] = _against_population(name, values[name], population)
    return to_fit(family, values, statistics, settings_of_family(settings, pooled, own, compared))


def _against_population(name: str, draws: NDArray, population: Mapping[str, NDArray]) -> tuple[float, float]:
    """Compare a family's exponent with what all families say of a new one: contraction of its variance, and shift."""
    own, centre = (np.asarray(location(name, values)) for values in (draws, population[name]))
    variance = np.var(centre) + np.mean(population[f"{BETWEEN}{name}"] ** 2)
    return float(1 - np.var(own) / variance), float((own.mean() - centre.mean()) / np.sqrt(variance))
