"""How far the predictions can be trusted: what they say of networks that were left out, beside least squares."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.baseline import least_squares
from bayeslaw.bootstrapping import bootstrap
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit
from bayeslaw.frame import CONFIGURATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Resamples of configurations behind the interval of a coverage.
RESAMPLES = 2000
#: Probabilities of the intervals looked at, in per cent.
LEVELS = (50, 90)


@dataclass(frozen=True)
class Evaluation:
    """Hold how posterior and least squares do on one table.

    Attributes:
        deviation: Mean and sd of the relative deviation (predicted - measured) / measured on the rows fitted, for the
            posterior's mean curve and for least squares, beside the spread of seeds.
        coverage: Share of left-out measured errors inside their 50 % and 90 % intervals, with 90 % intervals of that
            share bootstrapped over configurations, and the median width of the intervals in natural logs.
        rows: The left-out rows with both methods' intervals.
        passed: Share of the fits (the whole table and each fold) that passed the gate.
    """

    deviation: pd.DataFrame
    coverage: pd.DataFrame
    rows: pd.DataFrame
    passed: float

    def __str__(self) -> str:
        def form(table: pd.DataFrame) -> str:
            return table.to_string(index=False, float_format=lambda v: f"{v:.3f}")

        networks = self.rows.groupby(CONFIGURATION).ngroups
        return (
            f"relative deviation on the rows fitted\n{form(self.deviation)}\n\n"
            f"coverage of new runs of {networks} networks left out\n{form(self.coverage)}\n\n"
            f"fits that passed the gate: {self.passed:.0%}"
        )


def evaluate(
    runs: pd.DataFrame,
    *,
    law: str = "joint",
    folds: int = 5,
    seed: int = 0,
    repetitions: int = 50,
    draws: int = 1000,
) -> Evaluation:
    """Fit a table by posterior and by least squares, and predict networks left out of both.

    Configurations are dealt into folds at random; each fold is predicted (`kind="run"`) by a fit to the others.

    Args:
        runs: Validated run table of one family.
        law: The posterior's law, as in `bayeslaw.fit`; least squares is always that of the joint law.
        folds: Number of folds, from 2 to the number of configurations.
        seed: Seed of folds, sampler and bootstrap.
        repetitions: Refits of the least-squares bootstrap.
        draws: Posterior draws per chain.

    Returns:
        The evaluation.

    Raises:
        BayeslawError: `folds` is out of range.
    """
    from tqdm import tqdm

    configurations = runs[CONFIGURATION].drop_duplicates().sort_values(CONFIGURATION, ignore_index=True)
    if not 2 <= folds <= len(configurations):
        raise BayeslawError(f"folds = {folds} must be from 2 to the {len(configurations)} configurations.")
    order = np.random.default_rng(seed).permutation(len(configurations)) % folds
    fold = runs[CONFIGURATION].merge(configurations.assign(fold=order), on=CONFIGURATION, how="left")["fold"]
    left_out, passed = [], []
    for index in tqdm(range(folds), desc="folds", disable=None, file=sys.stderr):
        inside, outside = runs[(fold != index).to_numpy()], runs[(fold == index).to_numpy()]
        posterior = fit(inside, law=law, seed=seed, draws=draws, progress=False)
        passed.append(posterior.diagnose().passed)
        rows = outside[[*CONFIGURATION, "trajectory", "density", "error", "n_test"]].copy()
        ours = posterior.predict(outside, kind="run", seed=seed, return_draws=True)
        assert isinstance(ours, xr.DataArray)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # rows that least squares leaves out
            theirs = bootstrap(inside, outside, repetitions=repetitions, kind="run", seed=seed, return_draws=True)
        both = (("posterior", ours.to_numpy().reshape(-1, len(outside))), ("least_squares", np.asarray(theirs)))
        for name, samples in both:
            for level in LEVELS:
                tail = (1 - level / 100) / 2
                rows[f"{name}_lower_{level}"], rows[f"{name}_upper_{level}"] = np.quantile(samples, [tail, 1 - tail], 0)
        left_out.append(rows)
    rows = pd.concat(left_out)
    whole = fit(runs, law=law, seed=seed, draws=draws, progress=False)
    passed.append(whole.diagnose().passed)
    deviation = _deviation(runs, whole.predict(runs, kind="mean", seed=seed), seed)
    return Evaluation(deviation, _coverage(rows, seed), rows, float(np.mean(passed)))


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
    baseline = least_squares(runs, seed=seed)
    rows = [
        {"method": "posterior", "mean": ours.mean(), "sd": ours.std(ddof=1)},
        {"method": "least squares", "mean": baseline.mean_deviation, "sd": baseline.sd_deviation},
        {"method": "seeds alone", "mean": 0.0, "sd": seed_spread(runs)},
    ]
    return pd.DataFrame(rows)


def _coverage(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    table = []
    for name in ("posterior", "least_squares"):
        for level in LEVELS:
            lower, upper = rows[f"{name}_lower_{level}"], rows[f"{name}_upper_{level}"]
            inside = rows["error"].between(lower, upper)
            low, high = bootstrap_share(inside.to_numpy(), rows.groupby(CONFIGURATION).ngroup().to_numpy(), seed)
            width = np.log(upper.clip(lower=1e-4).to_numpy() / lower.clip(lower=1e-4).to_numpy())
            table.append(
                {
                    "method": name.replace("_", " "),
                    "interval": level / 100,
                    "coverage": inside.mean(),
                    "lower": low,
                    "upper": high,
                    "log_width": np.median(width),
                }
            )
    return pd.DataFrame(table)


def bootstrap_share(inside: NDArray[np.bool_], group: NDArray[np.integer], seed: int) -> tuple[float, float]:
    """Give the 90 % interval of a share whose rows are dependent within groups, by resampling groups.

    Args:
        inside: What is counted, `[rows]`.
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
