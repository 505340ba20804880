"""Where a campaign can start: the grid of networks, their parameters and multiply-adds, what training them costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Rounds looked at; 0.8^40 is a density of 0.013 %.
MAX_ROUNDS = 40
#: Floating-point operations of a training step per multiply-add of the forward pass: two, and twice that backward.
TRAINING = 6

#: What a user may give for counts: a function of depth and width, or a table.
Counter = Callable[[Any, Any], tuple[Any, ...]] | pd.DataFrame


class Costs(NamedTuple):
    """Hold what starts count, each `[starts]`.

    Attributes:
        prunable: Weights that can be pruned.
        unprunable: Parameters that cannot.
        macs: Multiply-adds of the unpruned network per example; NaN where unknown.
        training: Floating-point operations of training once, at any density; NaN where unknown.
    """

    prunable: NDArray[np.float64]
    unprunable: NDArray[np.float64]
    macs: NDArray[np.float64]
    training: NDArray[np.float64]

    @property
    def parameters(self) -> NDArray[np.float64]:
        """All parameters of the unpruned network."""
        return self.prunable + self.unprunable


def width_grid(lowest: float, highest: float, *, per_octave: int = 8) -> NDArray[np.float64]:
    """Spread widths evenly over a range on the log scale, for planning with widths that are not fixed to a few.

    Args:
        lowest: Lowest width, above 0.
        highest: Highest width.
        per_octave: Widths for every doubling.

    Returns:
        The widths, both ends included. They need not be whole: the closed-form counts are defined between.

    Raises:
        BayeslawError: The range is empty or not positive, or there is less than one width an octave.

    Example:
        >>> width_grid(4, 16, per_octave=2).round(2).tolist()
        [4.0, 5.66, 8.0, 11.31, 16.0]
    """
    if not (0 < lowest < highest and per_octave >= 1):
        raise BayeslawError(
            f"width_grid({lowest:g}, {highest:g}, per_octave={per_octave}): widths run from above 0 to a higher one, "
            "with at least one an octave."
        )
    return np.geomspace(lowest, highest, max(2, round(np.log2(highest / lowest) * per_octave) + 1))


def make_starts(
    depths: Iterable[float], widths: Iterable[float], dataset_size: float | Iterable[float]
) -> pd.DataFrame:
    """Cross depths, widths and dataset sizes into one row per start.

    Raises:
        BayeslawError: One of them is empty, or a value is not above 0.
    """
    sizes = [dataset_size] if isinstance(dataset_size, int | float | np.number) else list(dataset_size)
    axes = [sorted(set(depths)), sorted(set(widths)), sorted(set(sizes))]
    grid = list(itertools.product(*axes))
    faults = [] if grid else ["depths, widths and dataset_size must each name at least one value"]
    for name, values in zip(("depth", "width", "dataset_size"), axes, strict=True):
        faults += [f"{name} = {value}" for value in values if not 0 < value < np.inf]
    if faults:
        raise BayeslawError(f"plan: {'; '.join(faults)}: depths, widths and dataset_size must be above 0.")
    return pd.DataFrame(grid, columns=["depth", "width", "dataset_size"])


def costs_of(fit: Fit, starts: pd.DataFrame, family: Family | None = None, parameters: Counter | None = None) -> Costs:
    """Count the parameters and multiply-adds of starts, and the operations of training each once.

    Args:
        fit: The posterior, whose family and number of epochs are taken.
        starts: Rows with depth, width and dataset_size.
        family: Counts in place of the fitted family.
        parameters: Counts instead: a function (depth, width) -> (prunable, unprunable) or (prunable, unprunable,
            multiply-adds), vectorised, or a table with columns depth, width, prunable, unprunable and possibly macs.

    Returns:
        The counts. Training passes `epochs` times (those of the fitted runs, else once) over the dataset, at six
        operations per multiply-add of the unpruned network: pruned weights are not skipped.

    Raises:
        BayeslawError: No counts are known, the table lacks a column or a start, or counts are not positive.
    """
    depth, width = starts["depth"].to_numpy(float), starts["width"].to_numpy(float)
    if isinstance(parameters, pd.DataFrame):
        given = _looked_up(parameters, starts)
    elif parameters is not None:
        given = parameters(depth, width)
    else:
        counter = family or fit.frame.family
        given = (*counter.counts(depth, width), counter.macs(depth, width))
    if len(given) not in (2, 3):
        raise BayeslawError(
            f"parameters gave {len(given)} values; it must give (prunable, unprunable) or (prunable, unprunable, "
            "multiply-adds)."
        )
    shape = (len(starts),)
    prunable, unprunable, macs = (np.broadcast_to(np.asarray(count, float), shape) for count in (*given, np.nan)[:3])
    if not ((prunable > 0).all() and (unprunable >= 0).all() and not (macs <= 0).any()):
        raise BayeslawError("parameters: prunable and multiply-adds must be above 0, unprunable at least 0.")
    epochs = float(fit.runs["epochs"].median()) if "epochs" in fit.runs and len(fit.runs) else 1.0
    return Costs(prunable, unprunable, macs, training_flops(macs, starts["dataset_size"].to_numpy(float), epochs))


def training_flops(macs: NDArray, dataset_size: NDArray, epochs: float) -> NDArray[np.float64]:
    """Compute the floating-point operations of training networks once, at any density, `[networks]`."""
    return TRAINING * macs * dataset_size * epochs


def _looked_up(table: pd.DataFrame, starts: pd.DataFrame) -> tuple[NDArray, ...]:
    """Find the counts of starts in a table of the user's."""
    needed = ["prunable", "unprunable"]
    columns = [*needed, *(["macs"] if "macs" in table else [])]
    if missing := [name for name in ("depth", "width", *columns) if name not in table]:
        raise BayeslawError(
            f"parameters: the table lacks {', '.join(missing)}; it needs depth, width, prunable, unprunable."
        )
    found = starts[["depth", "width"]].merge(
        table.drop_duplicates(["depth", "width"]), on=["depth", "width"], how="left"
    )
    if (lost := found[needed].isna().any(axis=1)).any():
        names = [f"depth {row.depth:g}, width {row.width:g}" for row in found[lost].itertuples()]
        raise BayeslawError(f"parameters: the table has no complete row for {'; '.join(names[:20])}.")
    return tuple(found[name].to_numpy(float) for name in columns)


def rounds_of(prunable: float, *, prune_fraction: float = 0.2) -> NDArray[np.int64]:
    """List the weights kept after 0, 1, 2, ... rounds of 20 %, each rounded as the runner does.

    Example:
        >>> rounds_of(100)[:4].tolist()
        [100, 80, 64, 52]
    """
    share, kept = Fraction(str(prune_fraction)), [round(prunable)]
    while len(kept) <= MAX_ROUNDS and 0 < kept[-1] - int(share * kept[-1]) < kept[-1]:
        kept.append(kept[-1] - int(share * kept[-1]))
    return np.array(kept)


def densities_of(prunable: float) -> NDArray[np.float64]:
    """List the densities after 0, 1, 2, ... rounds: weights kept are whole, the count itself need not be."""
    return np.minimum(rounds_of(prunable) / prunable, 1.0)
