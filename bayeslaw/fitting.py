"""From a run table to a posterior."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.compiled import make_room
from bayeslaw.density import (
    Context,
    Shapes,
    constrain,
    estimate_unconstrained,
    flat_potential,
    named_potential,
    positions_of,
    shapes_of,
)
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, Data, Frame, Labels, check_one_family, make_data, make_frame, varies
from bayeslaw.hierarchy import groups_of, spread_variances
from bayeslaw.laplace import Laplace, laplace_recentred
from bayeslaw.law import saturate
from bayeslaw.model import EFFECTS, Structure, starting_values, structure_of
from bayeslaw.posterior import Fit
from bayeslaw.precision import in_float64
from bayeslaw.priors import EXPONENTS, POOLS, Prior, describe_prior, resolve_priors, store_prior
from bayeslaw.ridges import StraightContext, ridges_of
from bayeslaw.runs import load_runs
from bayeslaw.sampler import Sampled, sample
from bayeslaw.straight import bent_positions, recentre, straight_estimate, straight_potential, straighten
from bayeslaw.subsets import SUBSET
from bayeslaw.unconstrained import against_prior, prior_middles

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

    from bayeslaw.pooled import PooledFit

#: Warnings point to the first caller outside of it.
PACKAGE = str(Path(__file__).parent)

#: With fewer configurations than this the spreads are barely informed and centred effects form funnels: effects are
#: then sampled non-centred and the metric is adapted as usual.
FEW_CONFIGURATIONS = 8
#: Adapting to them takes so many transitions at least.
FEW_WARMUP = 1000
#: With so many configurations or more the posterior is round, and acceptance rates that make steps long miss nothing;
#: else steps are short.
LARGE = 100
LONG_STEPS, SHORT_STEPS = 0.8, 0.98


class Settings(TypedDict, total=False):
    """Name the settings of `fit`, for type checkers."""

    law: str
    effects: Sequence[str]
    noise: str
    steep: bool
    growth: bool | None
    correlated: bool
    deaths: bool | None
    subsets: bool | None
    curvature: bool
    priors: Mapping[str, Distribution] | None
    seed: int
    chains: int
    warmup: int
    draws: int
    n_test: int | None
    chance_error: float | None
    target_acceptance: float | None
    progress: bool


@overload
def fit(runs: Any, *, pool: None = None, **settings: Unpack[Settings]) -> Fit: ...
@overload
def fit(runs: Any, *, pool: Literal["family"], **settings: Unpack[Settings]) -> PooledFit: ...
@in_float64
def fit(
    runs: Any,
    *,
    pool: str | None = None,
    law: str = "sharpness",
    effects: Sequence[str] = EFFECTS,
    noise: str = "student_t",
    steep: bool = True,
    growth: bool | None = None,
    correlated: bool = True,
    deaths: bool | None = None,
    subsets: bool | None = None,
    curvature: bool = True,
    priors: Mapping[str, Distribution] | None = None,
    seed: int = 0,
    chains: int = 4,
    warmup: int = 300,
    draws: int = 1000,
    n_test: int | None = None,
    chance_error: float | None = None,
    target_acceptance: float | None = None,
    progress: bool = True,
) -> Fit | PooledFit:
    """Infer a law from a run table with NUTS.

    Args:
        runs: Run table of one family: a path, a DataFrame, or what `load_runs` gave. With `pool="family"` of several,
            or a list of such tables, which need not have the same optional columns.
        pool: `"family"`: fit several (family, dataset) together, their exponents drawn from one population; see
            `bayeslaw.pooling`. By default there is one family.
        law: `"sharpness"`, the paper's law with knees that bend as sharply as the data say (M2); `"joint"`, the
            paper's (M1), `"parameter_count"` (M0), `"anchored"` (M3), `"sparse"` (Frantar et al.) or `"dip"` (M2 for
            networks that pruning first improves), to be compared with it; `"single"`, equation (1), for the runs of one
            network.
        effects: Where the effects of a training run act: `"np"`, up and down on eps_np; `"p"`, sideways on log p'.
        noise: Noise of single levels, `"student_t"` or `"normal"`.
        steep: Whether that noise grows with the local slope of the curve.
        growth: Whether the spreads of configurations and runs grow with the error that the dense law expects and as
            networks get narrow, and where `n_test` is known, part of a test set's noise lasts through a run
            (`lasting`), which the best networks show most; by default where there are 20 configurations or more to
            tell.
        correlated: Whether the noise of a level is correlated with that of the level before it in its trajectory, by
            `rho` to the power of the rounds of 20 % between them.
        deaths: Whether a network that answers one class, so that its error near random guessing repeats to the last
            digit, counts as dead: its levels then tell how likely networks die and stay dead, or, where it is dead
            unpruned, never live, and nothing of the curve; by default where a trajectory of the table shows one.
        subsets: Whether runs on one training subset (`subset_id`, of one `dataset_size`) share its luck
            (`bayeslaw.subsets`); by default where networks share subsets, and there are several of a size.
        curvature: Whether the dense law is quadratic in the logs of depth, width and dataset size beside its power
            laws, so that networks far from those fitted can be off together.
        priors: NumPyro distributions by parameter name, in place of defaults (`bayeslaw.default_priors`). Of pooled
            exponents they are those of the population's centre (`phi`) and of the spread between families
            (`between_phi`); all others hold for every family.
        seed: Seed of everything random; same seed, versions and machine give the same draws.
        chains: Number of chains, at least 2 for R-hat; they run on as many threads as there are cores.
        warmup: Transitions per chain in which the step size (with few configurations also the metric) is adapted.
        draws: Transitions kept per chain.
        n_test: Number of test examples, for tables without that column.
        chance_error: Error of random guessing, in (0, 1), for tables without `classes` or `chance_error`.
        target_acceptance: Acceptance rate that the step size aims at, in (0, 1); by default .98, short steps that do
            not miss what is narrow in small tables, and .8 with 100 configurations or more. For pooled families .98 at
            least.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The fit, or with `pool="family"` a `PooledFit` with one fit per family. Call its `diagnose` before believing
        it; planning does so by itself. A second fit with the same structure and shapes compiles nothing.

    Raises:
        RunTableError: The table is faulty; all faults are listed.
        BayeslawError: Several families without pooling or one with it, unknown priors, or settings out of range.

    Example:
        >>> import bayeslaw
        >>> runs = bayeslaw.load_recorded("digits_resnet")  # doctest: +SKIP
        >>> bayeslaw.fit(runs).summary()  # doctest: +SKIP
    """
    bind_submodules()
    _check_settings(chains=chains, warmup=warmup, draws=draws, target_acceptance=target_acceptance)
    parts = {
        "law": law, "effects": tuple(effects), "noise": noise, "steep": steep, "growth": growth,
        "correlated": correlated, "deaths": deaths, "subsets": subsets, "curvature": curvature,
    }  # fmt: skip
    reading = {"n_test": n_test, "chance_error": chance_error}
    sampling = {
        "seed": seed, "chains": chains, "warmup": warmup, "draws": draws, "target_acceptance": target_acceptance,
    }  # fmt: skip
    if pool is None:
        return _fit_family(load_runs(runs, **reading), parts, priors, sampling, progress)
    if pool not in POOLS:
        raise BayeslawError(f"pool = {pool!r} must be None or one of {', '.join(POOLS)}.")
    from bayeslaw.pooling import fit_families, split_families

    return fit_families(split_families(runs, **reading), parts, priors, sampling, progress)


def _fit_family(
    table: pd.DataFrame,
    parts: Mapping[str, Any],
    priors: Mapping[str, Distribution] | None,
    sampling: dict[str, Any],
    progress: bool,
) -> Fit:
    """Fit one family; arguments are those of `bayeslaw.pooling.fit_families`."""
    check_one_family(table)
    own = prepare(table, parts, resolve_priors(priors, law=parts["law"]))
    make_room(own.shape)
    sampling = sampling | {
        "warmup": warmup_for([own], sampling["warmup"]),
        "target_acceptance": acceptance_for(own, sampling["target_acceptance"]),
    }
    sampled, values = _sample(own, **sampling, progress=progress)
    settings = sampling | {
        "metric": "adapted" if own.few else "laplace",
        **said_of_priors(own.priors),
        **against_prior(values, own.priors),
    }
    return to_fit(own, values, sampled.statistics, settings)


class Prepared(NamedTuple):
    """Hold all that the posterior of one family is computed from.

    Attributes:
        table: The validated runs.
        frame: What turns designs into covariates.
        structure: Which parts the model has.
        data: What the model is conditioned on.
        labels: What its axes stand for.
        priors: The priors of its parameters.
        few: Whether there are too few configurations for centred effects.
    """

    table: pd.DataFrame
    frame: Frame
    structure: Structure
    data: Data
    labels: Labels
    priors: dict[str, Prior]
    few: bool

    @property
    def shape(self) -> Hashable:
        """What the density is compiled for."""
        kinds = {name: type(prior.distribution) for name, prior in self.priors.items()}
        return self.structure, self.few, tuple(np.shape(part) for part in self.data), tuple(kinds.items())

    @property
    def context(self) -> Context:
        """What the density depends on besides the position; rows in float32."""
        data = Data(*(jnp.asarray(part) for part in self.data)).in_float32()
        return Context(data, {name: prior.distribution for name, prior in self.priors.items()})


def prepare(
    table: pd.DataFrame, parts: Mapping[str, Any], priors: Mapping[str, Prior], *, pooled: bool = False
) -> Prepared:
    """Turn the validated runs of one family into all that its posterior is computed from, and warn of what is missing.

    Args:
        table: The runs.
        parts: What `structure_of` is asked for.
        priors: The priors by name; those of parameters that the structure does not have are left out.
        pooled: Whether other families inform what this one does not.

    Raises:
        BayeslawError: What is asked for does not fit the table.
    """
    structure = structure_of(table, **parts)
    frame = make_frame(table, chance_error_of(table))
    data, labels = make_data(table, frame, deaths=structure.deaths, subsets=structure.subsets)
    own = {name: prior for name, prior in priors.items() if name not in structure.without()}
    prepared = Prepared(table, frame, structure, data, labels, own, len(labels.configurations) < FEW_CONFIGURATIONS)
    _warn_about(prepared, pooled=pooled)
    return prepared


def warmup_for(families: Sequence[Prepared], asked: int) -> int:
    """Give the transitions of the warm-up: those asked for, or enough for the family with the fewest configurations."""
    return max(asked, FEW_WARMUP) if any(own.few for own in families) else asked


def acceptance_for(own: Prepared, asked: float | None) -> float:
    """Give the acceptance rate that steps aim at: the one asked for, or a lower one where runs are many."""
    if asked is not None:
        return asked
    return LONG_STEPS if len(own.labels.configurations) >= LARGE else SHORT_STEPS


def said_of_priors(priors: Mapping[str, Prior]) -> dict[str, dict[str, Any]]:
    """Say in a fit's settings what its priors are, to be read (`priors`) and to be made again (`stored_priors`)."""
    return {
        "priors": {name: describe_prior(prior) for name, prior in priors.items()},
        "stored_priors": {name: store_prior(prior) for name, prior in priors.items()},
    }


