"""The model's log density against a plain NumPy one, its closed forms, and its gradient on awkward tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.stats
from numpyro.infer.util import potential_energy
from simulate import CURVATURE, Reference, Truth, measured_spread, simulate, spread_at

from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import Prepared, starts_of
from bayeslaw.frame import Data, check_one_family, empirical_logit, make_data, make_frame
from bayeslaw.hierarchy import SPREADS, draw_configurations, estimate_spreads, log_density_of_groups
from bayeslaw.model import Structure, make_model, structure_of
from bayeslaw.priors import default_priors
from bayeslaw.runs import load_runs

#: How far a Monte Carlo estimate may lie from the truth, in its standard errors; fixed before any seed was drawn.
STANDARD_ERRORS = 5.0
#: Parameters on the whole line, and between 0 and 1; all others are positive.
UNBOUNDED = ("phi", "psi", "chi", "omega", *CURVATURE, "growth_np", "growth_p", "narrow_np", "narrow_p")
SHARES = ("plateau", "share_c", "share_n", "share_np", "share_p", "rho", "lasting")
with jax.enable_x64(True):
    PRIORS = default_priors()


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def small_table(kind: str) -> pd.DataFrame:
    """Make a table of six configurations, two trajectories each, or the same with something awkward about it."""
    replicates = 1 if kind == "one replicate" else 2
    runs = simulate(Truth(), widths=(2, 4, 8), dataset_sizes=(1000,), replicates=replicates, levels=(0, 8, 20)).runs
    if kind == "no n_test":
        runs = runs.drop(columns=["n_test", "n_wrong"])
    if kind == "no trajectory":
        runs = runs.drop_duplicates(["depth", "width", "level"]).drop(columns="replicate")
    if kind == "errors of 0":
        runs = runs.assign(error=0.0, n_wrong=0)
    if kind == "errors of 1":
        runs = runs.assign(error=1.0, n_wrong=runs["n_test"])
    if kind == "shuffled, correlated":  # and trajectories of unequal length, so that one takes several lines
        runs = runs[(runs["level"] < 20) | (runs["replicate"] == 0)].sample(frac=1, random_state=0)
    return load_runs(runs, chance_error=0.9)


KINDS = ["full", "no n_test", "no trajectory", "one replicate", "shuffled, correlated"]


def parts_of(table: pd.DataFrame, *, correlated: bool = False) -> tuple[Structure, Data]:
    structure, frame = structure_of(table, growth=True, correlated=correlated), make_frame(table, 0.9)
    data, _ = make_data(table, frame)
    return structure, Data(*(jnp.asarray(part) for part in data))


def starts_at(table: pd.DataFrame, *, few: bool = False) -> list[dict[str, jax.Array]]:
    """Give the values that the mode is searched from."""
    structure, frame = structure_of(table, growth=True, correlated=False), make_frame(table, 0.9)
    priors = {name: prior for name, prior in PRIORS.items() if name not in structure.without()}
    return starts_of(Prepared(table, frame, structure, *make_data(table, frame), priors, few))


@functools.cache
def log_density_of(structure: Structure, centred: bool) -> Callable[[dict[str, Any], Data], Any]:
    """Compile the log density of unconstrained values, with its gradient."""
    model = make_model(structure, centred=centred)
    priors = {name: prior.distribution for name, prior in PRIORS.items() if name not in structure.without()}
    compiled = jax.jit(jax.value_and_grad(lambda values, data: -potential_energy(model, (data, priors), {}, values)))
    # Arrays of one kind, so that a structure is compiled once.
    return lambda values, data: compiled({k: jnp.asarray(np.asarray(v)) for k, v in values.items()}, data)


def random_values(rng: np.random.Generator, reference: Reference, structure: Structure) -> dict[str, float]:
    """Draw parameters about where small runs have them."""
    middle = {
        "gamma": 1.2, "phi": 0.8, "psi": 1.1, "knee": 0.03, "plateau": 0.95, "dense": 0.15, "share_c": 0.15,
        "share_n": 0.5, "alpha": 0.6, "beta": 0.5, "spread_np": 0.15, "share_np": 0.5, "spread_p": 0.2, "share_p": 0.4,
        "chi": 0.1, "omega": -0.3, "sigma": 0.06,
        "kappa": 0.15, "noise_power": 0.6, "floor": 1.0, "nu": 9.0, "growth_np": 0.3, "growth_p": 0.2, "rho": 0.5,
        "lasting": 0.3, "sharpness": 2.5, "narrow_np": 0.4, "narrow_p": -0.3, **dict.fromkeys(CURVATURE, 0.04),
    }  # fmt: skip
    values = {}
    for name, value in middle.items():
        if name in SHARES:
            values[name] = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + 0.7 * rng.standard_normal())))
        else:
            values[name] = value * np.exp(0.4 * rng.standard_normal())
    return {name: value for name, value in values.items() if name not in structure.without()}


def prior_log_density(name: str, value: float) -> float:
    """Compute a prior's log density with SciPy."""
    prior = PRIORS[name].distribution
    match prior:
        case dist.LogNormal():
            frozen = scipy.stats.lognorm(s=float(prior.scale), scale=np.exp(float(prior.loc)))
        case dist.HalfNormal():
            frozen = scipy.stats.halfnorm(scale=float(prior.scale))
        case dist.Normal():
            frozen = scipy.stats.norm(float(prior.loc), float(prior.scale))
        case dist.Beta():
            frozen = scipy.stats.beta(float(prior.concentration1), float(prior.concentration0))
        case dist.Uniform():
            frozen = scipy.stats.uniform(float(prior.low), float(prior.high - prior.low))
        case dist.Gamma():
            frozen = scipy.stats.gamma(float(prior.concentration), scale=1 / float(prior.rate))
        case _:
            raise AssertionError(f"no reference for the prior of {name}")
    return float(frozen.logpdf(value))


