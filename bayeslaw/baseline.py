"""The paper's way: the joint law by least squares.

Every user will compare the posterior with this. It takes the measured unpruned error for eps_np, where the posterior
keeps eps_np latent, and knows no noise model; its only uncertainty is that of the bootstrap (`bootstrapping`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.optimize
from jax import Array
from numpy.typing import NDArray

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, Frame, check_one_family, make_frame
from bayeslaw.law import Curve, Dense, log_dense, log_error, log_m_star, saturate
from bayeslaw.precision import in_float64

DESIGN = [*CONFIGURATION, "density"]
#: Logarithms of the smallest and largest slope searched.
_LOG_GAMMA = (float(np.log(1e-2)), float(np.log(1e2)))
#: Logarithm that stands for a term which is not there.
_NOTHING = -700.0
#: Logarithmic distance from the edge of the search within which a constant counts as being there.
_EDGE = 1e-4
#: Starts agree whose root mean square deviation differs by less than this, however good the best is.
_NOISELESS = 1e-7
#: How many names of left-out configurations a warning lists.
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Hold the joint law's least-squares fit.

    Attributes:
        eps_up: High plateau.
        gamma: Slope of the power-law region.
        p_prime: Where curves meet the high plateau, in units of m* with the width multiple width / width_reference.
        phi: Exponent of depth.
        psi: Exponent of width.
        fixed: Names among `phi`, `psi` that were fixed at 0, because their axis does not vary in the table.
        at_edge: Names among `eps_up`, `gamma` that ended at the edge of what is searched: eps_up at the highest eps_np
            or at 1, gamma at 0.01 or 100. The table does not determine them.
        cost: Sum of squared relative deviations.
        starts_agreeing: Share of starts that ended within a relative 1e-6 of the best cost (or, where that is a perfect
            fit, within a root mean square deviation of 1e-7).
        rows: Rows used, with the index of the run table: depth, width, dataset_size, density, error. Those with an
            error of 0 are not among them.
        deviations: Relative deviation (estimated - measured) / measured of each of `rows`, `[rows]`.
        eps_np: Mean measured unpruned error by configuration, and the number of `runs` it is the mean of.
        frame: Family and centre of the covariates.
    """

    eps_up: float
    gamma: float
    p_prime: float
    phi: float
    psi: float
    fixed: tuple[str, ...]
    at_edge: tuple[str, ...]
    cost: float
    starts_agreeing: float
    rows: pd.DataFrame
    deviations: NDArray[np.float64]
    eps_np: pd.DataFrame
    frame: Frame

    @property
    def mean_deviation(self) -> float:
        """Mean of the relative deviations."""
        return float(np.mean(self.deviations))

    @property
    def sd_deviation(self) -> float:
        """Standard deviation of the relative deviations."""
        return float(np.std(self.deviations))

    @cached_property
    def dense(self) -> Dense:
        """Dense law that gives eps_np to configurations that were not trained, fitted when first asked for."""
        return _fit_dense(self)

    def predict(self, designs: pd.DataFrame) -> NDArray[np.float64]:
        """Predict the error of pruned networks.

        A configuration of the table has its measured eps_np; one that was not trained has that of the dense law,
        fitted by least squares of the log of the measured unpruned errors, with eps_up as its asymptote. Two sizes or
        two parameter counts do not determine its five constants: between and beyond them it is then arbitrary.

        Args:
            designs: Columns depth, width, dataset_size and density (in (0, 1]), one row per prediction.

        Returns:
            Errors as fractions, `[designs]`.

        Raises:
            BayeslawError: Columns are missing or out of range, or a configuration was not trained and the table
                cannot tell the dense law (too few configurations, or an axis that never varied).

        Source:
            Rosenfeld et al., ICML 2021, section 5; ICLR 2020, equations (4) and (5), for what was not trained.
        """
        _check_designs(designs)
        return predict_errors(self, designs)


