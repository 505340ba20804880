"""The posterior of a fit: its summary, diagnostics, predictions and plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from bayeslaw.diagnostics import Diagnosis, diagnose
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION, Frame
from bayeslaw.laws import Law, law_named
from bayeslaw.model import Structure
from bayeslaw.summary import not_informed, note_of, summary_table

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

    from bayeslaw.plan import Plan
    from bayeslaw.priors import Prior
    from bayeslaw.starts import Counter


@dataclass(frozen=True)
class Fit:
    """Hold the posterior of the joint law for one family, with the data and all that made it.

    Attributes:
        tree: ArviZ DataTree with groups `posterior`, `sample_stats`, `observed_data` and `constant_data`; dimensions
            `chain`, `draw`, `configuration`, `trajectory` and `row`.
        runs: The validated run table that was fitted.
        frame: Family, centres and random-guess error.
        structure: Which parts the model has.
        settings: Seed, chains, warm-up, draws, metric, priors, and how far data moved and narrowed parameters.
        versions: Versions of the libraries that computed it.
    """

    tree: xr.DataTree
    runs: pd.DataFrame
    frame: Frame
    structure: Structure
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def posterior(self) -> xr.Dataset:
        """The posterior draws as a Dataset with dimensions `chain` and `draw`."""
        return self.tree["posterior"].to_dataset()

    @property
    def law(self) -> Law:
        """The law that was fitted."""
        return law_named(self.structure.law)

    @property
    def configurations(self) -> pd.DataFrame:
        """The trained (depth, width, dataset_size), in the order of the posterior's `configuration` dimension."""
        coords = self.tree["posterior"].coords
        return pd.DataFrame({name: coords[name].to_numpy() for name in CONFIGURATION})

    def priors(self, given: Mapping[str, Distribution] | None = None) -> dict[str, Prior]:
        """Give the priors of the fit, by parameter name; `prior_table` lists them.

        Args:
            given: Distributions of priors that a fit cannot keep (`bayeslaw.priors.STORABLE` lists those it can).

        Raises:
            BayeslawError: A prior could not be kept and is not given.
        """
        from bayeslaw.priors import restore_priors

        return restore_priors(self.settings["stored_priors"], law=self.structure.law, given=given)

    @property
    def prior_driven(self) -> list[str]:
        """Names of the parameters that the data did not inform.

        Their variance fell by less than 30 % and their mean moved by less than one standard deviation of the prior,
        both on the unconstrained scale (`contraction` and `shift` of the summary).
        """
        return [name for name, driver in not_informed(self.settings).items() if driver == "prior"]

    @property
    def population_driven(self) -> list[str]:
        """Names of the exponents that other families inform (`PooledFit`) and these runs did not, by the same rule."""
        return [name for name, driver in not_informed(self.settings).items() if driver == "population"]

    @property
    def prior_note(self) -> str:
        """Say in words which parameters the data did not inform."""
        return note_of(self.settings)

    def summary(
        self,
        *,
        interval: float = 0.9,
        baseline: bool = False,
        repetitions: int = 100,
        seed: int = 0,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Summarise the parameters of the law, the dense law and the noise.

        Args:
            interval: Probability of the equal-tailed intervals, in (0, 1).
            baseline: Add the paper's way beside the posterior: `least_squares`, its estimate of `gamma`, `phi`, `psi`,
                `p_prime` and `eps_up` from the same runs, in the same units, with `least_squares_lower` and
                `least_squares_upper`, the percentile interval of the bootstrap over trajectories. It is the joint law's
                whatever law was fitted; an exponent whose axis does not vary has none.
            repetitions: Refits of that bootstrap.
            seed: Seed of its starting points and resampling.
            progress: Show its progress where standard error is a terminal and it takes more than two seconds.

        Returns:
            One row per parameter: `mean`, `sd`, `lower`, `upper`, `ess_bulk`, `ess_tail`, `r_hat`, `contraction`
            (1 - posterior variance / prior variance), `shift` (of the mean, in prior standard deviations; both on the
            unconstrained scale) and `driven_by`, which is `prior` for the parameters of `prior_driven`, `population`
            for those of `population_driven`. The prior of a shared exponent is what all families say of a new one.

        Raises:
            BayeslawError: `interval` is out of range; with `baseline`, as `bayeslaw.least_squares` does.
        """
        table = summary_table(self.posterior, self.settings, interval=interval)
        if baseline:
            from bayeslaw.bootstrapping import baseline_table

            table = table.join(
                baseline_table(self.runs, interval=interval, repetitions=repetitions, seed=seed, progress=progress)
            )
        return table

    def psense(
        self,
        *,
        quantities: Mapping[str, Any] | None = None,
        prior_var_names: Sequence[str] | None = None,
        priors: Mapping[str, Distribution] | None = None,
        threshold: float = 0.05,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Say how strongly parameters depend on priors and on data; see `bayeslaw.sensitivity.psense`."""
        from bayeslaw.sensitivity import psense

        return psense(
            self,
            quantities=quantities,
            prior_var_names=prior_var_names,
            priors=priors,
            threshold=threshold,
            progress=progress,
        )

    def predictive_check(self, *, interval: float = 0.9, seed: int = 0) -> pd.DataFrame:
        """Compare measured runs with replicated ones; see `bayeslaw.predictive_checks.predictive_check`."""
        from bayeslaw.predictive_checks import predictive_check

        return predictive_check(self, interval=interval, seed=seed)

    def diagnose(self) -> Diagnosis:
        """Judge the draws of parameters and of trained curves: R-hat, effective sample sizes, divergences and BFMI.

        See `bayeslaw.diagnostics`; the curves are `bayeslaw.curves.trained_curves`.
        """
        from bayeslaw.curves import trained_curves

        return diagnose(self.tree, trained_curves(self))

    def predict(
        self,
        designs: pd.DataFrame,
        *,
        interval: float = 0.9,
        kind: str = "mean",
        seed: int = 0,
        return_draws: bool = False,
    ) -> pd.DataFrame | xr.DataArray:
        """Predict the error of networks, trained or not; see `bayeslaw.predict.predict`."""
        from bayeslaw.predict import predict

        return predict(self, designs, interval=interval, kind=kind, seed=seed, return_draws=return_draws)

    def plan(
        self,
        target_error: float | None = None,
        *,
        depths: Iterable[float],
        widths: Iterable[float],
        dataset_size: float | Iterable[float],
        objective: str = "size",
        max_size: float | None = None,
        max_training_flops: float | None = None,
        policy: str = "fixed",
        validation: int | None = None,
        family: Family | None = None,
        parameters: Counter | None = None,
        confidence: float = 0.9,
        allow_failed: bool = False,
        seed: int = 0,
    ) -> Plan:
        """Choose the network to start from and how far to prune it; see `bayeslaw.plan.plan`."""
        from bayeslaw.plan import plan

        return plan(
            self,
            target_error,
            depths=depths,
            widths=widths,
            dataset_size=dataset_size,
            objective=objective,
            max_size=max_size,
            max_training_flops=max_training_flops,
            policy=policy,
            validation=validation,
            family=family,
            parameters=parameters,
            confidence=confidence,
            allow_failed=allow_failed,
            seed=seed,
        )

    def save(self, path: str | Path) -> None:
        """Write the fit to one NetCDF file, whole or not at all; `bayeslaw.load` gives it back."""
        from bayeslaw.fit_file import save

        save(self, path)