def unconstrained(values: dict[str, float]) -> tuple[dict[str, float], float]:
    """Map parameters to the whole line, with the log Jacobian of the way back."""
    flat, jacobian = {}, 0.0
    for name, value in values.items():
        if name in UNBOUNDED:
            flat[name] = value
        elif name in SHARES:
            flat[name] = np.log(value / (1 - value))
            jacobian += np.log(value * (1 - value))
        else:
            flat[name] = np.log(value)
            jacobian += np.log(value)
    return flat, jacobian


def spreads_of(values: dict[str, float]) -> dict[str, float]:
    """Split the spreads into the configurations' and the trajectories' part."""
    found = {}
    for where in ("np", "p"):
        total, share = values.get(f"spread_{where}", 0.0), values.get(f"share_{where}", 1.0)
        found |= {f"sigma_{where}": total * np.sqrt(share), f"tau_{where}": total * np.sqrt(1 - share)}
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "standardised"])
def test_log_density_is_that_of_plain_numpy(kind: str, centred: bool) -> None:
    table = small_table(kind)
    structure, data = parts_of(table, correlated=kind.endswith("correlated"))
    reference, rng = Reference(table), np.random.default_rng(7)
    effects = structure.has_trajectories
    configurations, trajectories = len(reference.configurations), len(reference.trajectories)
    for _ in range(10):
        values = random_values(rng, reference, structure)
        flat: dict[str, Any]
        flat, expected = unconstrained(values)
        expected += sum(prior_log_density(name, value) for name, value in values.items())
        centre = reference.log_dense(values)
        width = reference.centred_width
        spreads = {name: spread_at(values | spreads_of(values), name, centre, width) for name in spreads_of(values)}
        tested = 797 if structure.knows_n_test else np.inf
        eps_up = 0.9 * values["plateau"]
        spreads["tau_np"] = measured_spread(values | spreads_of(values), centre, eps_up, tested, width)
        own, shift = rng.standard_normal((2, configurations))
        up, sideways = rng.standard_normal((2, trajectories))
        of_run = reference.configuration
        log_e = (centre + spreads["sigma_np"] * own)[of_run] + spreads["tau_np"][of_run] * up * effects
        effect_p = (spreads["sigma_p"] * shift)[of_run] + spreads["tau_p"][of_run] * sideways
        if centred and effects:
            flat |= {"log_e_run": log_e, "effect_p": effect_p}
            # The model leaves out the constants of the integrated normals.
            expected += reference.log_density_of_groups(log_e, centre, spreads["sigma_np"], spreads["tau_np"])
            expected += reference.log_density_of_groups(effect_p, 0 * centre, spreads["sigma_p"], spreads["tau_p"])
            expected += trajectories * np.log(2 * np.pi)
        elif centred:
            flat["log_e"] = centre + spreads["sigma_np"] * own
            expected += scipy.stats.norm.logpdf(spreads["sigma_np"] * own, 0, spreads["sigma_np"]).sum()
        else:
            flat["discrepancy"] = own
            expected += scipy.stats.norm.logpdf(own).sum()
            if effects:
                flat |= {"discrepancy_p": shift, "standard_np": up, "standard_p": sideways}
                expected += scipy.stats.norm.logpdf(shift).sum() + scipy.stats.norm.logpdf([up, sideways]).sum()
        expected += reference.log_likelihood_of_rows(values, log_e, effect_p).sum()
        computed, gradient = log_density_of(structure, centred)(flat, data)
        # 36 rows and some 30 further terms of size 1 to 100, each good to some 1e-14.
        assert float(computed) == pytest.approx(expected, rel=1e-10, abs=1e-9)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", [*KINDS, "errors of 0", "errors of 1"])
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "standardised"])
def test_density_and_gradient_are_finite_at_every_start(kind: str, centred: bool) -> None:
    structure, data = parts_of(small_table(kind))
    for start in starts_at(small_table(kind), few=not centred):
        value, gradient = log_density_of(structure, centred)(start, data)
        assert np.isfinite(value)
        assert sorted(gradient) == sorted(start)
        for name, slope in gradient.items():
            assert np.isfinite(slope).all(), name


