"""Straight coordinates: there and back, the determinant of plain differentiation, and what they leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from simulate import CURVATURE, Truth, simulate

from bayeslaw.axes import lay_out, unit_axes
from bayeslaw.centring import Centring, centred
from bayeslaw.density import Context, positions_of, shapes_of
from bayeslaw.frame import make_data, make_frame
from bayeslaw.hierarchy import groups_of
from bayeslaw.law import Curve, log_error, log_slope
from bayeslaw.laws import log_power_laws
from bayeslaw.priors import default_priors
from bayeslaw.ridges import LEAST_RISE, StraightContext, ridges_of
from bayeslaw.runs import load_runs
from bayeslaw.straight import bend, bent_positions, recentre, straight_potential, straighten

NAMES = (
    "alpha", "beta", *CURVATURE, "dense", "floor", "gamma", "growth_np", "growth_p", "narrow_np", "narrow_p", "knee",
    "omega", "plateau",
    "share_c", "share_n", "share_np", "share_p", "sharpness", "sigma", "spread_np", "spread_p",
)  # fmt: skip
EFFECTS = ("log_e_run", "effect_p")
#: Which of depth, width and dataset size every coefficient of the quadratic multiplies.
PAIRS = dict(zip(CURVATURE, ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)), strict=True))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def context_of(changes: dict[str, Any] | None = None, **table: Any) -> StraightContext:
    """Take a table of which some configurations have one run and some have two, its effects centred by halves."""
    runs = load_runs(simulate(Truth(), widths=(2, 8), replicates=2, levels=(0, 10), **table).runs, chance_error=0.9)
    runs = runs[(runs["depth"] == 8) | (runs["replicate"] == 0)]
    data, _ = make_data(runs, make_frame(runs, 0.9))
    priors = {name: default_priors("sharpness")[name].distribution for name in NAMES} | (changes or {})
    ridges = ridges_of(data)
    halves = (np.resize([0.0, 0.3, 1.0], len(part)) for part in ridges.centring)
    return StraightContext(Context(data, priors), ridges._replace(centring=Centring(*halves)))


def random_values(seed: int, context: StraightContext) -> dict[str, np.ndarray]:
    """Draw plain unconstrained values, some of them far out; no exponents of a hundred and more, nor such spreads."""
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_t(3) * 3 + np.zeros(()) for name in NAMES}
    values |= {name: np.minimum(values[name], 4.0) for name in ("alpha", "beta")}
    values |= {name: 0.5 * values[name] for name in ("gamma", "sharpness")}
    values |= {name: 0.1 * values[name] for name in NAMES if name.endswith(("_np", "_p"))}
    values |= {name: np.clip(values[name], -0.1, 0.1) for name in ("growth_np", "growth_p", "narrow_np", "narrow_p")}
    values |= {name: rng.standard_normal(len(context.plain.data.configuration)) for name in EFFECTS}
    if "spread_subset" in context.plain.priors:
        values["spread_subset"] = np.array(rng.standard_normal())
        values["luck_halfway"] = rng.standard_normal(len(context.plain.data.luck_root))
    return values


def lucky() -> StraightContext:
    """Have the runs of a replicate share the luck of their training subset."""
    plain = context_of()
    runs = load_runs(simulate(Truth(), widths=(2, 8), replicates=2, levels=(0, 10)).runs, chance_error=0.9)
    data, _ = make_data(runs.assign(subset_id=runs["replicate"].astype(str)), make_frame(runs, 0.9), subsets=True)
    priors = plain.plain.priors | {"spread_subset": default_priors()["spread_subset"].distribution}
    halves = (np.resize([0.0, 0.3, 1.0], len(part)) for part in plain.ridges.centring)
    return StraightContext(Context(data, priors), ridges_of(data)._replace(centring=Centring(*halves)))


def held(context: StraightContext) -> StraightContext:
    """Have exponents stay as they are."""
    return context._replace(ridges=context.ridges._replace(shared=()))


@pytest.mark.parametrize(
    "context", [context_of, lambda: held(context_of()), lucky], ids=["all", "exponents as they are", "luck"]
)
def test_there_and_back_gives_the_values_again(context) -> None:
    context = context()
    for seed in range(50):
        values = random_values(seed, context)
        back, _ = bend(context, straighten(context, values))
        for name in values:
            assert np.asarray(back[name]) == pytest.approx(values[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize(
    "context", [context_of, lambda: held(context_of()), lucky], ids=["all", "exponents as they are", "luck"]
)
def test_the_determinant_is_that_of_differentiation(context) -> None:
    context = context()
    unravel = ravel_pytree(straighten(context, random_values(0, context)))[1]
    differentiate = jax.jit(jax.jacfwd(lambda x: ravel_pytree(bend(context, unravel(x))[0])[0]))
    for seed in range(50):
        straight = straighten(context, random_values(seed, context))
        _, expected = np.linalg.slogdet(np.asarray(differentiate(ravel_pytree(straight)[0])))
        assert float(bend(context, straight)[1]) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_coordinates_are_those_of_the_formulas() -> None:
    context = context_of()
    values = random_values(3, context)
    share_n, share_c = (1 / (1 + np.exp(-values[name])) for name in ("share_n", "share_c"))
    straight = straighten(context, values)
    middle = values["dense"]
    for name, share, covariate in (
        ("alpha", share_n * (1 - share_c), context.plain.data.dataset_size),
        ("beta", (1 - share_n) * (1 - share_c), context.plain.data.parameters),
    ):
        exponent, spread = np.exp(values[name]), np.std(covariate)
        assert straight[name] == pytest.approx(np.log(share * np.sinh(exponent * spread) / spread))
        ends = [np.log(share * np.exp(sign * exponent * spread) + 1 - share) for sign in (-1, 1)]
        middle = middle + np.mean(ends)
    covariates = [np.asarray(getattr(context.plain.data, name)) for name in ("depth", "width", "dataset_size")]
    products = {name: np.mean(covariates[i] * covariates[j]) for name, (i, j) in PAIRS.items()}
    middle = middle + sum(values[name] * product for name, product in products.items())
    assert straight["dense"] == pytest.approx(middle - np.log1p(np.exp(-values["plateau"])))
    assert straight["share_c"] == pytest.approx(0.05 * np.log((1 - share_c) ** -20 - 1))
    binomial = np.exp(context.ridges.log_binomial)
    noises = np.exp(values["floor"]) * binomial, np.exp(values["sigma"])
    assert straight["floor"] == pytest.approx(np.log(np.hypot(*noises)))
    assert straight["sigma"] == pytest.approx(np.log(noises[1] / noises[0]))
    gamma, sharpness, rise = np.exp(values["gamma"]), np.exp(values["sharpness"]), context.ridges.rise
    # Of the curve between plateaus that lie apart by the rise, the slope in the middle, by the law itself.
    curve = Curve(-rise, 0.0, gamma, values["knee"], sharpness)
    middle = values["knee"] + rise / (2 * gamma)
    assert float(log_error(curve, middle)) == pytest.approx(-rise / 2)
    assert float(log_slope(curve, middle)) == pytest.approx(-np.exp(straight["gamma"]))
    assert straight["sharpness"] == pytest.approx(0.1 * np.log((1 + sharpness / gamma) ** 10 - 1))
    z = straight["plateau"]
    assert z * np.sqrt(1 + z**2 / 4) == pytest.approx(values["plateau"])


def test_power_laws_curve_as_the_quadratic_does() -> None:
    """Where they bend little: the second derivatives of the dense law at the centre, by differentiation."""
    context = context_of()
    values = random_values(3, context) | {"alpha": np.log(0.05), "beta": np.log(0.05), "omega": np.array(0.4)}
    straight, slopes = straighten(context, values), context.ridges.count_slopes

    def log_e(at: jax.Array) -> jax.Array:
        depth, width, size = at
        count = slopes["depth"] * depth + slopes["width"] * width
        value = {name: jax.nn.sigmoid(values[name]) for name in ("share_n", "share_c")}
        value |= {"dense": 1.0, "alpha": 0.05, "beta": 0.05, "omega": 0.4}
        covariates = {"parameters": count, "depth": depth, "width": width, "dataset_size": size}
        return log_power_laws(value, covariates)

    second = jax.hessian(log_e)(jnp.zeros(3))
    for name, (i, j) in PAIRS.items():
        expected = second[i, j] / 2 if i == j else second[i, j]
        assert float(straight[name] - values[name]) == pytest.approx(float(expected), rel=0.02), name


def test_luck_that_sizes_have_in_common_is_in_the_terms_of_the_law() -> None:
    """By its level and slope over the runs' two sizes: coordinates are nearly those of such a world without luck."""
    context = lucky()
    data, small = context.plain.data, {"spread_subset": np.log(0.002), "alpha": np.log(0.4)}
    values = random_values(6, context) | small
    luck = np.exp(values["spread_subset"] / 2) * data.luck_root @ values["luck_halfway"]
    share_n, share_c = (1 / (1 + np.exp(-values[name])) for name in ("share_n", "share_c"))
    dense = np.exp(values["dense"])
    a, b, c = dense * (1 - share_c) * share_n, dense * (1 - share_c) * (1 - share_n), dense * share_c
    slope, level = np.polyfit(data.dataset_size[data.configuration], luck[data.subset], 1)
    a = a * np.exp(level)
    other = values | {"luck_halfway": np.zeros(len(data.luck_root)), "dense": np.log(a + b + c)}
    other |= {"share_n": np.log(a / b), "share_c": np.log(c / (a + b)), "alpha": np.log(0.4 - slope)}
    found, expected = straighten(context, values), straighten(context, other)
    assert abs(slope) > 1e-3
    for name in NAMES:  # The exponent moves by the slope but for (.05 / alpha)^2 of it.
        assert float(found[name]) == pytest.approx(float(expected[name]), abs=0.02 * abs(slope) / 0.4), name


