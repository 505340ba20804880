"""How likely runs are under a posterior, draw by draw: their rows, and whole trajectories, effects integrated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special
from tqdm import tqdm

from bayeslaw.compiled import jit
from bayeslaw.curves import expected_luck, parameter_draws
from bayeslaw.deaths import STAYED, are_dead, log_probability
from bayeslaw.frame import CONFIGURATION, Rows, along_trajectories, gaps, make_data, tested_on
from bayeslaw.hierarchy import spreads_at
from bayeslaw.laws import Law, log_dense_at, moved_by_luck
from bayeslaw.noise import response_distribution
from bayeslaw.precision import in_float64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Nodes per effect of a trajectory, and Newton steps to where they are centred.
NODES, STEPS = 9, 12
#: Rows whose log likelihood is computed at once.
_ROWS = 256
#: Effects of runs, those of networks, and what their spreads are called, in the order of a curve's arguments.
_EFFECTS = (("log_e_run", "log_e", "np"), ("effect_p", "shift_p", "p"))


def row_log_likelihood(fit: Fit, *, draws: int | None = None) -> Iterator[NDArray[np.float64]]:
    """Compute the log likelihood of the rows given their own runs' effects, a chunk of rows at a time.

    Rows come by trajectory, from the densest to the sparsest; where noise is correlated, each is given the one before.
    That of a dead network's level is the log probability that it died, or stayed dead.

    Args:
        fit: The posterior.
        draws: Posterior draws used, spread evenly over all of a fit's; all by default.

    Yields:
        Log likelihoods `[draws, rows]` of the next rows; all rows times all draws may not fit in memory.
    """
    draws = draws or fit.posterior["plateau"].size
    sample = Sample.of(fit, draws)
    log_e_run, effect = _thinned(fit, "log_e_run", draws), _thinned(fit, "effect_p", draws)
    assert log_e_run is not None
    own_row = sample.fate != STAYED
    rows, place = int(own_row.sum()), np.cumsum(own_row)
    log_stays = np.log(sample.value["stays"]) if "stays" in sample.value else 0.0
    for start in range(0, len(own_row), _ROWS):
        chunk = slice(start, start + _ROWS)
        first, last = place[start] - own_row[start], place[chunk][-1]
        index = np.clip(np.arange(first - 1, first + _ROWS), 0, rows - 1)  # with the row before
        own = sample.trajectory[index]
        part = in_float64(_row_densities)(
            fit.law, sample.value, {k: v[own] for k, v in sample.covariates.items()}, log_e_run[:, own],
            0.0 if effect is None else effect[:, own], *(values[index] for values in sample.columns),
        )  # fmt: skip
        found = np.zeros((len(log_e_run), len(own_row[chunk]))) + log_stays
        found[:, own_row[chunk]] = np.asarray(part)[:, 1 : 1 + last - first]
        yield found


@in_float64
def trajectory_log_likelihood(fit: Fit, *, draws: int = 1000, progress: bool = True) -> NDArray[np.float64]:
    """Integrate the likelihood of whole trajectories over their own effects, given everything else.

    Args:
        fit: The posterior.
        draws: Posterior draws used.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        Log likelihoods, `[draws, trajectories]`.
    """
    sample = Sample.of(fit, draws)
    location, spread = _given_others(fit, sample, draws)
    log_e_run, effect = (_thinned(fit, name, draws) for name in ("log_e_run", "effect_p"))
    assert log_e_run is not None
    effects = np.stack([log_e_run, np.zeros_like(log_e_run) if effect is None else effect], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        start = np.where(spread > 0, (effects - location) / spread, 0.0)
    return _integrated(fit.law, sample, location, spread, start, progress=progress)


@in_float64
def new_run_log_likelihood(
    fit: Fit, runs: pd.DataFrame, *, draws: int | None = None, progress: bool = True
) -> NDArray[np.float64]:
    """Integrate the likelihood of runs that were not fitted over their effects, given the posterior's draws.

    Effects of a network that was trained vary about its own posterior, those of another about the dense law too.

    Args:
        fit: The posterior.
        runs: Validated run table with `trajectory`, of the fit's family.
        draws: Posterior draws used, spread evenly over all of a fit's; all by default.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        Log likelihoods of whole trajectories, `[draws, trajectories]`, trajectories in the order of `make_data`.
    """
    draws = draws or fit.posterior["plateau"].size
    sample = Sample.of(fit, draws, runs)
    location, spread = _of_new(fit, sample, draws)
    return _integrated(fit.law, sample, location, spread, np.zeros_like(location), progress=progress)


def score_runs(fit: Fit, runs: pd.DataFrame, *, draws: int | None = None) -> pd.DataFrame:
    """Give the log predictive density of whole trajectories that were not fitted, effects integrated.

    Args:
        fit: The posterior.
        runs: Validated run table with `trajectory`, of the fit's family.
        draws: Posterior draws used, spread evenly over all of a fit's; all by default.

    Returns:
        One row per trajectory: the network, `trajectory`, `log_density` of its empirical logits all together, and the
        Monte Carlo error `mcse` of that.
    """
    log_density, mcse = log_mean(new_run_log_likelihood(fit, runs, draws=draws, progress=False))
    return first_rows(runs)[[*CONFIGURATION, "trajectory"]].assign(log_density=log_density, mcse=mcse)


def log_mean(log_likelihood: Any) -> tuple[Any, Any]:
    """Average likelihoods `[draws, ...]` over draws that are nearly independent.

    Returns:
        The logarithm of the mean, and its Monte Carlo error.

    Example:
        >>> [part.round(4).tolist() for part in log_mean(np.log([[1.0], [3.0]]))]
        [[0.6931], [0.5]]
    """
    count = len(log_likelihood)
    log_density = scipy.special.logsumexp(log_likelihood, axis=0) - np.log(count)
    share = np.exp(log_likelihood - log_density)
    return log_density, share.std(0, ddof=1) / np.sqrt(count)


def _integrated(
    law: Law, sample: Sample, location: NDArray, spread: NDArray, start: NDArray, *, progress: bool
) -> NDArray[np.float64]:
    """Integrate the likelihood of every trajectory over its effects.

    Args:
        law: The law.
        sample: Draws and data.
        location: Where log e and the sideways effect are expected, `[draws, trajectories, 2]`.
        spread: Their sd about it, likewise.
        start: Where the integrand's mode is searched from, in units of `spread` from `location`.
        progress: Show a progress bar where standard error is a terminal.
    """
    longest = int(np.bincount(sample.trajectory).max())
    columns, log_stays = [], np.log(sample.value["stays"][:, 0]) if "stays" in sample.value else 0.0
    silent = None if progress else True
    for t in tqdm(range(location.shape[1]), desc="left out", unit="run", disable=silent, file=sys.stderr):
        rows = np.flatnonzero(sample.trajectory == t)
        index = np.pad(rows, (0, longest - len(rows)), mode="edge")
        columns.append(
            log_stays * np.sum((sample.fate == STAYED) & (sample.of_fate == t))
            + _integrate(
                law, sample.value, {k: v[t] for k, v in sample.covariates.items()}, location[:, t], spread[:, t],
                start[:, t], np.arange(longest) < len(rows), *(values[index] for values in sample.columns),
            )
        )  # fmt: skip
    return np.stack([np.asarray(column) for column in columns], axis=1)


class Sample(NamedTuple):
    """Hold thinned draws and the data they were conditioned on, rows in order along each trajectory.

    Attributes:
        value: Parameters, `[draws, 1]` each.
        covariates: Of every trajectory.
        fate: What became of every row (`bayeslaw.deaths`).
        of_fate: Trajectory of every row.
        trajectory: Trajectory of every row that a network did not stay dead by.
        configuration: Configuration of every trajectory.
        configurations: One row each, depth, width and dataset size.
        columns: Response, log density, n_test, gap (`frame.gaps`) and fate of those rows.
        tested: Test examples of every trajectory's configuration (`frame.tested_on`).
        luck: How far its subset moves log e of every trajectory, as far as that is known, `[draws, trajectories]`.
        luck_spread: Spread of what is not known of that, to first order, likewise.
    """

    value: dict[str, NDArray]
    covariates: dict[str, NDArray]
    fate: NDArray[np.integer[Any]]
    of_fate: NDArray[np.intp]
    trajectory: NDArray[np.intp]
    configuration: NDArray[np.intp]
    configurations: pd.DataFrame
    columns: tuple[NDArray, ...]
    tested: NDArray
    luck: NDArray
    luck_spread: NDArray

    @classmethod
    def of(cls, fit: Fit, draws: int, runs: pd.DataFrame | None = None) -> Sample:
        """Take the fitted runs, or others."""
        if runs is None:
            configuration, configurations, rows = fitted_rows(fit)
        else:
            data, labels = make_data(runs, fit.frame, deaths=fit.structure.deaths)
            configuration, configurations, rows = np.asarray(data.configuration), labels.configurations, labels.rows
        index = _thinning(fit, draws)
        rows_of_runs = first_rows(fit.runs if runs is None else runs)
        share, luck, unknown = (part[index] for part in expected_luck(fit, rows_of_runs))
        value = {name: values[index, None] for name, values in parameter_draws(fit).items()}
        covariates = fit.frame.covariates(configurations)
        order = along_trajectories(rows.trajectory, rows.log_density)
        fate, of_fate = rows.fate[order], rows.trajectory[order]
        order = order[fate != STAYED]
        trajectory, log_density, fates = rows.trajectory[order], rows.log_density[order], rows.fate[order]
        return cls(
            value,
            {name: values[configuration] for name, values in covariates.items()},
            fate,
            of_fate,
            trajectory,
            configuration,
            configurations,
            (rows.response[order], log_density, rows.n_test[order], gaps(trajectory, log_density, fates), fates),
            tested_on(configuration[rows.trajectory], rows.n_test)[configuration],
            np.asarray(moved_by_luck(share, luck)),
            share * unknown,
        )


def first_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Take a row of every trajectory, in the order of `make_data`."""
    keys = [*CONFIGURATION, "trajectory"] if "trajectory" in runs else CONFIGURATION
    return runs.drop_duplicates(keys).sort_values(keys, ignore_index=True)