def to_fit(
    own: Prepared, values: Mapping[str, Any], statistics: Mapping[str, NDArray], settings: dict[str, Any]
) -> Fit:
    """Put named draws `[chains, draws, ...]` and the sampler's statistics together to a fit."""
    tree = _tree({**values, **derived_values(values, own.frame)}, statistics, own.data, own.labels)
    return Fit(tree, own.table, own.frame, own.structure, settings, dict(versions()))


@functools.cache
def versions() -> Mapping[str, str]:
    """List the versions of the libraries that compute a posterior."""
    names = ("bayeslaw", "jax", "numpyro", "arviz", "numpy", "xarray")
    return {name: importlib.metadata.version(name) for name in names}


def bind_submodules() -> None:
    """Bind numpyro's submodules to their packages where that was lost.

    ArviZ leaves numpyro to be loaded on first use. `import arviz` followed by `import numpyro.distributions` then runs
    that package twice, and the second run, finding its parts imported already, does not bind them.
    """
    for name in [name for name in sys.modules if name.startswith("numpyro.")]:
        package, _, part = name.rpartition(".")
        if not hasattr(sys.modules[package], part):
            setattr(sys.modules[package], part, sys.modules[name])


def _check_settings(*, chains: int, warmup: int, draws: int, target_acceptance: float | None) -> None:
    rules = [
        ("chains", chains, chains >= 2, "an integer >= 2, so that chains can be compared"),
        ("warmup", warmup, warmup >= 100, "an integer >= 100"),
        ("draws", draws, draws >= 50, "an integer >= 50"),
        ("target_acceptance", target_acceptance, target_acceptance is None or 0 < target_acceptance < 1, "in (0, 1)"),
    ]
    faults = [f"{name} = {value} must be {rule}" for name, value, ok, rule in rules if not ok]
    if faults:
        raise BayeslawError("fit: " + "; ".join(faults) + ".")