def test_starting_values_of_the_centred_model_lie_at_the_measured_plateaus() -> None:
    table = small_table("full")
    start = starts_at(table)[0]
    share = table[table["density"] == 1].groupby(["depth", "width"])["error"].mean().to_numpy() / 0.9
    e = np.exp(np.asarray(start["log_e_run"]).reshape(6, 2)[:, 0])
    # The start averages empirical logits, half a count in and the seeds' spread apart from the mean.
    assert e / np.sqrt(1 + e**2) == pytest.approx(share, rel=0.05)


def test_group_term_is_a_multivariate_normal() -> None:
    """Groups of one to four trajectories, random spreads: the closed form against SciPy's."""
    rng = np.random.default_rng(3)
    configuration = np.repeat(np.arange(6), [1, 2, 3, 4, 1, 2])
    rng.shuffle(configuration)
    nothing = np.zeros(0)
    rows = [nothing] * 6
    data = Data(*rows, configuration, nothing, np.zeros(6), nothing, nothing, nothing, 0.0, nothing)
    for _ in range(20):
        centre, log_e = rng.normal(-2, 1, 6), rng.normal(-2, 1, len(configuration))
        sigma, tau = np.exp(rng.normal(-2, 1, 2))
        expected = sum(
            scipy.stats.multivariate_normal.logpdf(
                own := log_e[configuration == i],
                np.full(len(own), centre[i]),
                sigma**2 + tau**2 * np.eye(len(own)),
            )
            for i in range(6)
        )
        computed = log_density_of_groups(jnp.asarray(log_e), data, jnp.asarray(centre), sigma, tau)
        assert float(computed) - 0.5 * len(configuration) * np.log(2 * np.pi) == pytest.approx(expected, rel=1e-11)


def test_configurations_are_drawn_from_their_exact_conditional() -> None:
    """Condition the joint normals of (log e_i, its trajectories), and of the sideways effects, by linear algebra and
    compare with 20,000 draws.
    """
    rng, draws = np.random.default_rng(11), 20_000
    runs = simulate(Truth(), widths=(2, 4), dataset_sizes=(1000,), levels=(0,)).runs
    runs = runs.drop(index=runs.index[0])  # one configuration with a single trajectory
    table = load_runs(runs)
    _, data = parts_of(table)
    reference = Reference(table)
    dense = {"dense": 0.12, "share_c": 0.08, "share_n": 0.55, "alpha": 0.6, "beta": 0.5}
    value = dense | {
        "sigma_np": 0.3,
        "tau_np": 0.2,
        "growth_np": 0.6,
        "narrow_np": 0.5,
        "sigma_p": 0.15,
        "tau_p": 0.25,
        "growth_p": -0.4,
        "narrow_p": -0.3,
        "lasting": 0.4,
        "plateau": 0.9,
        "log_e_run": rng.normal(-2.0, 0.4, len(reference.trajectories)),
        "effect_p": rng.normal(0.0, 0.3, len(reference.trajectories)),
    }
    keys = jax.random.split(jax.random.PRNGKey(0), draws)
    drawn = jax.jit(jax.vmap(lambda key: draw_configurations(key, value, data)))(keys)
    log_dense = reference.log_dense(dense)
    for name, of_runs, where, centre in (
        ("log_e", "log_e_run", "np", log_dense),
        ("shift_p", "effect_p", "p", 0 * log_dense),
    ):
        for i in range(len(reference.configurations)):
            own, found = value[of_runs][reference.configuration == i], np.asarray(drawn[name])[:, i]
            width = reference.centred_width[i]
            sigma, tau = (spread_at(value, f"{part}_{where}", log_dense[i], width) for part in ("sigma", "tau"))
            tau = measured_spread(value, log_dense[i], 0.81, 797, width) if where == "np" else tau
            joint = sigma**2 * np.ones((len(own) + 1, len(own) + 1)) + np.diag([0.0] + [tau**2] * len(own))
            weights = np.linalg.solve(joint[1:, 1:], joint[1:, 0])
            mean, variance = centre[i] + weights @ (own - centre[i]), joint[0, 0] - weights @ joint[1:, 0]
            assert abs(found.mean() - mean) < STANDARD_ERRORS * np.sqrt(variance / draws)
            assert abs(found.var() - variance) < STANDARD_ERRORS * variance * np.sqrt(2 / draws)
    drawn = np.concatenate([drawn["log_e"], drawn["shift_p"]], axis=1)
    correlation = np.corrcoef(drawn.T) - np.eye(drawn.shape[1])
    assert np.abs(correlation).max() < STANDARD_ERRORS / np.sqrt(draws)


