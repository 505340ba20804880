"""What priors say and drive: before any run, kept with a fit, beside the posterior, power-scaled; the baseline."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import xarray as xr
from simulate import (
    CONFIGURATION,
    CURVATURE,
    Reference,
    Truth,
    error_of,
    measured_spread,
    observation_of,
    saturated,
    simulate,
    slope_of_logit,
    spread_at,
)

import bayeslaw
from bayeslaw import Family, prior_draws, sensitivity
from bayeslaw.errors import BayeslawError
from bayeslaw.prior_plots import plot_prior_posterior, plot_prior_predictive
from bayeslaw.priors import STORABLE, Prior, describe_prior, restore_priors, store_prior
from bayeslaw.runs import load_runs

#: How far apart two empirical distributions of DRAWS each may be, and how far a mean from another, in its Monte Carlo
#: standard errors. Fixed before the seeds were drawn: one comparison in 10,000 passes either by chance.
DRAWS = 20_000
DISTANCE = 2.23 * np.sqrt(2 / DRAWS)
STANDARD_ERRORS = 4.0

RESNETS = Family("cifar_resnet", (1, 8, 8), 10)
NETWORKS = pd.DataFrame({"depth": [8, 8, 20, 14], "width": [2, 16, 4, 8], "dataset_size": [250, 4000, 1000, 1000]})
DENSITIES = pd.DataFrame({"density": [1.0, 0.1, 0.01]})
#: An order of their twelve designs in which nothing is beside what it was.
SHUFFLED = np.array([7, 0, 10, 5, 2, 11, 4, 8, 1, 6, 3, 9])


def designs_of(networks: pd.DataFrame) -> pd.DataFrame:
    return networks.merge(DENSITIES, how="cross")


# Prior predictive curves

#: Growth so far from 0 that it cannot be forgotten.
OVERRIDDEN = {
    "growth_np": dist.Normal(1.5, 0.1), "growth_p": dist.Normal(2.0, 0.1),
    "narrow_np": dist.Normal(-0.4, 0.1), "narrow_p": dist.Normal(0.6, 0.1),
}  # fmt: skip


def draw_prior(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Draw the default priors, and those overridden, by NumPy."""
    return {
        "gamma": rng.lognormal(0, 0.5, count), "phi": rng.normal(1, 1, count), "psi": rng.normal(1, 1, count),
        "knee": rng.lognormal(-3.5, 1.5, count), "plateau": rng.beta(8, 1, count),
        "dense": rng.lognormal(-2, 1, count), "share_c": rng.beta(1, 4, count), "share_n": rng.uniform(0, 1, count),
        "alpha": rng.lognormal(-0.5, 0.5, count), "beta": rng.lognormal(-0.6, 0.5, count),
        "spread_np": rng.lognormal(-1.6, 0.9, count), "share_np": rng.beta(2, 2, count),
        "spread_p": rng.lognormal(-1.6, 0.8, count), "share_p": rng.beta(2, 2, count),
        "chi": rng.normal(0, 0.3, count), "omega": rng.normal(0, 1, count), "growth_np": rng.normal(1.5, 0.1, count),
        "growth_p": rng.normal(2.0, 0.1, count), "narrow_np": rng.normal(-0.4, 0.1, count),
        "narrow_p": rng.normal(0.6, 0.1, count), "sigma": rng.lognormal(-3, 1, count),
        "kappa": rng.lognormal(-1.6, 0.8, count), "noise_power": rng.lognormal(-0.7, 0.8, count),
        "floor": rng.lognormal(0, 0.25, count),
        "nu": rng.gamma(2, 10, count), "rho": rng.beta(2, 2, count), "lasting": rng.beta(1, 4, count),
        "sharpness": rng.lognormal(np.log(2), 0.4, count),
        **{name: rng.normal(0, 0.05, count) for name in CURVATURE},
    }  # fmt: skip


def curve_in_logs(log_e: Any, eps_up: Any, gamma: Any, log_p: Any, log_m: Any, k: Any) -> tuple[Any, Any]:
    """Compute error and slope of its logit in logs, since priors reach where the direct form overflows."""
    log_np = np.log(eps_up) + log_e - np.logaddexp(2 * log_e, 0) / 2
    high, low = k * log_p, k * log_p + k / gamma * (np.log(eps_up) - log_np)
    power = k * log_m
    error = np.exp(log_np + gamma / k * (np.logaddexp(power, low) - np.logaddexp(power, high)))
    steepness = gamma * (scipy.special.expit(power - low) - scipy.special.expit(power - high))
    return error, steepness / (1 - error)


