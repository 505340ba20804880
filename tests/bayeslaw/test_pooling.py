"""Several families at once: the joint density and its coordinates against plain NumPy and SciPy, a real pooled fit of
two simulated families, what it says of a family never trained, its file and its command.

Thresholds were fixed before the seeds were drawn.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import arviz as az
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from command_line import command
from simulate import CURVATURE, Reference, Truth, simulate, spread_at

import bayeslaw
from bayeslaw.axes import dense_axes
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import prepare
from bayeslaw.frame import Data
from bayeslaw.laplace import Laplace
from bayeslaw.pooling import split_families
from bayeslaw.population import Part, PooledContext, key_of, pooled_potential
from bayeslaw.precision import in_float64
from bayeslaw.priors import default_priors, exponents_of
from bayeslaw.relative import RelativeContext, Told, make_relative, place
from bayeslaw.runs import load_runs

#: How far a Monte Carlo estimate may lie from the truth, in its standard errors.
STANDARD_ERRORS = 5.0
#: How far a posterior mean may lie from the constant that made the runs, in posterior standard deviations. Of the six
#: comparisons below one in 2,600 repetitions would exceed it by chance.
POSTERIOR_SDS = 4.0
SHARES = ("plateau", "share_c", "share_n", "share_np", "share_p")
WHOLE_LINE = ("phi", "psi", "chi", "omega", *CURVATURE, "growth_np", "growth_p", "narrow_np", "narrow_p")
EXPONENTS = ("gamma", "phi", "psi", "alpha", "beta")


# The joint density


def frozen(prior: Any) -> Any:
    """Give a prior as SciPy has it."""
    match prior:
        case dist.LogNormal():
            return scipy.stats.lognorm(s=float(prior.scale), scale=np.exp(float(prior.loc)))
        case dist.Normal():
            return scipy.stats.norm(float(prior.loc), float(prior.scale))
        case dist.Beta():
            return scipy.stats.beta(float(prior.concentration1), float(prior.concentration0))
        case dist.Uniform():
            return scipy.stats.uniform(float(prior.low), float(prior.high - prior.low))
        case dist.Gamma():
            return scipy.stats.gamma(float(prior.concentration), scale=1 / float(prior.rate))
        case dist.Weibull():
            return scipy.stats.weibull_min(float(prior.concentration), scale=float(prior.scale))
    raise AssertionError(f"no reference for {type(prior).__name__}")


def freed(name: str, value: float) -> tuple[float, float]:
    """Map a parameter to the whole line, with the log Jacobian of the way back."""
    if name in WHOLE_LINE:
        return value, 0.0
    if name in SHARES:
        return np.log(value / (1 - value)), np.log(value * (1 - value))
    return np.log(value), np.log(value)


def near(rng: np.random.Generator, name: str, middle: float) -> float:
    if name in SHARES:
        return 1 / (1 + np.exp(-(np.log(middle / (1 - middle)) + 0.5 * rng.standard_normal())))
    return middle * np.exp(0.3 * rng.standard_normal())


MIDDLE = {
    "gamma": 1.2, "phi": 0.8, "psi": 1.1, "knee": 0.03, "plateau": 0.95, "dense": 0.15, "share_c": 0.15, "share_n": 0.5,
    "alpha": 0.6, "beta": 0.5, "chi": 0.1, "spread_np": 0.2, "share_np": 0.5, "spread_p": 0.2, "share_p": 0.5,
    "omega": -0.3, "growth_np": 0.2, "growth_p": -0.2, "narrow_np": 0.3, "narrow_p": 0.1, "sigma": 0.05, "kappa": 0.2,
    "noise_power": 0.5,
    "floor": 1.0, "nu": 8.0, **dict.fromkeys(CURVATURE, 0.04),
}  # fmt: skip


def family_log_density(reference: Reference, family: Any, population: dict[str, float], centred: bool, rng: Any) -> Any:
    """Draw a family's unconstrained values, and compute their log density given the population."""
    values = {name: near(rng, name, MIDDLE[name]) for name in family.priors}
    flat: dict[str, Any] = {}
    total = 0.0
    for name, value in values.items():
        flat[name], jacobian = freed(name, value)
        total += jacobian
        if name not in EXPONENTS:
            total += frozen(family.priors[name].distribution).logpdf(value)
        elif name in WHOLE_LINE:
            total += scipy.stats.norm.logpdf(value, population[name], population[f"between_{name}"])
        else:
            total += scipy.stats.lognorm.logpdf(value, population[f"between_{name}"], scale=population[name])
    centre, runs = reference.log_dense(values), reference.configuration
    spread: dict[str, Any] = {}
    for where in ("np", "p"):
        size, share = values.get(f"spread_{where}", 0.0), values.get(f"share_{where}", 1.0)
        parts = {f"sigma_{where}": size * np.sqrt(share), f"tau_{where}": size * np.sqrt(1 - share)}
        spread |= {name: spread_at(values | parts, name, centre, reference.centred_width) for name in parts}
    own, shift, up, sideways = (rng.standard_normal(n) for n in (len(centre), len(centre), len(runs), len(runs)))
    log_e = (centre + spread["sigma_np"] * own)[runs] + spread["tau_np"][runs] * up
    effect_p = (spread["sigma_p"] * shift)[runs] + spread["tau_p"][runs] * sideways
    if centred:
        flat |= {"log_e_run": log_e, "effect_p": effect_p}
        # The model leaves out the constants of the integrated normals.
        total += reference.log_density_of_groups(log_e, centre, spread["sigma_np"], spread["tau_np"])
        total += reference.log_density_of_groups(effect_p, 0 * centre, spread["sigma_p"], spread["tau_p"])
        total += len(runs) * np.log(2 * np.pi)
    else:
        flat |= {"discrepancy": own}
        total += scipy.stats.norm.logpdf(own).sum()
    return flat, total + reference.log_likelihood_of_rows(values, log_e, effect_p).sum()


