r"""What runs share that were trained on the same examples: some subsets are worth more examples than others.

A subset of n examples drawn at random acts on the term of the dense law that data remove, a n^-alpha, as a factor
exp(luck). Were its log the mean of what each example adds, it would be normal with a variance that falls as 1 / n; and
subsets of which one holds the other go together,

$$\operatorname{Cov}(u_n, u_m) = \sigma^2 \frac{n_0}{\max(n, m)}$$

with n_0 the central dataset size. With s the share of a network's e that data remove, its log e moves by
log(1 + s (exp(luck) - 1)), to first order by s times luck: a network that is too small to learn what it sees does not
care which examples they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What tells subsets apart: they are nested in each other by name.
SUBSET = ["dataset_size", "subset_id"]


def shares_subsets(runs: pd.DataFrame) -> bool:
    """Say whether a run table can show luck: of two subsets of one size each was seen by two networks or more."""
    if not {"subset_id", "trajectory"} <= set(runs.columns) or runs["subset_id"].isna().any():
        return False
    networks = runs.drop_duplicates([*SUBSET, "depth", "width"]).groupby(SUBSET).size()
    return bool((networks[networks > 1].groupby("dataset_size").size() > 1).any())


def number_subsets(trajectories: pd.DataFrame) -> tuple[NDArray[np.integer], pd.DataFrame]:
    """Number the subsets of trajectories, `[trajectories]`, and list them, from the smallest to the largest."""
    subsets = trajectories[SUBSET].assign(subset_id=trajectories["subset_id"].map(_text, na_action="ignore"))
    subsets = subsets.drop_duplicates().sort_values(SUBSET, ignore_index=True)
    return which_subset(trajectories, subsets), subsets


def which_subset(rows: pd.DataFrame, subsets: pd.DataFrame) -> NDArray[np.integer]:
    """Say which of some subsets rows are of; -1 where they are of none, or do not say."""
    if "subset_id" not in rows or subsets.empty:
        return np.full(len(rows), -1)
    number = {subset: i for i, subset in enumerate(_named(subsets))}
    return np.array([number.get(subset, -1) for subset in _named(rows)], int)


def _named(rows: pd.DataFrame) -> Iterator[tuple[float, Any]]:
    """Name the subset of every row by its size and, as text, its name, which may be missing."""
    return zip(rows["dataset_size"], rows["subset_id"].map(_text, na_action="ignore"), strict=True)


def _text(name: Any) -> str:
    """Write a name as text: tables name subsets by numbers too, and a gap in a column makes fractions of them."""
    return str(int(name)) if isinstance(name, float | np.floating) and float(name).is_integer() else str(name)


def root_of_covariance(subsets: pd.DataFrame, log_dataset_size: float) -> NDArray[np.float64]:
    """Give the factor that makes lucks of unit spread from independent normals, `[subsets, subsets]`."""
    size, name = subsets["dataset_size"].to_numpy(float), subsets["subset_id"].to_numpy()
    same = name[:, None] == name
    return np.linalg.cholesky(np.where(same, np.exp(log_dataset_size) / np.maximum(size[:, None], size), 0.0))