def test_curves_in_logs_are_those_of_the_direct_form() -> None:
    rng = np.random.default_rng(0)
    log_e, eps_up, gamma = rng.normal(-2, 1, 99), rng.uniform(0.5, 0.9, 99), rng.uniform(0.4, 4, 99)
    log_p, log_m = rng.normal(-2, 1, (2, 99))
    k = rng.uniform(1, 4, 99)
    error, slope = curve_in_logs(log_e, eps_up, gamma, log_p, log_m, k)
    direct = (saturated(np.exp(log_e), eps_up), eps_up, gamma, np.exp(log_p), np.exp(log_m), k)
    np.testing.assert_allclose(error, error_of(*direct), rtol=1e-10)
    np.testing.assert_allclose(slope, slope_of_logit(*direct), rtol=1e-8)


class ByHand:
    """Draw parameters and configurations from the priors, and compute curves, with NumPy alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.reference = Reference(designs_of(NETWORKS).assign(error=0.5))
        self.value = {name: draws[:, None] for name, draws in draw_prior(self.rng, count).items()}
        for where in ("np", "p"):
            total, share = self.value[f"spread_{where}"], self.value[f"share_{where}"]
            self.value |= {f"sigma_{where}": total * np.sqrt(share), f"tau_{where}": total * np.sqrt(1 - share)}
        centre = self.reference.log_dense(self.value)
        width, names = self.reference.centred_width, ("sigma_np", "tau_np", "sigma_p", "tau_p")
        self.spread = {name: spread_at(self.value, name, centre, width) for name in names}
        self.measured = measured_spread(self.value, centre, 0.9 * self.value["plateau"], 797, width)
        self.log_e = centre + self.spread["sigma_np"] * self.normal(centre.shape)
        self.shift_p = self.spread["sigma_p"] * self.normal(centre.shape)
        self.order = [self.reference.configurations.index(tuple(row)) for row in NETWORKS.to_numpy()]

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def curves(self, up: Any, sideways: Any, *, measured: bool = False) -> tuple[Any, Any]:
        """Give error and slope of the logit, `[draws, networks, densities]`, for standardised effects of a run."""
        eps_up = 0.9 * self.value["plateau"][..., None]
        log_e = (self.log_e + (self.measured if measured else self.spread["tau_np"]) * up)[..., None]
        log_p = np.log(self.reference.p_prime(self.value)) + self.shift_p + self.spread["tau_p"] * sideways
        log_p = log_p[..., None]
        log_m = self.value["phi"] * self.reference.log_depth + self.value["psi"] * self.reference.log_width
        log_m += self.value["chi"] * (self.reference.log_size - self.reference.log_size.mean())
        log_m = log_m[..., None] + np.log(DENSITIES["density"].to_numpy())
        gamma, sharpness = (self.value[name][..., None] for name in ("gamma", "sharpness"))
        error, slope = curve_in_logs(log_e, eps_up, gamma, log_p, log_m, sharpness)
        return error[:, self.order], slope[:, self.order]


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Compare `[draws, ...]` entry by entry with the distance of Kolmogorov and Smirnov."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    for one, other in zip(ours.reshape(DRAWS, -1).T, theirs.reshape(DRAWS, -1).T, strict=True):
        assert scipy.stats.ks_2samp(one, other).statistic < DISTANCE


def test_measured_runs_are_those_of_plain_numpy() -> None:
    """Each error, and what ties errors: those of one run at two densities, and of two networks at one."""
    drawn = bayeslaw.prior_predictive(
        NETWORKS, priors=OVERRIDDEN, designs=designs_of(NETWORKS).iloc[SHUFFLED], family=RESNETS, n_test=797,
        growth=True, correlated=True, kind="run", draws=DRAWS, seed=1,
    )  # fmt: skip
    hand = ByHand(DRAWS, seed=2)
    error, slope = hand.curves(hand.normal(hand.log_e.shape), hand.normal(hand.log_e.shape), measured=True)
    location, scale = observation_of(error, slope, 797, {k: v[..., None] for k, v in hand.value.items()})
    noise = hand.rng.standard_t(np.broadcast_to(hand.value["nu"][..., None], error.shape))
    share = hand.value["rho"] ** (np.log(10) / np.log(1.25))  # densities are a factor of 10 apart
    for before in range(error.shape[-1] - 1):
        noise[..., before + 1] = share * noise[..., before] + np.sqrt(1 - share**2) * noise[..., before + 1]
    logit = location + scale * noise
    theirs = np.clip(np.round(scipy.special.expit(logit) * 798 - 0.5), 0, 797) / 797
    ours = drawn.draws.to_numpy()[:, np.argsort(SHUFFLED)].reshape(theirs.shape)
    assert_same_distribution(ours, theirs)
    assert_same_distribution(ours[..., 1:] - ours[..., :-1], theirs[..., 1:] - theirs[..., :-1])
    assert_same_distribution(ours[:, 1:] - ours[:, :-1], theirs[:, 1:] - theirs[:, :-1])
    np.testing.assert_allclose(ours * 797, np.round(ours * 797), atol=1e-9)


def test_mean_curves_are_those_of_plain_numpy() -> None:
    """The average over a run's effects, there by more nodes than here."""
    drawn = bayeslaw.prior_predictive(
        NETWORKS, designs_of(NETWORKS), priors=OVERRIDDEN, family=RESNETS, n_test=797, growth=True, draws=DRAWS, seed=3
    )
    hand = ByHand(DRAWS, seed=4)
    nodes, weights = scipy.special.roots_hermitenorm(11)
    theirs = sum(
        u * v * hand.curves(x, y)[0] for x, u in zip(nodes, weights, strict=True)
        for y, v in zip(nodes, weights, strict=True)
    ) / weights.sum() ** 2  # fmt: skip
    ours = drawn.draws.to_numpy().reshape(theirs.shape)
    assert_same_distribution(ours, theirs)
    assert_same_distribution(ours[:, 1:] - ours[:, :-1], theirs[:, 1:] - theirs[:, :-1])
    parameters = drawn.parameters[["p_prime", "eps_up"]].to_numpy()
    by_hand = np.hstack([hand.reference.p_prime(hand.value), 0.9 * hand.value["plateau"]])
    assert_same_distribution(parameters, by_hand)


