"""Whether the model could have made the runs it was fitted to: test quantities of measured and of replicated runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.special

from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, RUN, empirical_logit, n_test_of, replicate_of, rounds_at
from bayeslaw.precision import in_float64
from bayeslaw.predict import predict, summarise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Pruning rounds of 20 % over which a first fall of the error is looked for.
EARLY = 6


@in_float64
def predictive_check(fit: Fit, *, interval: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Compare test quantities of the measured runs with those of new runs of the same networks.

    Every draw of the posterior makes a new replicate of every trajectory, at its densities: effects, noise and counts
    of wrong answers drawn afresh, networks as inferred. Where a measured quantity lies outside what replicates show,
    the model cannot make such runs, and predictions that rest on that quantity should not be believed.

    Args:
        fit: The posterior.
        interval: Probability of the equal-tailed intervals, in (0, 1).
        seed: Seed of the replicates.

    Returns:
        One row per test quantity with `measured`, the `median`, `lower` and `upper` of the replicates, `p_value`, the
        share of replicates that are not smaller, and `meaning`. Rows: `early_change`, the mean log error of the first
        `EARLY` rounds of pruning less that of the unpruned network, averaged over trajectories, negative where pruning
        first helps; `steepest`, the largest rise of the error's logit from one level to the next, averaged over
        trajectories; `last`, the mean error of the sparsest level; `seeds`, the sd of the log error between replicates
        of a network, averaged over levels and networks. A row is absent where the runs do not have it.

    Raises:
        BayeslawError: No run was fitted, or `interval` is out of range.

    Source:
        Gelman, Meng, Stern, Statistica Sinica 6, 1996.

    Example:
        >>> import bayeslaw
        >>> bayeslaw.predictive_check(fit)  # doctest: +SKIP
    """
    if fit.runs.empty:
        raise BayeslawError(f"no run of {fit.frame.label} was fitted: there is nothing to compare replicates with.")
    if not 0 < interval < 1:
        raise BayeslawError(f"interval = {interval} must be in (0, 1), for instance 0.9.")
    runs = fit.runs.assign(replicate=replicate_of(fit.runs)).sort_values(
        [*RUN, "density"], ascending=[True] * len(RUN) + [False], ignore_index=True
    )
    replicated = predict(fit, runs, kind="run", seed=seed, return_draws=True).to_numpy().reshape(-1, len(runs))
    together = np.column_stack([runs["error"].to_numpy(float), replicated.T])
    rows = {}
    for name, (meaning, (measured, *others)) in _quantities(runs, together).items():
        summary = summarise(np.array(others), interval)
        summary.pop("mean")
        p_value = np.mean(np.array(others) >= measured)
        rows[name] = {"measured": measured, **summary, "p_value": p_value, "meaning": meaning}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")


def _quantities(runs: pd.DataFrame, error: NDArray) -> dict[str, tuple[str, NDArray]]:
    """Compute the test quantities of errors `[rows, tables]`, rows of a run together from dense to sparse."""
    n_test = n_test_of(runs)
    logit = empirical_logit(error, n_test[:, None])
    log_error, rounds = scipy.special.log_expit(logit), rounds_at(runs["density"])
    early, steepest, last = [], [], []
    for rows in map(np.asarray, runs.groupby(RUN).indices.values()):
        first = rows[(rounds[rows] > 0) & (rounds[rows] <= EARLY)]
        if rounds[rows[0]] == 0 and len(first):
            early.append(log_error[first].mean(0) - log_error[rows[0]])
        if len(rows) > 1:
            steepest.append(np.diff(logit[rows], axis=0).max(0))
        last.append(error[rows[-1]])
    levels = runs.groupby([*CONFIGURATION, "density"]).indices.values() if "trajectory" in runs else ()
    seeds = [log_error[rows].std(0, ddof=1) for rows in levels if len(rows) > 1]
    found = {
        "early_change": (f"log error of the first {EARLY} rounds less that of the unpruned network", early),
        "steepest": ("largest rise of the logit from one level to the next", steepest),
        "last": ("error of the sparsest level", last),
        "seeds": ("sd of the log error between replicates of a network", seeds),
    }
    return {name: (meaning, np.mean(values, axis=0)) for name, (meaning, values) in found.items() if values}
