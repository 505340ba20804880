"""Which law predicts best: leave-one-out and leave-trajectory-out predictive densities of several fits."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, along_trajectories, gaps
from bayeslaw.hierarchy import spreads_at
from bayeslaw.laws import Law, log_dense_at
from bayeslaw.noise import response_distribution
from bayeslaw.precision import in_float64
from bayeslaw.predict import parameter_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Nodes per effect of a trajectory, and Newton steps to where they are centred.
NODES, STEPS = 9, 8
#: Share of points or trajectories with a k-hat above the limit from which an estimate is not to be believed.
TOO_MANY = 0.01
#: Rows whose log likelihood is computed at once.
_ROWS = 256


@dataclass(frozen=True)
class Comparison:
    """Hold how several fits of one table rank.

    Attributes:
        table: One row per fit, best leave-trajectory-out first: `law`, and for each of `lto` (whole trajectories left
            out, their effects integrated) and `loo` (single rows left out): `elpd` (sum of log predictive densities of
            the empirical logits; higher is better), `se`, `difference` from the first row and its `difference_se`,
            `bad_k` (share of k-hat above the limit) and `believe`.
        pointwise: Log predictive density of every trajectory left out, by fit, `[trajectories]`.
    """

    table: pd.DataFrame
    pointwise: pd.DataFrame

    def __str__(self) -> str:
        shown = self.table.to_string(float_format=lambda v: f"{v:.2f}")
        return "\n".join([shown, *self.warnings])

    @property
    def warnings(self) -> list[str]:
        """Say which estimates must not be believed, and why."""
        lines = []
        for name, row in self.table.iterrows():
            for kind, what in (("lto", "trajectories"), ("loo", "rows")):
                if not row[f"{kind}_believe"]:
                    lines.append(
                        f"Warning: {name}: {row[f'{kind}_bad_k']:.1%} of the {what} have a Pareto k-hat above the "
                        f"limit; do not believe its {kind} estimate; refit without them (bayeslaw evaluate does)."
                    )
        return lines


def compare(fits: Mapping[str, Fit], *, draws: int = 1000, progress: bool = True) -> Comparison:
    """Rank fits of one run table by the density they give to what is left out.

    Rows of a trajectory share its effects, so that leaving out single rows (PSIS-LOO) judges how well a curve is filled
    in. Leaving out whole trajectories judges how well a new run is predicted; it decides the rank.

    Args:
        fits: Fits of the same runs, by name.
        draws: Posterior draws used, spread evenly over all of a fit's.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The comparison.

    Raises:
        BayeslawError: There are fewer than two fits, or they are of different runs.

    Source:
        Vehtari, Gelman, Gabry 2017 (PSIS-LOO); Vehtari et al. 2024 (k-hat); Merkle, Furr, Rabe-Hesketh 2019
        (integrating the effects of what is left out).

    Example:
        >>> import bayeslaw
        >>> bayeslaw.compare({"M1": fit, "M2": bayeslaw.fit(runs, law="sharpness")})  # doctest: +SKIP
    """
    _check(fits)
    rows, pointwise = {}, {}
    for name, fit in fits.items():
        by_trajectory = leave_trajectory_out(fit, draws=draws, progress=progress)
        by_row = leave_row_out(fit, draws=draws)
        pointwise[name] = by_trajectory.elpd
        rows[name] = {"law": fit.law.name, "lto": by_trajectory, "loo": by_row}
    order = sorted(rows, key=lambda name: -rows[name]["lto"].elpd.sum())
    best = rows[order[0]]
    table = {
        name: {"law": rows[name]["law"]}
        | _columns("lto", rows[name]["lto"], best["lto"])
        | _columns("loo", rows[name]["loo"], best["loo"])
        for name in order
    }
    index = pd.Index(next(iter(fits.values())).tree["posterior"].coords["trajectory"].to_numpy(), name="trajectory")
    return Comparison(pd.DataFrame.from_dict(table, orient="index"), pd.DataFrame(pointwise, index=index)[order])


class LeftOut(NamedTuple):
    """Hold the log predictive density of what is left out in turn.

    Attributes:
        elpd: `[left out]`.
        pareto_k: How far the importance weights can be trusted, `[left out]`.
        limit: The largest k-hat that can be for this number of draws.
    """

    elpd: NDArray[np.float64]
    pareto_k: NDArray[np.float64]
    limit: float


def _columns(kind: str, own: LeftOut, best: LeftOut) -> dict[str, Any]:
    difference = own.elpd - best.elpd
    bad = float(np.mean(own.pareto_k > own.limit))
    count = np.sqrt(len(difference))
    entries = {
        "elpd": own.elpd.sum(),
        "se": count * own.elpd.std(ddof=1),
        "difference": difference.sum(),
        "difference_se": count * difference.std(ddof=1),
        "bad_k": bad,
        "believe": bad <= TOO_MANY,
    }
    return {f"{kind}_{name}": value for name, value in entries.items()}


def _check(fits: Mapping[str, Fit]) -> None:
    if len(fits) < 2:
        raise BayeslawError(f"compare needs two fits or more; got {len(fits)}.")
    names = list(fits)
    keys = [*CONFIGURATION, "density", "error"]
    first = fits[names[0]].runs[keys].to_numpy(float)
    for name in names[1:]:
        other = fits[name].runs[keys].to_numpy(float)
        if other.shape != first.shape or not (other == first).all():
            raise BayeslawError(f"compare: {name!r} was fitted to other runs than {names[0]!r}; fit the same table.")


@in_float64
def leave_row_out(fit: Fit, *, draws: int = 1000) -> LeftOut:
    """Estimate the log predictive density of every row, left out alone, by PSIS.

    Args:
        fit: The posterior.
        draws: Posterior draws used.

    Returns:
        One entry per row.
    """
    found = _importance(np.concatenate(list(row_log_likelihood(fit, draws=draws)), axis=1))
    back = np.argsort(_row_order(fit))
    return found._replace(elpd=found.elpd[back], pareto_k=found.pareto_k[back])


def row_log_likelihood(fit: Fit, *, draws: int | None = None) -> Iterator[NDArray[np.float64]]:
    """Compute the log likelihood of the rows given their own runs' effects, a chunk of rows at a time.

    Rows come by trajectory, from the densest to the sparsest; where noise is correlated, each is given the one before.

    Args:
        fit: The posterior.
        draws: Posterior draws used, spread evenly over all of a fit's; all by default.

    Yields:
        Log likelihoods `[draws, rows]` of the next rows; all rows times all draws may not fit in memory.
    """
    draws = draws or fit.posterior["plateau"].size
    sample = _Sample.of(fit, draws)
    log_e_run, effect = _thinned(fit, "log_e_run", draws), _thinned(fit, "effect_p", draws)
    assert log_e_run is not None
    rows = len(sample.order)
    for start in range(0, rows, _ROWS):
        index = np.clip(np.arange(start - 1, start + _ROWS), 0, rows - 1)  # with the row before
        own = sample.trajectory[index]
        part = in_float64(_row_densities)(
            fit.law, sample.value, {k: v[own] for k, v in sample.covariates.items()}, log_e_run[:, own],
            0.0 if effect is None else effect[:, own], *(values[index] for values in sample.columns),
        )  # fmt: skip
        yield np.asarray(part)[:, 1 : 1 + rows - start]


@in_float64
def leave_trajectory_out(fit: Fit, *, draws: int = 1000, progress: bool = True) -> LeftOut:
    """Estimate the log predictive density of every trajectory, left out whole, by PSIS with its effects integrated.

    For each draw, log e of the trajectory given its configuration's other trajectories and the dense law is normal, and
    so is its sideways effect; the likelihood of all its rows is integrated over both by Gauss-Hermite quadrature about
    the integrand's mode. The weights of importance sampling then only have to undo what the trajectory tells of what
    it shares with others.

    Args:
        fit: The posterior.
        draws: Posterior draws used.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        One entry per trajectory, in the order of the posterior's `trajectory` dimension.
    """
    return _importance(trajectory_log_likelihood(fit, draws=draws, progress=progress))


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
    sample = _Sample.of(fit, draws)
    location, spread, tau_p = _conditional(fit, sample, draws)
    log_e_run, effect = (_thinned(fit, name, draws) for name in ("log_e_run", "effect_p"))
    longest = int(np.bincount(sample.trajectory).max())
    columns = []
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.where(spread > 0, (log_e_run - location) / spread, 0.0)
        sideways = np.zeros_like(up) if effect is None else effect / tau_p
    for t in tqdm(range(location.shape[1]), desc="left out", unit="run", disable=_silent(progress), file=sys.stderr):
        rows = np.flatnonzero(sample.trajectory == t)
        index = np.pad(rows, (0, longest - len(rows)), mode="edge")
        columns.append(
            _integrate(
                fit.law, sample.value, {k: v[t] for k, v in sample.covariates.items()},
                location[:, t], spread[:, t], tau_p[:, t], np.stack([up[:, t], sideways[:, t]], axis=1),
                np.arange(longest) < len(rows), *(values[index] for values in sample.columns),
            )
        )  # fmt: skip
    return np.stack([np.asarray(column) for column in columns], axis=1)


def _silent(progress: bool) -> bool | None:
    return None if progress else True


class _Sample(NamedTuple):
    """Hold thinned draws and the data they were conditioned on, rows in order along each trajectory.

    Attributes:
        value: Parameters, `[draws, 1]` each.
        covariates: Of every trajectory.
        trajectory: Trajectory of every row.
        configuration: Configuration of every trajectory.
        order: Position of every row in the run table.
        columns: Response, log density, n_test and gap (`frame.gaps`) of every row.
    """

    value: dict[str, NDArray]
    covariates: dict[str, NDArray]
    trajectory: NDArray[np.intp]
    configuration: NDArray[np.intp]
    order: NDArray[np.integer[Any]]
    columns: tuple[NDArray, NDArray, NDArray, NDArray]

    @classmethod
    def of(cls, fit: Fit, draws: int) -> _Sample:
        constant = fit.tree["constant_data"].to_dataset()
        response = fit.tree["observed_data"]["response"].to_numpy()
        configuration = constant["configuration_of_trajectory"].to_numpy()
        index = _thinning(fit, draws)
        value = {name: values[index, None] for name, values in parameter_draws(fit).items()}
        covariates = fit.frame.covariates(fit.configurations)
        trajectory, log_density = (constant[name].to_numpy() for name in ("trajectory_of_row", "log_density"))
        order = _row_order(fit)
        trajectory, log_density = trajectory[order], log_density[order]
        n_test, gap = constant["n_test"].to_numpy()[order], gaps(trajectory, log_density)
        return cls(
            value,
            {name: values[configuration] for name, values in covariates.items()},
            trajectory,
            configuration,
            order,
            (response[order], log_density, n_test, gap),
        )


def _row_order(fit: Fit) -> NDArray[np.integer[Any]]:
    """Give the positions in the run table of rows by trajectory, from the densest to the sparsest."""
    constant = fit.tree["constant_data"].to_dataset()
    return along_trajectories(constant["trajectory_of_row"].to_numpy(), constant["log_density"].to_numpy())


def _thinning(fit: Fit, draws: int) -> NDArray[np.intp]:
    total = fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"]
    return np.linspace(0, total - 1, min(draws, total)).round().astype(int)


def _thinned(fit: Fit, name: str, draws: int) -> NDArray | None:
    if name not in fit.posterior:
        return None
    values = fit.posterior[name].to_numpy()
    return values.reshape(-1, *values.shape[2:])[_thinning(fit, draws)]


def _importance(log_likelihood: NDArray) -> LeftOut:
    """Weigh draws `[draws, left out]` by the inverse of what is left out, smoothed."""
    from arviz_stats.base.array import array_stats

    elpd, pareto_k, _ = array_stats.loo(log_likelihood.T[:, None, :], chain_axis=-2, draw_axis=-1)
    limit = min(1 - 1 / np.log10(len(log_likelihood)), 0.7)
    return LeftOut(np.asarray(elpd), np.asarray(pareto_k), limit)


def _conditional(fit: Fit, sample: _Sample, draws: int) -> tuple[NDArray, NDArray, NDArray]:
    """Say where the effects of every trajectory can lie, given the others of its configuration.

    Returns:
        Mean and sd of log e, and the sd of the sideways effect, each `[draws, trajectories]`.
    """
    value, configuration = sample.value, sample.configuration
    centre = np.asarray(log_dense_at(value, sample.covariates)) * np.ones((1, len(configuration)))
    zero = np.zeros_like(centre)
    value = value | {name: np.asarray(v) + zero for name, v in spreads_at(value, centre).items()}
    if "tau_np" not in value:
        log_e = _thinned(fit, "log_e", draws)
        assert log_e is not None
        alone = np.bincount(configuration)[configuration] == 1
        location = np.where(alone & ("sigma_np" in value), centre, log_e[:, configuration])
        return location, np.where(alone, value.get("sigma_np", zero), zero), value.get("tau_p", zero)
    if "sigma_np" not in value:
        return centre, value["tau_np"], value.get("tau_p", zero)
    log_e_run = _thinned(fit, "log_e_run", draws)
    assert log_e_run is not None
    member = configuration[:, None] == np.arange(configuration.max() + 1)
    others = member.sum(0)[configuration] - 1
    total = (log_e_run @ member)[:, configuration] - log_e_run
    between, within = value["sigma_np"] ** -2, value["tau_np"] ** -2
    precision = between + others * within
    location = (centre * between + total * within) / precision
    return location, np.sqrt(1 / precision + 1 / within), value.get("tau_p", zero)


@functools.partial(jax.jit, static_argnums=0)
def _row_densities(
    law: Law, value: Any, covariates: Any, log_e: Any, effect: Any, response: Any, *columns: Any
) -> jax.Array:
    curve = law.curve(value, covariates, log_e, effect)
    log_density, n_test, gap = columns
    return jnp.asarray(response_distribution(law, curve, log_density, n_test, value, gap).log_prob(response))


@functools.partial(jax.jit, static_argnums=0)
def _integrate(
    law: Law, value: Any, covariates: Any, location: Any, spread: Any, tau_p: Any, start: Any, used: Any, *columns: Any
) -> jax.Array:
    """Integrate one trajectory's likelihood over its two standardised effects, draw by draw."""

    def one(value: Any, location: Any, spread: Any, tau_p: Any, start: Any) -> jax.Array:
        def log_joint(z: jax.Array) -> jax.Array:
            log_e, effect = location + spread * z[0], tau_p * z[1]
            rows = _row_densities(law, value, covariates, log_e, effect, *columns)
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

    return jax.vmap(one)(jax.tree.map(lambda v: v[:, 0], value), location, spread, tau_p, start)


def _positive(matrix: jax.Array) -> jax.Array:
    """Lift the eigenvalues of a symmetric two by two matrix to at least a half."""
    trace, difference = matrix[0, 0] + matrix[1, 1], matrix[0, 0] - matrix[1, 1]
    smallest = 0.5 * (trace - jnp.sqrt(difference**2 + 4 * matrix[0, 1] ** 2 + 1e-300))
    return matrix + jnp.maximum(0.0, 0.5 - smallest) * jnp.eye(2)


def _solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] ** 2
    adjugate = jnp.array([[matrix[1, 1], -matrix[0, 1]], [-matrix[0, 1], matrix[0, 0]]])
    return adjugate @ vector / determinant