def fitted_rows(fit: Fit) -> tuple[NDArray[np.intp], pd.DataFrame, Rows]:
    """Give the configuration of every trajectory, the configurations and the rows that were fitted."""
    constant = fit.tree["constant_data"].to_dataset()
    columns = [constant[name].to_numpy() for name in ("log_density", "n_test", "trajectory_of_row", "fate")]
    rows = Rows(fit.tree["observed_data"]["response"].to_numpy(), *columns)
    return constant["configuration_of_trajectory"].to_numpy(), fit.configurations, rows


def _thinning(fit: Fit, draws: int) -> NDArray[np.intp]:
    total = fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"]
    return np.linspace(0, total - 1, min(draws, total)).round().astype(int)


def _thinned(fit: Fit, name: str, draws: int) -> NDArray | None:
    if name not in fit.posterior:
        return None
    values = fit.posterior[name].to_numpy()
    return values.reshape(-1, *values.shape[2:])[_thinning(fit, draws)]


def _given_others(fit: Fit, sample: Sample, draws: int) -> tuple[NDArray, NDArray]:
    """Say where the effects of every trajectory can lie, given the others of its configuration.

    Returns:
        Mean and sd of log e and of the sideways effect, each `[draws, trajectories, 2]`.
    """
    configuration, centre = sample.configuration, _centres(sample)
    spread = spreads_at(sample.value, centre, sample.covariates["width"], sample.tested)
    zero = np.zeros_like(centre)
    found = []
    for (of_runs, own, where), about in zip(_EFFECTS, (centre, zero), strict=True):
        sigma, tau = (spread.get(f"{part}_{where}", zero) + zero for part in ("sigma", "tau"))
        effects, luck = _thinned(fit, of_runs, draws), sample.luck if where == "np" else zero
        if f"tau_{where}" in spread and effects is not None:
            expected, unknown = _given_other_runs(effects - luck, about, sigma, tau, configuration)
            found.append((expected + luck, unknown))
            continue
        own_draws = _thinned(fit, own, draws)
        alone = np.bincount(configuration)[configuration] == 1
        known = about if own_draws is None else own_draws[:, configuration]
        found.append((np.where(alone & (sigma > 0), about, known) + luck, np.where(alone, sigma, zero)))
    return _stacked(found)