def test_networks_state_the_centre_before_any_run_exists() -> None:
    assert jnp.ones(1).dtype == jnp.float32
    drawn = bayeslaw.prior_predictive(NETWORKS, family=RESNETS, draws=50)
    assert jnp.ones(1).dtype == jnp.float32
    assert drawn.draws.dtype == np.float64
    logs = np.log(NETWORKS)
    assert {name: drawn.centre[name] for name in CONFIGURATION} == pytest.approx(np.exp(logs.mean()).to_dict())
    counts = np.log(RESNETS.parameters(NETWORKS["depth"], NETWORKS["width"]))
    assert drawn.centre["parameters"] == pytest.approx(np.exp(counts.mean()))
    assert drawn.frame.chance_error == pytest.approx(0.9)
    for part in ("depth 11.57", "width 5.657", "random guessing errs by 0.9"):
        assert part in str(drawn)
    table = drawn.table
    assert sorted(set(table[CONFIGURATION].itertuples(index=False, name=None))) == sorted(
        NETWORKS.itertuples(index=False, name=None)
    )
    assert (table["density"].min(), table["density"].max()) == pytest.approx((1e-3, 1.0))
    assert (table["lower"] < table["median"]).all()
    assert (table["upper"] < 0.9).all()
    lower, upper = np.quantile(drawn.draws, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(table[["lower", "upper"]].to_numpy().T, [lower, upper])
    # Other designs are seen from the same centre.
    wider = bayeslaw.prior_predictive(NETWORKS, table.assign(width=2 * table["width"]), family=RESNETS, draws=50)
    assert wider.frame == drawn.frame
    pd.testing.assert_frame_equal(wider.parameters, drawn.parameters)
    assert (wider.draws != drawn.draws).all()
    # Every draw is a curve of the law: it rises as weights are removed, to a plateau that is reached to the last digit.
    curves = drawn.draws.to_numpy()[:, :40]
    assert (np.diff(curves[:, np.argsort(-table["density"][:40])], axis=1) >= 0).all()


def test_a_run_table_gives_centre_noise_and_densities_but_no_errors(simulated) -> None:
    """The same draws whatever was measured, and the same as for the bare networks of the table."""
    runs, designs = simulated.runs, designs_of(NETWORKS)
    settings: dict[str, Any] = {"growth": True, "kind": "run", "draws": 60}
    drawn = bayeslaw.prior_predictive(runs, designs, seed=5, **settings)
    other = bayeslaw.prior_predictive(runs.drop(columns="n_wrong").assign(error=0.5), designs, seed=5, **settings)
    xr.testing.assert_identical(drawn.draws, other.draws)
    assert (drawn.table["n_test"] == 797).all()
    bare = bayeslaw.prior_predictive(runs[CONFIGURATION], designs, family=RESNETS, n_test=797, seed=5, **settings)
    np.testing.assert_allclose(bare.draws, drawn.draws, rtol=1e-9)
    again = bayeslaw.prior_predictive(runs, designs, seed=6, **settings)
    assert not np.allclose(again.draws, drawn.draws)
    grid = prior_draws.default_designs(load_runs(runs))
    assert len(grid) == 12 * 40
    assert (grid["density"].min(), grid["density"].max()) == pytest.approx((runs["density"].min(), 1.0))


def test_the_law_of_one_network_has_its_prior_too() -> None:
    one = NETWORKS.iloc[[0]]
    drawn = bayeslaw.prior_predictive(one, one.merge(DENSITIES, how="cross"), law="single", family=RESNETS, draws=50)
    assert "phi" not in drawn.parameters
    assert drawn.draws.shape == (50, 3)
    with pytest.raises(BayeslawError, match="'single' is equation"):
        bayeslaw.prior_predictive(NETWORKS, law="single", family=RESNETS)


def test_bad_networks_and_designs_are_refused() -> None:
    for wrong, words in (
        (lambda: bayeslaw.prior_predictive(NETWORKS.drop(columns="width"), family=RESNETS), "width"),
        (lambda: bayeslaw.prior_predictive(NETWORKS.assign(depth=-8), family=RESNETS), "depth"),
        (lambda: bayeslaw.prior_predictive(NETWORKS, NETWORKS, family=RESNETS), "designs lack density"),
        (lambda: bayeslaw.prior_predictive(NETWORKS, family=RESNETS, draws=0), "draws = 0 must be 1 or more"),
        (lambda: bayeslaw.prior_predictive(NETWORKS, family=RESNETS, kind="both"), "kind = 'both'"),
        (lambda: bayeslaw.prior_predictive(NETWORKS, family=RESNETS, priors={"slope": dist.Normal()}), "'slope'"),
        (lambda: bayeslaw.prior_predictive(NETWORKS, family=RESNETS, law="cubic"), "law = 'cubic'"),
    ):
        with pytest.raises(BayeslawError, match=words):
            wrong()
    with pytest.warns(UserWarning, match="eps_up is only bounded by 1"):
        frame = bayeslaw.prior_predictive(NETWORKS, draws=50).frame
    assert (frame.chance_error, frame.family.is_exact) == (1.0, False)


# How a fit keeps its priors

NORMAL = dist.Normal(0.5, 0.2)
EXAMPLES = [
    dist.AsymmetricLaplace(0.1, 1.0, 2.0), dist.Beta(2.0, 3.0), dist.Cauchy(0.1, 1.0), dist.Chi2(3.0),
    dist.Exponential(2.0), dist.FoldedDistribution(NORMAL), dist.Gamma(2.0, 0.1), dist.Gompertz(1.0, 2.0),
    dist.Gumbel(0.1, 1.0), dist.HalfCauchy(1.5), dist.HalfNormal(1.5), dist.InverseGamma(2.0, 3.0),
    dist.Kumaraswamy(2.0, 3.0), dist.Laplace(0.1, 1.0), dist.TruncatedNormal(0.5, 0.2, low=0.0),
    dist.LogNormal(0.1, 0.2), dist.LogUniform(0.1, 0.2), dist.Logistic(0.1, 1.0), dist.Normal(0, 1),
    dist.Pareto(1.0, 2.0), dist.TruncatedNormal(0.5, 0.2, high=1.0), dist.SoftLaplace(0.1, 1.0),
    dist.StudentT(3.0, 0.1, 1.0), dist.TruncatedCauchy(0.5, 0.2, low=0.0, high=1.0), dist.Uniform(0.1, 0.3),
    dist.Weibull(1.0, 2.0),
]  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_stored_prior_has_the_same_density(example: dist.Distribution) -> None:
    stored = json.loads(json.dumps({"phi": store_prior(Prior(example, "", "mine"))}))
    again = restore_priors(stored)["phi"]
    x = example.sample(jax.random.PRNGKey(0), (50,))
    np.testing.assert_allclose(again.distribution.log_prob(x), example.log_prob(x), rtol=1e-5)
    assert again.source == "mine"
    assert describe_prior(again) == describe_prior(Prior(example, "", ""))


def test_every_storable_distribution_has_an_example() -> None:
    assert {type(example).__name__ for example in EXAMPLES} == set(STORABLE)


def test_a_loaded_fit_has_its_priors(fitted) -> None:
    """The fixture is a loaded fit; the densities of all its priors are SciPy's."""
    priors = fitted.priors()
    assert list(priors) == list(fitted.settings["contraction"])
    assert priors["share_np"].source == "given by the user"
    assert priors["phi"].meaning == "exponent of depth in m*"
    frozen = {
        "phi": scipy.stats.norm(1, 1), "psi": scipy.stats.norm(1, 1), "gamma": scipy.stats.lognorm(0.5),
        "knee": scipy.stats.lognorm(1.5, scale=np.exp(-3.5)), "plateau": scipy.stats.beta(8, 1),
        "dense": scipy.stats.lognorm(1, scale=np.exp(-2)), "share_c": scipy.stats.beta(2, 20),
        "share_n": scipy.stats.uniform(), "alpha": scipy.stats.lognorm(0.5, scale=np.exp(-0.5)),
        "beta": scipy.stats.lognorm(0.5, scale=np.exp(-0.6)), "omega": scipy.stats.norm(0, 1),
        "spread_np": scipy.stats.lognorm(0.9, scale=np.exp(-1.6)), "share_np": scipy.stats.beta(4, 4),
        "spread_p": scipy.stats.lognorm(0.8, scale=np.exp(-1.6)), "share_p": scipy.stats.beta(4, 4),
        "chi": scipy.stats.norm(0, 0.3), "sigma": scipy.stats.lognorm(1, scale=np.exp(-3)),
        "kappa": scipy.stats.lognorm(0.8, scale=np.exp(-1.6)), "floor": scipy.stats.lognorm(0.25),
        "noise_power": scipy.stats.lognorm(0.8, scale=np.exp(-0.7)),
        "nu": scipy.stats.gamma(2, scale=10), "rho": scipy.stats.beta(2, 2),
        "sharpness": scipy.stats.lognorm(0.4, scale=2), **dict.fromkeys(CURVATURE, scipy.stats.norm(0, 0.05)),
    }  # fmt: skip
    log_prior = sensitivity.log_prior(fitted)
    assert set(log_prior) == set(frozen) == set(priors)
    for name, by_scipy in frozen.items():
        np.testing.assert_allclose(log_prior[name], by_scipy.logpdf(fitted.posterior[name]), rtol=1e-9, atol=1e-9)


def test_a_prior_that_no_file_can_hold_must_be_given_again(fitted) -> None:
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), dist.Normal(jnp.array([0.0, 1.0]), 1.0))
    assert store_prior(Prior(mixture, "", "")) is None

    class Normal(dist.Normal):
        pass

    assert store_prior(Prior(Normal(0.0, 1.0), "", "")) is None
    stored = fitted.settings["stored_priors"]
    lost = dataclasses.replace(fitted, settings=fitted.settings | {"stored_priors": stored | {"phi": None}})
    for use in (lost.priors, lost.psense, lambda: plot_prior_posterior(lost)):
        with pytest.raises(BayeslawError, match=r"the prior of phi is .* cannot keep; pass it again, priors=\{'phi'"):
            use()
    assert lost.priors({"phi": mixture})["phi"].distribution is mixture
    with pytest.raises(BayeslawError, match="phi: float is no univariate"):
        lost.priors({"phi": 1.0})
    forged = {"phi": {"distribution": "Distribution", "arguments": {}, "source": ""}}
    with pytest.raises(BayeslawError, match="a prior is a Distribution, which is none of AsymmetricLaplace"):
        restore_priors(forged)


