"""How many runs suffice: error and interval width of predictions against the number of configurations fitted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayeslaw.calibration import log_width
from bayeslaw.cross_validation import SETTINGS, check_kept, keep, read_kept, settings_hash
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit
from bayeslaw.frame import CONFIGURATION

COUNTS = (6, 10, 15, 25, 40)


def learning_curve(
    runs: pd.DataFrame,
    *,
    counts: Sequence[int] = COUNTS,
    repetitions: int = 5,
    law: str = "sharpness",
    seed: int = 0,
    draws: int = 1000,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Fit configurations drawn at random, and predict new runs of all others.

    Args:
        runs: Validated run table of one family.
        counts: Numbers of configurations to fit, from 2 to one below the table's; others are passed over.
        repetitions: Random draws of configurations for each number.
        law: The law, as in `bayeslaw.fit`.
        seed: Seed of the draws, the sampler and the predictions.
        draws: Posterior draws per chain.
        path: Table (.csv) that is kept up to date, and gone on with where it exists; of the same runs and settings,
            up to counts and repetitions.

    Returns:
        One row per fit: `configurations`, `repetition`, `rows` fitted, `deviation` (median of |predicted / measured -
        1| over rows left out, by the median prediction), `log_width` (median width of their 90 % intervals in natural
        logs), `coverage` of those, and whether the fit `passed` the gate.

    Raises:
        BayeslawError: No count is possible, or the table at `path` is of other runs or settings.

    Source:
        Rosenfeld et al., ICML 2021, section 5: some 15 configurations suffice there.
    """
    from tqdm import tqdm

    configurations = runs[CONFIGURATION].drop_duplicates().sort_values(CONFIGURATION, ignore_index=True)
    possible = [count for count in counts if 2 <= count < len(configurations)]
    if not possible:
        limit = len(configurations) - 1
        raise BayeslawError(f"counts = {list(counts)} must be from 2 to {limit}, one below the table's configurations.")
    of_row = runs[CONFIGURATION].merge(configurations.reset_index(), on=CONFIGURATION, how="left")["index"].to_numpy()
    own, kept = settings_hash(runs, law=law, seed=seed, draws=draws), read_kept(path)
    check_kept(path, kept.empty or bool((kept[SETTINGS] == own).all()))
    table: list[dict[Any, Any]] = list(kept.to_dict("records"))
    done = {(row["configurations"], row["repetition"]) for row in table}
    jobs = [(count, repetition) for repetition in range(repetitions) for count in possible]
    for count, repetition in tqdm(jobs, desc="fits", disable=None, file=sys.stderr):
        if (count, repetition) in done:
            continue
        chosen = np.random.default_rng([seed, repetition]).permutation(len(configurations))[:count]
        inside = np.isin(of_row, chosen)
        row = _one(runs[inside], runs[~inside], law=law, seed=seed, draws=draws)
        table.append({"configurations": count, "repetition": repetition} | row | {SETTINGS: own})
        keep(pd.DataFrame(table), path)
    done_now = pd.DataFrame(table).drop(columns=SETTINGS)
    return done_now.sort_values(["configurations", "repetition"], ignore_index=True)


def _one(inside: pd.DataFrame, outside: pd.DataFrame, *, law: str, seed: int, draws: int) -> dict[str, Any]:
    posterior = fit(inside, law=law, seed=seed, draws=draws, progress=False)
    predicted = posterior.predict(outside, kind="run", seed=seed)
    assert isinstance(predicted, pd.DataFrame)
    measured, lower, upper = outside["error"], predicted["lower"], predicted["upper"]
    positive = measured > 0
    return {
        "rows": len(inside),
        "deviation": float((predicted["median"] / measured - 1)[positive].abs().median()),
        "log_width": float(np.median(log_width(lower, upper))),
        "coverage": float(measured.between(lower, upper).mean()),
        "passed": posterior.diagnose().passed,
    }
