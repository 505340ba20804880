"""From a posterior to predictions for networks, trained or not."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special
import xarray as xr

from bayeslaw.compiled import jit
from bayeslaw.deaths import DIED, let_die, log_hazard
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, ROUND, Frame, n_test_of
from bayeslaw.hierarchy import spreads_at
from bayeslaw.laws import Law, log_dense_at
from bayeslaw.noise import observation
from bayeslaw.precision import in_float64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Trained networks whose curves are diagnosed.
CURVES = 30
#: Gauss-Hermite nodes per run effect.
NODES = 7
#: Designs computed at once; bounds the memory at draws x NODES^2 x this many numbers.
BLOCK = 16
#: Networks less likely to die by a level are not looked at.
_LEAST_HAZARD = 1e-4
#: What a fit keeps of trained networks, in the order of `Drawn`.
_OWN = ("log_e", "shift_p")


@in_float64
def predict(
    fit: Fit,
    designs: pd.DataFrame,
    *,
    interval: float = 0.9,
    kind: str = "mean",
    seed: int = 0,
    return_draws: bool = False,
) -> pd.DataFrame | xr.DataArray:
    """Predict the error of networks.

    Args:
        fit: The posterior.
        designs: One row per network, with `depth`, `width`, `dataset_size`, `density` in (0, 1] and, for
            `kind="run"`, optionally `n_test` (else that of the fitted runs).
        interval: Probability of the equal-tailed interval, in (0, 1).
        kind: `"mean"`: the configuration's curve while it lives, averaged over runs; its own posterior where it was
            trained, else the dense law with a fresh discrepancy. `"run"`: what a new replicate would measure: run
            effects, jitter of single levels and the noise of `n_test` test examples on top. Draws of one configuration
            are those of one run, its noise correlated from round to round as the posterior says; near random guessing
            it may die, and then shows what dead networks of the table show; densities count as the nearest number of
            rounds of 20 %.
        seed: Seed of fresh effects and noise; they depend on seed and design alone, not on what else is asked for.
        return_draws: Return the joint draws instead of their summary.

    Returns:
        The designs with `mean`, `median`, `lower`, `upper` of the error, `trained` (the configuration was fitted) and
        `extrapolation` (how far, in factors of e, the design lies outside the fitted range along its worst axis; 0
        inside). With `return_draws`, a DataArray with dimensions `chain`, `draw`, `design`.

    Raises:
        BayeslawError: A column is missing, a value is out of range, or `kind` or `interval` is unknown.

    Example:
        >>> designs = pd.DataFrame({"depth": [20], "width": [32], "dataset_size": [1000], "density": [0.1]})
        >>> fit.predict(designs, kind="run")  # doctest: +SKIP
    """
    check_designs(designs, interval, kind)
    draws = _mean_draws(fit, designs, seed) if kind == "mean" else _run_draws(fit, designs, seed)
    if return_draws:
        chains = fit.posterior.sizes["chain"]
        return xr.DataArray(draws.reshape(chains, -1, len(designs)), dims=("chain", "draw", "design"), name="error")
    return designs.assign(**summarise(draws, interval), **_novelty(fit, designs))


@in_float64
def trained_curves(fit: Fit) -> xr.Dataset:
    """Compute the curves of trained networks, draw by draw, for diagnostics.

    Args:
        fit: The posterior.

    Returns:
        `log_error_at_D` for D the greatest, the middle and the least density fitted: log error of a run without
        effects, with dimensions `chain`, `draw` and `network`, at most `CURVES` networks, evenly chosen. Nothing where
        no run was fitted.
    """
    if fit.runs.empty:
        return xr.Dataset()
    chosen = np.unique(np.linspace(0, len(fit.configurations) - 1, CURVES).round().astype(int))
    networks = fit.configurations.iloc[chosen]
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    drawn = Drawn(*(effect[:, chosen] for effect in configuration_draws(fit, fit.configurations, 0)))
    curve = fit.law.curve(value, fit.frame.covariates(networks), *drawn)
    log_density = np.log(fit.runs["density"].to_numpy(float))
    ends = np.array([log_density.max(), (log_density.max() + log_density.min()) / 2, log_density.min()])
    shape = (fit.posterior.sizes["chain"], fit.posterior.sizes["draw"], len(chosen))
    dimensions = ("chain", "draw", "network")
    curves = {f"{np.exp(at):.3g}": np.asarray(fit.law.log_error(curve, at)) for at in ends}
    return xr.Dataset({f"log_error_at_{at}": (dimensions, draws.reshape(shape)) for at, draws in curves.items()})


def summarise(draws: NDArray, interval: float) -> dict[str, NDArray]:
    """Give mean, median and equal-tailed interval over the first axis."""
    tail = (1 - interval) / 2
    lower, median, upper = np.quantile(draws, [tail, 0.5, 1 - tail], axis=0)
    return {"mean": draws.mean(0), "median": median, "lower": lower, "upper": upper}


def parameter_draws(fit: Fit) -> dict[str, NDArray]:
    """Flatten chain and draw of all parameters that are one number per draw."""
    posterior = fit.posterior
    values = {k: v.to_numpy().ravel() for k, v in posterior.data_vars.items() if v.ndim == 2}
    return {str(k): v for k, v in values.items()} | {"log_eps_up": np.log(values["eps_up"])}


class Drawn(NamedTuple):
    """Hold draws of where the curves of networks, or of runs, lie, each `[draws, networks]`.

    Attributes:
        log_e: Log dense error, discrepancy included.
        sideways: Shift in log p'.
    """

    log_e: NDArray[np.float64]
    sideways: NDArray[np.float64]


def network_values(value: dict[str, Any], covariates: dict[str, Any]) -> dict[str, Any]:
    """Put the spreads of networks in place of those of the central one, `[draws, networks]`."""
    return value | _centre_and_spreads(value, covariates)[1]


def configuration_draws(fit: Fit, configurations: pd.DataFrame, seed: int) -> Drawn:
    """Draw where the curves of configurations lie: their own posterior, else fresh discrepancies."""
    value = parameter_draws(fit)
    own = [fit.posterior[name].to_numpy().reshape(len(value["dense"]), -1) for name in _OWN if name in fit.posterior]
    known = {tuple(row): i for i, row in enumerate(fit.configurations.itertuples(index=False, name=None))}
    # A network's draws lie beside each other while they are made: one row for each.
    covariates = {name: column[:, None] for name, column in fit.frame.covariates(configurations).items()}
    centre, scales = _centre_and_discrepancies(value, covariates)
    shape = (len(configurations), len(value["dense"]))
    results = [np.array(np.broadcast_to(about, shape)) for about in (centre, 0.0)]
    scales = [np.broadcast_to(scale, shape) for scale in scales]
    for i, row in enumerate(configurations[CONFIGURATION].itertuples(index=False, name=None)):
        if row in known:
            for result, draws in zip(results, own, strict=False):
                result[i] = draws[:, known[row]]
        elif fit.law.name == "single":
            raise BayeslawError(
                f"depth {row[0]:g}, width {row[1]:g}, dataset_size {row[2]:g} was not fitted, and law = 'single' "
                "speaks of the fitted network alone; fit several configurations with law = 'joint'."
            )
        else:
            rng = generator(seed, row, "discrepancy")
            for result, scale in zip(results, scales, strict=True):
                result[i] += scale[i] * rng.standard_normal(shape[1])
    return Drawn(*(result.T for result in results))


@jit
def _centre_and_discrepancies(value: dict[str, Any], covariates: dict[str, Any]) -> tuple[jax.Array, list[Any]]:
    """Give log e by the dense law, and how far networks spread around it and sideways."""
    centre, spreads = _centre_and_spreads(value, covariates)
    return centre, [spreads.get(name, 0.0) for name in ("sigma_np", "sigma_p")]


@jit
def _centre_and_spreads(value: dict[str, Any], covariates: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
    centre = log_dense_at(value, covariates)
    return centre, spreads_at(value, centre)


def generator(seed: int, row: tuple[Any, ...], purpose: str) -> np.random.Generator:
    """Make the generator of one use of randomness, named by configuration and purpose."""
    name = ",".join(f"{float(x):.9g}" for x in row)
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}:{name}".encode())])


@jit(static_argnums=0)
def average_error(
    law: Law, value: dict[str, Any], covariates: dict[str, Any], log_e: Any, shift_p: Any, log_density: Any
) -> jax.Array:
    """Average the error over the effects of a new run, by Gauss-Hermite quadrature.

    Args:
        law: The law.
        value: Its parameters and `log_eps_up`, each `[draws, 1]`, and the spreads of runs of the networks (`tau_np`,
            `tau_p`, where there are any), `[draws, designs]` or `[draws, 1]`.
        covariates: Of the designs, by name, each `[designs]`.
        log_e: Of the configuration, `[draws, designs]`.
        shift_p: Its sideways shift, likewise.
        log_density: `[designs]`.

    Returns:
        Mean error, `[draws, designs]`.
    """
    (up, up_weight), (sideways, sideways_weight) = _nodes("tau_np" in value), _nodes("tau_p" in value)
    effects = np.repeat(up, len(sideways)), np.tile(sideways, len(up))

    def add(total: jax.Array, node: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        weight, up, sideways = node
        shifted = log_e + value.get("tau_np", 0.0) * up, shift_p + value.get("tau_p", 0.0) * sideways
        return total + weight * jnp.exp(law.log_error(law.curve(value, covariates, *shifted), log_density)), None

    nothing = jnp.zeros(jnp.broadcast_shapes(jnp.shape(log_e), jnp.shape(log_density)))
    nodes = np.outer(up_weight, sideways_weight).ravel(), *effects
    return jax.lax.scan(add, nothing, tuple(jnp.asarray(node) for node in nodes))[0]


def _nodes(varies: bool) -> tuple[NDArray, NDArray]:
    """Give nodes and weights of a standard normal effect, or of one that is not there."""
    if not varies:
        return np.zeros(1), np.ones(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, weights / weights.sum()


def standard_noise(rng: np.random.Generator, value: dict[str, Any], rounds: NDArray) -> NDArray:
    """Draw the noise of a new run in units of its scale, after numbers of pruning rounds of 20 %.

    Args:
        rng: Source of randomness; the noise after a round does not depend on what other rounds are asked for.
        value: `nu` and `rho`, as far as there are such parts, each `[draws, 1]`.
        rounds: `[designs]`.

    Returns:
        `[draws, designs]`.
    """
    shape = (rounds.max(initial=0) + 1, len(value["sigma"]))
    noise = rng.standard_t(value["nu"].ravel(), shape) if "nu" in value else rng.standard_normal(shape)
    if "rho" in value:
        rho = value["rho"].ravel()
        for before, now in itertools.pairwise(noise):
            now *= np.sqrt(1 - rho**2)
            now += rho * before
    return noise[rounds].T


def rounds_at(density: Any) -> NDArray:
    """Count the pruning rounds of 20 % that lead to a density, to the nearest."""
    return np.round(-np.log(np.asarray(density, float)) / ROUND).astype(int)


def unique_configurations(designs: pd.DataFrame) -> tuple[pd.DataFrame, NDArray]:
    """Give the configurations of designs and which of them each design is of."""
    configurations = designs[CONFIGURATION].drop_duplicates().reset_index(drop=True)
    index = designs[CONFIGURATION].merge(configurations.reset_index(), on=CONFIGURATION, how="left")["index"]
    return configurations, index.to_numpy()


def _mean_draws(fit: Fit, designs: pd.DataFrame, seed: int) -> NDArray:
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    configurations, index = unique_configurations(designs)
    drawn = Drawn(*(effect[:, index] for effect in configuration_draws(fit, configurations, seed)))
    return mean_errors(fit.law, value, fit.frame, designs, drawn)


def mean_errors(law: Law, value: dict[str, Any], frame: Frame, designs: pd.DataFrame, drawn: Drawn) -> NDArray:
    """Average the error of designs over the effects of a new run, a block of designs at a time.

    Args:
        law: The law.
        value: Draws of the parameters, and `log_eps_up`, each `[draws, 1]`.
        frame: What turns designs into covariates.
        designs: One row per network and density.
        drawn: Where the curves of the configurations lie, `[draws, designs]`.

    Returns:
        Mean errors, `[draws, designs]`.
    """

    def one(covariates: dict[str, Any], log_density: NDArray, *drawn: NDArray) -> tuple[jax.Array]:
        return (average_error(law, network_values(value, covariates), covariates, *drawn, log_density),)

    return _by_block(one, frame, designs, *drawn)[0]


def observations(
    law: Law,
    value: dict[str, Any],
    frame: Frame,
    designs: pd.DataFrame,
    runs: Drawn,
    n_test: NDArray,
) -> tuple[NDArray, ...]:
    """Give location and scale of the empirical logits that runs show, a block of designs at a time.

    Args:
        law: The law.
        value: Draws of the parameters, and `log_eps_up`, each `[draws, 1]`.
        frame: What turns designs into covariates.
        designs: One row per network and density.
        runs: Where the curves of the runs lie, `[draws, designs]`.
        n_test: Test examples, `[designs]`; infinite for the population error.

    Returns:
        Location and scale, each `[draws, designs]`.
    """
    return _by_block(functools.partial(_observation, law, value), frame, designs, *runs, n_test)


@jit(static_argnums=0)
def _observation(
    law: Law,
    value: dict[str, Any],
    covariates: dict[str, Any],
    log_density: Any,
    log_e: Any,
    effect_p: Any,
    n_test: Any,
) -> tuple[jax.Array, jax.Array]:
    return observation(law, law.curve(value, covariates, log_e, effect_p), log_density, n_test, value)


def _by_block(
    function: Callable[..., tuple[jax.Array, ...]], frame: Frame, designs: pd.DataFrame, *columns: NDArray
) -> tuple[NDArray, ...]:
    """Call a function of covariates, log density and columns `[..., designs]` with blocks of equal size."""
    covariates, log_density = frame.covariates(designs), np.log(designs["density"].to_numpy(float))
    order = np.pad(np.arange(len(designs)), (0, -len(designs) % BLOCK), mode="edge")
    parts = []
    for block in order.reshape(-1, BLOCK):
        own = {name: values[block] for name, values in covariates.items()}
        found = function(own, log_density[block], *(column[..., block] for column in columns))
        parts.append([np.asarray(part) for part in found])
    return tuple(np.concatenate(part, axis=1)[:, : len(designs)] for part in zip(*parts, strict=True))


def _run_draws(fit: Fit, designs: pd.DataFrame, seed: int) -> NDArray:
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    configurations, index = unique_configurations(designs)
    n_test = _n_test(fit, designs)
    fresh = new_runs(fit, configurations, seed)
    runs = Drawn(*(effect[:, index] for effect in fresh))
    location, scale = observations(fit.law, value, fit.frame, designs, runs, n_test)
    noise, rounds = np.empty_like(location), rounds_at(designs["density"])
    for i, row in enumerate(configurations.itertuples(index=False, name=None)):
        noise[:, index == i] = standard_noise(generator(seed, row, "noise"), value, rounds[index == i])
    errors = error_from_logit(location + scale * noise, n_test)
    if "dies" in value:
        hazard = _hazard(fit, value, location)
        for i in np.unique(index[hazard.max(0) > _LEAST_HAZARD]):
            own, run = index == i, Drawn(*(effect[:, [i]] for effect in fresh))
            network, count = configurations.iloc[[i]], float(n_test[own][0])
            shown, dead = path_with_deaths(fit, value, network, run, rounds[own], count, seed)
            errors[:, own] = np.where(dead, shown, errors[:, own])
    return errors


def path_with_deaths(
    fit: Fit,
    value: dict[str, NDArray],
    network: pd.DataFrame,
    run: Drawn,
    rounds: NDArray[np.integer],
    n_test: float,
    seed: int,
) -> tuple[NDArray, NDArray[np.bool_]]:
    """Draw a new run round by round, in which it may die, and show it after some of them.

    Args:
        fit: The posterior.
        value: Its parameters, `[draws, 1]` each.
        network: One row.
        run: Where its curve lies, `[draws, 1]`.
        rounds: Those that are asked for, `[designs]`.
        n_test: Test examples.
        seed: That of the prediction.

    Returns:
        The errors, and whether the network is dead, each `[draws, designs]`.
    """
    every = np.arange(rounds.max() + 1)
    path = network.loc[network.index.repeat(len(every))].assign(density=np.exp(-ROUND * every))
    along = Drawn(*(np.repeat(effect, len(path), axis=1) for effect in run))
    count, row = np.full(len(path), n_test), tuple(network.iloc[0])
    location, scale = observations(fit.law, value, fit.frame, path, along, count)
    noise = standard_noise(generator(seed, row, "noise"), value, every)
    living, hazard = error_from_logit(location + scale * noise, count), _hazard(fit, value, location)
    died = fit.tree["constant_data"]["fate"].to_numpy() == DIED
    dead_errors = fit.runs["error"].to_numpy(float)[died] if died.any() else np.array([fit.frame.chance_error])
    dead_errors = np.round(dead_errors * n_test) / n_test if np.isfinite(n_test) else dead_errors
    shown, dead = let_die(living, hazard, value["stays"][:, 0], dead_errors, generator(seed, row, "death"))
    return shown[:, rounds], dead[:, rounds]


def _hazard(fit: Fit, value: dict[str, Any], location: NDArray) -> NDArray:
    """Give the probability of dying by a level from the location of its empirical logit."""
    return np.asarray(jnp.exp(log_hazard(value, scipy.special.log_expit(location), np.log(fit.frame.chance_error))))


def new_runs(fit: Fit, configurations: pd.DataFrame, seed: int) -> Drawn:
    """Draw where the curve of a new run of every configuration lies, `[draws, configurations]`."""
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    drawn = configuration_draws(fit, configurations, seed)
    at_networks = network_values(value, fit.frame.covariates(configurations))
    spreads = [np.broadcast_to(at_networks.get(name, 0.0), drawn.log_e.shape) for name in ("tau_np", "tau_p")]
    for i, row in enumerate(configurations[CONFIGURATION].itertuples(index=False, name=None)):
        normal = generator(seed, row, "run").standard_normal((2, len(drawn.log_e)))
        for effect, spread, fresh in zip(drawn, spreads, normal, strict=True):
            effect[:, i] += spread[:, i] * fresh
    return drawn


def error_from_logit(logit: NDArray, n_test: NDArray) -> NDArray:
    """Undo the empirical logit, to the nearest count where the number of test examples is known."""
    share = scipy.special.expit(logit)
    known = np.isfinite(n_test)
    count = np.where(known, n_test, 1.0)
    wrong = np.clip(np.round(share * (count + 1) - 0.5), 0, count)
    return np.where(known, wrong / count, share)


def _n_test(fit: Fit, designs: pd.DataFrame) -> NDArray:
    return n_test_of(designs) if "n_test" in designs else np.full(len(designs), usual_n_test(fit))


def usual_n_test(fit: Fit) -> float:
    """Give how many test examples the fitted runs have, in the middle; infinite where that is not known."""
    return float(fit.runs["n_test"].median()) if "n_test" in fit.runs and len(fit.runs) else np.inf


def _novelty(fit: Fit, designs: pd.DataFrame) -> dict[str, NDArray]:
    known = set(fit.configurations.itertuples(index=False, name=None))
    rows = designs[CONFIGURATION].itertuples(index=False, name=None)
    return {"trained": np.array([row in known for row in rows]), "extrapolation": extrapolation(fit, designs)}


def extrapolation(fit: Fit, designs: pd.DataFrame) -> NDArray:
    """Measure how far designs lie outside the fitted range, in natural logs along the worst axis; 0 inside.

    Infinite where no run was fitted (`PooledFit.new_family`).
    """
    if fit.runs.empty:
        return np.full(len(designs), np.inf)
    axes = [name for name in (*CONFIGURATION, "density") if name in designs]
    outside = np.zeros(len(designs))
    for name in axes:
        value, fitted = np.log(designs[name].to_numpy(float)), np.log(fit.runs[name].to_numpy(float))
        outside = np.maximum(outside, np.maximum(value - fitted.max(), fitted.min() - value))
    return outside


def check_designs(designs: pd.DataFrame, interval: float, kind: str) -> None:
    """Refuse designs that lack a column or are out of range, with all their faults, and unknown settings."""
    if not isinstance(designs, pd.DataFrame):
        raise BayeslawError(f"designs are a pandas DataFrame, one row per network; got {type(designs).__name__}.")
    missing = [name for name in (*CONFIGURATION, "density") if name not in designs]
    if missing:
        raise BayeslawError(f"designs lack {', '.join(missing)}; give one row per network with these columns.")
    if designs.empty:
        raise BayeslawError("designs have no rows; give one row per network.")
    faults = []
    for name in (*CONFIGURATION, "density", *(["n_test"] if "n_test" in designs else [])):
        values = pd.to_numeric(designs[name], errors="coerce").to_numpy(float)
        bad = ~((values > 0) & ((values <= 1) | (name != "density")) & (np.isfinite(values) | (name == "n_test")))
        faults += [f"row {i}, {name} = {designs[name].iloc[i]}" for i in np.flatnonzero(bad)]
    if faults:
        raise BayeslawError(
            f"designs: {'; '.join(faults[:20])}; depth, width, dataset_size and n_test must be above 0, density in "
            "(0, 1]."
        )
    if not 0 < interval < 1:
        raise BayeslawError(f"interval = {interval} must be in (0, 1), for instance 0.9.")
    if kind not in ("mean", "run"):
        raise BayeslawError(f"kind = {kind!r} must be 'mean' (the curve) or 'run' (a new replicate).")