# What the data informed


def test_what_the_data_did_not_inform_is_named(fitted) -> None:
    """Variance alone does not tell: at an end of the range it stays while the parameter moved."""
    assert sorted(fitted.prior_driven) == sorted(fitted.summary().query("driven_by == 'prior'").index)
    assert "share_c" in fitted.prior_driven
    assert fitted.prior_note.startswith("Driven by the prior, not informed by the data: ")
    assert "share_c (variance " in fitted.prior_note
    compared = {
        "contraction": {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.9},
        "shift": {"a": 0.5, "b": 4.0, "c": -4.0, "d": 0.0},
    }
    assert dataclasses.replace(fitted, settings=compared).prior_driven == ["a"]
    compared["contraction"]["a"] = 0.31
    assert dataclasses.replace(fitted, settings=compared).prior_note == "The data informed every parameter."


# Power-scaling


def log_likelihood_by_hand(fit: bayeslaw.Fit) -> np.ndarray:
    posterior, reference = fit.posterior, Reference(fit.runs)
    value = {name: posterior[name].to_numpy()[..., None] for name in posterior.data_vars if posterior[name].ndim == 2}
    parts = posterior["log_e_run"].to_numpy(), posterior["effect_p"].to_numpy()
    return reference.log_likelihood_of_rows(value, *parts).sum(-1)


