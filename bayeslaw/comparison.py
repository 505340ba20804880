"""Which law predicts best: leave-one-out and leave-trajectory-out predictive densities of several fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, along_trajectories
from bayeslaw.precision import in_float64
from bayeslaw.run_likelihood import fitted_rows, row_log_likelihood, trajectory_log_likelihood

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Share of points or trajectories with a k-hat above the limit from which an estimate is not to be believed.
TOO_MANY = 0.01


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
                        f"limit; do not believe its {kind} estimate; refit without them (bayeslaw.cross_validate)."
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
    if len(fits) < 2:
        raise BayeslawError(f"compare needs two fits or more; got {len(fits)}.")
    check_fits(fits)
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


def check_fits(fits: Mapping[str, Fit]) -> None:
    """Refuse fits of different runs."""
    names = list(fits)
    first = _conditioned_on(fits[names[0]])
    for name in names[1:]:
        if not all(map(np.array_equal, first, _conditioned_on(fits[name]))):
            raise BayeslawError(f"compare: {name!r} was fitted to other runs than {names[0]!r}; fit the same table.")
        if fits[name].structure.deaths != fits[names[0]].structure.deaths:
            raise BayeslawError(
                f"compare: {name!r} and {names[0]!r} differ in deaths; to one of them the levels of dead networks have "
                "probabilities, to the other densities. Fit both with the same deaths=."
            )


def _conditioned_on(fit: Fit) -> list[NDArray]:
    """List what a fit knows of its runs, and what a density of them is of."""
    constant = fit.tree["constant_data"]
    return [
        fit.runs[[*CONFIGURATION, "density", "error"]].to_numpy(float),
        fit.tree["observed_data"]["response"].to_numpy(),
        constant["n_test"].to_numpy(),
        constant["trajectory_of_row"].to_numpy(),
        fit.tree["posterior"].coords["trajectory"].to_numpy(),
    ]


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
    rows = fitted_rows(fit)[2]
    back = np.argsort(along_trajectories(rows.trajectory, rows.log_density))
    return found._replace(elpd=found.elpd[back], pareto_k=found.pareto_k[back])


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


def _importance(log_likelihood: NDArray) -> LeftOut:
    """Weigh draws `[draws, left out]` by the inverse of what is left out, smoothed."""
    from arviz_stats.base.array import array_stats

    elpd, pareto_k, _ = array_stats.loo(log_likelihood.T[:, None, :], chain_axis=-2, draw_axis=-1)
    limit = min(1 - 1 / np.log10(len(log_likelihood)), 0.7)
    return LeftOut(np.asarray(elpd), np.asarray(pareto_k), limit)
