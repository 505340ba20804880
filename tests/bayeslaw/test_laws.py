"""Every law against its formula in plain NumPy, its slope and its inverse, and fits that know what they lack."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import Truth, error_of, saturated, simulate

import bayeslaw
from bayeslaw import BayeslawError
from bayeslaw.laws import LAWS, law_named
from bayeslaw.model import Structure, structure_of
from bayeslaw.runs import load_runs

LOG_DENSITY = np.log(0.8) * np.arange(0, 40, 3)
thorough = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


VALUES = st.fixed_dictionaries(
    {
        "gamma": between(0.4, 3.0), "phi": between(-0.5, 2.0), "psi": between(-0.5, 2.5), "knee": between(0.002, 0.5),
        "dense": between(0.03, 0.6), "share_c": between(0.05, 0.9), "share_n": between(0.1, 0.9),
        "alpha": between(0.1, 1.5), "beta": between(0.3, 1.5), "sharpness": between(0.8, 5.0),
        "dip": between(0.0, 0.3), "dip_rounds": between(1.0, 8.0),
        "sparse_share": between(0.05, 0.95), "sparse_exponent": between(0.05, 0.3), "eps_up": between(0.6, 0.95),
    }
)  # fmt: skip
COVARIATES = st.fixed_dictionaries(
    {name: between(-1.5, 1.5) for name in ("depth", "width", "parameters", "dataset_size")}
)


def dense_terms(value: dict[str, float], at: dict[str, float]) -> tuple[float, float, float]:
    """Give the terms of the dense law: data, parameters, rest."""
    rest = value["dense"] * (1 - value["share_c"])
    data = rest * value["share_n"] * np.exp(-value["alpha"] * at["dataset_size"])
    parameters = rest * (1 - value["share_n"]) * np.exp(-value["beta"] * at["parameters"])
    return data, parameters, value["dense"] * value["share_c"]


def expected_error(name: str, value: dict[str, float], at: dict[str, float], e: float, sideways: float) -> np.ndarray:
    """Compute each law as its source writes it."""
    d, up, gamma = np.exp(LOG_DENSITY), value["eps_up"], value["gamma"]
    if name == "sparse":
        data, parameters, rest = dense_terms(value, at)
        d = d / np.exp(sideways)
        free = value["sparse_share"] * d ** value["sparse_exponent"] + 1 - value["sparse_share"]
        scale = e / (data + parameters + rest)
        return saturated(scale * (data + parameters * free * d ** -value["beta"] + rest), up)
    invariant = {
        "parameter_count": np.exp(at["parameters"]),
        "single": 1.0,
    }.get(name, np.exp(value["phi"] * at["depth"] + value["psi"] * at["width"]))
    p, k, low = value["knee"] * np.exp(sideways) / invariant, 2.0, saturated(e, up)
    if name in ("sharpness", "dip"):
        k = value["sharpness"]
    if name == "anchored":
        plateau = low ** (2 / gamma) * (1 + p**2) - p**2 * up ** (2 / gamma)
        low = max(plateau, 0.0) ** (gamma / 2)
    rising = low * ((d**k + p**k * (up / low) ** (k / gamma)) / (d**k + p**k)) ** (gamma / k)
    if name != "dip":
        return rising
    share = np.log(d) / (np.log(0.8) * value["dip_rounds"])
    return rising * np.exp(-value["dip"] * share * np.exp(1 - share))


def curve_of(name: str, value: dict[str, float], at: dict[str, float], log_e: float, sideways: float):
    given_ = {k: jnp.asarray(v) for k, v in value.items()} | {"log_eps_up": jnp.log(value["eps_up"])}
    return law_named(name).curve(given_, at, jnp.asarray(log_e), sideways)


@pytest.mark.parametrize("name", sorted(LAWS))
@thorough
@given(value=VALUES, at=COVARIATES, log_e=between(-4.0, -0.5), sideways=between(-0.5, 0.5))
def test_error_is_the_formulas(name: str, value, at, log_e: float, sideways: float) -> None:
    if name == "anchored" and not anchor_is_clear(value, at, log_e, sideways):
        return
    expected = expected_error(name, value, at, float(np.exp(log_e)), sideways)
    curve = curve_of(name, value, at, log_e, sideways)
    computed = np.exp(np.asarray(law_named(name).log_error(curve, LOG_DENSITY)))
    assert computed == pytest.approx(expected, rel=1e-9)
    if name == "anchored":
        assert computed[0] == pytest.approx(saturated(np.exp(log_e), value["eps_up"]), rel=1e-9)


def anchor_is_clear(value, at, log_e: float, sideways: float) -> bool:
    """Say whether the error at density 1 is well above what the knee alone allows."""
    p = value["knee"] * np.exp(sideways - value["phi"] * at["depth"] - value["psi"] * at["width"])
    ratio = (saturated(np.exp(log_e), value["eps_up"]) / value["eps_up"]) ** (2 / value["gamma"])
    return ratio * (1 + p**2) / p**2 > 1 + 30 / 20


@pytest.mark.parametrize("name", sorted(LAWS))
@thorough
@given(value=VALUES, at=COVARIATES, log_e=between(-4.0, -0.5))
def test_slope_is_the_difference_and_the_inverse_is_the_root(name: str, value, at, log_e: float) -> None:
    law, curve = law_named(name), curve_of(name, value, at, log_e, 0.0)
    step = 1e-5
    above, below = (np.asarray(law.log_error(curve, LOG_DENSITY + sign * step)) for sign in (1, -1))
    assert np.asarray(law.log_slope(curve, LOG_DENSITY)) == pytest.approx((above - below) / (2 * step), abs=1e-7)
    # Where the curve is steep enough to be inverted, the density found has the error asked for.
    error = np.asarray(law.log_error(curve, LOG_DENSITY))
    found = np.asarray(law.log_density_at(curve, error[5]))
    if found > -30:
        assert float(law.log_error(curve, found)) == pytest.approx(error[5], abs=1e-8)
    # An error that density 1 does not reach needs more than that, if any density has it.
    assert float(law.log_density_at(curve, error[0] - 5.0)) > 0


@thorough
@given(value=VALUES, at=COVARIATES, log_e=between(-4.0, -0.5), down=between(-0.5, 1.5))
def test_a_dip_is_left_on_its_far_side(value, at, log_e: float, down: float) -> None:
    """The lowest density that has the error asked for, against a fine grid; the error may be below that of density 1.

    Reached over less than a sixteenth of the dip's falling side, it may be passed over.
    """
    law, curve = law_named("dip"), curve_of("dip", value, at, log_e, 0.0)
    fine = np.linspace(0.0, -30.0, 60_001)
    error = np.asarray(law.log_error(curve, fine))
    target = error.min() + down * (error[0] - error.min()) + 1e-6
    found = float(law.log_density_at(curve, target))
    reached = fine[error <= target]
    if not len(reached):
        assert found == np.inf
    elif np.ptp(reached) > np.log(1.25) * value["dip_rounds"] / 16 + 0.001 and reached[-1] > -29:
        assert found == pytest.approx(reached[-1], abs=0.001)


@pytest.mark.parametrize("name", sorted(LAWS))
def test_gradients_are_finite_where_an_anchor_has_no_plateau(name: str) -> None:
    value = {"gamma": 1.0, "phi": 1.0, "psi": 1.0, "knee": 0.5, "dense": 0.1, "share_c": 0.2, "share_n": 0.5,
             "alpha": 0.6, "beta": 0.5, "sharpness": 2.0, "dip": 0.1, "dip_rounds": 3.0, "sparse_share": 0.5,
             "sparse_exponent": 0.5, "log_eps_up": -0.1}  # fmt: skip
    at = {"depth": -1.0, "width": -1.0, "parameters": -2.0, "dataset_size": 0.0}

    def total(value, log_e):
        law = law_named(name)
        return jnp.sum(law.log_error(law.curve(value, at, log_e, 0.0), LOG_DENSITY))

    inputs = ({k: jnp.asarray(v) for k, v in value.items()}, jnp.asarray(-4.0))
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(*inputs)))


def test_structure_says_what_each_law_lacks() -> None:
    known = ("depth_varies", "width_varies", "has_trajectories", "knows_n_test")
    full = dict.fromkeys((*known, "correlated", "deaths", "subsets", "curvature"), True)
    assert Structure(**full).without() == set()
    assert Structure(**full, law="parameter_count").without() == {"phi", "psi"}
    assert Structure(**full, effects=("p",)).without() == {"share_np", "lasting"}
    assert Structure(**full, growth=False).without() == {"growth_np", "growth_p", "narrow_np", "narrow_p", "lasting"}
    plain = Structure(**full, effects=(), noise="normal", steep=False, growth=False)
    assert plain.without() == {
        "share_np", "spread_p", "share_p", "nu", "kappa", "noise_power", "growth_np", "growth_p", "narrow_np",
        "narrow_p", "lasting",
    }  # fmt: skip
    assert "spread_np" not in Structure(**full, law="single").without()
    assert "spread_np" in Structure(**full, law="single", effects=()).without()


@pytest.fixture(scope="module")
def one_network():
    """Give two runs of one network."""
    return load_runs(simulate(Truth(), depths=(8,), widths=(4,), dataset_sizes=(1000,), seed=2).runs)


def test_one_network_is_fitted_by_equation_1(one_network) -> None:
    """It knows its own curve, and nothing of any other network."""
    fit = bayeslaw.fit(one_network, law="single", chains=2, draws=500, progress=False)
    assert {"phi", "psi", "alpha", "sigma_np"}.isdisjoint(fit.posterior)
    assert {"tau_np", "tau_p", "knee", "gamma"} <= set(fit.posterior)
    own = one_network[one_network["replicate"] == 0]
    predicted = fit.predict(own, interval=0.95)
    truth = Truth()
    m = 8**truth.phi * (4 / 16) ** truth.psi * own["density"].to_numpy()
    eps_np = own["error"].iloc[:3].mean()  # two runs tell the plateau to some 10 %
    mean = error_of(eps_np, truth.eps_up, truth.gamma, truth.p_prime, m)
    assert np.mean((predicted["lower"] < mean * 1.15) & (predicted["upper"] > mean / 1.15)) > 0.8
    with pytest.raises(BayeslawError, match=r"depth 14, width 4, dataset_size 1000 was not fitted.*law = 'joint'"):
        fit.predict(own.assign(depth=14))


def test_one_run_of_one_network_has_no_effects_of_runs(one_network) -> None:
    alone = one_network[one_network["replicate"] == 0]
    structure = structure_of(alone, law="single")
    assert structure.effects == ()
    assert {"spread_p", "share_p", "spread_np", "share_np"} <= structure.without()


def test_what_does_not_exist_is_refused(one_network, simulated) -> None:
    with pytest.raises(BayeslawError, match=r"law = 'cubic' must be one of joint, parameter_count"):
        bayeslaw.fit(one_network, law="cubic")
    with pytest.raises(BayeslawError, match=r"effects = \['up'\] must be of np, p"):
        bayeslaw.fit(one_network, effects=["up"])
    with pytest.raises(BayeslawError, match=r"noise = 'cauchy' must be one of student_t, normal"):
        bayeslaw.fit(one_network, noise="cauchy")
    with pytest.raises(BayeslawError, match=r"for one network; the table has 12 configurations"):
        bayeslaw.fit(simulated.runs, law="single")
    with pytest.raises(BayeslawError, match=r"unknown parameter 'phi'; allowed: gamma"):
        bayeslaw.fit(simulated.runs, law="parameter_count", priors={"phi": None})  # pyright: ignore[reportArgumentType]
