"""From a run table to arrays: what a design's covariates are, and what the model is conditioned on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special

from bayeslaw.deaths import DIED, LIVED, STAYED, are_dead, count_born, count_dead, fates_of
from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.run_checks import SHAPE, shape_of
from bayeslaw.subsets import SUBSET, number_subsets, root_of_covariance

if TYPE_CHECKING:
    from numpy.typing import NDArray

Numbers = jax.Array | np.ndarray[Any, Any]

CONFIGURATION = ["depth", "width", "dataset_size"]
#: What tells runs apart.
RUN = [*CONFIGURATION, "replicate"]
#: What a line costs beside its places, in places.
_LINE = 2
#: A round of pruning removes a fifth: this much log density.
ROUND = math.log(1.25)
_CENTRES = ("depth", "width", "parameters", "dataset_size")


def label_of(family: str, dataset: str) -> str:
    """Name a (family, dataset) in one word.

    Example:
        >>> label_of("cifar_resnet", "digits")
        'cifar_resnet/digits'
    """
    return f"{family}/{dataset}"


@dataclass(frozen=True)
class Frame:
    """Hold what turns a design into the model's covariates, kept with every fit.

    Attributes:
        family: Family of all runs.
        dataset: Label of their dataset.
        chance_error: Error of random guessing, the upper bound of eps_up.
        log_depth: Centre of log depth.
        log_width: Centre of log (width / width_reference).
        log_parameters: Centre of log parameter count.
        log_dataset_size: Centre of log dataset size.
    """

    family: Family
    dataset: str
    chance_error: float
    log_depth: float
    log_width: float
    log_parameters: float
    log_dataset_size: float

    @property
    def label(self) -> str:
        """Name family and dataset."""
        return label_of(self.family.name, self.dataset)

    def covariates(self, designs: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Give centred logs of depth, width multiple, parameter count and dataset size, one entry per design."""
        depth, width, size = (designs[name].to_numpy(float) for name in CONFIGURATION)
        return {
            "depth": np.log(depth) - self.log_depth,
            "width": np.log(width / self.family.width_reference) - self.log_width,
            "parameters": np.log(self.family.parameters(depth, width)) - self.log_parameters,
            "dataset_size": np.log(size) - self.log_dataset_size,
        }


class Data(NamedTuple):
    """Hold what the model is conditioned on.

    Rows are laid out in lines of equal length, each within one trajectory, from the densest to the sparsest, so that
    nothing has to be gathered row by row; lines are the last axis, along which processors compute in parallel. What
    pads a line is not `measured`.

    Attributes:
        response: Empirical logit of the error, `[length, lines]`.
        log_density: `[length, lines]`.
        n_test: Number of test examples, `[length, lines]`; infinite where unknown.
        gap: Rounds of pruning since the row before in the trajectory; infinite for its first, `[length, lines]`.
        measured: Whether there is a row of a living network, `[length, lines]`.
        at_risk: Whether there is a row by which a living network could have died; did, if not `measured`; likewise.
        configuration: Configuration of each trajectory, `[trajectories]`.
        trajectory: Trajectory of each line, `[lines]`.
        depth: Centred log depth, `[configurations]`.
        width: Centred log width multiple, `[configurations]`.
        parameters: Centred log parameter count, `[configurations]`.
        dataset_size: Centred log dataset size, `[configurations]`.
        log_chance: Logarithm of the random-guess error.
        dead: How many networks revived, and how many stayed dead from level to level, `[2]`.
        born: How many runs of each configuration were born alive, and how many dead, `[configurations, 2]`.
        tested: Test examples that the runs of a configuration were measured on, the harmonic mean where they differ;
            infinite where unknown, `[configurations]`.
        subset: Training subset of each trajectory, `[trajectories]`.
        luck_root: What makes the subsets' lucks from independent ones (`bayeslaw.subsets`), `[subsets, subsets]`.
    """

    response: Numbers
    log_density: Numbers
    n_test: Numbers
    gap: Numbers
    measured: Numbers
    at_risk: Numbers
    configuration: Numbers
    trajectory: Numbers
    depth: Numbers
    width: Numbers
    parameters: Numbers
    dataset_size: Numbers
    log_chance: float | jax.Array
    dead: Numbers
    born: Numbers = np.zeros((1, 2))
    tested: Numbers | float = np.inf
    subset: Numbers = np.zeros(0, int)
    luck_root: Numbers = np.zeros((0, 0))

    def in_float32(self) -> Data:
        """Give the rows in the precision that they are sampled in: they are many, and measured to a few digits."""
        rows = ("response", "log_density", "n_test", "gap")
        return self._replace(**{name: jnp.asarray(getattr(self, name), jnp.float32) for name in rows})

    @property
    def covariates(self) -> dict[str, Numbers]:
        """Centred logs of the covariates by name, each `[configurations]`."""
        return {name: getattr(self, name) for name in _CENTRES}