def test_lucks_that_all_sizes_share_are_sampled_first_and_by_the_level_of_what_they_do() -> None:
    """Turned, in units of their spread or as they are, times the share of the error that they act on."""
    context = lucky()
    data, values = context.plain.data, random_values(7, context) | {"share_n": np.array(9.0), "share_c": np.array(-9.0)}
    of_sizes = np.stack([data.dataset_size[data.configuration] == size for size in np.unique(data.dataset_size)])
    common = of_sizes @ np.eye(len(data.luck_root))[data.subset] @ data.luck_root
    first = np.asarray(context.ridges.lucks.axes)[:, : len(of_sizes)]
    assert first @ first.T @ common.T == pytest.approx(common.T)
    units = np.linspace(0, 1, len(data.luck_root))
    lucks = context.ridges.lucks._replace(units=units)
    straight = straighten(context._replace(ridges=context.ridges._replace(lucks=lucks)), values)
    effect = np.exp(values["spread_subset"]) * 1.1  # nearly all of the error is what data remove, softened by .1
    independent = values["luck_halfway"] @ np.asarray(context.ridges.lucks.axes) / np.exp(values["spread_subset"] / 2)
    assert np.exp(float(straight["spread_subset"])) == pytest.approx(effect, rel=1e-3)
    assert np.asarray(straight["luck_halfway"]) == pytest.approx(independent * effect ** (1 - units), rel=1e-3)