def least_squares(runs: pd.DataFrame, *, starts: int = 20, seed: int = 0) -> LeastSquares:
    r"""Fit the joint law to one family's runs as the paper does.

    $$\min_{\epsilon_{up}, \gamma, p', \phi, \psi} \sum_i \left(\hat\epsilon_i / \epsilon_i - 1\right)^2$$

    over the rows with an error above 0, where eps_np of a configuration is the mean of its measured unpruned errors
    (density 1, errors of 0 included), eps_np < eps_up <= 1 for all configurations, gamma > 0 and p' > 0. Configurations
    without an unpruned run, or with an unpruned error of 0, are left out with a warning.

    Args:
        runs: Validated run table (`load_runs`) of one family and dataset.
        starts: Number of random starting points; the best end is taken.
        seed: Seed of the starting points.

    Returns:
        The fit.

    Raises:
        BayeslawError: There are several families, no unpruned runs, or fewer pruned rows than constants.

    Source:
        Rosenfeld et al., ICML 2021, section 5.

    Example:
        >>> density = 0.8 ** np.arange(40)
        >>> plateaus = {(8, 16): 0.2, (14, 16): 0.15, (8, 32): 0.12}
        >>> runs = pd.concat(
        ...     [pd.DataFrame({"family": "cifar_resnet", "dataset": "cifar10", "depth": depth, "width": width,
        ...                    "dataset_size": 50_000, "density": density,
        ...                    "error": np.hypot(density * eps_np, 0.001 * 0.9) / np.hypot(density, 0.001)})
        ...      for (depth, width), eps_np in plateaus.items()], ignore_index=True)
        >>> fit = least_squares(runs)
        >>> [round(value, 3) for value in (fit.eps_up, fit.gamma, fit.p_prime)]
        [0.9, 1.0, 0.001]
    """
    return fit_all(tabulate(runs), starts, seed)


# The table as arrays


