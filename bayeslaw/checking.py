"""Simulation-based calibration: is the posterior that `fit` gives the posterior of the model it states?"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.check_models import Model, describe_fault, fault_named, model_named
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import fit
from bayeslaw.frame import CONFIGURATION
from bayeslaw.posterior import Fit
from bayeslaw.precision import in_float64
from bayeslaw.priors import Prior, describe_prior
from bayeslaw.rank_store import RankStore
from bayeslaw.simulation import Design, Fault, Simulated, log_dense, log_likelihood, mean_error, simulate, spreads
from bayeslaw.uniformity import holm, uniformity_p_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Probability that correct code is rejected, over all quantities of a check together.
LEVEL = 0.01
#: Draws that a truth is ranked among, so that its rank is one of 0, 1, ..., KEPT; evenly thinned from all of a fit.
KEPT = 100
CHAINS, FIRST_DRAWS, MOST_DRAWS = 2, 500, 4000
#: Effective draws that the worst quantity must have: with twice as many as are kept, neighbours among the kept ones of
#: an autoregressive chain correlate by less than exp(-4). A fit with fewer is continued.
LEAST_ESS = 2.0 * KEPT
#: R-hat above which the chains of a fit are counted as disagreeing.
MOST_R_HAT = 1.05


@dataclass(frozen=True)
class Check:
    """Hold the ranks of a check and the verdict.

    Attributes:
        model: What was checked.
        fault: What was wrong on purpose.
        ranks: Number of draws below the truth, 0 to `KEPT`, one row per data set and one column per quantity.
        fits: Of every data set `draws` (kept transitions, both chains), `ess` (bulk, of the worst quantity), `r_hat`
            (likewise), `divergences` and `seconds`.
        table: One row per quantity: `mean` and `sd` of its ranks in units of what uniform ranks have (a mean above 1:
            the posterior lies too low; an sd above 1: it is too narrow), `p` of the exact test, `adjusted` for all
            quantities of the check (Holm), and `rejected` at `LEVEL`.
    """

    model: Model
    fault: Fault
    ranks: pd.DataFrame
    fits: pd.DataFrame
    table: pd.DataFrame

    @property
    def rejected(self) -> bool:
        """Whether ranks of any quantity are not uniform, at the family-wise level."""
        return bool(self.table["rejected"].any())

    def __str__(self) -> str:
        shown = self.table.assign(rejected=np.where(self.table["rejected"], "rejected", ""))
        formats = {"mean": "{:.3f}".format, "sd": "{:.3f}".format, "p": "{:.2g}".format, "adjusted": "{:.2g}".format}
        verdict = "REJECTED" if self.rejected else "accepted"
        fits = self.fits
        return (
            f"{self.model.title}: {len(fits)} data sets, fault: {describe_fault(self.fault)}\n"
            f"{shown.to_string(formatters=formats)}\n"
            f"{verdict} at the family-wise level {LEVEL:.0%}\n"
            f"fits, none left out: {int((fits['divergences'] > 0).sum())} with divergences, "
            f"{int((~(fits['r_hat'] <= MOST_R_HAT)).sum())} with R-hat above {MOST_R_HAT}, "
            f"{int((fits['draws'] > CHAINS * FIRST_DRAWS).sum())} continued, "
            f"{int((~(fits['ess'] >= LEAST_ESS)).sum())} with fewer than {LEAST_ESS:.0f} effective draws even so; "
            f"median {fits['seconds'].median():.2f} s a data set"
        )


def check(
    model: str = "single",
    *,
    repetitions: int | None = None,
    fault: str | Fault = "none",
    seed: int = 0,
    output: str | Path | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Check:
    r"""Check the calibration of `fit` by simulation.

    Parameters are drawn from the priors, a run table from the parameters (`bayeslaw.simulation`, plain code), and the
    table goes through `fit` and `predict` as a user's would. If sampler, density, transforms and predictions are those
    of the model, the truth is one more draw from the posterior: among L nearly independent draws its rank is uniform on
    0, ..., L. Ranked are all parameters, the joint log likelihood, mean errors at a density that is not in the table
    and, where there are any, effects. Each quantity's ranks are tested exactly (`uniformity_p_value`) and all of them
    together at the level `LEVEL` (Holm).

    Args:
        model: `"single"`, `"few"` or `"hierarchical"`; see `bayeslaw.check_models`.
        repetitions: Number of data sets; 1,000 for the small models and 200 for the hierarchical one if not given.
        fault: Something wrong on purpose, to see it rejected: `"noise"` (scale x 1.1), `"gamma"` (x 1.05), `"double"`
            (the likelihood counted twice), or a `Fault`.
        seed: Seed; with the number of a data set it decides all that is random in it.
        output: Folder for `ranks.csv`, written through data set by data set and continued from where it stopped, and
            for `table.csv`.
        processes: Number of worker processes; 1 stays in this one.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        The ranks and the verdict. Fits with divergences or too few effective draws are counted, not left out.

    Raises:
        BayeslawError: There is no such model or fault, a number is out of range, or the folder holds other ranks.

    Source:
        Talts, Betancourt, Simpson, Vehtari, Gelman, arXiv 1804.06788; Modrak et al., Bayesian Analysis 2023 (the log
        likelihood as a quantity); Saeilynoja, Buerkner, Vehtari 2022 (the test).

    Example:
        >>> import bayeslaw
        >>> bayeslaw.check("single", repetitions=100, output="check/single")  # doctest: +SKIP
    """
    known, planted = model_named(model), fault_named(fault)
    wanted = known.repetitions if repetitions is None else repetitions
    if wanted < 1 or processes < 1:
        raise BayeslawError(f"repetitions = {wanted} and processes = {processes} must be whole numbers from 1 up.")
    store = RankStore(output, _settings(known, planted, seed))
    missing = [i for i in range(wanted) if i not in store.rows]
    jobs = [(known.name, planted, seed, i) for i in missing]
    with _bar(known, planted, wanted, len(missing), progress) as bar:
        for row in _in_processes(jobs, processes) if processes > 1 else map(_row, jobs):
            store.add(row)
            bar.update()
    result = judge(known, planted, store.table(wanted))
    store.close(result.table)
    return result


def judge(model: Model, fault: Fault, rows: pd.DataFrame) -> Check:
    """Test the ranks of a check, one row per data set with the columns of `Check.ranks` and `Check.fits`."""
    about = ["draws", "ess", "r_hat", "divergences", "seconds"]
    ranks = rows.drop(columns=about)
    p_values = [uniformity_p_value(values, KEPT) for _, values in ranks.items()]
    table = pd.DataFrame(
        {
            "mean": ranks.mean() / (KEPT / 2),
            "sd": ranks.std(ddof=0) / math.sqrt(KEPT * (KEPT + 2) / 12),
            "p": p_values,
            "adjusted": holm(p_values),
        }
    )
    table["rejected"] = table["adjusted"] <= LEVEL
    return Check(model, fault, ranks, rows[about], table.rename_axis("quantity"))


def _settings(model: Model, fault: Fault, seed: int) -> dict[str, Any]:
    """Gather what the ranks of a folder depend on."""
    priors = {name: describe_prior(Prior(prior, "", "")) for name, prior in model.priors.items()}
    settings = {
        "model": model.name,
        "fault": dataclasses.asdict(fault),
        "seed": seed,
        "draws_ranked_among": KEPT,
        "priors": priors,
        "design": dataclasses.asdict(model.design),
        "fit": model.settings,
        "predictions": model.predictions,
    }
    return json.loads(json.dumps(settings))


def _bar(model: Model, fault: Fault, wanted: int, missing: int, shown: bool):
    from tqdm import tqdm

    what = model.name if fault == Fault() else f"{model.name}, {describe_fault(fault)}"
    disable = None if shown else True
    return tqdm(total=wanted, initial=wanted - missing, desc=what, unit="set", disable=disable, file=sys.stderr)


def _in_processes(jobs: list[tuple], processes: int) -> Iterator[dict[str, float]]:
    """Do the jobs in worker processes; rows come in the order in which they are ready."""
    # Forking a process whose JAX threads hold locks can hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context)
    try:
        futures = [pool.submit(_row, job) for job in jobs]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _row(job: tuple[str, Fault, int, int]) -> dict[str, float]:
    """Simulate one data set, fit it and rank the truth; everything random in it follows from seed and number."""
    name, fault, seed, repetition = job
    start = time.perf_counter()
    model, rng = model_named(name), np.random.default_rng([seed, repetition])
    value_seed, fit_seed = (int(number) for number in rng.integers(2**31, size=2))
    simulated = simulate(model.design, draw_values(model, value_seed), rng, fault)
    posterior, about = _fit_long_enough(model, simulated, fit_seed)
    draws = {name: v.to_numpy().ravel() for name, v in _quantities(model, simulated, posterior).items()}
    draws |= _predictions(model, posterior, fit_seed)
    truth = _truth(model, simulated, rng)
    ranks = {name: int((draws[name] < truth[name]).sum()) for name in truth}
    return {"repetition": repetition} | ranks | about | {"seconds": round(time.perf_counter() - start, 3)}


@in_float64
def draw_values(model: Model, seed: int) -> dict[str, float]:
    """Draw the parameters from their priors."""
    keys = jax.random.split(jax.random.PRNGKey(seed), len(model.priors))
    return {k: float(prior.sample(key)) for (k, prior), key in zip(model.priors.items(), keys, strict=True)}


def _fit_long_enough(model: Model, simulated: Simulated, seed: int) -> tuple[Fit, dict[str, float]]:
    """Fit, with twice the draws until the effective ones suffice, and thin to `KEPT`; say how it went."""
    import arviz as az

    draws = FIRST_DRAWS
    while True:
        result = fit(
            simulated.runs, priors=model.priors, seed=seed, chains=CHAINS, draws=draws, progress=False, **model.settings
        )
        quantities = _quantities(model, simulated, result)
        ess = _worst(az.ess(quantities, method="bulk"), np.min)
        if ess >= LEAST_ESS or draws >= MOST_DRAWS:
            break
        draws *= 2
    about = {
        "draws": CHAINS * draws,
        "ess": round(ess, 1),
        "r_hat": round(_worst(az.rhat(quantities), np.max), 4),
        "divergences": int(result.tree["sample_stats"].to_dataset()["diverging"].sum()),
    }
    return _thin(result, CHAINS * draws // KEPT), about


def _worst(values: Any, choose: Callable[[list[float]], np.floating]) -> float:
    """Give the smallest or the largest of a statistic over all quantities, no number if any is none."""
    return float(choose([float(value) for value in values.data_vars.values()]))


def _thin(result: Fit, every: int) -> Fit:
    groups = {name: group.to_dataset() for name, group in result.tree.children.items()}
    groups["posterior"] = groups["posterior"].isel(draw=slice(every - 1, None, every))
    return dataclasses.replace(result, tree=xr.DataTree.from_dict(groups))


def _effects(design: Design) -> tuple[str, ...]:
    """Name the effects of which the first is ranked."""
    return "log_e", "log_e_run", "shift_p", "effect_p", *(("luck",) if design.subsets else ())


def _quantities(model: Model, simulated: Simulated, posterior: Fit) -> xr.Dataset:
    """Gather the draws of what is ranked, but for predictions, `[chain, draw]` each."""
    found = posterior.posterior
    dims = ("chain", "draw")
    draws = {name: (dims, found[name].to_numpy()) for name in model.priors}
    if model.effects:
        draws |= {f"{name}[0]": (dims, found[name].to_numpy()[..., 0]) for name in _effects(model.design)}
    count = len(model.design.configuration)
    log_e = found["log_e_run"] if "log_e_run" in found else found["log_e"]
    effect_p = found["effect_p"].to_numpy() if "effect_p" in found else np.zeros((*found["dense"].shape, count))
    value = {name: found[name].to_numpy()[..., None] for name in model.priors}
    likelihood = log_likelihood(model.design, value, log_e.to_numpy(), effect_p, simulated.response, simulated.dead)
    return xr.Dataset(draws | {"log_likelihood": (dims, likelihood)})


def _predictions(model: Model, posterior: Fit, seed: int) -> dict[str, NDArray]:
    networks = pd.DataFrame([network for network, _ in model.predictions.values()], columns=pd.Index(CONFIGURATION))
    designs = networks.assign(density=[density for _, density in model.predictions.values()])
    draws = posterior.predict(designs, kind="mean", seed=seed, return_draws=True)
    assert isinstance(draws, xr.DataArray)
    return {name: draws.to_numpy()[..., i].ravel() for i, name in enumerate(model.predictions)}


def _truth(model: Model, simulated: Simulated, rng: np.random.Generator) -> dict[str, float]:
    """Gather what the draws are ranked against; a network that is not in the table gets a discrepancy of its own."""
    value, design = simulated.value, model.design
    truth = dict(value)
    if model.effects:
        truth |= {f"{name}[0]": getattr(simulated, name)[0] for name in _effects(design)}
    effects = simulated.log_e_run, simulated.effect_p
    truth["log_likelihood"] = float(log_likelihood(design, value, *effects, simulated.response, simulated.dead))
    for name, (network, density) in model.predictions.items():
        if network in design.configurations:
            own = design.configurations.index(network)
            at_network = simulated.log_e[own], simulated.shift_p[own]
        else:
            covariates = design.covariates(np.array([network]))
            centre, spread = log_dense(value, covariates)[0], spreads(value, covariates)
            fresh, shift = (float(spread[name][0]) * rng.standard_normal() for name in ("sigma_np", "sigma_p"))
            at_network = centre + fresh, shift
        truth[name] = mean_error(design, value, at_network, network, density)
    return truth