def chance_error_of(table: pd.DataFrame) -> float:
    """Give the error of random guessing, or 1 with a warning where a validated run table does not say."""
    if "chance_error" not in table:
        warnings.warn(
            "The table has neither classes nor chance_error: eps_up is only bounded by 1. "
            "Pass chance_error=, for instance 0.9 for ten balanced classes.",
            skip_file_prefixes=(PACKAGE,),
        )
        return 1.0
    return float(table["chance_error"].iloc[0])


def _warn_about(own: Prepared, *, pooled: bool) -> None:
    whose, support = (f"{own.frame.label}: ", "them") if pooled else ("", "the prior")
    fixed = []
    for name, parameters in (("depth", ("phi", "omega")), ("width", ("psi",)), ("dataset_size", ("alpha", "chi"))):
        known = [each for each in parameters if each in own.priors and (each in EXPONENTS or not pooled)]
        if known and not varies(own.table[name]):
            verb, prior = ("is", "its prior") if len(known) == 1 else ("are", "their priors")
            driver = "the other families" if pooled else f"{prior} alone"
            fixed.append(f"{name} never varies, so {' and '.join(known)} {verb} driven by {driver}")
    if fixed:
        warnings.warn(
            f"{whose}{'; '.join(fixed)}: predictions along it rest on {support}.", skip_file_prefixes=(PACKAGE,)
        )
    if not own.structure.has_trajectories:
        warnings.warn(
            f"{whose}The table has no trajectory (or replicate) column: there are no trajectory effects, and intervals "
            "take rows of one run as independent. Map it with load_runs(..., columns={'trajectory': ...}).",
            skip_file_prefixes=(PACKAGE,),
        )