def distance_by_hand(draws: np.ndarray, weights: np.ndarray) -> float:
    """Compute the cumulative Jensen-Shannon distance of weighted from unweighted draws."""
    order = np.argsort(draws)
    step, p, q = np.diff(draws[order]), np.arange(1, len(draws)) / len(draws), np.cumsum(weights[order])[:-1]
    both = (p + q) / 2
    divergence = np.sum(step * (p * np.log2(p / both) + q * np.log2(q / both)))
    return float(np.sqrt(divergence / np.sum(step * (p + q))))


def sensitivity_by_hand(draws: np.ndarray, log_density: np.ndarray) -> float:
    slopes = []
    for alpha in (0.99, 1.01):
        weights = np.exp((alpha - 1) * (log_density - log_density.mean()))
        weights /= weights.sum()
        furthest = max(distance_by_hand(draws, weights), distance_by_hand(-draws, weights))
        slopes.append(furthest / abs(np.log2(alpha)))
    return float(np.mean(slopes))


def test_sensitivities_are_those_of_weights_by_hand(fitted) -> None:
    """Log densities by NumPy and SciPy, weights without smoothing, and the distance from its definition; the smoothing
    of the weights' tails moves it by a few per cent at most.
    """
    designs = pd.DataFrame({"depth": [20, 8], "width": [8, 2], "dataset_size": [250, 4000], "density": [0.05, 1.0]})
    error = fitted.predict(designs, return_draws=True)
    table = fitted.psense(quantities={"error": error, "ratio": np.asarray(error[..., 0] / error[..., 1])})
    assert table.columns.tolist() == ["prior", "prior_noise", "likelihood", "likelihood_noise", "diagnosis"]
    scalars = [name for name in fitted.posterior.data_vars if fitted.posterior[name].ndim == 2]
    assert sorted(table.index) == sorted([*scalars, "error[0]", "error[1]", "ratio"])
    judged = {name: fitted.posterior[name].to_numpy().ravel() for name in scalars}
    judged |= {f"error[{i}]": error.to_numpy()[..., i].ravel() for i in range(2)}
    by_hand = log_likelihood_by_hand(fitted)
    np.testing.assert_allclose(sensitivity.log_likelihood(fitted), by_hand, rtol=1e-9)
    own = sensitivity.log_prior(fitted)
    together = sum(own[name].to_numpy() for name in own)
    for name, draws in judged.items():
        assert table.loc[name, "prior"] == pytest.approx(
            sensitivity_by_hand(draws, together.ravel()), rel=0.05, abs=2e-3
        )
        assert table.loc[name, "likelihood"] == pytest.approx(
            sensitivity_by_hand(draws, by_hand.ravel()), rel=0.05, abs=2e-3
        )
    alone = fitted.psense(prior_var_names=["share_c"])["prior"]
    expected = sensitivity_by_hand(judged["share_c"], own["share_c"].to_numpy().ravel())
    assert alone["share_c"] == pytest.approx(expected, rel=0.05)
    assert alone["share_c"] > 10 * alone["psi"]


