"""The gate: what a fit must show before anything is decided with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

MAX_R_HAT = 1.01
MIN_ESS = 400.0
MIN_BFMI = 0.3

_REMEDY = {
    "r_hat": "chains disagree: double warmup and draws; if it stays, look at the named parameter's prior",
    "ess_bulk": "too few effective draws for means: raise draws",
    "ess_tail": "too few effective draws for interval ends: raise draws",
    "divergences": "the sampler missed a narrow region: raise target_acceptance to 0.99, or tighten the spread priors",
    "bfmi": "energy mixes slowly: raise warmup, or give the spreads more informative priors",
}


@dataclass(frozen=True)
class Diagnosis:
    """Hold the verdict of the gate.

    Attributes:
        table: One row per rule: `value` (the worst), `required`, `passed`, `parameter` (the worst one), `remedy`.
    """

    table: pd.DataFrame

    @property
    def passed(self) -> bool:
        """Say whether every rule is met."""
        return bool(self.table["passed"].all())

    @property
    def failures(self) -> list[str]:
        """List what failed, one sentence each with its remedy."""
        rows = self.table[~self.table["passed"]]
        return [
            f"{rule} = {row['value']:.4g} ({row['parameter']}), required {row['required']}: {row['remedy']}"
            for rule, row in rows.iterrows()
        ]

    def __str__(self) -> str:
        shown = self.table[["value", "required", "passed", "parameter"]]
        verdict = "passed" if self.passed else "FAILED: " + "; ".join(self.failures)
        return f"{shown.to_string(float_format=lambda v: f'{v:.4g}')}\ngate: {verdict}"


def diagnose(tree: xr.DataTree, predictions: xr.Dataset | None = None) -> Diagnosis:
    """Judge the draws of all parameters, latent effects included, and of predictions.

    Rules: R-hat <= 1.01, bulk and tail ESS >= 400, no divergence, BFMI >= 0.3 in every chain. Parameters that mix well
    one by one can still hold a sum that does not, and it is sums that predict: so predictions are judged like them.

    Args:
        tree: A DataTree with groups `posterior` and `sample_stats` (`diverging`, `energy`).
        predictions: Draws of predictions, with dimensions `chain` and `draw`.

    Returns:
        The verdict with the worst value of each rule and where it is.

    Source:
        Vehtari, Gelman, Simpson, Carpenter, Buerkner, Bayesian Analysis 2021 (R-hat, ESS); Betancourt 2016 (BFMI).
    """
    import arviz as az

    posterior = tree["posterior"].to_dataset()
    if predictions is not None:
        posterior = posterior.assign({str(name): values for name, values in predictions.data_vars.items()})
    posterior = posterior.where(np.isfinite(posterior))  # ranks would take an infinite draw for an ordinary large one
    statistics = tree["sample_stats"].to_dataset()
    divergences = int(statistics["diverging"].sum())
    bfmi = np.asarray(_bfmi(statistics["energy"]))
    with np.errstate(divide="ignore", invalid="ignore"):  # of draws that never move; what is not finite fails below
        r_hat, bulk, tail = az.rhat(posterior), az.ess(posterior, method="bulk"), az.ess(posterior, method="tail")
    rows = [
        _row("r_hat", *_worst(r_hat, np.nanargmax), MAX_R_HAT, at_most=True),
        _row("ess_bulk", *_worst(bulk, np.nanargmin), MIN_ESS, at_most=False),
        _row("ess_tail", *_worst(tail, np.nanargmin), MIN_ESS, at_most=False),
        _row("divergences", float(divergences), "all chains", 0.0, at_most=True),
        _row("bfmi", float(bfmi.min()), f"chain {int(bfmi.argmin())}", MIN_BFMI, at_most=False),
    ]
    return Diagnosis(pd.DataFrame(rows).set_index("rule"))


def worst_of(diagnoses: Mapping[str, Diagnosis]) -> Diagnosis:
    """Put the verdicts on several trees together: of every rule the worst, named by the tree it comes from.

    Args:
        diagnoses: Verdicts by name of the tree.

    Returns:
        The verdict on all of them.
    """
    rows = []
    for rule in next(iter(diagnoses.values())).table.index:
        found = {name: diagnosis.table.loc[rule] for name, diagnosis in diagnoses.items()}
        sign = 1 if next(iter(found.values()))["required"].startswith("<=") else -1
        name = max(found, key=lambda k: sign * found[k]["value"] if np.isfinite(found[k]["value"]) else np.inf)
        rows.append(found[name].to_dict() | {"rule": rule, "parameter": f"{name}: {found[name]['parameter']}"})
    return Diagnosis(pd.DataFrame(rows).set_index("rule"))


def _row(rule: str, value: float, where: str, limit: float, *, at_most: bool) -> dict[str, Any]:
    passed = bool(value <= limit) if at_most else bool(value >= limit)
    required = f"{'<=' if at_most else '>='} {limit:g}"
    remedy = "" if passed else _REMEDY[rule]
    return {"rule": rule, "value": value, "required": required, "passed": passed, "parameter": where, "remedy": remedy}


def _worst(values: xr.Dataset, choose: Any) -> tuple[float, str]:
    """Find the worst of all entries of all variables; a value that is not finite counts as the worst there is."""
    names: list[Hashable] = []
    flat: list[float] = []
    for name, array in values.data_vars.items():
        entries = np.atleast_1d(array.to_numpy()).ravel()
        names += [name if entries.size == 1 else f"{name}[{i}]" for i in range(entries.size)]
        flat += entries.tolist()
    entries = np.asarray(flat)
    bad = np.flatnonzero(~np.isfinite(entries))
    index = int(bad[0]) if bad.size else int(choose(entries))
    return float(entries[index]), str(names[index])


def _bfmi(energy: xr.DataArray) -> np.ndarray:
    values = energy.transpose("chain", "draw").to_numpy()
    with np.errstate(invalid="ignore"):  # a chain that never moved has none: not a number, which fails the gate
        return np.square(np.diff(values, axis=1)).mean(1) / values.var(1)
