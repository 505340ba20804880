"""How small recorded runs ended at a target error: what plans are looked up in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, empirical_logit, family_of, n_test_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recorded:
    """Hold recorded runs with their noise smoothed away, to be asked where they reach an error.

    The empirical logits of a run are made to rise as the density falls (isotonic regression), and a target is looked
    for between levels, linearly in logit and log density (`crossings`).

    Args:
        runs: Validated run table with trajectories.

    Raises:
        BayeslawError: The table has no trajectories.
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        if "trajectory" not in runs:
            raise BayeslawError("the table has no trajectory column; map it with load_runs(..., columns=...).")
        names, self._curves = [], []
        for _, own in runs.groupby([*CONFIGURATION, "trajectory"]):
            own = own.sort_values("density", ascending=False)
            logits = empirical_logit(own["error"].to_numpy(float), n_test_of(own))
            self._curves.append((smoothed(logits[None]), np.log(own["density"].to_numpy(float))))
            names.append(own.iloc[0][[*CONFIGURATION, "trajectory"]].to_dict())
        self._names = pd.DataFrame(names, columns=pd.Index([*CONFIGURATION, "trajectory"]))

    def densities(self, target_error: float) -> pd.DataFrame:
        """Find the density at which every run just reaches an error, in (0, 1).

        Returns:
            One row per trajectory: depth, width, dataset_size, trajectory and `density`; infinite where the unpruned
            network misses, that of the last level where even that one reaches the target.
        """
        found = [crossings(smooth, log_density, target_error)[0] for smooth, log_density in self._curves]
        return self._names.assign(density=np.exp(np.array(found, float)))


def run_sizes(runs: pd.DataFrame, target_error: float) -> pd.DataFrame:
    """Measure the size at which every recorded run just reaches an error.

    Args:
        runs: Validated run table with trajectories, of one family.
        target_error: The error, in (0, 1).

    Returns:
        The rows of `Recorded.densities`, with `size`, kept and unprunable parameters, in place of the density.

    Raises:
        BayeslawError: The table has no trajectories, or its family's parameters cannot be counted.

    Example:
        >>> runs = pd.DataFrame({"family": "mlp", "dataset": "toy", "input_shape": "4", "classes": 2, "depth": 2,
        ...     "width": 8, "dataset_size": 100, "trajectory": "a", "density": [1.0, 0.5], "error": [0.1, 0.3]})
        >>> run_sizes(runs, 0.3)["size"].tolist()  # half of 48 weights, and 10 biases
        [34.0]
    """
    found = Recorded(runs).densities(target_error)
    prunable, unprunable = family_of(runs.iloc[0]).counts(
        found["depth"].to_numpy(float), found["width"].to_numpy(float)
    )
    return found.assign(size=found.pop("density") * prunable + unprunable)


def start_sizes(runs: pd.DataFrame, target_error: float) -> pd.DataFrame:
    """Take the middle one of the sizes of a network's runs, which is that of a typical run.

    Args:
        runs: As in `run_sizes`.
        target_error: Likewise.

    Returns:
        One row per network: depth, width, dataset_size, `runs`, their number, and `size`, infinite unless more than
        half of them reach the target.
    """
    sizes = run_sizes(runs, target_error).groupby(CONFIGURATION)["size"]
    return sizes.agg(runs="size", size=lambda own: middle(own.to_numpy())).reset_index()


def middle(sizes: NDArray, axis: int = -1) -> NDArray[np.float64]:
    """Take the median, on the log scale between two; infinite where either of these is."""
    ordered = np.sort(np.log(sizes), axis=axis)
    count = ordered.shape[axis]
    low, high = (np.take(ordered, place, axis=axis) for place in ((count - 1) // 2, count // 2))
    return np.exp((low + high) / 2)


def crossing(logits: NDArray, log_density: NDArray, target_error: float) -> float:
    """Find the log density at which a run's error passes a target, its noise smoothed away.

    Args:
        logits: Of the error, from the densest level to the sparsest, `[levels]`.
        log_density: `[levels]`, falling.
        target_error: In (0, 1).

    Returns:
        The log density; infinite where the smoothed error of the densest level is above the target, the last one where
        that of the sparsest is not.

    Example:
        >>> round(crossing(np.array([-3.0, -2.0, 0.0]), np.array([0.0, -1.0, -2.0]), scipy.special.expit(-1.0)), 6)
        -1.5
    """
    return float(crossings(smoothed(logits[None]), log_density, target_error)[0])


def smoothed(logits: NDArray) -> NDArray[np.float64]:
    """Make logits rise from level to level, each run's the nearest that do, `[runs, levels]`."""
    return np.array([scipy.optimize.isotonic_regression(own).x for own in logits])


def crossings(smooth: NDArray, log_density: NDArray, target_error: float) -> NDArray[np.float64]:
    """Find the `crossing` of many smoothed runs, `[runs, levels]`, measured at the same levels; one each, `[runs]`."""
    target = scipy.special.logit(target_error) + 1e-12  # that a level exactly at the target reaches it
    reached = (smooth <= target).sum(1)
    last = np.clip(reached - 1, 0, max(len(log_density) - 2, 0))
    after = np.minimum(last + 1, len(log_density) - 1)
    rows = np.arange(len(smooth))
    rise = smooth[rows, after] - smooth[rows, last]
    share = np.clip(np.where(rise > 0, (target - smooth[rows, last]) / np.where(rise > 0, rise, 1.0), 1.0), 0.0, 1.0)
    found = log_density[last] + share * (log_density[after] - log_density[last])
    return np.where(reached > 0, found, np.inf)
