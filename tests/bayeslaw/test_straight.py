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
from simulate import Truth, simulate

from bayeslaw.density import Context, positions_of, shapes_of
from bayeslaw.frame import make_data, make_frame
from bayeslaw.priors import default_priors
from bayeslaw.runs import load_runs
from bayeslaw.straight import (
    StraightContext,
    bend,
    bent_positions,
    ridges_of,
    standardise,
    straight_potential,
    straighten,
)

NAMES = (
    "alpha", "beta", "dense", "effect_p", "floor", "growth_p", "plateau", "share_c", "share_n", "share_np", "sigma",
    "tau_p",
)  # fmt: skip
#: How far the sideways effects are standardised.
SOME = np.array([0.0, 0.3, 1.0])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def context_of(changes: dict[str, Any] | None = None, standardised: Any = None, **table: Any) -> StraightContext:
    runs = load_runs(simulate(Truth(), widths=(2, 8), replicates=1, levels=(0, 10), **table).runs, chance_error=0.9)
    data, _ = make_data(runs, make_frame(runs, 0.9))
    priors = {k: v.distribution for k, v in default_priors().items() if k in NAMES} | (changes or {})
    ridges, count = ridges_of(data), len(data.configuration)
    if standardised is not None:
        ridges = ridges._replace(standardised=np.resize(standardised, count))
    return StraightContext(Context(data, priors), ridges)


def random_values(seed: int, context: StraightContext) -> dict[str, np.ndarray]:
    """Draw plain unconstrained values, some of them far out; no exponents of a hundred and more."""
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_t(3) * 3 + np.zeros(()) for name in NAMES}
    values |= {name: np.minimum(values[name], 4.0) for name in ("alpha", "beta")}
    values |= {name: 0.1 * values[name] for name in ("growth_p", "tau_p")}
    return values | {"effect_p": rng.standard_normal(len(context.plain.data.configuration))}


def test_there_and_back_gives_the_values_again() -> None:
    context = context_of(standardised=SOME)
    for seed in range(50):
        values = random_values(seed, context)
        back, _ = bend(context, straighten(context, values))
        for name in NAMES:
            assert np.asarray(back[name]) == pytest.approx(values[name], rel=1e-9, abs=1e-9), name


def test_the_determinant_is_that_of_differentiation() -> None:
    context = context_of(standardised=SOME)
    for seed in range(50):
        flat, unravel = ravel_pytree(straighten(context, random_values(seed, context)))
        matrix = jax.jacfwd(lambda x, u=unravel: ravel_pytree(bend(context, u(x))[0])[0])(flat)
        _, expected = np.linalg.slogdet(np.asarray(matrix))
        assert float(bend(context, unravel(flat))[1]) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_coordinates_are_those_of_the_formulas() -> None:
    context = context_of(standardised=SOME)
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
    assert straight["dense"] == pytest.approx(middle)
    binomial = np.exp(context.ridges.log_binomial)
    noises = np.exp(values["floor"]) * binomial, np.exp(values["sigma"])
    assert straight["floor"] == pytest.approx(np.log(np.hypot(*noises)))
    assert straight["sigma"] == pytest.approx(np.log(noises[1] / noises[0]))
    z = straight["plateau"]
    assert z * np.sqrt(1 + z**2 / 4) == pytest.approx(values["plateau"])
    data, alpha, beta = context.plain.data, np.exp(values["alpha"]), np.exp(values["beta"])
    terms = share_n * np.exp(-alpha * data.dataset_size) + (1 - share_n) * np.exp(-beta * data.parameters)
    above = np.log((1 - share_c) * terms + share_c)
    spread = np.exp(values["tau_p"] + values["growth_p"] * above)[data.configuration]
    power = np.resize(SOME, len(spread))
    assert np.asarray(straight["effect_p"]) == pytest.approx(values["effect_p"] / spread**power)


def test_a_typical_binomial_deviation_is_that_of_the_median_row() -> None:
    runs = simulate(Truth(), levels=(0, 10)).runs
    data, _ = make_data(load_runs(runs), make_frame(load_runs(runs), 0.9))
    share = (runs["n_wrong"] + 0.5) / (runs["n_test"] + 1)
    expected = np.sqrt(np.median(1 / (runs["n_test"] * share * (1 - share))))
    assert np.exp(ridges_of(data).log_binomial) == pytest.approx(expected, rel=1e-9)


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
    context = context_of(standardised=SOME)
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


def test_effects_are_standardised_by_what_is_left_of_their_prior_variance() -> None:
    """Told by their rows to a tenth of their spread, half told, not told at all, and wider than their prior."""
    context = context_of({"growth_p": dist.Normal(0.0, 1e-6)})
    values = random_values(6, context) | {"growth_p": np.zeros(())}
    count, spread = len(values["effect_p"]), np.exp(values["tau_p"])
    left = np.resize([0.01, 0.5, 1.0, 1.7], count)
    chosen, there = standardise(context, straighten(context, values), {"effect_p": left * spread**2})
    assert np.asarray(chosen.ridges.standardised) == pytest.approx(np.minimum(left, 1.0))
    assert np.asarray(there["effect_p"]) == pytest.approx(values["effect_p"] / spread ** np.minimum(left, 1.0))
    back, _ = bend(chosen, there)
    assert np.asarray(back["effect_p"]) == pytest.approx(values["effect_p"])