def make_frame(runs: pd.DataFrame, chance_error: float) -> Frame:
    """Centre the covariates on the configurations of a validated run table of one family."""
    first, family = runs.iloc[0], family_of(runs.iloc[0])
    configurations = runs[CONFIGURATION].drop_duplicates()
    origin = Frame(family, str(first["dataset"]), chance_error, 0.0, 0.0, 0.0, 0.0)
    centres = {name: float(values.mean()) for name, values in origin.covariates(configurations).items()}
    return Frame(family, origin.dataset, chance_error, *(centres[name] for name in _CENTRES))


def family_of(row: pd.Series) -> Family:
    """Name the family of a row of a run table, with what its counts depend on as far as the row says."""
    value, classes = row.get("input_shape"), row.get("classes")
    shape = shape_of(value)
    if shape is None and not (pd.api.types.is_scalar(value) and pd.isna(value)):
        raise BayeslawError(f"input_shape = {value!r} must be {SHAPE}; correct it, or leave it out.")
    return Family(str(row["family"]), shape, None if classes is None or pd.isna(classes) else int(classes))


class Rows(NamedTuple):
    """Hold the rows of a table in its order, each entry `[rows]`.

    Attributes:
        response: Empirical logit of the error.
        log_density: Logarithm of density.
        n_test: Number of test examples; infinite where unknown.
        trajectory: Trajectory, numbered as in `Data`.
        fate: What became of the level (`bayeslaw.deaths`).
    """

    response: NDArray
    log_density: NDArray
    n_test: NDArray
    trajectory: NDArray
    fate: NDArray


class Labels(NamedTuple):
    """Hold what the axes of the model stand for.

    Attributes:
        configurations: One row each, in the order of the model's axis.
        trajectories: Keys of the trajectories.
        rows: The rows in the order of the table.
        subsets: Dataset size and name of every training subset.
    """

    configurations: pd.DataFrame
    trajectories: pd.Index
    rows: Rows
    subsets: pd.DataFrame = pd.DataFrame(columns=pd.Index(SUBSET))