def _given_other_runs(
    effects: NDArray, about: NDArray, sigma: NDArray, tau: NDArray, configuration: NDArray
) -> tuple[NDArray, NDArray]:
    """Give mean and sd of a trajectory's effect given the others of its configuration, each `[draws, trajectories]`."""
    member = configuration[:, None] == np.arange(configuration.max() + 1)
    others = member.sum(0)[configuration] - 1
    total = (effects @ member)[:, configuration] - effects
    variance = sigma**2 * tau**2 / (tau**2 + others * sigma**2)
    location = about + variance * (total - others * about) / tau**2
    return location, np.sqrt(variance + tau**2)


def _of_new(fit: Fit, sample: Sample, draws: int) -> tuple[NDArray, NDArray]:
    """Say where the effects of runs can lie that were not fitted; shaped as in `_given_others`."""
    centre = _centres(sample)
    spread = spreads_at(sample.value, centre, sample.covariates["width"], sample.tested)
    zero = np.zeros_like(centre)
    known = {row: i for i, row in enumerate(fit.configurations.itertuples(index=False, name=None))}
    place = np.array([known.get(row, -1) for row in sample.configurations.itertuples(index=False, name=None)])
    place = place[sample.configuration]
    found = []
    for (_, own, where), about in zip(_EFFECTS, (centre, zero), strict=True):
        sigma, tau = (spread.get(f"{part}_{where}", zero) + zero for part in ("sigma", "tau"))
        own_draws = _thinned(fit, own, draws)
        location = about if own_draws is None else np.where(place >= 0, own_draws[:, place], about)
        luck, unknown = (sample.luck, sample.luck_spread) if where == "np" else (zero, zero)
        apart = np.where(place >= 0, tau, np.hypot(sigma, tau))
        found.append((location + luck, np.hypot(apart, unknown)))
    return _stacked(found)