@pytest.mark.parametrize("measured", [0.0, 0.25], ids=["known", "half known"])
def test_estimates_find_the_spreads_and_their_growth(measured: float) -> None:
    """With 400 configurations of 4 trajectories they are good to a tenth (about 3 standard errors).

    Also from what is known of effects by measurements with an error as wide as they are: their conditional means, which
    spread less, and variances.
    """
    rng = np.random.default_rng(5)
    configuration = np.repeat(np.arange(400), 4)
    nothing, zeros, above, width = np.zeros(0), np.zeros(400), rng.uniform(-1, 1, 400), rng.uniform(-1.5, 1.5, 400)
    data = Data(*[nothing] * 6, configuration, nothing, zeros, width, zeros, -above, 0.0, nothing)
    constants = {"dense": 0.21, "share_c": 0.0, "share_n": 1.0, "alpha": 1.0, "beta": 0.5}
    grown = {"np": np.exp(0.6 * above - 0.4 * width), "p": np.exp(-0.5 * above + 0.3 * width)}
    effects = {
        "between": 0.3 * grown["np"] * rng.standard_normal(400),
        "within": 0.2 * grown["np"][configuration] * rng.standard_normal(1600),
        "within_p": 0.15 * grown["p"][configuration] * rng.standard_normal(1600),
        "between_p": 0.2 * grown["p"] * rng.standard_normal(400),
    }
    spread = {
        "between": 0.3 * grown["np"],
        "within": 0.2 * grown["np"][configuration],
        "within_p": 0.15 * grown["p"][configuration],
        "between_p": 0.2 * grown["p"],
    }
    variances = {
        name: 1 / (1 / measured**2 + spread[name] ** -2) if measured else 0.0 * v for name, v in effects.items()
    }
    for name, v in effects.items() if measured else ():
        effects[name] = (v + measured * rng.standard_normal(len(v))) / measured**2 * variances[name]
    log_e = np.log(0.21) + (above + effects["between"])[configuration] + effects["within"]
    effect_p = effects["between_p"][configuration] + effects["within_p"]
    exponents = dict.fromkeys(("growth_np", "growth_p", "narrow_np", "narrow_p"), 0.0)
    value = constants | {"log_e_run": log_e, "effect_p": effect_p} | exponents
    unknown = {"effect_p": variances["within_p"], "log_e_run": variances["within"]}
    if measured:  # what is not known of a configuration is not known of all its trajectories at once; left out here
        value["log_e_run"] = log_e + (np.sqrt(variances["between"]) * rng.standard_normal(400))[configuration]
        value["effect_p"] = effect_p + (np.sqrt(variances["between_p"]) * rng.standard_normal(400))[configuration]
    estimated = estimate_spreads(jax.tree.map(jnp.asarray, value), data, unknown)
    assert float(estimated["spread_np"]) == pytest.approx(np.hypot(0.3, 0.2), rel=0.1)
    assert float(estimated["share_np"]) == pytest.approx(0.09 / 0.13, rel=0.1)
    assert float(estimated["spread_p"]) == pytest.approx(0.25, rel=0.1)
    assert float(estimated["share_p"]) == pytest.approx(0.64, rel=0.1)
    assert float(estimated["growth_np"]) == pytest.approx(0.6, abs=0.1)
    assert float(estimated["growth_p"]) == pytest.approx(-0.5, abs=0.1)
    assert float(estimated["narrow_np"]) == pytest.approx(0.4, abs=0.1)
    assert float(estimated["narrow_p"]) == pytest.approx(-0.3, abs=0.1)
    assert "growth_p" not in estimate_spreads({k: v for k, v in value.items() if k != "growth_p"}, data, unknown)