def make_data(runs: pd.DataFrame, frame: Frame, *, deaths: bool = False, subsets: bool = False) -> tuple[Data, Labels]:
    """Turn a validated run table into arrays, and say what their axes stand for.

    Args:
        runs: The runs.
        frame: What turns networks into covariates.
        deaths: Tell dead networks from living ones (`bayeslaw.deaths`).
        subsets: Tell runs apart by their training subsets (`bayeslaw.subsets`).
    """
    configurations = runs[CONFIGURATION].drop_duplicates().sort_values(CONFIGURATION, ignore_index=True)
    keys = runs["trajectory"] if "trajectory" in runs else pd.Series("all", runs.index)
    of_row = runs[CONFIGURATION].merge(configurations.reset_index(), on=CONFIGURATION, how="left")["index"].to_numpy()
    labels = pd.Series(np.arange(len(runs))).groupby([of_row, keys.to_numpy()], sort=True).ngroup().to_numpy()
    first = np.unique(labels, return_index=True)[1]
    n_test = n_test_of(runs)
    response = empirical_logit(runs["error"].to_numpy(float), n_test)
    log_density = np.log(runs["density"].to_numpy(float))
    fate = np.zeros(len(runs), np.int8)
    if deaths:
        fate = fates_of(runs["error"].to_numpy(float), labels, log_density, frame.chance_error, n_test)
    rows = Rows(response, log_density, n_test, labels, fate)
    order = along_trajectories(rows.trajectory, rows.log_density)
    order = order[fate[order] != STAYED]
    gap = np.empty(len(rows.log_density))
    gap[order] = gaps(rows.trajectory[order], rows.log_density[order], fate[order])
    places, trajectory = _lines(labels, order)
    laid = places >= 0
    columns = ((rows.response, 0.0), (rows.log_density, 0.0), (rows.n_test, 1.0), (gap, np.inf))
    of_trajectory, known = np.zeros(len(first), int), Labels._field_defaults["subsets"]
    if subsets:
        of_trajectory, known = number_subsets(runs.iloc[first])
    data = Data(
        *(np.where(laid, values[places], filler) for values, filler in columns),
        measured=laid & ~are_dead(fate[places]),
        at_risk=laid & np.isin(fate[places], [LIVED, DIED]),
        configuration=of_row[first],
        trajectory=trajectory,
        **frame.covariates(configurations),
        log_chance=math.log(frame.chance_error),
        tested=tested_on(of_row, n_test),
        dead=count_dead(fate),
        born=count_born(fate, of_row),
        subset=of_trajectory,
        luck_root=root_of_covariance(known, frame.log_dataset_size),
    )
    return data, Labels(configurations, pd.Index(keys.to_numpy()[first], name="trajectory"), rows, known)


def is_dead(rows: pd.DataFrame, chance_error: float) -> NDArray[np.bool_]:
    """Tell the rows of networks that answer one class whatever they see (`bayeslaw.deaths`).

    Args:
        rows: Rows of whole trajectories in any order, with configuration, `trajectory`, `density`, `error` and, as far
            as known, `n_test`.
        chance_error: Error of random guessing.

    Returns:
        Whether a row is a dead network's, `[rows]`.

    Example:
        >>> rows = pd.DataFrame({"density": [1, 0.8, 0.64, 0.51], "error": [0.1, 0.1, 0.9, 0.9]})
        >>> is_dead(rows.assign(depth=8, width=1, dataset_size=1000, trajectory="a"), 0.9).tolist()
        [False, False, True, True]
    """
    run = rows.groupby([*CONFIGURATION, "trajectory"]).ngroup().to_numpy()
    error, density = (rows[name].to_numpy(float) for name in ("error", "density"))
    return are_dead(fates_of(error, run, np.log(density), chance_error, n_test_of(rows)))