def test_weighted_draws_are_those_of_a_fit_with_scaled_priors(simulated, fitted) -> None:
    """Two priors squared: a real fit with them, and the draws of the fit without them weighted by their density.

    Normals of log alpha and a beta of share_c are squared in closed form; the former's mean moves because densities are
    those of alpha itself. A mean's Monte Carlo error is ArviZ's for the fit; for weighted draws it is the
    sd over the square root of their effective number.
    """
    squared = {
        "share_np": dist.Beta(4.0, 4.0),
        "share_c": dist.Beta(3.0, 39.0),
        "alpha": dist.LogNormal(-0.5 - 0.5**2 / 2, 0.5 / np.sqrt(2)),
    }
    fit = bayeslaw.fit(simulated.runs, priors=squared, chains=2, draws=400, seed=7)
    own = sensitivity.log_prior(fitted)
    log_weight = (own["share_c"] + own["alpha"]).to_numpy().ravel()
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    for name in ("share_c", "alpha", "c", "a", "share_n", "phi"):
        before, after = np.log(fitted.posterior[name].to_numpy()), np.log(fit.posterior[name].to_numpy())
        mean = weight @ before.ravel()
        spread = np.sqrt(weight @ (before.ravel() - mean) ** 2)
        autocorrelation = before.size / az.ess(before)
        error = np.hypot(az.mcse(after), spread * np.sqrt((weight**2).sum() * max(1.0, autocorrelation)))
        assert abs(after.mean() - mean) < STANDARD_ERRORS * error, name
        if name in ("share_c", "alpha"):  # and they did move
            assert abs(after.mean() - before.mean()) > 2 * error, name


def test_the_size_of_a_plan_can_be_judged(fitted) -> None:
    """Its draws are those of which the frontier gives quantiles; where no start is good enough they are infinite."""
    starts: dict[str, Any] = {"depths": [8, 14], "widths": [2, 8], "dataset_size": 2000}
    sizes = bayeslaw.size_draws(fitted, 0.3, **starts)
    assert dict(sizes.sizes) == {"chain": 2, "draw": 1500}
    front = bayeslaw.frontier(fitted, np.array([0.3]), interval=0.5, **starts).iloc[0]
    assert front[["lower", "median", "upper"]].tolist() == np.quantile(sizes, [0.25, 0.5, 0.75]).tolist()
    assert np.isinf(bayeslaw.size_draws(fitted, 1e-4, **starts)).all()
    assert fitted.psense(quantities={"size": sizes}).loc["size", "prior"] < 1