def _centres(sample: Sample) -> NDArray:
    """Give log e by the dense law, `[draws, trajectories]`."""
    return np.asarray(log_dense_at(sample.value, sample.covariates)) * np.ones((1, len(sample.configuration)))


def _stacked(found: list[tuple[NDArray, NDArray]]) -> tuple[NDArray, NDArray]:
    location, spread = (np.stack([np.asarray(part) for part in parts], axis=-1) for parts in zip(*found, strict=True))
    return location, spread


@jit(static_argnums=0)
def _row_densities(
    law: Law, value: Any, covariates: Any, log_e: Any, effect: Any, response: Any, *columns: Any
) -> jax.Array:
    curve = law.curve(value, covariates, log_e, effect)
    log_density, n_test, gap, fate = columns
    measured = response_distribution(law, curve, log_density, n_test, value, gap)
    if "dies" not in value:
        return jnp.asarray(measured.log_prob(response))
    log_chance = value["log_eps_up"] - jnp.log(value["plateau"])
    came = log_probability(value, fate, measured.log_mean, log_chance, covariates["width"])
    return came + jnp.where(are_dead(fate), 0.0, measured.log_prob(response))


@jit(static_argnums=0)
def _integrate(
    law: Law, value: Any, covariates: Any, location: Any, spread: Any, start: Any, used: Any, *columns: Any
) -> jax.Array:
    """Integrate one trajectory's likelihood over its two standardised effects, draw by draw."""

    def one(value: Any, location: Any, spread: Any, start: Any) -> jax.Array:
        def log_joint(z: jax.Array) -> jax.Array:
            rows = _row_densities(law, value, covariates, *(location + spread * z), *columns)
            return jnp.sum(jnp.where(used, rows, 0.0)) - 0.5 * jnp.sum(z**2) - jnp.log(2 * jnp.pi)

        def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
            gradient, curvature = jax.grad(log_joint)(z), _positive(-jax.hessian(log_joint)(z))
            move = _solve(curvature, gradient)
            return z + move / jnp.maximum(1.0, jnp.sqrt(jnp.sum(move**2))), None

        mode, _ = jax.lax.scan(step, start, None, STEPS)
        curvature = _positive(-jax.hessian(log_joint)(mode))
        # Cholesky factor of the inverse of a two by two matrix.
        determinant = curvature[0, 0] * curvature[1, 1] - curvature[0, 1] ** 2
        first = jnp.sqrt(curvature[1, 1] / determinant)
        factor = jnp.array([[first, 0.0], [-curvature[0, 1] / determinant / first, 1 / jnp.sqrt(curvature[1, 1])]])
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        x = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2))
        log_weight = jnp.log(jnp.outer(jnp.asarray(weights), jnp.asarray(weights)).ravel())
        values = jax.vmap(log_joint)(mode + x @ factor.T)
        return jax.nn.logsumexp(values + log_weight + 0.5 * jnp.sum(x**2, 1)) - 0.5 * jnp.log(determinant)

    return jax.vmap(one)(jax.tree.map(lambda v: v[:, 0], value), location, spread, start)


def _positive(matrix: jax.Array) -> jax.Array:
    """Lift the eigenvalues of a symmetric two by two matrix to at least a half."""
    trace, difference = matrix[0, 0] + matrix[1, 1], matrix[0, 0] - matrix[1, 1]
    smallest = 0.5 * (trace - jnp.sqrt(difference**2 + 4 * matrix[0, 1] ** 2 + 1e-300))
    return matrix + jnp.maximum(0.0, 0.5 - smallest) * jnp.eye(2)


def _solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] ** 2
    adjugate = jnp.array([[matrix[1, 1], -matrix[0, 1]], [-matrix[0, 1], matrix[0, 0]]])
    return adjugate @ vector / determinant
