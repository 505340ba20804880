"""Which model predicts best, exactly: every fit made again without what is left out, and scored on that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from bayeslaw.calibration import fold_of
from bayeslaw.comparison import check_fits
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit as fit_runs
from bayeslaw.frame import CONFIGURATION, family_of
from bayeslaw.run_checks import NO_VALUE
from bayeslaw.run_likelihood import score_runs

if TYPE_CHECKING:
    from bayeslaw.posterior import Fit

_KEYS = ["fit", "fold", *CONFIGURATION, "trajectory"]
#: What the numbers of a row rest on, in a table that is kept: digits that differ where a setting or the runs do.
SETTINGS = "settings"
#: Columns of such a table that are text, whatever they look like.
_TEXT = (SETTINGS, "fit", "trajectory")
#: Digits of a hash.
_DIGITS = 10


@dataclass(frozen=True)
class CrossValidation:
    """Hold how several models of one table predict what was left out of their fits.

    Attributes:
        pointwise: One row per model and trajectory left out: `fit`, `fold`, the network, `trajectory`, `log_density`
            (log predictive density of its empirical logits, all together), its Monte Carlo error `mcse`, and whether
            the fit without it `passed` its gate.
        leave_out: What was left out.
    """

    pointwise: pd.DataFrame
    leave_out: str

    @property
    def table(self) -> pd.DataFrame:
        """One row per model, best first.

        `elpd` is the sum of the log densities, higher is better; `se` its standard error over what was left out as one
        (networks, or trajectories), whose densities may go together; `difference` from the first row, with its own
        standard error; `mcse` of the sum by the finite number of draws; `passed`, the share of fits past their gate.
        """
        by = [*CONFIGURATION, "trajectory"] if self.leave_out == "trajectories" else CONFIGURATION
        rows = self.pointwise
        scores = rows.pivot_table(index=by, columns="fit", values="log_density", aggfunc="sum")
        order = scores.sum().sort_values(ascending=False).index
        apart = scores.sub(scores[order[0]], axis=0)
        count = np.sqrt(len(scores))
        table = pd.DataFrame(
            {
                "elpd": scores.sum(),
                "se": count * scores.std(ddof=1),
                "difference": apart.sum(),
                "difference_se": count * apart.std(ddof=1),
                "mcse": np.sqrt(rows.groupby("fit")["mcse"].agg(lambda errors: (errors**2).sum())),
                "passed": rows.groupby(["fit", "fold"])["passed"].first().groupby("fit").mean(),
            }
        )
        return table.loc[order].rename_axis("fit")

    def __str__(self) -> str:
        return self.table.to_string(float_format=lambda v: f"{v:.2f}")


def cross_validate(
    fits: Mapping[str, Fit],
    *,
    leave_out: str = "configurations",
    folds: int = 5,
    draws: int = 500,
    seed: int = 0,
    path: str | Path | None = None,
    progress: bool = True,
) -> CrossValidation:
    """Rank models by the density that they give to runs left out of their fits; exact, at the cost of the fits.

    `bayeslaw.compare` estimates the same for trajectories from one fit each, and says when its estimate must not be
    believed. Here every model is fitted again to every fold's remainder, with the same parts and priors. The density of
    a trajectory is that of all its rows together, its effects integrated; where its network was left out too, the
    network's own effects likewise.

    Args:
        fits: Fits of the same runs, with trajectories, by name.
        leave_out: `"configurations"`, dealt into folds at random; `"trajectories"`, likewise, other runs of the same
            network mostly staying; `"largest"`, the largest third of the networks and the largest dataset size.
        folds: Number of folds; `"largest"` is one.
        draws: Posterior draws that a density is averaged over, spread evenly over all of a fit's.
        seed: Seed of folds and sampler.
        path: Table (.csv) that is kept up to date, and gone on with where it exists; of the same runs and settings.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The comparison.

    Raises:
        BayeslawError: The fits are of different runs, without trajectories, or of families fitted together; the table
            at `path` is of other runs or settings; or as `bayeslaw.evaluate` does.

    Source:
        Vehtari, Gelman, Gabry 2017, section 4 (K-fold); Merkle, Furr, Rabe-Hesketh 2019 (integrating effects).

    Example:
        >>> import bayeslaw
        >>> print(bayeslaw.cross_validate({"M1": fit, "M2": other}, folds=3))  # doctest: +SKIP
    """
    if not fits:
        raise BayeslawError("cross_validate needs a fit or more; got none.")
    check_fits(fits)
    runs = next(iter(fits.values())).runs
    if "trajectory" not in runs:
        raise BayeslawError(
            "cross_validate scores whole trajectories; the runs have none. Map the column and fit again."
        )
    for fit in fits.values():
        _check_alone(fit)
    fold = fold_of(runs, leave_out, folds, seed)
    common = settings_hash(runs, leave_out=leave_out, folds=folds, draws=draws, seed=seed)
    own = {name: common + settings_hash(runs, **_about(fit)) for name, fit in fits.items()}
    kept = read_kept(path)
    if not kept.empty:
        same = kept[SETTINGS].str.startswith(common) & (kept[SETTINGS] == kept["fit"].map(own).fillna(kept[SETTINGS]))
        check_kept(path, bool(same.all()))
    tables = [] if kept.empty else [kept]
    done = set() if kept.empty else set(kept[["fit", "fold"]].itertuples(index=False, name=None))
    jobs = [(name, index) for name in fits for index in range(fold.max() + 1) if (name, index) not in done]
    for name, index in tqdm(jobs, desc="fits", disable=None if progress else True, file=sys.stderr):
        scores = _score(fits[name], runs[fold != index], runs[fold == index], draws=draws, seed=seed)
        scores = scores.assign(fit=name, fold=index, **{SETTINGS: own[name]})
        tables.append(scores[[*_KEYS, "log_density", "mcse", "passed", SETTINGS]])
        keep(pd.concat(tables), path)
    return CrossValidation(pd.concat(tables, ignore_index=True).drop(columns=SETTINGS), leave_out)


def settings_hash(runs: pd.DataFrame, **settings: Any) -> str:
    """Give digits that differ where settings, or runs in what a fit sees of them, do."""
    seen = [*CONFIGURATION, "trajectory", "subset_id", "density", "error", "n_test", "chance_error"]
    table = runs.filter([name for name in seen if name in runs]).to_csv(index=False)
    said = json.dumps([repr(family_of(runs.iloc[0])), table, settings], default=str, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:_DIGITS]


def read_kept(path: str | Path | None) -> pd.DataFrame:
    """Read the table that is kept at a path, empty where there is none yet, and make the path's folder.

    Raises:
        BayeslawError: The file is no such table, or does not say which settings it is of.
    """
    if path is None:
        return pd.DataFrame()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not Path(path).exists():
            return pd.DataFrame()
        header = pd.read_csv(path, nrows=0).columns
        none = {name: [""] if name in _TEXT else NO_VALUE for name in header}
        kept = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=none)
    except (OSError, ValueError) as error:
        raise BayeslawError(f"{path}: not a table that can be gone on with ({error}); give another path.") from None
    check_kept(path, SETTINGS in kept and bool(kept[SETTINGS].notna().all()))
    return kept


def check_kept(path: str | Path | None, same: bool) -> None:
    """Refuse a table that is not known to be of the same runs and settings."""
    if not same:
        raise BayeslawError(
            f"{path}: holds results of other runs or other settings than these, or does not say of which, and is gone "
            "on with only where they are the same; give another path, or move the file away to start anew."
        )


def keep(table: pd.DataFrame, path: str | Path | None) -> None:
    """Write a table whole or not at all, if there is a path to keep it at."""
    if path is not None:
        temporary = Path(path).with_name(f".{Path(path).name}.tmp")
        table.to_csv(temporary, index=False)
        temporary.replace(path)


def _about(fit: Fit) -> dict[str, Any]:
    """Say what a fit is made again with."""
    names = ("chains", "warmup", "draws", "target_acceptance", "priors", "stored_priors")
    structure = dataclasses.asdict(fit.structure)
    return {"structure": structure, "frame": dataclasses.asdict(fit.frame)} | {n: fit.settings[n] for n in names}


def _check_alone(fit: Fit) -> None:
    """Refuse the fit of one of several families: what it takes from the others cannot be fitted again from its runs."""
    if "pooled" in fit.settings:
        raise BayeslawError(
            f"{fit.frame.label} was fitted together with other families, and cannot be fitted again without them; fit "
            "its runs alone: bayeslaw.fit(fit.runs)."
        )


def refit(fit: Fit, runs: pd.DataFrame, *, seed: int) -> Fit:
    """Fit other runs with the parts, the priors and the sampler's settings of a fit.

    Raises:
        BayeslawError: It is the fit of one of several families fitted together.
    """
    _check_alone(fit)
    structure, settings = fit.structure, fit.settings
    return fit_runs(
        runs,
        law=structure.law,
        effects=structure.effects,
        noise=structure.noise,
        steep=structure.steep,
        growth=structure.growth,
        correlated=structure.correlated,
        deaths=structure.deaths,
        subsets=structure.subsets,
        curvature=structure.curvature,
        priors={name: prior.distribution for name, prior in fit.priors().items()},
        seed=seed,
        progress=False,
        **{name: settings[name] for name in ("chains", "warmup", "draws", "target_acceptance")},
    )


def _score(fit: Fit, inside: pd.DataFrame, outside: pd.DataFrame, *, draws: int, seed: int) -> pd.DataFrame:
    """Fit the one and give the log density of every trajectory of the other."""
    posterior = refit(fit, inside, seed=seed)
    return score_runs(posterior, outside, draws=draws).assign(passed=posterior.diagnose().passed)