def _sample(own: Prepared, *, seed: int, **settings: Any) -> tuple[Sampled, dict[str, Any]]:
    """Find the Laplace metric and sample; give the draws also as named parameters."""
    context, found, shapes = approximate(own)
    sampled = sample(
        *flat_potential(straight_density(own), context, shapes),
        found.mode,
        found.axes,
        seed=seed,
        adapt_metric=own.few,
        **settings,
    )
    plain = bent_positions(context, positions_of(shapes), sampled.positions)
    return sampled, constrain(own.structure, not own.few, shapes, own.context, plain, seed=seed + 1)


def straight_density(own: Prepared) -> Callable[[StraightContext, dict[str, Any]], jax.Array]:
    """Give the negative log density of straight coordinates."""
    return straight_potential(named_potential(own.structure, not own.few))


def approximate(own: Prepared) -> tuple[StraightContext, Laplace, Shapes]:
    """Find the straight coordinates to sample in, the Laplace metric in them, and what its flat position holds."""
    context = StraightContext(own.context, jax.tree.map(jnp.asarray, ridges_of(own.data)))
    starts = [straighten(context, start) for start in starts_of(own)]
    estimate = None if own.few else straight_estimate(estimate_unconstrained)
    groups = {} if own.few else groups_of(own.data)
    shapes = shapes_of(starts[0])
    context, found = laplace_recentred(
        straight_density(own),
        context,
        starts,
        estimate,
        spread_variances(own.data, own.priors),
        groups,
        lambda straight, found: recentre(straight, positions_of(shapes), found.mode, found.axes),
    )
    return context, found, shapes


