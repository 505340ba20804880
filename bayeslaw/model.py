"""The probability model: structure and data in, NumPyro model out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from bayeslaw.deaths import log_density_of_dead
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, Data, is_dead, varies
from bayeslaw.hierarchy import (
    SPREADS,
    centred_effects,
    halfway_prior,
    luck_of_runs,
    luck_of_subsets,
    site,
    split_spread,
    spreads_of,
    standardised_effects,
)
from bayeslaw.laws import CURVATURE, law_named, log_dense_at, split_dense
from bayeslaw.lines import LineNoise, Places
from bayeslaw.subsets import shares_subsets

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: Where the effects of a training run can act: up and down on eps_np, sideways on log p'.
EFFECTS = ("np", "p")
#: With fewer configurations than this nothing tells how spreads grow with the error.
MANY_CONFIGURATIONS = 20
NOISES = ("student_t", "normal")


@dataclass(frozen=True)
class Structure:
    """Say which parts the model has.

    Attributes:
        depth_varies: Else `phi` and `omega` are driven by their priors alone.
        width_varies: Else `psi` is driven by its prior alone.
        has_trajectories: Else there are no trajectory effects.
        knows_n_test: Else there is no binomial floor.
        law: Name of the law (`bayeslaw.laws`).
        effects: Where trajectory effects act, of `np` and `p`; what the table cannot show has been left out.
        noise: `student_t` or `normal`.
        steep: Whether noise grows with the local slope.
        growth: Whether spreads grow with the error that the dense law expects and as networks get narrow, and, where
            runs have effects on eps_np and `n_test` is known, whether part of a test set's noise lasts through a run.
        correlated: Whether the noise of a level is correlated with that of the level before.
        deaths: Whether networks die (`bayeslaw.deaths`).
        subsets: Whether runs on one training subset share its luck (`bayeslaw.subsets`).
        curvature: Whether the dense law has quadratic terms (`bayeslaw.laws.curvature`).
    """

    depth_varies: bool
    width_varies: bool
    has_trajectories: bool
    knows_n_test: bool
    law: str = "joint"
    effects: tuple[str, ...] = EFFECTS
    noise: str = "student_t"
    steep: bool = True
    growth: bool = True
    correlated: bool = False
    deaths: bool = False
    subsets: bool = False
    curvature: bool = False

    def without(self) -> set[str]:
        """Name the parameters that the model does not have."""
        effects = self.effects if self.has_trajectories else ()
        absent = set(law_named(self.law).without) | (set() if "np" in effects else {"share_np"})
        absent |= {"spread_np"} if self.of_runs and "np" not in effects else set()
        absent |= set() if "p" in effects else {"spread_p"}
        absent |= set() if "p" in effects else {"share_p"}
        absent |= set() if self.knows_n_test else {"floor"}
        absent |= set() if self.noise == "student_t" else {"nu"}
        absent |= set() if self.steep else {"kappa", "noise_power"}
        absent |= set() if self.deaths else {"dies", "dies_power", "stays", "born_dead", "born_power"}
        absent |= set() if self.subsets else {"spread_subset"}
        absent |= set() if self.curvature else set(CURVATURE)
        absent |= set() if self.correlated and self.has_trajectories else {"rho"}
        grows = self.growth and not self.of_runs
        absent |= set() if grows and "spread_np" not in absent else {"growth_np", "narrow_np"}
        absent |= set() if grows and "np" in effects and self.knows_n_test else {"lasting"}
        return absent | (set() if grows and "spread_p" not in absent else {"growth_p", "narrow_p"})

    @property
    def of_runs(self) -> bool:
        """Whether eps_np spreads between runs only, there being one configuration."""
        return self.law == "single"


def structure_of(
    runs: pd.DataFrame,
    *,
    law: str = "sharpness",
    effects: tuple[str, ...] = EFFECTS,
    noise: str = "student_t",
    steep: bool = True,
    growth: bool | None = None,
    correlated: bool = True,
    deaths: bool | None = None,
    subsets: bool | None = None,
    curvature: bool = True,
) -> Structure:
    """Look which axes vary and what is known, and check what is asked for.

    Where `growth` is not given, `MANY_CONFIGURATIONS` inform the spreads' growth; where `deaths` is not, one dead
    network does (`bayeslaw.deaths`); where `subsets` is not, subsets that networks share do (`bayeslaw.subsets`).

    Raises:
        BayeslawError: The law, an effect or the noise is unknown, or the law is for one configuration and there are
            several.
    """
    law_named(law)
    if unknown := [name for name in effects if name not in EFFECTS]:
        raise BayeslawError(f"effects = {unknown} must be of {', '.join(EFFECTS)}: on eps_np, on p'.")
    if noise not in NOISES:
        raise BayeslawError(f"noise = {noise!r} must be one of {', '.join(NOISES)}.")
    configurations = len(runs[CONFIGURATION].drop_duplicates())
    if law == "single":
        if configurations > 1:
            raise BayeslawError(
                f"law = 'single' is equation (1), for one network; the table has {configurations} configurations. "
                "Keep one of them, or take law = 'joint'."
            )
        if "trajectory" in runs and not varies(runs["trajectory"]):
            effects = ()  # a spread of one
    return Structure(
        depth_varies=varies(runs["depth"]),
        width_varies=varies(runs["width"]),
        has_trajectories="trajectory" in runs,
        knows_n_test="n_test" in runs,
        law=law,
        effects=tuple(name for name in EFFECTS if name in effects),
        noise=noise,
        steep=steep,
        growth=configurations >= MANY_CONFIGURATIONS if growth is None else growth,
        correlated=correlated,
        deaths=_any_died(runs) if deaths is None else deaths and "trajectory" in runs,
        subsets=subsets is not False and "share_n" not in law_named(law).without and shares_subsets(runs),
        curvature=curvature,
    )


def _any_died(runs: pd.DataFrame) -> bool:
    """Tell whether any network of a run table died; without trajectories nobody can."""
    if "trajectory" not in runs:
        return False
    return bool(is_dead(runs, float(runs["chance_error"].iloc[0]) if "chance_error" in runs else 1.0).any())


def make_model(structure: Structure, *, centred: bool = True):
    """Make the NumPyro model of the error of pruned networks.

    For configuration i, trajectory t and row r

        log e~_i  = log(a n^-alpha + b (m l^omega)^-beta + c) + x_i' C x_i      the dense law, with its curvature
        x_i       = log l, log w, log n about their centres
        log e_i   ~ Normal(log e~_i, sigma_np g_np)                            discrepancy of the configuration
        log e_it  = log e_i + log(1 + s_i (e^u - 1)) + effect_np               the trajectory, up and down
        effect_np ~ Normal(0, (tau_np^2 g_np^2 + lasting (1 - eps~_i) / (n_test eps~_i))^(1/2))
        u         ~ Normal(0, spread_subset (n_0 / n)^(1/2))                   luck of the training subset
        s_i       = a n^-alpha / (a n^-alpha + b (m l^omega)^-beta + c)        what luck acts on
        shift_i   ~ Normal(0, sigma_p g_p)                                     the configuration, sideways
        log p'_it = log p' + effect_p,     effect_p  ~ Normal(shift_i, tau_p g_p)  the trajectory, sideways
        g         = (e~_i / e~ of the central network)^growth                  worse networks spread more,
                    (w_i / w of the central network)^-narrow                   and narrower ones
        eps~_i    = eps_np that the dense law expects: test examples that a run keeps getting wrong are no luck of its
                    training, and no part of its population error
        eps_np    = eps_up e_it / sqrt(e_it^2 + 1)
        mean      = law(eps_np, eps_up, gamma, p', m*_r)
        response  ~ logit(mean) + scale z,   z_r = rho^gap z_before + sqrt(1 - rho^(2 gap)) StudentT(nu)
        scale^2   = floor^2 binomial + (2 mean)^(2 noise_power) (sigma^2 + (kappa d logit mean / d log m*)^2)

    The response is the empirical logit, so both ends are safe: an error of 0 of n_test is an ordinary observation with
    its binomial width, and no prediction leaves (0, 1). Dead networks make no responses (`bayeslaw.deaths`).

    Args:
        structure: Which law, and which parts the model has.
        centred: Sample the trajectories' log e_it themselves, with log e_i integrated out (`draw_configurations` gives
            it back); right where every trajectory is well measured. Else sample standardised effects, right where
            few groups leave the spreads uncertain.

    Returns:
        A function of `Data` and of NumPyro distributions by parameter name, to be given to NumPyro.

    Source:
        Rosenfeld et al., ICML 2021, equation (2); ICLR 2020, equations (4) and (5).
    """
    absent, law = structure.without(), law_named(structure.law)

    def model(data: Data, priors: Mapping[str, Any]) -> None:
        value = {name: site(name, priors[name]) for name in priors if name not in (*absent, *SPREADS)}
        spread = {name: site(name, priors[name]) for name in SPREADS if name not in absent}
        parts = split_spread(spread, of_runs=structure.of_runs)
        spread |= {name: numpyro.deterministic(name, part) for name, part in parts.items()}
        for name, term in split_dense(value).items():
            numpyro.deterministic(name, term)
        log_eps_up = data.log_chance + jnp.log(value["plateau"])
        value["log_eps_up"] = jnp.asarray(numpyro.deterministic("log_eps_up", log_eps_up))
        centre = log_dense_at(value, data.covariates)
        at_network = spreads_of(value | spread, data, centre)
        luck = jnp.asarray(0.0)
        if structure.subsets:
            value["luck_halfway"] = site("luck_halfway", halfway_prior(value["spread_subset"], len(data.luck_root)))
            numpyro.deterministic("luck", luck_of_subsets(value, data))
            luck = luck_of_runs(value, data)
        log_e, effect_p = (centred_effects if centred else standardised_effects)(data, centre, at_network, luck)
        covariates = {name: jnp.asarray(v)[data.configuration] for name, v in data.covariates.items()}
        curve = law.curve(value, covariates, log_e, effect_p)
        of_line = jax.tree.map(lambda part: part[data.trajectory] if jnp.ndim(part) else part, curve)
        rows = data.log_density, data.n_test, data.gap, data.measured, data.at_risk, data.log_chance
        places = Places(*map(jnp.asarray, rows))
        if structure.deaths:
            numpyro.factor("dead", log_density_of_dead(value, data.dead, data.born, data.width))
        numpyro.sample("response", LineNoise(law, of_line, places, value), obs=data.response)

    return model


def starting_values(data: Data, structure: Structure) -> dict[str, NDArray]:
    """Guess where the posterior is: plateaus from the densest rows, all else in the middle of the priors."""
    measured = np.asarray(data.measured)
    of_row = np.broadcast_to(data.trajectory, measured.shape)[measured]
    log_density, response = (np.asarray(part)[measured] for part in (data.log_density, data.response))
    densest = np.full(len(data.configuration), -np.inf)
    np.maximum.at(densest, of_row, log_density)
    chosen = log_density >= densest[of_row] - 1e-9
    configuration = np.asarray(data.configuration)[of_row][chosen]
    total = np.bincount(configuration, response[chosen], len(data.depth))
    count = np.bincount(configuration, minlength=len(data.depth))
    logit = total / np.maximum(count, 1)
    logit[count == 0] = np.median(logit[count > 0]) if count.any() else 0.0  # dead from the first level on
    share = np.clip(1 / (1 + np.exp(-logit)) / math.exp(data.log_chance), 1e-4, 0.98)
    own, absent = np.log(share / np.sqrt(1 - share**2)), structure.without()
    values = {"log_e": own} if "share_np" in absent else {"log_e_run": own[data.configuration]}
    return values | ({} if "spread_p" in absent else {"effect_p": np.zeros(len(data.configuration))})