def test_chance_is_not_taken_for_sensitivity(fitted) -> None:
    """A hundred quantities that depend on nothing: their sensitivity passes the largest of 19 shifts in 5 of 100; more
    than 15 would happen in one of 10,000 repetitions. Draws of the prior itself are sensitive to it.
    """
    shape = (fitted.posterior.sizes["chain"], fitted.posterior.sizes["draw"])
    nothing = np.random.default_rng(8).standard_normal((*shape, 100))
    table = fitted.psense(quantities={"nothing": nothing})
    rows = table[table.index.str.startswith("nothing")]
    assert (rows["prior"] > rows["prior_noise"]).sum() <= 15
    assert (rows["likelihood"] > rows["likelihood_noise"]).sum() <= 15
    assert table.loc["share_c", "prior"] > 2 * table.loc["share_c", "prior_noise"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.04, 0.1, 0.04, 0.1), "✓"),
        ((0.04, 0.01, 0.4, 0.1), "✓"),
        ((0.08, 0.1, 0.4, 0.1), "too few draws to tell"),
        ((0.2, 0.1, 0.04, 0.1), "potential strong prior / weak likelihood"),
        ((0.2, 0.1, 0.4, 0.1), "potential prior-data conflict"),
        ((0.2, 0.1, 0.08, 0.1), "prior matters; too few draws to tell conflict from weak likelihood"),
    ],
)
def test_diagnoses_by_hand(values: tuple[float, ...], words: str) -> None:
    row = pd.Series(dict(zip(("prior", "prior_noise", "likelihood", "likelihood_noise"), values, strict=True)))
    assert sensitivity._diagnose(row, 0.05) == words


def test_what_cannot_be_judged_is_refused(fitted) -> None:
    shape = (fitted.posterior.sizes["chain"], fitted.posterior.sizes["draw"])
    for quantities, words in (
        ({"phi": np.ones(shape)}, "'phi' is a parameter of the fit"),
        ({"size": np.ones(shape[::-1])}, r"'size' has the shape \(1500, 2\); it must have the fit's 2 chains and 1500"),
        ({"size": np.full(shape, np.inf)}, "'size' is not finite in 100.0% of its draws; clip it"),
    ):
        with pytest.raises(BayeslawError, match=words):
            fitted.psense(quantities=quantities)
    with pytest.raises(BayeslawError, match=r"prior_var_names = \['eps_up'\] must be of gamma, phi"):
        fitted.psense(prior_var_names=["eps_up"])


# The paper's baseline in the same table


#: Least squares knows no exponent of dataset size in m*, nor shifts of networks.
PAPERS = simulate(Truth(chi=0.0, omega=0.0, sigma_p=0.0), seed=1)


def test_the_baseline_stands_beside_the_posterior() -> None:
    """Same rows, same units: both hold the true phi and psi, and p' is of one order of magnitude."""
    fitted = bayeslaw.fit(PAPERS.runs, chains=2, draws=400, progress=False)
    table = fitted.summary(baseline=True, interval=0.8, repetitions=12, seed=3, progress=False)
    plain = fitted.summary(interval=0.8)
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    added = ["least_squares", "least_squares_lower", "least_squares_upper"]
    assert table.columns.tolist() == [*plain.columns, *added]
    constants = ["gamma", "phi", "psi", "p_prime", "eps_up"]
    assert sorted(table.index[table["least_squares"].notna()]) == sorted(constants)
    best = bayeslaw.least_squares(fitted.runs, seed=3)
    draws = bayeslaw.bootstrap_parameters(fitted.runs, repetitions=12, seed=3)
    assert draws.columns.tolist() == constants
    assert len(draws) == 12
    for name in constants:
        assert table.loc[name, "least_squares"] == pytest.approx(getattr(best, name))
        expected = np.quantile(draws[name], [0.1, 0.9])
        assert table.loc[name, added[1:]].tolist() == pytest.approx(expected.tolist())
    assert 0.5 < table.loc["p_prime", "least_squares"] / table.loc["p_prime", "mean"] < 2
    assert abs(table.loc["phi", "least_squares"] - PAPERS.truth.phi) < 0.5


def test_an_exponent_without_an_axis_has_no_baseline(fitted) -> None:
    from bayeslaw.bootstrapping import baseline_table

    runs = load_runs(PAPERS.runs).query("depth == 8")
    table = baseline_table(runs, repetitions=3, progress=False)
    assert table.index.tolist() == ["gamma", "psi", "p_prime", "eps_up"]
    with pytest.raises(BayeslawError, match=r"repetitions= .* got 0"):
        fitted.summary(baseline=True, repetitions=0)
    with pytest.raises(BayeslawError, match=r"interval= .* got 90"):
        baseline_table(runs, interval=90)