def starts_of(own: Prepared) -> list[dict[str, jax.Array]]:
    """Give unconstrained values to search the mode from: at the prior means, and to both sides of them."""
    data, structure = own.data, own.structure
    latent: dict[str, Any] = starting_values(data, structure)
    if own.few:
        latent = {} if structure.of_runs else {"discrepancy": np.zeros(len(data.depth))}
        standard = {"standard_np": "np", "standard_p": "p"}
        effects = structure.effects if structure.has_trajectories else ()
        latent |= {"discrepancy_p": np.zeros(len(data.depth))} if "p" in effects and not structure.of_runs else {}
        latent |= {name: np.zeros(len(data.configuration)) for name, where in standard.items() if where in effects}
    centre = prior_middles({name: prior.distribution for name, prior in own.priors.items()})
    latent |= {"luck_halfway": np.zeros(len(data.luck_root))} if structure.subsets else {}
    latent = {name: jnp.asarray(value) for name, value in latent.items()}
    return [{**{name: value + shift for name, value in centre.items()}, **latent} for shift in (0.0, -0.5, 0.5)]


def derived_values(values: Mapping[str, Any], frame: Frame) -> dict[str, Any]:
    """Compute the law's parameters in the paper's units."""
    log_eps_np = saturate(jnp.asarray(values["log_e"]), jnp.asarray(values["log_eps_up"])[..., None])
    derived = {"eps_up": np.exp(values["log_eps_up"]), "eps_np": np.asarray(jnp.exp(log_eps_np))}
    if "phi" in values:
        log_m = values["phi"] * frame.log_depth + values["psi"] * frame.log_width
        derived["p_prime"] = values["knee"] * np.exp(log_m)
    return derived


def _tree(values: Mapping[str, Any], statistics: Mapping[str, NDArray], data: Data, labels: Labels) -> xr.DataTree:
    chains, draws = values["plateau"].shape
    coords: dict[str, Any] = {"chain": np.arange(chains), "draw": np.arange(draws)}
    coords |= {name: ("configuration", labels.configurations[name].to_numpy()) for name in CONFIGURATION}
    coords |= {"trajectory": np.asarray(labels.trajectories, dtype=str)}
    own = {name: ["configuration"] for name in ("log_e", "eps_np", "shift_p")}
    own |= {"log_e_run": ["trajectory"], "effect_p": ["trajectory"], "luck": ["subset"]}
    for name in SUBSET if "luck" in values else ():
        coords[f"subset_{name}"] = ("subset", labels.subsets[name].to_numpy(None if name == "dataset_size" else str))
    variables = {
        name: (["chain", "draw", *own.get(name, [])], np.asarray(value))
        for name, value in values.items()
        if name != "log_eps_up"
    }
    sampler = {name: (["chain", "draw"], value) for name, value in statistics.items()}
    rows = labels.rows
    observed = {"response": ("row", rows.response)}
    constant = {
        "log_density": ("row", rows.log_density),
        "n_test": ("row", rows.n_test),
        "trajectory_of_row": ("row", rows.trajectory),
        "fate": ("row", rows.fate),
        "configuration_of_trajectory": ("run", data.configuration),
    }
    groups = {
        "posterior": xr.Dataset(variables, coords),
        "sample_stats": xr.Dataset(sampler, {k: coords[k] for k in ("chain", "draw")}),
        "observed_data": xr.Dataset(observed),
        "constant_data": xr.Dataset(constant),
    }
    return xr.DataTree.from_dict(groups)