def test_lucks_are_in_units_of_their_spread_as_far_as_runs_leave_them_to_it() -> None:
    """By the variance that the metric gives them beside the square of the spread."""
    context = lucky()
    context = context._replace(ridges=context.ridges._replace(centring=centred(context.plain.data)))
    straight = {name: np.asarray(v) for name, v in straighten(context, random_values(8, context)).items()}
    where = positions_of(shapes_of(straight))
    mode = np.concatenate([np.ravel(straight[name]) for name in where])
    axes = unit_axes(lay_out(where, groups_of(context.plain.data)))
    spread, wide = np.exp(straight["spread_subset"]), np.linspace(0.1, 2.0, len(straight["luck_halfway"]))
    widths = np.ones(len(mode))
    widths[where["luck_halfway"]] = np.sqrt(spread) * wide  # of lucks half-way to units
    axes = axes._replace(shared_factor=np.diag(widths[axes.shared]))
    chosen, again = recentre(context, where, mode, axes)
    assert np.asarray(chosen.ridges.lucks.units) == pytest.approx(np.minimum(wide**2, 1.0))
    back, _ = bend(chosen, again)
    for name, value in bend(context, straight)[0].items():
        assert np.asarray(back[name]) == pytest.approx(np.asarray(value), rel=1e-9, abs=1e-9), name