def test_empirical_logit_is_finite_at_both_ends_and_plain_where_n_test_is_unknown() -> None:
    n_test = np.array([100.0, 100.0, 100.0, np.inf])
    logit = empirical_logit(np.array([0.0, 1.0, 0.5, 0.2]), n_test)
    assert logit.tolist() == pytest.approx([np.log(0.5 / 100.5), np.log(100.5 / 0.5), 0.0, np.log(0.25)])


def test_rows_trajectories_and_configurations_stay_together_in_any_order() -> None:
    table = small_table("full").sample(frac=1, random_state=2)
    data, labels = make_data(table, make_frame(table, 0.9))
    own = labels.configurations.iloc[data.configuration[labels.rows.trajectory]].reset_index(drop=True)
    expected = table[["depth", "width", "dataset_size"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, expected, check_dtype=False)
    assert labels.trajectories[labels.rows.trajectory].tolist() == table["trajectory"].tolist()
    logit = empirical_logit(table["error"].to_numpy(), table["n_test"].to_numpy(float))
    assert labels.rows.response == pytest.approx(logit)


@pytest.mark.parametrize("counts", [[3, 3, 3], [1, 2, 3, 4], [100, 2, 2, 2, 2, 2, 2], [1], [7, 7, 7, 6, 50]])
def test_lines_hold_every_row_once_beside_those_of_its_trajectory(counts: list[int]) -> None:
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"trajectory": rng.permutation(np.repeat(np.arange(len(counts)), counts))})
    table = table.assign(depth=8, width=2, dataset_size=1000, n_test=1000.0, family="cifar_resnet", dataset="digits")
    table = table.assign(input_shape="1,8,8", classes=10, error=rng.uniform(0.1, 0.8, len(table)))
    table["density"] = rng.uniform(0.01, 1.0, len(table))
    data, labels = make_data(table, make_frame(table, 0.9))
    trajectory = np.broadcast_to(data.trajectory, data.measured.shape)
    parts = (data.response, data.log_density, data.n_test, trajectory)
    laid = np.stack([part[data.measured] for part in parts], axis=1)
    rows = np.stack(labels.rows[:4], axis=1)
    assert sorted(map(tuple, laid)) == sorted(map(tuple, rows))
    assert data.measured.size <= 2 * len(table) + len(counts)
    assert data.measured.any(0).all()


def test_covariates_are_centred_on_configurations_not_on_rows() -> None:
    table = small_table("full")
    lopsided = pd.concat([table, table[table["depth"] == 14].assign(trajectory="another")], ignore_index=True)
    for runs in (table, lopsided):
        data, _ = make_data(runs, make_frame(runs, 0.9))
        for name in ("depth", "width", "parameters", "dataset_size"):
            assert getattr(data, name).mean() == pytest.approx(0.0, abs=1e-12)


#: What a table has no say in.
USUAL: Any = {"law": "sharpness", "correlated": True, "curvature": True}


def test_structure_says_what_the_table_can_speak_about() -> None:
    assert structure_of(small_table("full")) == Structure(True, True, True, True, growth=False, **USUAL)
    many = simulate(Truth(), widths=range(1, 11), dataset_sizes=(1000,), levels=(0, 9)).runs
    assert structure_of(load_runs(many)) == Structure(True, True, True, True, growth=True, **USUAL)
    full = structure_of(small_table("full"), growth=True, correlated=True, deaths=True)
    assert full.without() == {"spread_subset"}  # the table names no subsets
    shallow = small_table("no trajectory").query("depth == 8").drop(columns=["n_test", "n_wrong"])
    assert structure_of(shallow) == Structure(False, True, False, False, growth=False, **USUAL)
    assert structure_of(shallow).without() == {
        "share_np", "spread_p", "share_p", "growth_np", "growth_p", "narrow_np", "narrow_p", "floor", "rho", "dies",
        "dies_power", "stays",
        "born_dead", "born_power",
        "spread_subset", "lasting",
    }  # fmt: skip
    assert set(SPREADS) <= set(PRIORS)


def test_several_families_are_refused_by_name() -> None:
    table = small_table("full")
    both = pd.concat([table, table.assign(dataset="mnist")])
    with pytest.raises(BayeslawError, match=r"2 families \(cifar_resnet on digits, cifar_resnet on mnist\).*one at a"):
        check_one_family(both)
    check_one_family(table)