def test_a_baseline_at_the_edge_of_its_search_says_so() -> None:
    """Networks that drop from one plateau to the other within a level have no slope that least squares can see."""
    density = 0.8 ** np.arange(20)
    runs = pd.concat(
        [
            pd.DataFrame({"depth": 8, "width": width, "dataset_size": 1000, "density": density, "replicate": replicate,
                          "error": np.where(density * width > 0.6, 0.2 + 0.001 * replicate, 0.9)})
            for width in (2, 4, 8) for replicate in range(2)
        ]
    )  # fmt: skip
    from bayeslaw.bootstrapping import baseline_table

    with pytest.warns(UserWarning, match=r"edge of what it searches, eps_up = 1, gamma = 100: the runs"):
        baseline_table(load_runs(runs), repetitions=2, progress=False)


# Figures


def test_posterior_over_prior(fitted, tmp_path) -> None:
    """One panel per parameter: densities are those of the axis they are drawn on, and enclose an area of 1."""
    figure = plot_prior_posterior(fitted)
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == list(fitted.priors())
    marked = [ax.get_title().split(":")[0] for ax in figure.axes if ax.get_title().endswith(": prior-driven")]
    assert marked == fitted.prior_driven
    by_name = dict(zip(fitted.priors(), figure.axes, strict=True))
    for name, scale, density in (
        ("phi", "linear", scipy.stats.norm(1, 1).pdf),
        ("share_c", "linear", scipy.stats.beta(2, 20).pdf),
        ("alpha", "log", lambda x: scipy.stats.norm(-0.5, 0.5).pdf(np.log(x))),
    ):
        ax = by_name[name]
        assert ax.get_xscale() == scale
        x, y = ax.get_lines()[0].get_data()
        np.testing.assert_allclose(y, density(x), rtol=1e-6, atol=1e-12)
        stairs = ax.patches[0].get_data()
        edges = np.log(stairs.edges) if scale == "log" else stairs.edges
        draws = fitted.posterior[name].to_numpy()
        low, high = ax.get_xlim()
        assert np.sum(stairs.values * np.diff(edges)) == pytest.approx(
            np.mean((draws >= low) & (draws <= high)), abs=1e-3
        )
        assert low <= np.quantile(draws, 0.01)
        assert np.quantile(draws, 0.99) <= high
        assert ax.get_xlabel()
    assert by_name["phi"].get_xlabel() == "exponent of depth in m*"
    assert by_name["share_c"].get_xlim()[0] >= 0
    two = plot_prior_posterior(fitted, parameters=["phi", "nu"])
    assert len(two.axes) == 2
    two.savefig(tmp_path / "priors.png")
    with pytest.raises(BayeslawError, match="parameters eps_up have no prior; those that have are gamma"):
        plot_prior_posterior(fitted, parameters=["eps_up"])


def test_prior_curves_of_every_network(simulated, tmp_path) -> None:
    drawn = bayeslaw.prior_predictive(NETWORKS, family=RESNETS, draws=50)
    figure = plot_prior_predictive(drawn, runs=simulated.runs, curves=3)
    assert len(figure.axes) == 4
    ax = figure.axes[0]
    assert ax.get_title() == "depth 8, width 2, n = 250"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in ax.get_lines()}
    own = drawn.table.query("depth == 8 and width == 2 and dataset_size == 250").sort_values("density")
    np.testing.assert_allclose(lines["median"].get_ydata(), own["median"].clip(lower=1e-4))
    measured = simulated.runs.query("depth == 8 and width == 2 and dataset_size == 250")
    assert sorted(lines["measured"].get_xdata()) == sorted(measured["density"])
    assert len(ax.get_lines()) == 3 + 3  # single draws; median, random guessing, measured
    low, high = ax.get_ylim()
    assert low < own["lower"].clip(lower=1e-4).min()
    assert high > 0.9
    width = np.repeat(np.arange(1, 33), 5)
    many = dataclasses.replace(drawn, table=drawn.table.assign(depth=8, width=width, dataset_size=1000))
    figure = plot_prior_predictive(many)
    figure.savefig(tmp_path / "curves.png", dpi=50)
    assert len(figure.axes) == 12
    assert [figure.axes[i].get_title().split(",")[1] for i in (0, -1)] == [" width 1", " width 32"]
    with pytest.raises(BayeslawError, match=r"inner = 1\.0 must be in"):
        plot_prior_predictive(drawn, inner=1.0)