def test_shares_and_the_knee_move_where_exponents_stay() -> None:
    context = held(context_of())
    values = random_values(3, context)
    straight = straighten(context, values)
    for name in ("alpha", "beta", "gamma", "sharpness"):
        assert float(straight[name]) == values[name]
    data, falls = context.plain.data, {}
    for name, covariate in (("alpha", data.dataset_size), ("beta", data.parameters)):
        falls[name] = np.sinh(np.exp(values[name]) * np.std(covariate)) / np.std(covariate)
    share, constant = (1 / (1 + np.exp(-values[name])) for name in ("share_n", "share_c"))
    of_data, of_parameters = share * falls["alpha"], (1 - share) * falls["beta"]
    z = straight["share_n"]
    assert z * np.sqrt(1 + z**2 / 4) == pytest.approx(np.log(of_data / of_parameters))
    soft = 0.1 * np.log((1 - constant) ** -10 - 1)
    assert straight["share_c"] == pytest.approx(soft - np.log(of_data + of_parameters))
    unbent = {name: v for name, v in values.items() if name not in CURVATURE}
    assert float(straight["dense"]) == pytest.approx(float(straighten(context_of(), unbent)["dense"]))
    assert float(straight["knee"]) == pytest.approx(
        values["knee"] + context.ridges.rise / (2 * np.exp(values["gamma"]))
    )


def test_a_typical_binomial_deviation_is_that_of_the_median_row() -> None:
    runs = simulate(Truth(), levels=(0, 10)).runs
    data, _ = make_data(load_runs(runs), make_frame(load_runs(runs), 0.9))
    share = (runs["n_wrong"] + 0.5) / (runs["n_test"] + 1)
    expected = np.sqrt(np.median(1 / (runs["n_test"] * share * (1 - share))))
    assert np.exp(ridges_of(data).log_binomial) == pytest.approx(expected, rel=1e-9)


def test_a_typical_rise_is_that_of_the_median_run() -> None:
    runs = simulate(Truth(), levels=(0, 10, 20, 30)).runs
    data, _ = make_data(load_runs(runs), make_frame(load_runs(runs), 0.9))
    log_error = np.log((runs["n_wrong"] + 0.5) / (runs["n_test"] + 1))
    of_runs = log_error.groupby([runs[name] for name in ("depth", "width", "dataset_size", "replicate")])
    assert ridges_of(data).rise == pytest.approx((of_runs.max() - of_runs.min()).median(), rel=1e-9)
    flat, _ = make_data(load_runs(runs[runs["density"] == 1]), make_frame(load_runs(runs), 0.9))
    assert ridges_of(flat).rise == LEAST_RISE


def test_what_runs_do_not_inform_is_left_as_it_is() -> None:
    """At one dataset size nothing is known of alpha but its prior; so for other ranges of the priors."""
    context = context_of(dataset_sizes=(1000,))
    values = random_values(4, context)
    at_one_size = straighten(context, values)
    assert float(at_one_size["alpha"]) == float(values["alpha"])
    assert float(at_one_size["beta"]) != float(values["beta"])
    others = {"alpha": dist.Uniform(0.1, 2.0), "sigma": dist.Uniform(0.0, 1.0)}
    narrowed = straighten(context_of(others, dataset_sizes=(1000,)), values)
    assert float(narrowed["floor"]) == float(values["floor"])
    z = float(narrowed["alpha"])  # a logit now, shortened like the others
    assert z * np.sqrt(1 + z**2 / 4) == pytest.approx(float(values["alpha"]))


def test_flat_positions_and_densities_are_bent_alike() -> None:
    context = context_of()
    straight = {name: np.asarray(v) for name, v in straighten(context, random_values(5, context)).items()}
    where = positions_of(shapes_of(straight))
    flat = np.broadcast_to(ravel_pytree(straight)[0], (3, 1, sum(v.size for v in straight.values())))
    values, log_determinant = bend(context, straight)
    for name, index in where.items():
        expected = np.broadcast_to(values[name], (3, 1, *index.shape))
        assert bent_positions(context, where, flat)[..., index] == pytest.approx(expected)

    def plain(_: Context, values: dict[str, Any]) -> jax.Array:
        return jnp.asarray(sum(jnp.sum(values[name] ** 2) for name in NAMES))

    expected = float(plain(context.plain, values) - log_determinant)
    assert float(straight_potential(plain)(context, straight)) == pytest.approx(expected)