def n_test_of(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Give the number of test examples of every row; infinite where the table does not say."""
    return rows["n_test"].to_numpy(float) if "n_test" in rows else np.full(len(rows), np.inf)


def tested_on(configuration: NDArray[np.integer], n_test: NDArray) -> NDArray[np.float64]:
    """Average test examples of rows over their configurations, numbered from 0, as binomial variances are.

    Example:
        >>> tested_on(np.array([0, 0, 1]), np.array([100, 300, np.inf])).tolist()
        [150.0, inf]
    """
    with np.errstate(divide="ignore"):
        return np.bincount(configuration) / np.bincount(configuration, 1 / n_test)


def replicate_of(runs: pd.DataFrame) -> NDArray[np.integer]:
    """Number the runs of every network from 0; without trajectories, all rows of a network are one run."""
    if "trajectory" not in runs:
        return np.zeros(len(runs), int)
    return runs.groupby(CONFIGURATION)["trajectory"].transform(lambda names: pd.factorize(names)[0]).to_numpy(int)


def along_trajectories(trajectory: NDArray[np.integer], log_density: NDArray) -> NDArray[np.integer]:
    """Order rows by trajectory, and within one from the densest to the sparsest."""
    return np.lexsort((-log_density, trajectory))


def gaps(
    trajectory: NDArray[np.integer], log_density: NDArray, fate: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Count the rounds of 20 % from every row to the next of its trajectory, rows being in order.

    Args:
        trajectory: Trajectory of every row.
        log_density: Log density of every row.
        fate: What became of the network, where that is looked at.

    Returns:
        Rounds since the row before, not whole where rounds were other; infinite for the first of a trajectory, and
        after a dead network's.

    Example:
        >>> gaps(np.array([0, 0, 1]), np.log([1.0, 0.64, 1.0])).round(6).tolist()
        [inf, 2.0, inf]
    """
    rounds = -np.diff(log_density, prepend=np.inf) / ROUND
    follows = np.diff(trajectory, prepend=-1) == 0
    if fate is not None:
        follows &= ~np.concatenate([[False], are_dead(fate[:-1])])
    return np.where(follows, rounds, np.inf)


def _lines(
    trajectory: NDArray[np.integer], order: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Lay rows out in lines of equal length, each within one trajectory.

    Args:
        trajectory: Trajectory of every row, `[rows]`.
        order: Rows that are laid out, by trajectory, in the order within it; of every trajectory one or more.

    Returns:
        The row at every place, -1 where there is none, `[length, lines]`, and the trajectory of every line.
    """
    counts = np.bincount(trajectory[order])
    lengths = np.unique(counts)
    lines = -(-counts[:, None] // lengths)
    best = int(np.argmin(lines.sum(0) * (lengths + _LINE)))
    length, lines = int(lengths[best]), lines[:, best]
    within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    line = np.repeat(np.cumsum(lines) - lines, counts) + within // length
    places = np.full((length, lines.sum()), -1)
    places[within % length, line] = order
    return places, np.repeat(np.arange(len(counts)), lines)


def empirical_logit(error: NDArray, n_test: NDArray) -> NDArray:
    """Compute log((wrong + 1/2) / (right + 1/2)), finite at 0 and at 1; the plain logit where n_test is unknown."""
    known = np.isfinite(n_test)
    count = np.where(known, n_test, 1.0)
    half = np.where(known, 0.5, 0.0)
    return np.log(error * count + half) - np.log((1 - error) * count + half)


def error_from_logit(logit: NDArray, n_test: NDArray) -> NDArray:
    """Undo the empirical logit, to the nearest count where the number of test examples is known."""
    share = scipy.special.expit(logit)
    known = np.isfinite(n_test)
    count = np.where(known, n_test, 1.0)
    wrong = np.clip(np.round(share * (count + 1) - 0.5), 0, count)
    return np.where(known, wrong / count, share)


def varies(values: pd.Series) -> bool:
    """Say whether a column has more than one value."""
    return bool((values != values.iloc[0]).any())


def check_one_family(runs: pd.DataFrame) -> None:
    """Refuse a table of several families: their exponents differ, and pooling was not asked for.

    Raises:
        BayeslawError: There is more than one (family, dataset), or one that has several numbers of classes or errors of
            guessing.
    """
    pairs = runs[["family", "dataset"]].drop_duplicates()
    if len(pairs) > 1:
        names = ", ".join(f"{family} on {dataset}" for family, dataset in pairs.itertuples(index=False))
        raise BayeslawError(
            f"the table holds {len(pairs)} families ({names}), which do not share their exponents; fit one at a time, "
            "runs[(runs.family == ...) & (runs.dataset == ...)], or all together by bayeslaw.fit(..., pool='family')."
        )
    for name in ("classes", "chance_error"):
        found = runs[name].unique() if name in runs else []
        if len(found) > 1:
            raise BayeslawError(
                f"{name} must be constant within a family and dataset, and {label_of(*pairs.iloc[0])} has "
                f"{', '.join(f'{value:g}' for value in found[:5])}; correct it, or give other datasets names of their "
                "own in the column dataset."
            )


def rounds_at(density: Any) -> NDArray:
    """Count the pruning rounds of 20 % that lead to a density, to the nearest."""
    return np.round(-np.log(np.asarray(density, float)) / ROUND).astype(int)
