"""The summary of a posterior, and what drives its parameters: the data, their priors, or other families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.errors import BayeslawError

#: A parameter whose posterior variance is more than this share of its prior variance is called prior-driven, unless its
#: mean moved by more than so many prior standard deviations: pressed against an end of its range it keeps its variance
#: on the unconstrained scale.
PRIOR_DRIVEN, MOVED = 0.7, 1.0


def summary_table(posterior: xr.Dataset, settings: Mapping[str, Any], *, interval: float) -> pd.DataFrame:
    """Summarise the parameters that are one number per draw; columns as in `Fit.summary`.

    Args:
        posterior: The draws, with dimensions `chain` and `draw`.
        settings: Of the fit: `contraction`, `shift` and, where exponents are shared, `pooled`.
        interval: Probability of the equal-tailed interval, in (0, 1).

    Returns:
        One row per parameter.

    Raises:
        BayeslawError: `interval` is out of range.
    """
    import arviz as az

    if not 0 < interval < 1:
        raise BayeslawError(f"interval = {interval} must be in (0, 1), for instance 0.9.")
    scalars = [str(name) for name in posterior.data_vars if posterior[name].ndim == 2]
    values = posterior[scalars]
    tail = (1 - interval) / 2
    quantiles = values.quantile([tail, 1 - tail], dim=("chain", "draw"))
    columns = {
        "mean": values.mean(("chain", "draw")),
        "sd": values.std(("chain", "draw"), ddof=1),
        "lower": quantiles.isel(quantile=0),
        "upper": quantiles.isel(quantile=1),
        "ess_bulk": az.ess(values, method="bulk"),
        "ess_tail": az.ess(values, method="tail"),
        "r_hat": az.rhat(values),
    }
    table = pd.DataFrame({name: {k: float(v[k]) for k in scalars} for name, v in columns.items()})
    for name in ("contraction", "shift"):
        table[name] = pd.Series(settings[name], dtype=float).reindex(table.index)
    drivers = not_informed(settings)
    driven = np.array([drivers.get(name, "data") for name in table.index])
    table["driven_by"] = np.where(table["contraction"].isna(), "", driven)
    return table.rename_axis("parameter")


def not_informed(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name the parameters that the data did not inform, and what drives them: `prior`, or `population` where shared.

    Their variance fell by less than 30 % and their mean moved by less than one standard deviation of the prior, both on
    the unconstrained scale (`contraction` and `shift`).
    """
    shift, pooled = settings["shift"], settings.get("pooled", ())
    names = settings["contraction"].items()
    found = [name for name, value in names if value < 1 - PRIOR_DRIVEN and abs(shift[name]) < MOVED]
    return {name: "population" if name in pooled else "prior" for name in found}


def note_of(settings: Mapping[str, Any]) -> str:
    """Say in words which parameters the data did not inform."""
    drivers = not_informed(settings)
    if not drivers:
        return "The data informed every parameter."
    named = {
        driver: ", ".join(
            f"{name} (variance {-settings['contraction'][name]:+.0%})" for name, by in drivers.items() if by == driver
        )
        for driver in drivers.values()
    }
    notes = {
        "prior": "Driven by the prior, not informed by the data: {}. What depends on them rests on their priors "
        "(bayeslaw.prior_table).",
        "population": "Driven by the other families, not informed by its own runs: {}.",
    }
    return " ".join(text.format(named[driver]) for driver, text in notes.items() if driver in named)