@in_float64
def test_joint_log_density_is_that_of_plain_numpy(monkeypatch) -> None:
    """One family with two runs per network and centred effects, one without n_test and trajectories, standardised."""
    monkeypatch.setattr(Data, "in_float32", lambda self: self)
    whole = simulate(Truth(), widths=(2, 4, 8), dataset_sizes=(1000,), levels=(0, 8, 20)).runs
    bare = simulate(Truth(), depths=(8,), widths=(2, 8), levels=(0, 20), replicates=1, seed=2).runs
    bare = bare.drop(columns=["n_test", "n_wrong", "replicate"]).assign(dataset="other")
    tables = split_families([whole, bare], n_test=None, chance_error=None)
    priors = default_priors("joint", pool="family")
    asked = {
        "law": "joint",
        "effects": ("np", "p"),
        "noise": "student_t",
        "steep": True,
        "growth": None,
        "correlated": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        families = [prepare(table, asked, priors, pooled=True) for table in tables]
    families = [f._replace(priors={k: v for k, v in f.priors.items() if "between" not in k}) for f in families]
    assert [f.structure.knows_n_test for f in families] == [True, False]
    shared = {name: priors[name].distribution for x in EXPONENTS for name in (x, f"between_{x}")}
    context = PooledContext(tuple(family.context for family in families), shared)
    parts = (Part(families[0].structure, True), Part(families[1].structure, False))
    rng = np.random.default_rng(7)
    for _ in range(2):
        population = {x: near(rng, x, MIDDLE[x]) for x in EXPONENTS}
        population |= {f"between_{x}": near(rng, "between", 0.3) for x in EXPONENTS}
        flat, expected = {}, 0.0
        for name, value in population.items():
            flat[name], jacobian = freed(name, value)
            expected += jacobian + frozen(shared[name]).logpdf(value)
        for k, family in enumerate(families):
            own, log_density = family_log_density(Reference(tables[k]), family, population, parts[k].centred, rng)
            flat |= {key_of(k, name): jnp.asarray(value) for name, value in own.items()}
            expected += log_density
        assert float(pooled_potential(parts)(context, flat)) == pytest.approx(-expected, rel=1e-10)


# Relative coordinates

NAMES = ["gamma", *(key_of(k, "gamma") for k in range(3))]


def hierarchy() -> tuple[PooledContext, Told]:
    """Give the population of one exponent, and what is said about it: the second of three families says nothing."""
    rng = np.random.default_rng(3)
    priors = default_priors("joint", pool="family")
    shared = {name: priors[name].distribution for name in ("gamma", "between_gamma")}
    precision = np.array([1 / 0.75**2, 30.0, 0.0, 5.0])
    nothing: Any = (None,) * 3
    return PooledContext(nothing, shared), Told(precision, precision * rng.normal(0.3, 0.4, 4))


@in_float64
def test_relative_coordinates_are_those_of_a_normal_hierarchy() -> None:
    """In them a hierarchy that is exactly normal is standard normal at any spread, with the determinant they report."""
    context, told = hierarchy()
    z = jnp.asarray(np.random.default_rng(4).standard_normal(4))
    weights, means = told.precision[[0, 1, 3]], (told.weighted / np.maximum(told.precision, 1e-300))[[0, 1, 3]]
    for spread in (0.03, 0.4, 3.0):

        def placed(z: jax.Array, spread: float = spread) -> tuple[jax.Array, Any]:
            relative = dict(zip(NAMES, z, strict=True)) | {"between_gamma": jnp.log(spread)}
            moved, log_determinant = place(context.population, {"gamma": told}, relative)
            return jnp.stack([moved[name] for name in NAMES]), log_determinant

        x, log_determinant = placed(z)
        slope = jax.jacfwd(lambda z: placed(z)[0])(z)
        assert float(log_determinant) == pytest.approx(np.linalg.slogdet(slope)[1], abs=1e-10)
        own = scipy.stats.norm.logpdf(x[1:], x[0], spread).sum()
        said = scipy.stats.norm.logpdf(means, np.asarray(x)[[0, 1, 3]], weights**-0.5).sum()
        said += np.log(2 * np.pi) / 2 - np.log(weights[0]) / 2  # the centre's is a prior: its scale is no part of it
        covariance = np.diag(1 / weights[1:] + spread**2) + 1 / weights[0]
        evidence = scipy.stats.multivariate_normal.logpdf(means[1:], np.full(2, means[0]), covariance)
        evidence += np.log(2 * np.pi) / 2 - np.log(weights[0]) / 2
        standard = scipy.stats.norm.logpdf(z).sum() - float(log_determinant)
        assert own + said - evidence == pytest.approx(standard, abs=1e-9)


@in_float64
def test_a_laplace_approximation_is_carried_over_to_relative_coordinates() -> None:
    """Of a hierarchy that is exactly normal: what was said is found again, and exponents are independent units."""
    context, told = hierarchy()
    spread = 0.4
    joint = np.diag(told.precision + np.array([3.0, 1.0, 1.0, 1.0]) / spread**2)
    joint[0, 1:] = joint[1:, 0] = -1 / spread**2
    mode, covariance = np.linalg.solve(joint, told.weighted), np.linalg.inv(joint)
    order = ["between_gamma", "0/gamma", "gamma", "2/gamma", "1/gamma"]
    positions = {name: np.array(i) for i, name in enumerate(order)}
    where = [order.index(name) for name in NAMES]
    whole = np.diag([0.2, 0.0, 0.0, 0.0, 0.0])
    whole[np.ix_(where, where)] = covariance
    centre = np.full(5, np.log(spread))
    centre[where] = mode
    found = Laplace(centre, dense_axes(np.linalg.cholesky(whole)), 0)
    relative, origin, axes = make_relative(RelativeContext(context, (), {}), found, positions)
    assert relative.told["gamma"].precision == pytest.approx(told.precision, abs=1e-9)
    assert relative.told["gamma"].weighted == pytest.approx(told.weighted, abs=1e-9)
    moved, _ = place(context.population, relative.told, {name: origin[i] for name, i in positions.items()})
    assert [float(moved[name]) for name in NAMES] == pytest.approx(mode, abs=1e-12)
    map_ = axes.dense(5)
    assert map_ @ map_.T == pytest.approx(np.diag([0.2, 1.0, 1.0, 1.0, 1.0]), abs=1e-9)
    # A centre that is sampled on another scale than families spread on has no such hierarchy.
    odd = PooledContext(context.families, context.population | {"gamma": dist.Uniform(0.1, 9.0)})
    assert make_relative(RelativeContext(odd, (), {}), found, positions)[0].told["gamma"].precision.tolist() == [
        1.0,
        0.0,
        0.0,
        0.0,
    ]


# A pooled fit

LEVELS = tuple(range(0, 33, 3))
STEADY = {"kappa": 0.0, "nu": 1e6, "sigma_p": 0.0, "tau_p": 0.0, "chi": 0.0, "omega": 0.0}
RICH = Truth(gamma=1.2, phi=0.7, psi=1.1, sigma_np=0.15, tau_np=0.15, **STEADY)
POOR = Truth(gamma=1.5, phi=1.5, psi=1.3, sigma_np=0.3, tau_np=0.3, p_prime=0.2, **STEADY)
with jax.enable_x64(True):  # of the same type as the defaults, so that all fits below are compiled once
    PRIORS = {"share_np": dist.Uniform(0.4, 0.6), "share_n": dist.Uniform(0.3, 0.8), "share_c": dist.Beta(2.0, 20.0)}
    PRIORS["between_phi"] = dist.Weibull(0.4, 2.0)  # the default, given
    WIDE = {f"between_{name}": dist.Weibull(3.0, 20.0) for name in EXPONENTS}  # factors of 20 and more
SETTINGS: Any = {"law": "joint", "effects": ("np",), "noise": "normal", "steep": False, "correlated": False}
SETTINGS |= {"chains": 2, "warmup": 300}
RICH_NAME, POOR_NAME = "cifar_resnet/rich", "cifar_resnet/poor"


@pytest.fixture(scope="module")
def tables() -> list[pd.DataFrame]:
    """Give a family that is measured well, and one of fewer networks, examples and seeds with other exponents."""
    rich = simulate(RICH, levels=LEVELS, seed=31)
    poor = simulate(
        POOR, depths=(14, 20), widths=(2, 4, 8, 16), dataset_sizes=(1000,), replicates=1, levels=LEVELS, n_test=200,
        seed=32,
    )  # fmt: skip
    return [rich.runs.assign(dataset="rich"), poor.runs.assign(dataset="poor")]


@pytest.fixture(scope="module")
def fitted(tables) -> tuple[bayeslaw.PooledFit, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = bayeslaw.fit(pd.concat(tables), pool="family", priors=PRIORS, seed=1, draws=1500, **SETTINGS)
    return fit, caught


@pytest.fixture(scope="module")
def pooled(fitted) -> bayeslaw.PooledFit:
    return fitted[0]


@pytest.fixture(scope="module")
def apart(tables, pooled) -> bayeslaw.PooledFit:
    """Fit them with spreads held so wide that next to nothing is shared; the second fit of these shapes."""
    compiled = []

    def listen(event: str, _: float, **about: Any) -> None:
        if "compile" in event:
            compiled.append(about.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit = bayeslaw.fit(tables, pool="family", priors=PRIORS | WIDE, seed=2, draws=1500, **SETTINGS)
    jax.monitoring.clear_event_listeners()
    assert not compiled
    return fit


def test_what_the_runs_cannot_tell_is_said(fitted) -> None:
    messages = [str(warning.message) for warning in fitted[1]]
    assert len(messages) == 2, messages
    assert "cifar_resnet/poor: dataset_size never varies, so alpha is driven by the other families" in messages[0]
    assert "2 families hardly tell how far exponents spread" in messages[1]
    assert {warning.filename for warning in fitted[1]} == {__file__}


def test_known_exponents_are_recovered_and_the_gate_is_passed(pooled) -> None:
    assert pooled.labels == [POOR_NAME, RICH_NAME]
    assert pooled.diagnose().passed, str(pooled.diagnose())
    for label, truth in ((RICH_NAME, RICH), (POOR_NAME, POOR)):
        draws = pooled[label].posterior
        for name in ("gamma", "phi", "psi"):
            away = abs(float(draws[name].mean()) - getattr(truth, name))
            assert away < POSTERIOR_SDS * float(draws[name].std()), (label, name)


def test_pooling_pulls_the_poor_family_to_the_rich_one(pooled, apart) -> None:
    """Against the fit that shares nothing, by more than 5 Monte Carlo standard errors; the rich one hardly moves.

    Medians are compared: alone, and with next to no prior, gamma of the poor family has a tail up to a factor of 1,000,
    which one chain in some visits for a while, so that no mean is estimated well.
    """
    for name in ("gamma", "phi"):
        own, alone, rich = (
            np.log(fit[label].posterior[name].to_numpy())
            for fit, label in ((pooled, POOR_NAME), (apart, POOR_NAME), (pooled, RICH_NAME))
        )
        error = np.hypot(az.mcse(own, method="median"), az.mcse(alone, method="median"))
        pull = (np.median(alone) - np.median(own)) * np.sign(np.median(alone) - np.median(rich))
        assert pull > STANDARD_ERRORS * error, name
        moved = abs(rich.mean() - np.log(apart[RICH_NAME].posterior[name].to_numpy()).mean())
        assert moved < 0.5 * rich.std(), name
    # Of alpha the poor family says nothing: it has what the population says, or next to nothing.
    spread = [float(np.log(fit[POOR_NAME].posterior["alpha"]).std()) for fit in (pooled, apart)]
    assert spread[0] < 0.8
    assert spread[1] > 0.9


def test_summaries_say_what_drives_each_parameter(pooled) -> None:
    summary = pooled.summary()
    assert summary.index.tolist() == [*EXPONENTS, *(f"between_{name}" for name in EXPONENTS)]
    # Two families leave a spread to its prior where they do not differ clearly, and phi differs by three prior sds.
    assert (summary.loc[["between_gamma", "between_alpha", "between_beta"], "driven_by"] == "prior").all()
    assert (summary.loc[["gamma", "phi", "psi"], "driven_by"] == "data").all()
    own = pooled[POOR_NAME].summary()
    assert own.loc["alpha", "driven_by"] == "population"
    assert (own.loc[["phi", "psi", "knee"], "driven_by"] == "data").all()
    assert "Driven by the other families, not informed by its own runs: alpha (variance " in pooled.prior_note
    # A family's exponent is held against what all say of a new one: Var(centre) + E(spread^2).
    expected = pooled.population["psi"].var() + (pooled.population["between_psi"] ** 2).mean()
    contraction = 1 - float(pooled[POOR_NAME].posterior["psi"].var() / expected)
    assert own.loc["psi", "contraction"] == pytest.approx(contraction)
    assert pooled[POOR_NAME].settings["priors"]["gamma"] == "LogNormal(population, between_gamma)"
    assert pooled.settings["priors"]["phi"] == "Normal(loc=1, scale=1)"
    assert not set(EXPONENTS) & set(pooled[POOR_NAME].priors())
    table = pooled.exponents()
    assert table.loc[("phi", RICH_NAME), "mean"] == pytest.approx(float(pooled[RICH_NAME].posterior["phi"].mean()))
    assert table.loc[("phi", "a new family"), "sd"] > table.loc[("phi", POOR_NAME), "sd"]


def test_each_family_is_a_fit_like_any_other(pooled) -> None:
    fit = pooled["cifar_resnet", "poor"]
    assert fit is pooled[POOR_NAME]
    assert len(fit.configurations) == 8
    reference = Reference(fit.runs)
    value = {name: fit.posterior[name].to_numpy() for name in ("knee", "phi", "psi")}
    assert fit.posterior["p_prime"].to_numpy() == pytest.approx(reference.p_prime(value), rel=1e-12)
    measured = fit.runs[fit.runs["density"] == 1]
    predicted = fit.predict(measured, kind="run", interval=0.99)
    assert predicted["trained"].all()
    assert ((predicted["lower"] <= measured["error"]) & (measured["error"] <= predicted["upper"])).all()
    plan = fit.plan(0.3, depths=[14, 20], widths=[4, 8], dataset_size=1000)
    assert not [note for note in plan.notes if "driven" in note]


# A family never trained

DESIGNS = pd.DataFrame({"depth": [8, 14, 20], "width": [4, 8, 8], "dataset_size": 1000})


@pytest.fixture(scope="module")
def new(pooled) -> bayeslaw.Fit:
    return pooled.new_family("cifar_resnet", DESIGNS, dataset="svhn", classes=10, input_shape=(3, 32, 32))


def test_exponents_of_a_new_family_are_drawn_from_the_population(pooled, new) -> None:
    """In units of centre and spread they are standard normals; 5 standard errors of independent draws."""
    for name in EXPONENTS:
        own, centre = new.posterior[name].to_numpy(), pooled.population[name].to_numpy()
        if name not in WHOLE_LINE:
            own, centre = np.log(own), np.log(centre)
        z = (own - centre) / pooled.population[f"between_{name}"].to_numpy()
        assert abs(z.mean()) < STANDARD_ERRORS / np.sqrt(z.size), name
        assert abs(z.var() - 1) < STANDARD_ERRORS * np.sqrt(2 / z.size), name
        assert abs(np.corrcoef(z.ravel(), centre.ravel())[0, 1]) < STANDARD_ERRORS / np.sqrt(z.size), name
    # All else has its prior, independent of the population.
    log_knee = np.log(new.posterior["knee"].to_numpy())
    assert abs(log_knee.mean() + 3.5) < STANDARD_ERRORS * 1.5 / np.sqrt(log_knee.size)
    assert abs(log_knee.std() - 1.5) < STANDARD_ERRORS * 1.5 / np.sqrt(2 * log_knee.size)
    assert float(new.posterior["share_np"].min()) > 0.4  # as the fit was asked


def test_a_new_family_is_predicted_less_surely_than_a_known_one(pooled, new) -> None:
    designs = DESIGNS.merge(pd.DataFrame({"density": [1.0, 0.1, 0.02]}), how="cross")
    for kind in ("mean", "run"):
        unknown = new.predict(designs, kind=kind)
        width = np.log(unknown["upper"] / unknown["lower"])
        assert np.isinf(unknown["extrapolation"]).all()
        assert not unknown["trained"].any()
        assert (unknown["upper"] <= 1).all()
        for label in pooled.labels:
            known = pooled[label].predict(designs, kind=kind)
            assert (width > np.log(known["upper"] / known["lower"].clip(lower=1e-3))).all(), label


def test_a_new_family_has_every_part_that_any_of_the_families_has(pooled) -> None:
    """It may die, its runs share the luck of subsets, and its dense law bends: its new runs are less certain."""
    more = dataclasses.replace(pooled[POOR_NAME].structure, deaths=True, subsets=True)
    families = pooled.families | {POOR_NAME: dataclasses.replace(pooled[POOR_NAME], structure=more)}
    about = {"dataset": "svhn", "classes": 10, "input_shape": (3, 32, 32)}
    plain = pooled.new_family("cifar_resnet", DESIGNS, **about)
    every = dataclasses.replace(pooled, families=families).new_family("cifar_resnet", DESIGNS, **about)
    assert (plain.structure.deaths, plain.structure.subsets, plain.structure.curvature) == (False, False, True)
    assert (every.structure.deaths, every.structure.subsets, every.structure.curvature) == (True, True, True)
    assert {*CURVATURE} <= {*plain.priors()}
    assert {*every.priors()} - {*plain.priors()} >= {"dies", "stays", "born_dead", "spread_subset"}
    designs = DESIGNS.merge(pd.DataFrame({"density": [1.0, 0.1, 0.02]}), how="cross").assign(n_test=10_000)
    bent, straight = every, dataclasses.replace(every, tree=every.tree.copy())
    straight.tree["posterior"] = xr.DataTree(every.posterior.drop_vars(list(CURVATURE)))
    assert (bent.predict(designs)["median"] != straight.predict(designs)["median"]).any()
    mortal, immortal = (
        fit.predict(designs, kind="run", return_draws=True).to_numpy().reshape(-1, len(designs))
        for fit in (every, plain)
    )
    assert np.isfinite(mortal).all()
    assert ((mortal == 0.9).mean(0)[2::3] > (immortal == 0.9).mean(0)[2::3] + 0.03).all()  # where little is left


def test_a_new_family_says_that_nothing_of_it_was_measured(pooled, new) -> None:
    summary = new.summary()
    assert (summary.loc[list(EXPONENTS), "driven_by"] == "population").all()
    assert (summary.loc[list(new.priors()), "driven_by"] == "prior").all()
    plan = new.plan(0.3, depths=[8, 20], widths=[4, 8], dataset_size=1000)
    assert any("no run of cifar_resnet/svhn was fitted: its exponents come from the other" in n for n in plan.notes)
    assert plan.starts["p_feasible"].between(0.1, 0.99).all()
    again = pooled.new_family("cifar_resnet", DESIGNS, dataset="svhn", classes=10, input_shape=(3, 32, 32))
    xr.testing.assert_identical(again.tree, new.tree)
    other = pooled.new_family("cifar_resnet", DESIGNS, dataset="cifar10", classes=10, input_shape=(3, 32, 32))
    correlation = np.corrcoef(
        np.log(other.posterior["knee"]).values.ravel(), np.log(new.posterior["knee"]).values.ravel()
    )
    assert abs(correlation[0, 1]) < STANDARD_ERRORS / np.sqrt(2000)


def test_a_new_family_that_cannot_be_is_refused(pooled) -> None:
    with pytest.raises(BayeslawError, match="cifar_resnet/rich was fitted: take it by its label"):
        pooled.new_family("cifar_resnet", DESIGNS, dataset="rich", classes=10)
    with pytest.raises(BayeslawError, match="needs the error of guessing"):
        pooled.new_family("mlp", DESIGNS)
    with pytest.raises(BayeslawError, match="chance_error = 90"):
        pooled.new_family("mlp", DESIGNS, chance_error=90)
    with pytest.raises(BayeslawError, match="designs lack depth, dataset_size"):
        pooled.new_family("mlp", DESIGNS[["width"]], classes=10)
    with pytest.raises(BayeslawError, match="designs have no rows"):
        pooled.new_family("mlp", DESIGNS.iloc[:0], classes=10)
    with pytest.raises(BayeslawError, match="width must be above 0"):
        pooled.new_family("mlp", DESIGNS.assign(width=0), classes=10)
    with pytest.raises(BayeslawError, match=r"mlp/rich was not fitted; there are cifar_resnet/poor, .*new_family"):
        pooled["mlp", "rich"]


def test_a_prior_that_a_fit_cannot_keep_is_asked_for(pooled) -> None:
    settings = pooled.settings | {"stored_priors": pooled.settings["stored_priors"] | {"knee": None}}
    lost = dataclasses.replace(pooled, settings=settings)
    with pytest.raises(BayeslawError, match="the prior of knee is a distribution that a fit cannot keep; pass it"):
        lost.new_family("mlp", DESIGNS, classes=10)
    again = lost.new_family("mlp", DESIGNS, classes=10, priors={"knee": dist.Uniform(0.01, 0.02)})
    assert float(again.posterior["knee"].max()) <= 0.02


# Files, the command, bad input


def test_saved_and_loaded_is_the_same(pooled, new, tmp_path) -> None:
    pooled.save(tmp_path / "pooled.nc")
    loaded = bayeslaw.load_pooled(tmp_path / "pooled.nc")
    assert loaded.labels == pooled.labels
    assert (loaded.settings, loaded.versions) == (pooled.settings, pooled.versions)
    xr.testing.assert_identical(loaded.population, pooled.population)
    for label in pooled.labels:
        xr.testing.assert_identical(loaded[label].tree, pooled[label].tree)
        pd.testing.assert_frame_equal(loaded[label].runs, pooled[label].runs, check_exact=True)
        one = bayeslaw.load(tmp_path / "pooled.nc", family=label)
        xr.testing.assert_identical(one.tree, pooled[label].tree)
        assert one.settings == pooled[label].settings
    again = loaded.new_family("cifar_resnet", DESIGNS, dataset="svhn", classes=10, input_shape=(3, 32, 32))
    xr.testing.assert_identical(again.tree, new.tree)
    new.save(tmp_path / "new.nc")
    designs = DESIGNS.assign(density=0.1)
    read = bayeslaw.load(tmp_path / "new.nc", family="cifar_resnet/svhn")
    pd.testing.assert_frame_equal(read.predict(designs), new.predict(designs), check_exact=True)
    with pytest.raises(BayeslawError, match=r"holds 2 families fitted together \(cifar_resnet/poor, cifar_resnet/rich"):
        bayeslaw.load(tmp_path / "pooled.nc")
    with pytest.raises(BayeslawError, match=r"family = 'mlp/rich' was not fitted; it holds cifar_resnet/poor"):
        bayeslaw.load(tmp_path / "pooled.nc", family="mlp/rich")
    with pytest.raises(BayeslawError, match=r"fit of one family; read it with bayeslaw\.load"):
        bayeslaw.load_pooled(tmp_path / "new.nc")
    content = (tmp_path / "pooled.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(content[: len(content) // 2])
    with pytest.raises(BayeslawError, match=r"cut\.nc: not a fit"):
        bayeslaw.load_pooled(tmp_path / "cut.nc")


def test_the_command_fits_and_predicts_families(tables, pooled, tmp_path) -> None:
    """What it fits and writes is what `fit` gives for the same tables; one family of it is chosen to predict."""
    files = [tmp_path / f"{i}.csv" for i in range(2)]
    for table, file in zip(tables, files, strict=True):
        table.to_csv(file, index=False)
    fitted = tmp_path / "pooled.nc"
    settings = (
        "--law",
        "joint",
        "--independent",
        "--effects",
        "np",
        "--noise",
        "normal",
        "--no-steep",
        "--chains",
        2,
        "--warmup",
        300,
        "--draws",
        50,
    )
    code, output, error = command("fit", *files, "--pool", "family", "-o", fitted, *settings, "--seed", 4)
    assert code == 0, error
    assert "2 families hardly tell" in error
    for part in ("a new family", "between_phi", "driven_by", "gate: FAILED", f"written to {fitted}"):
        assert part in output
    loaded = bayeslaw.load_pooled(fitted)
    grid = ("--depths", 14, "--widths", 8, "--dataset-sizes", 1000, "--densities", "1,0.1")
    code, _, error = command("predict", fitted, *grid, "--family", POOR_NAME, "-o", tmp_path / "out.csv")
    assert code == 0, error
    written = pd.read_csv(tmp_path / "out.csv")
    expected = loaded[POOR_NAME].predict(written[["depth", "width", "dataset_size", "density"]])
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, rtol=1e-12)
    plan = ("plan", fitted, "--target-error", 0.3, "--allow-failed")
    code, output, error = command(*plan, "--family", RICH_NAME)
    assert code == 0, error
    for arguments, words in (
        (("predict", fitted, *grid), "choose one of them with family= (--family)"),
        (("predict", fitted, *grid, "--family", "mlp/rich"), "'mlp/rich' was not fitted"),
        (plan, "2 families fitted together"),
        (("compare", fitted, fitted), "2 families fitted together"),
        (("fit", *files), "or all together by bayeslaw.fit(..., pool='family')"),
        (("fit", files[0], "--pool", "family"), "there is one family (cifar_resnet/rich)"),
        (("fit", *files, "--pool", "family", "--sensitivity"), "are about one family"),
        (("fit", *files, "--pool", "dataset"), "pool = 'dataset' must be None or one of family"),
    ):
        code, _, error = command(*arguments)
        assert code == 2, arguments
        assert words in error, arguments


def test_bad_input_is_refused_before_anything_is_computed(tables) -> None:
    def refused(*, match: str, runs: Any = None, **arguments: Any) -> None:
        with pytest.raises(BayeslawError, match=match):
            bayeslaw.fit(tables if runs is None else runs, **({"pool": "family"} | arguments))

    refused(match="pool = 'dataset' must be None or one of family", pool="dataset")
    refused(match=r"two \(family, dataset\) or more, and there is one family \(cifar_resnet/rich\)", runs=tables[0])
    refused(match="there are no runs", runs=[])
    refused(match="chains = 1", chains=1)
    refused(match="density", runs=[tables[0], tables[1].assign(density=2.0)])
    refused(match=r"unknown parameter 'between_knee'; allowed: .*between_beta", priors={"between_knee": dist.Normal()})
    refused(match="between_phi: Normal reaches outside", priors={"between_phi": dist.Normal()})
    refused(match="unknown parameter 'between_phi'", pool=None, runs=tables[0], priors={"between_phi": dist.Normal()})
    refused(match="law = 'single' is equation", law="single")
    refused(match="2 families", pool=None, runs=pd.concat(tables))


def test_families_need_not_have_the_same_columns(tables) -> None:
    """Tables are split by (family, dataset), whichever table their rows stand in."""
    bare = tables[1].drop(columns=["n_test", "n_wrong", "replicate", "classes", "input_shape"])
    split = split_families([bare, tables[0]], n_test=None, chance_error=None)
    assert [table["dataset"].unique().tolist() for table in split] == [["poor"], ["rich"]]
    assert "n_test" not in split[0]
    assert "n_test" in split[1]
    pd.testing.assert_frame_equal(split[1], load_runs(tables[0]))
    halves = [tables[0].iloc[:100], tables[0].iloc[100:], tables[1]]
    together = split_families(halves, n_test=None, chance_error=None)
    pd.testing.assert_frame_equal(together[1], load_runs(tables[0]))


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("joint", EXPONENTS),
        ("parameter_count", ("gamma", "alpha", "beta")),
        ("sharpness", EXPONENTS),
        ("sparse", ("alpha", "beta", "sparse_exponent")),
        ("single", ("gamma",)),
    ],
)
def test_the_exponents_that_a_law_has_are_pooled(law: str, expected: tuple[str, ...]) -> None:
    assert exponents_of(law) == expected
    added = set(default_priors(law, pool="family")) - set(default_priors(law))
    assert added == {f"between_{name}" for name in expected}
