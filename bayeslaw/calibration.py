"""How far the predictions can be trusted: what they say of networks that were left out, beside least squares."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.baseline import least_squares
from bayeslaw.bootstrapping import bootstrap
from bayeslaw.diagnostics import Diagnosis
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit
from bayeslaw.frame import CONFIGURATION, make_frame, replicate_of
from bayeslaw.predict import extrapolation
from bayeslaw.run_likelihood import score_runs
from bayeslaw.runs import families

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from bayeslaw.posterior import Fit

#: Resamples of configurations behind the interval of a coverage.
RESAMPLES = 2000
#: Probabilities of the intervals looked at, in per cent.
LEVELS = (50, 90)
#: Posterior draws that the density of what is left out is averaged over.
SCORED = 500
#: What can be left out.
LEAVE_OUT = ("configurations", "trajectories", "largest")
#: Where the largest are left out, the share of networks that is kept, by parameter count.
SMALLEST = 2 / 3
#: Error below which the width of an interval is no longer looked at in logarithms.
_LEAST = 1e-4
#: Errors that are closer than this are the same count.
_TIE = 1e-9


@dataclass(frozen=True)
class Evaluation:
    """Hold how posterior and least squares do on one table.

    Attributes:
        deviation: Mean and sd of the relative deviation (predicted - measured) / measured on the rows fitted, for the
            posterior's mean curve and for least squares, where that can be fitted, beside the spread of seeds.
        coverage: Share of left-out measured errors inside their 50 % and 90 % intervals, with 90 % intervals of that
            share bootstrapped over what was left out (trajectories, else configurations), and the median width of the
            intervals in natural logs. Predicted errors are counts, and dead networks show one error: an interval holds
            all of the probability at its ends, more than it says. `pit`, with `pit_lower` and `pit_upper`, is the share
            with ties split (`pit_share`). What networks share, parameters above all, makes them err together, and the
            bootstrap does not know: `expected_lower` and `expected_upper` hold the coverage in 90 % of the tables that
            the posterior itself would make of what was left out. Least squares has none, and is absent where a fold
            does not let it be fitted.
        rows: The left-out rows with both methods' intervals, and how far they extrapolate (`Fit.predict`).
        scores: Log predictive density, by the posterior, of every trajectory left out
            (`bayeslaw.run_likelihood.score_runs`).
        gates: The verdict on every fit, `fold 1` and so on and `whole table`.
        leave_out: What was left out; `"nothing"` where the rows are of runs measured later.
    """

    deviation: pd.DataFrame
    coverage: pd.DataFrame
    rows: pd.DataFrame
    scores: pd.DataFrame
    gates: Mapping[str, Diagnosis]
    leave_out: str

    @property
    def passed(self) -> float:
        """Give the share of the fits that passed the gate."""
        return float(np.mean([gate.passed for gate in self.gates.values()]))

    def __str__(self) -> str:
        def form(table: pd.DataFrame) -> str:
            return table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="")

        what = _groups(self.rows, self.leave_out).max() + 1
        kind = "trajectories" if self.leave_out == "trajectories" else "networks"
        how = "measured later" if self.leave_out == "nothing" else "left out"
        farthest = self.rows["extrapolation"].max()
        far = f", up to a factor of {np.exp(farthest):.1f} outside what was fitted" if farthest > 0.05 else ""
        return (
            f"relative deviation on the rows fitted\n{form(self.deviation)}\n\n"
            f"coverage of new runs: {what} {kind} {how}{far}\n{form(self.coverage)}\n\n"
            f"log predictive density of {len(self.scores)} trajectories {how}: "
            f"{self.scores['log_density'].sum():.1f} (Monte Carlo error {_root_of_squares(self.scores['mcse']):.1f})\n"
            f"fits that passed the gate: {self.passed:.0%}"
            + "".join(f"\n{name}: {'; '.join(gate.failures)}" for name, gate in self.gates.items() if not gate.passed)
        )


def evaluate(
    runs: pd.DataFrame,
    *,
    law: str = "sharpness",
    correlated: bool = True,
    subsets: bool | None = None,
    curvature: bool = True,
    leave_out: str = "configurations",
    folds: int = 5,
    later: pd.DataFrame | None = None,
    seed: int = 0,
    repetitions: int = 50,
    draws: int = 1000,
) -> Evaluation:
    """Fit a table by posterior and by least squares, and predict what was left out of both as new runs.

    Where there are runs that were measured later, all of the table is fitted, and these are predicted.

    Args:
        runs: Validated run table of one family.
        law: The posterior's law, as in `bayeslaw.fit`; least squares is always that of the joint law.
        correlated: Whether the posterior's noise is correlated along a trajectory, as there.
        subsets: Whether training subsets have luck, as there.
        curvature: Whether the dense law has quadratic terms, as there.
        leave_out: `"configurations"`, dealt into folds at random, each predicted by a fit to the others;
            `"trajectories"`, likewise, other runs of the same network mostly staying; `"largest"`, the largest third
            of the networks and the largest dataset size, predicted from smaller networks on less data.
        folds: Number of folds, from 2 to the number of configurations or trajectories; `"largest"` is one.
        later: Validated run table of the same family and dataset; then nothing is left out.
        seed: Seed of folds, sampler and bootstrap.
        repetitions: Refits of the least-squares bootstrap.
        draws: Posterior draws per chain.

    Returns:
        The evaluation.

    Raises:
        BayeslawError: There are no trajectories, `leave_out` is unknown, `folds` is out of range, all networks are
            equally large, or `later` is of another family.
    """
    from tqdm import tqdm

    for name, table in (("runs", runs), ("later", later)):
        if table is not None and "trajectory" not in table:
            raise BayeslawError(
                f"evaluate scores whole trajectories, and {name} has no column trajectory; map it or replicate, "
                "load_runs(..., columns={'replicate': ...})."
            )
    parts: dict[str, Any] = {"law": law, "correlated": correlated, "subsets": subsets, "curvature": curvature}
    settings = parts | {"seed": seed, "draws": draws, "progress": False}
    left_out, inside, scores, gates = [], [], [], {}
    if later is not None:
        leave_out, splits = "nothing", [(runs, _of_same_family(later, runs))]
    else:
        fold = fold_of(runs, leave_out, folds, seed)
        splits = [(runs[fold != index], runs[fold == index]) for index in range(fold.max() + 1)]
    for index, (kept, outside) in enumerate(tqdm(splits, desc="folds", disable=None, file=sys.stderr)):
        posterior = fit(kept, **settings)
        rows, hits, score = _predict_left_out(posterior, kept, outside, seed, repetitions)
        if later is None:
            gates[f"fold {index + 1}"] = posterior.diagnose()
        left_out.append(rows)
        inside.append(hits)
        scores.append(score.assign(fold=index))
    rows = pd.concat(left_out)
    if later is None:
        posterior = fit(runs, **settings)
    gates["whole table"] = posterior.diagnose()
    deviation = _deviation(runs, posterior.predict(runs, kind="mean", seed=seed), seed)
    coverage = _coverage(rows, np.sum(inside, axis=0) / len(rows), leave_out, seed)
    return Evaluation(deviation, coverage, rows, pd.concat(scores, ignore_index=True), gates, leave_out)


def _root_of_squares(errors: pd.Series) -> float:
    return float(np.sqrt((errors**2).sum()))


def fold_of(runs: pd.DataFrame, leave_out: str, folds: int, seed: int) -> NDArray[np.integer]:
    """Number the fold of every row; -1 where it is never left out. Arguments are those of `evaluate`."""
    if leave_out not in LEAVE_OUT:
        raise BayeslawError(f"leave_out = {leave_out!r} must be one of {', '.join(LEAVE_OUT)}.")
    if leave_out == "largest":
        return np.where(_is_small(runs), -1, 0)
    group = _groups(runs, leave_out)
    count = group.max() + 1
    if not 2 <= folds <= count:
        raise BayeslawError(f"folds = {folds} must be from 2 to the {count} {leave_out}.")
    return (np.random.default_rng(seed).permutation(count) % folds)[group]


def _groups(rows: pd.DataFrame, leave_out: str) -> NDArray[np.integer]:
    """Number what is left out as one, row by row."""
    by = [*CONFIGURATION, "trajectory"] if leave_out == "trajectories" else CONFIGURATION
    return rows.groupby(by).ngroup().to_numpy()


def _is_small(runs: pd.DataFrame) -> NDArray[np.bool_]:
    """Tell the rows of the smallest networks, below the largest dataset size where there are several."""
    frame = make_frame(runs, 1.0)
    networks = runs[["depth", "width"]].drop_duplicates()
    limit = np.quantile(frame.family.parameters(networks["depth"], networks["width"]), SMALLEST)
    small = frame.family.parameters(runs["depth"], runs["width"]) <= limit
    if small.all():
        raise BayeslawError("leave_out = 'largest' needs networks of several sizes; these are all equally large.")
    sizes = runs["dataset_size"]
    return np.asarray(small & ((sizes < sizes.max()) | (sizes == sizes.min())))


def _of_same_family(later: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    own, other = (families(table) for table in (runs, later))
    if own != other:
        raise BayeslawError(f"later holds runs of {other}, and what is fitted is of {own}; give runs of the same.")
    return later


def _predict_left_out(
    posterior: Fit, inside: pd.DataFrame, outside: pd.DataFrame, seed: int, repetitions: int
) -> tuple[pd.DataFrame, NDArray[np.integer], pd.DataFrame]:
    """Predict new runs of what lies outside of a fit, with both methods' intervals.

    Returns:
        The rows outside, how many of them every posterior draw would put inside the posterior's intervals,
        `[LEVELS, draws]`, and scores.
    """
    rows = outside.filter([*CONFIGURATION, "trajectory", "density", "error", "n_test"]).copy()
    rows["extrapolation"] = extrapolation(posterior, outside)
    designs = outside.assign(replicate=replicate_of(outside))
    ours = posterior.predict(designs, kind="run", seed=seed, return_draws=True)
    assert isinstance(ours, xr.DataArray)
    samples = {"posterior": ours.to_numpy().reshape(-1, len(outside))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows that least squares leaves out
        try:
            theirs = bootstrap(inside, outside, repetitions=repetitions, kind="run", seed=seed, return_draws=True)
            samples["least_squares"] = np.asarray(theirs)
        except BayeslawError:  # too little varies in what is left
            samples["least_squares"] = np.full((1, len(outside)), np.nan)
    hits: dict[str, list[NDArray[np.integer]]] = {name: [] for name in samples}
    for name, values in samples.items():
        for level in LEVELS:
            tail = (1 - level / 100) / 2
            lower, upper = np.quantile(values, [tail, 1 - tail], 0)
            rows[f"{name}_lower_{level}"], rows[f"{name}_upper_{level}"] = lower, upper
            hits[name].append(((values >= lower) & (values <= upper)).sum(1))
        above = values - outside["error"].to_numpy(float)
        rows[f"{name}_below"], rows[f"{name}_not_above"] = (above < -_TIE).mean(0), (above <= _TIE).mean(0)
    return rows, np.array(hits["posterior"]), score_runs(posterior, outside, draws=SCORED)


def seed_spread(runs: pd.DataFrame) -> float:
    r"""Measure how much seeds alone spread: the standard deviation that no fit of mean curves can go below.

    Rows are grouped by configuration (family and dataset where the table has them, depth, width, dataset_size) and
    level, or density to six digits where there is no level; rows with an error of 0 are left out, then groups of one
    row. With the relative deviation r = error / (mean of its group) - 1 and n rows in the group, it is the root mean
    square over all rows of

    $$r \sqrt{n / (n - 1)},$$

    the factor undoing what the group's own mean takes away. Configurations thus count by the rows they have. It
    contains the seeds' luck and the test set's binomial noise, not what is common to all seeds, such as a draw of test
    examples or a bend of the curve that the law does not have.

    Args:
        runs: Validated run table (`load_runs`).

    Returns:
        The standard deviation of the relative deviation, a fraction; nan where no configuration has two replicates.

    Source:
        Rosenfeld et al., ICML 2021, section 4 (3.4 % there).

    Example:
        >>> runs = pd.DataFrame({"depth": 8, "width": 4, "dataset_size": 1000, "density": 1.0, "error": [0.09, 0.11]})
        >>> round(seed_spread(runs), 4)
        0.1414
    """
    runs = runs.loc[runs["error"] > 0]
    labels = [name for name in ("family", "dataset") if name in runs]
    level = runs["level"] if "level" in runs else runs["density"].map("{:.6g}".format)
    groups = runs["error"].groupby([*(runs[name] for name in [*labels, *CONFIGURATION]), level])
    count = groups.transform("size").to_numpy(float)
    repeated = count > 1
    if not repeated.any():
        return float("nan")
    deviation = (runs["error"] / groups.transform("mean") - 1).to_numpy(float)[repeated]
    count = count[repeated]
    return float(np.sqrt(np.mean(deviation**2 * count / (count - 1))))


def _deviation(runs: pd.DataFrame, predicted: object, seed: int) -> pd.DataFrame:
    assert isinstance(predicted, pd.DataFrame)
    measured = runs["error"].to_numpy()
    positive = measured > 0
    ours = predicted["median"].to_numpy()[positive] / measured[positive] - 1
    rows = [{"method": "posterior", "mean": ours.mean(), "sd": ours.std(ddof=1)}]
    with contextlib.suppress(BayeslawError):  # too little varies, or nothing is unpruned
        baseline = least_squares(runs, seed=seed)
        rows.append({"method": "least squares", "mean": baseline.mean_deviation, "sd": baseline.sd_deviation})
    return pd.DataFrame([*rows, {"method": "seeds alone", "mean": 0.0, "sd": seed_spread(runs)}])


def _coverage(rows: pd.DataFrame, by_draw: NDArray[np.floating], leave_out: str, seed: int) -> pd.DataFrame:
    """Count what lies inside; `by_draw` is the same share for tables that the posterior makes, `[LEVELS, draws]`."""
    table, group = [], _groups(rows, leave_out)
    for name in ("posterior", "least_squares"):
        for level, shares in zip(LEVELS, by_draw, strict=True):
            lower, upper = rows[f"{name}_lower_{level}"], rows[f"{name}_upper_{level}"]
            if lower.isna().any():
                continue
            inside = rows["error"].between(lower, upper).to_numpy()
            pit = pit_share(rows[f"{name}_below"], rows[f"{name}_not_above"], level / 100)
            low, high = bootstrap_share(inside, group, seed)
            pit_low, pit_high = bootstrap_share(pit, group, seed)
            least, most = np.quantile(shares, [0.05, 0.95]) if name == "posterior" else (np.nan, np.nan)
            table.append(
                {
                    "method": name.replace("_", " "),
                    "interval": level / 100,
                    "coverage": inside.mean(),
                    "lower": low,
                    "upper": high,
                    "pit": pit.mean(),
                    "pit_lower": pit_low,
                    "pit_upper": pit_high,
                    "expected_lower": least,
                    "expected_upper": most,
                    "log_width": np.median(log_width(lower, upper)),
                }
            )
    return pd.DataFrame(table)


def pit_share(below: ArrayLike, not_above: ArrayLike, level: float) -> NDArray[np.float64]:
    """Give the share of a measured value's probability integral transform that is inside a central interval.

    Where what is predicted is discrete the transform is not a number but a range, from the probability of less to that
    of no more; its uniform share between the interval's tails, averaged over values, is `level` where predictions are
    calibrated.

    Args:
        below: Predicted probability of a value below the measured one.
        not_above: That of a value not above it.
        level: Probability of the interval.

    Returns:
        The shares, broadcast.

    Source:
        Czado, Gneiting and Held, Biometrics 2009, "Predictive model assessment for count data".

    Example:
        >>> pit_share([0.1, 0.4, 0.2], [0.1, 0.4, 0.4], 0.5).round(2).tolist()
        [0.0, 1.0, 0.75]
    """
    low, high, tail = np.asarray(below, float), np.asarray(not_above, float), (1 - level) / 2
    width = high - low
    overlap = np.minimum(high, 1 - tail) - np.maximum(low, tail)
    whole = (low > tail) & (low < 1 - tail)
    return np.where(width > 0, np.clip(overlap, 0, None) / np.where(width > 0, width, 1.0), whole)


def log_width(lower: pd.Series, upper: pd.Series) -> NDArray[np.float64]:
    """Measure intervals of errors in natural logs."""
    return np.log(upper.clip(lower=_LEAST).to_numpy(float) / lower.clip(lower=_LEAST).to_numpy(float))


def bootstrap_share(inside: NDArray[Any], group: NDArray[np.integer], seed: int) -> tuple[float, float]:
    """Give the 90 % interval of a share whose rows are dependent within groups, by resampling groups.

    Args:
        inside: What is counted, or by how much, `[rows]`.
        group: Group of every row, numbered from 0, `[rows]`.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end.

    Example:
        >>> bootstrap_share(np.array([True, True, True]), np.array([0, 0, 1]), seed=0)
        (1.0, 1.0)
    """
    hits, sizes = np.bincount(group, inside), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    shares = hits[drawn].sum(1) / sizes[drawn].sum(1)
    lower, upper = np.quantile(shares, [0.05, 0.95])
    return float(lower), float(upper)