@dataclass(frozen=True, eq=False)
class RowTable:
    """A run table as arrays: rows of configurations that have an unpruned run."""

    rows: pd.DataFrame
    frame: Frame
    configurations: pd.DataFrame
    configuration: NDArray[np.intp]
    trajectory: NDArray[np.integer]

    @cached_property
    def covariates(self) -> dict[str, NDArray[np.float64]]:
        """Centred covariates by configuration."""
        return self.frame.covariates(self.configurations)

    def plateaus(self, counts: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean unpruned error (nan where none was drawn, or all are 0) and number of unpruned runs by configuration."""
        weight = counts[self.trajectory] * _is_unpruned(self.rows)
        size = len(self.configurations)
        total = np.bincount(self.configuration, weight * self.rows["error"].to_numpy(float), size)
        runs = np.bincount(self.configuration, weight, size)
        return np.where(total > 0, total, np.nan) / np.maximum(runs, 1), runs


def _is_unpruned(rows: pd.DataFrame) -> NDArray[np.bool_]:
    return np.isclose(rows["density"].to_numpy(float), 1.0, rtol=0, atol=1e-9)


def tabulate(runs: pd.DataFrame) -> RowTable:
    """Turn a run table into arrays, without configurations that have no unpruned error above 0."""
    if absent := [name for name in ("family", "dataset", *DESIGN, "error") if name not in runs]:
        raise BayeslawError(f"the run table has no column {', '.join(absent)}; pass it through load_runs first.")
    if runs.empty:
        raise BayeslawError("the run table has no rows; there is nothing to fit.")
    check_one_family(runs)
    configurations = runs.filter(CONFIGURATION).drop_duplicates().sort_values(CONFIGURATION, ignore_index=True)
    of_row = _find(configurations, runs)
    error, unpruned = runs["error"].to_numpy(float), _is_unpruned(runs)
    total, count = (np.bincount(of_row, weight, len(configurations)) for weight in (error * unpruned, unpruned))
    if not total.any():
        raise BayeslawError(
            "least squares takes eps_np from the unpruned error, but no configuration has a row with density 1 and an "
            "error above 0; add the unpruned runs, or use fit, which keeps eps_np latent."
        )
    _warn_of(configurations.loc[count == 0], "have no unpruned run (density 1)")
    _warn_of(configurations.loc[(count > 0) & (total == 0)], "have an unpruned error of 0")
    used = runs.loc[total[of_row] > 0]
    configurations = configurations.loc[total > 0].reset_index(drop=True)
    of_row = _find(configurations, used)
    keys = used["trajectory"].to_numpy() if "trajectory" in used else np.zeros(len(used))
    trajectory = pd.Series(0, np.arange(len(used))).groupby([of_row, keys]).ngroup().to_numpy()
    return RowTable(used.filter([*DESIGN, "error"]), make_frame(used, 1.0), configurations, of_row, trajectory)


def _find(configurations: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.intp]:
    """Give the position of each row's configuration, -1 where it is none of them."""
    known, wanted = (
        pd.MultiIndex.from_frame(table.filter(CONFIGURATION).astype(float)) for table in (configurations, rows)
    )
    return known.get_indexer(wanted)


def _warn_of(configurations: pd.DataFrame, what: str) -> None:
    names = [
        f"depth={depth:g} width={width:g} dataset_size={size:g}"
        for depth, width, size in configurations.itertuples(index=False)
    ]
    if names:
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        warnings.warn(
            f"least squares takes eps_np from the unpruned error; left out are {len(names)} configurations that "
            f"{what}: {', '.join(names[:_SHOWN])}{more}.",
            UserWarning,
            stacklevel=4,
        )


def _check_designs(designs: pd.DataFrame) -> None:
    if absent := [name for name in DESIGN if name not in designs]:
        raise BayeslawError(f"designs: column {', '.join(absent)} missing; needed are {', '.join(DESIGN)}.")
    values = designs[DESIGN].to_numpy(float)
    wrong = ~(np.isfinite(values) & (values > 0)) | (values > [np.inf, np.inf, np.inf, 1.0])
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        allowed = "in (0, 1]" if DESIGN[column] == "density" else "above 0"
        raise BayeslawError(
            f"designs, row {row}: {DESIGN[column]} must be {allowed}, not {values[row, column]:g}; "
            f"{int(wrong.sum())} values are out of range."
        )


# Least squares of a law


class _Law(NamedTuple):
    """A law as `evaluate(theta, *covariates)`, in logs, with weighted `residuals` and their `jacobian` by theta."""

    evaluate: Callable[..., Array]
    residuals: Callable[..., Array]
    jacobian: Callable[..., Array]


def _compile(evaluate: Callable[..., Array], deviation: Callable[[Array], Array]) -> _Law:
    """Make a law's residuals: the weighted deviation of log estimate - log measured."""

    def residuals(theta: Array, weight: Array, measured: Array, *covariates: Array) -> Array:
        return weight * deviation(evaluate(theta, *covariates) - measured)

    return _Law(jax.jit(evaluate), jax.jit(residuals), jax.jit(jax.jacfwd(residuals)))


def _log_errors(theta: Array, log_eps_np: Array, depth: Array, width: Array, log_density: Array) -> Array:
    """Evaluate the joint law at theta = (log eps_up, log gamma, log p' at the centre, phi, psi)."""
    curve = Curve(log_eps_np, theta[0], jnp.exp(theta[1]), theta[2])
    return log_error(curve, log_m_star(depth, width, log_density, theta[3], theta[4]))


def _log_plateaus(theta: Array, log_eps_up: Array, parameters: Array, dataset_size: Array) -> Array:
    """Evaluate the dense law at theta = `Dense`, relative to the centre."""
    return saturate(log_dense(Dense(*(theta[i] for i in range(5))), parameters, dataset_size), log_eps_up)


_JOINT = _compile(_log_errors, jnp.expm1)
_DENSE = _compile(_log_plateaus, lambda log_deviation: log_deviation)


def _pad(values: NDArray, *, mode: Literal["edge", "constant"] = "edge") -> NDArray[np.float64]:
    """Lengthen to the next power of two, so that tables of similar size share one compilation."""
    return np.pad(np.asarray(values, float), (0, (1 << (len(values) - 1).bit_length()) - len(values)), mode=mode)


@in_float64
def _evaluate(law: _Law, theta: NDArray, *covariates: NDArray) -> NDArray[np.float64]:
    return np.asarray(law.evaluate(theta, *map(_pad, covariates)))[: len(covariates[0])]


@in_float64
def _minimise(
    law: _Law,
    weight: NDArray,
    measured: NDArray,
    covariates: Sequence[NDArray],
    starts: Sequence[NDArray],
    bounds: tuple[NDArray, NDArray],
    free: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise the sum of squared residuals over the free entries of theta from several starts.

    Returns:
        The best theta, and the sum of squares at the end of each start.
    """
    data = [_pad(weight, mode="constant"), *map(_pad, (measured, *covariates))]
    ends = [_minimise_from(np.where(free, np.clip(start, *bounds), start), law, data, bounds, free) for start in starts]
    costs = np.array([cost for _, cost in ends])
    return ends[int(np.argmin(costs))][0], costs


def _minimise_from(
    start: NDArray[np.float64],
    law: _Law,
    data: Sequence[NDArray],
    bounds: tuple[NDArray, NDArray],
    free: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], float]:
    def theta(values: NDArray) -> NDArray:
        whole = start.copy()
        whole[free] = values
        return whole

    result = scipy.optimize.least_squares(
        lambda values: np.asarray(law.residuals(theta(values), *data)),
        start[free],
        jac=lambda values: np.asarray(law.jacobian(theta(values), *data))[:, free],  # pyright: ignore[reportArgumentType]
        bounds=(bounds[0][free], bounds[1][free]),
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=500,
    )
    return theta(result.x), 2 * float(result.cost)


# The joint law


def _fixed(table: RowTable) -> tuple[str, ...]:
    axes = (("phi", "depth"), ("psi", "width"))
    return tuple(name for name, axis in axes if len(np.unique(table.configurations[axis])) < 2)


def fit_all(table: RowTable, starts: int, seed: int) -> LeastSquares:
    """Fit all trajectories, each counted once, from many starts."""
    if starts < 1:
        raise BayeslawError(f"starts= is the number of starting points, 1 or more; got {starts!r}.")
    points = _draw_starts(table, starts, np.random.default_rng(seed))
    return fit_counted(table, np.ones(table.trajectory.max() + 1, int), points)


def fit_counted(table: RowTable, counts: NDArray, starts: Sequence[NDArray]) -> LeastSquares:
    """Fit the rows of the trajectories, each counted as often as it was drawn."""
    plateaus, runs = table.plateaus(counts)
    log_eps_np = np.log(plateaus)
    error, plateau = table.rows["error"].to_numpy(float), log_eps_np[table.configuration]
    times = np.where((error > 0) & np.isfinite(plateau), counts[table.trajectory], 0)
    # Rows not drawn keep their place with weight 0, so that all resamples have one shape.
    measured = np.log(np.where(times, error, 1.0))
    covariates = (
        np.where(times, plateau, -1.0),
        table.covariates["depth"][table.configuration],
        table.covariates["width"][table.configuration],
        np.log(table.rows["density"].to_numpy(float)),
    )
    fixed = _fixed(table)
    free = np.array([True, True, True, "phi" not in fixed, "psi" not in fixed])
    pruned = int(np.sum((times > 0) & ~_is_unpruned(table.rows)))
    if pruned < free.sum():
        raise BayeslawError(f"{pruned} pruned rows are too few for {free.sum()} constants; add pruned levels.")
    highest = float(np.nanmax(log_eps_np))
    lower = np.array([highest + 1e-6, _LOG_GAMMA[0], -np.inf, -np.inf, -np.inf])
    upper = np.array([max(0.0, highest + 1e-3), _LOG_GAMMA[1], np.inf, np.inf, np.inf])
    theta, costs = _minimise(_JOINT, np.sqrt(times), measured, covariates, starts, (lower, upper), free)
    edge = np.minimum(theta - lower, upper - theta) < _EDGE
    frame, drawn = table.frame, np.repeat(np.arange(len(times)), times)
    estimate = _evaluate(_JOINT, theta, *covariates)
    known = np.isfinite(log_eps_np)
    tolerance = 1e-6 * costs.min() + _NOISELESS**2 * times.sum()
    return LeastSquares(
        eps_up=float(np.exp(theta[0])),
        gamma=float(np.exp(theta[1])),
        p_prime=float(np.exp(theta[2] + theta[3] * frame.log_depth + theta[4] * frame.log_width)),
        phi=float(theta[3]),
        psi=float(theta[4]),
        fixed=fixed,
        at_edge=tuple(name for name, at_edge in zip(("eps_up", "gamma"), edge[:2], strict=True) if at_edge),
        cost=float(costs.min()),
        starts_agreeing=float(np.mean(costs <= costs.min() + tolerance)),
        rows=table.rows.iloc[drawn],
        deviations=np.expm1(estimate - measured)[drawn],
        eps_np=table.configurations.assign(eps_np=plateaus, runs=runs.astype(int)).loc[known].reset_index(drop=True),
        frame=frame,
    )


def _draw_starts(table: RowTable, starts: int, rng: np.random.Generator) -> list[NDArray]:
    """Draw starting points all over the plausible range: knees wherever densities are, exponents about 1."""
    density = table.rows["density"].to_numpy(float)
    low = np.array([np.log(0.5), np.log(0.2), np.log(density.min()), -0.5, -0.5])
    high = np.array([0.0, np.log(4.0), np.log(0.5), 2.5, 2.5])
    free = np.array([True, True, True, *(name not in _fixed(table) for name in ("phi", "psi"))])
    return [np.where(free, low + (high - low) * rng.random(5), 0.0) for _ in range(starts)]


def theta_of(fit: LeastSquares) -> NDArray[np.float64]:
    """Give the constants of a fit as they are searched."""
    log_p = np.log(fit.p_prime) - fit.phi * fit.frame.log_depth - fit.psi * fit.frame.log_width
    return np.array([np.log(fit.eps_up), np.log(fit.gamma), log_p, fit.phi, fit.psi])


def predict_errors(fit: LeastSquares, designs: pd.DataFrame, near: LeastSquares | None = None) -> NDArray[np.float64]:
    """Predict; a dense law that is needed is fitted from many starts, or from that of a fit that is `near`."""
    configuration = _find(fit.eps_np, designs)
    known = configuration >= 0
    covariates = fit.frame.covariates(designs)
    log_eps_np = np.log(fit.eps_np["eps_np"].to_numpy(float))[configuration]
    if not known.all():
        _check_axes(fit, designs.loc[~known])
        dense = fit.dense if near is None else _fit_dense(fit, near.dense)
        log_eps_up = np.full(len(designs), np.log(fit.eps_up))
        untrained = _evaluate(_DENSE, np.array(dense), log_eps_up, covariates["parameters"], covariates["dataset_size"])
        log_eps_np = np.where(known, log_eps_np, untrained)
    log_density = np.log(designs["density"].to_numpy(float))
    return np.exp(_evaluate(_JOINT, theta_of(fit), log_eps_np, covariates["depth"], covariates["width"], log_density))


# The dense law

#: Bounds of log a, alpha, log b, beta, log c; the covariates are centred, so that all terms are errors.
_DENSE_BOUNDS = (np.array([-25.0, 0.0, -25.0, 0.0, -25.0]), np.array([10.0, 10.0, 10.0, 10.0, 10.0]))
_DENSE_STARTS = 20


def _fit_dense(fit: LeastSquares, start: Dense | None = None) -> Dense:
    """Fit the dense law to the measured unpruned errors in log space, from many starts or from one that is given.

    The constants are relative to the centre of the fit's frame. A term whose covariate never varies is left out, and c
    stands for it.

    Raises:
        BayeslawError: There are fewer configurations than constants.
    """
    covariates = fit.frame.covariates(fit.eps_np)
    varies = {name: np.ptp(covariates[name]) > 0 for name in ("dataset_size", "parameters")}
    free = np.array([varies["dataset_size"], varies["dataset_size"], varies["parameters"], varies["parameters"], True])
    if len(fit.eps_np) < free.sum():
        raise BayeslawError(
            f"{len(fit.eps_np)} configurations with unpruned runs are too few for the dense law's {free.sum()} "
            "constants, which give eps_np where nothing was trained; predict configurations of the table, or add runs."
        )
    log_eps_np = np.log(fit.eps_np["eps_np"].to_numpy(float))
    if start is None:
        rng = np.random.default_rng(0)
        typical = float(log_eps_np.mean())
        low = np.array([typical - 4, 0.1, typical - 4, 0.1, typical - 6])
        high = np.array([typical, 1.5, typical, 1.5, typical])
        points = [low + (high - low) * rng.random(5) for _ in range(_DENSE_STARTS)]
    else:
        points = [np.array(start, float)]
    points = [np.where(free, point, [_NOTHING, 0.0, _NOTHING, 0.0, 0.0]) for point in points]
    log_eps_up = np.full(len(log_eps_np), np.log(fit.eps_up))
    covariates = (log_eps_up, covariates["parameters"], covariates["dataset_size"])
    theta, _ = _minimise(_DENSE, np.ones(len(log_eps_np)), log_eps_np, covariates, points, _DENSE_BOUNDS, free)
    return Dense(*(float(value) for value in theta))


def _check_axes(fit: LeastSquares, designs: pd.DataFrame) -> None:
    """Refuse to extrapolate along an axis that never varied.

    Raises:
        BayeslawError: The designs lie off the only value of an axis.
    """
    seen, wanted = fit.frame.covariates(fit.eps_np), fit.frame.covariates(designs)
    for name in ("dataset_size", "parameters"):
        if np.ptp(seen[name]) == 0 and np.any(np.abs(wanted[name] - seen[name][0]) > 1e-9):
            what = "dataset_size" if name == "dataset_size" else "parameter count (depth, width)"
            raise BayeslawError(
                f"designs: the {what} never varies in the table, so nothing is known of eps_np at another; "
                "predict at the one that was trained, or add runs."
            )
