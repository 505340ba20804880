"""Predictions: what they condition on, against plain Monte Carlo, and bad designs."""

import jax
import numpy as np
import pandas as pd
import pytest
from altered import with_draws
from simulate import error_of, log_dense_of, measured_spread, saturated, spread_at

from bayeslaw import BayeslawError
from bayeslaw.curves import average_error, configuration_draws, parameter_draws, trained_curves
from bayeslaw.frame import rounds_at
from bayeslaw.laws import law_named
from bayeslaw.new_runs import new_runs, standard_noise
from bayeslaw.runs import load_runs


def designs_of(fitted, **changes) -> pd.DataFrame:
    row = fitted.configurations.iloc[0].to_dict() | {"density": [1.0, 0.3, 0.1, 0.03]} | changes
    return pd.DataFrame(row, index=range(4))


def test_mean_averages_over_runs(fitted) -> None:
    """Quadrature against the average of fresh runs of the law in plain numpy, draw by draw, within 5 MCSE."""
    designs = designs_of(fitted)
    mean = fitted.predict(designs, return_draws=True).to_numpy().reshape(-1, len(designs))
    value = {name: array[:, None] for name, array in parameter_draws(fitted).items()}
    configuration = designs[["depth", "width", "dataset_size"]].iloc[[0]]
    centre = fitted.frame.covariates(configuration)
    log_m = value["phi"] * centre["depth"] + value["psi"] * centre["width"] + value["chi"] * centre["dataset_size"]
    total, repetitions = [], 40
    for seed in range(repetitions):
        log_e, effect_p = new_runs(fitted, configuration, seed + 1000)
        own = fitted.posterior["log_e"].to_numpy().reshape(len(log_e), -1)[:, [0]]
        assert log_e.std() > own.std()
        share = 1 / np.sqrt(1 + np.exp(-2 * log_e))
        eps_up = np.exp(value["log_eps_up"])
        knee = value["knee"] * np.exp(effect_p - log_m)
        upper = knee * share ** (-1 / value["gamma"])
        density = designs["density"].to_numpy()
        k = value["sharpness"]
        ratio = (density**k + upper**k) / (density**k + knee**k)
        total.append((eps_up * share * ratio ** (value["gamma"] / k)).mean(0))
    average, error = np.mean(total, 0), np.std(total, 0, ddof=1) / np.sqrt(repetitions)
    assert (np.abs(mean.mean(0) - average) <= 5 * error).all()


def test_a_run_is_less_certain_than_the_mean(fitted) -> None:
    designs = designs_of(fitted)
    mean, run = fitted.predict(designs), fitted.predict(designs, kind="run")
    assert ((run["upper"] - run["lower"]) > (mean["upper"] - mean["lower"])).all()
    assert (mean["lower"] <= mean["median"]).all()
    assert (mean["median"] <= mean["upper"]).all()


def test_wider_intervals_hold_more(fitted) -> None:
    narrow, wide = (fitted.predict(designs_of(fitted), interval=level, kind="run") for level in (0.5, 0.95))
    assert (wide["lower"] <= narrow["lower"]).all()
    assert (wide["upper"] >= narrow["upper"]).all()


def test_predictions_do_not_depend_on_what_else_is_asked(fitted) -> None:
    together = pd.concat([designs_of(fitted), designs_of(fitted, depth=26, width=32)], ignore_index=True)
    alone = fitted.predict(designs_of(fitted, depth=26, width=32))
    beside = fitted.predict(together).iloc[4:].reset_index(drop=True)
    np.testing.assert_allclose(beside["median"], alone["median"], rtol=1e-12)


def test_what_was_not_trained_is_said_and_is_less_certain(fitted) -> None:
    there, elsewhere = fitted.predict(designs_of(fitted)), fitted.predict(designs_of(fitted, width=3))
    assert there["trained"].all()
    assert not elsewhere["trained"].any()
    assert (there["extrapolation"].iloc[:3] == 0).all()
    far = fitted.predict(designs_of(fitted, width=float(fitted.runs["width"].max()) * np.e**2))
    assert far["extrapolation"].to_numpy() == pytest.approx(2.0)
    ratio = [np.log(t["upper"].iloc[0] / t["lower"].iloc[0]) for t in (there, elsewhere)]
    assert ratio[1] > ratio[0]


def test_counts_are_counts(fitted) -> None:
    draws = fitted.predict(designs_of(fitted).assign(n_test=50), kind="run", return_draws=True)
    assert draws.dims == ("chain", "draw", "design")
    np.testing.assert_allclose(draws.to_numpy() * 50, np.round(draws.to_numpy() * 50), atol=1e-9)
    assert float(draws.min()) >= 0
    assert float(draws.max()) <= 1


def test_fewer_test_examples_are_less_certain(fitted) -> None:
    few, many = (fitted.predict(designs_of(fitted).assign(n_test=n), kind="run") for n in (100, 10_000))
    assert (few["upper"] - few["lower"]).iloc[0] > (many["upper"] - many["lower"]).iloc[0]


def test_same_seed_same_prediction(fitted) -> None:
    first, again, other = (fitted.predict(designs_of(fitted), kind="run", seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert (first["lower"] != other["lower"]).any()


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"density": 0.0}, {}, "density in \\(0, 1\\]"),
        ({"density": 1.5}, {}, "density = 1.5"),
        ({"width": -1}, {}, "width = -1"),
        ({"depth": np.nan}, {}, "depth = nan"),
        ({}, {"interval": 1.0}, "interval = 1.0"),
        ({}, {"kind": "curve"}, "'mean' .*'run'"),
    ],
)
def test_bad_questions_get_one_clear_answer(fitted, change, options, words) -> None:
    with pytest.raises(BayeslawError, match=words):
        fitted.predict(designs_of(fitted, **change), **options)


def test_missing_columns_are_named(fitted) -> None:
    with pytest.raises(BayeslawError, match="width"):
        fitted.predict(designs_of(fitted).drop(columns="width"))


def test_the_fitted_table_is_valid_again(fitted) -> None:
    pd.testing.assert_frame_equal(load_runs(fitted.runs), fitted.runs)


def test_quadrature_over_run_effects_is_that_of_many_nodes(fitted) -> None:
    """Fifty nodes per effect in plain numpy, draw by draw: seven agree to 0.2 %, also for spreads as wide as .35."""
    rng = np.random.default_rng(0)
    size = (200, 1)
    value = {
        "log_eps_up": np.log(rng.uniform(0.7, 0.9, size)),
        "gamma": rng.uniform(0.5, 2.0, size),
        "tau_np": rng.uniform(0.05, 0.35, size),
        "tau_p": rng.uniform(0.05, 0.35, size),
    }
    log_e, shift, density = np.log(rng.uniform(0.03, 0.5, size)), rng.normal(0, 0.2, size), [1.0, 0.1, 0.02]
    value |= {"knee": rng.uniform(0.005, 0.1, size), "phi": np.ones(size), "psi": np.ones(size)}
    central = dict.fromkeys(("depth", "width", "parameters", "dataset_size"), np.zeros(3))
    nodes, weights = np.polynomial.hermite_e.hermegauss(50)
    weights = weights / weights.sum()
    up, sideways = nodes[:, None, None, None], nodes[:, None, None]
    eps_up = np.exp(value["log_eps_up"])
    eps_np = saturated(np.exp(log_e + value["tau_np"] * up), eps_up)
    error = error_of(
        eps_np, eps_up, value["gamma"], value["knee"] * np.exp(shift + value["tau_p"] * sideways), np.array(density)
    )
    exact = np.einsum("i,j,ijkl->kl", weights, weights, error)
    with jax.enable_x64(True):
        computed = np.asarray(average_error(law_named("joint"), value, central, log_e, shift, np.log(density)))
    assert computed == pytest.approx(exact, rel=2e-3)


def test_a_trained_configuration_has_its_own_posterior_and_another_a_fresh_discrepancy(fitted) -> None:
    """Fresh discrepancies are standard normals in units of their spreads, a set for each configuration and seed; with
    3,000 draws five standard errors are 0.09 for their mean and for correlations, 0.065 for their standard deviation.
    """
    trained = fitted.configurations
    others = pd.DataFrame({"depth": [8, 14, 20], "width": [3, 4, 4], "dataset_size": [2000, 1000, 250]})
    both = pd.concat([trained, others], ignore_index=True)
    with jax.enable_x64(True):
        drawn, other_seed = (configuration_draws(fitted, both, seed=seed) for seed in (2, 3))
    for name, one, other in zip(("log_e", "shift_p"), drawn, other_seed, strict=True):
        own = fitted.posterior[name].to_numpy().reshape(len(one), -1)
        np.testing.assert_array_equal(one[:, :12], own)
        np.testing.assert_array_equal(other[:, :12], own)
    value, covariates = parameter_draws(fitted), fitted.frame.covariates(others)
    columns = {name: draws[:, None] for name, draws in value.items()}
    centre = log_dense_of(columns, covariates)
    spreads = [spread_at(columns, name, centre) for name in ("sigma_np", "sigma_p")]
    sets = [
        (effects[:, 12:] - about) / spread
        for draws in (drawn, other_seed)
        for effects, about, spread in zip(draws, (centre, 0.0), spreads, strict=True)
    ]
    fresh = np.concatenate(sets, axis=1)
    assert np.abs(fresh.mean(0)).max() < 0.09
    assert np.abs(fresh.std(0) - 1).max() < 0.065
    assert np.abs(np.corrcoef(fresh.T) - np.eye(12)).max() < 0.09


@pytest.mark.parametrize("kind", ["mean", "run"])
def test_a_design_gets_the_same_draws_alone_reordered_and_among_others(fitted, kind: str) -> None:
    """Trained and new ones, more than fit in a block; equal to the last bits of what is summed in another order."""
    designs = pd.concat([designs_of(fitted, width=width) for width in (2, 3, 8, 16, 32)], ignore_index=True)
    together = fitted.predict(designs, kind=kind, seed=1, return_draws=True).to_numpy()
    order = np.random.default_rng(0).permutation(len(designs))
    reordered = fitted.predict(designs.iloc[order], kind=kind, seed=1, return_draws=True).to_numpy()
    np.testing.assert_allclose(reordered, together[..., order], rtol=1e-12)
    alone = fitted.predict(designs.iloc[[7]], kind=kind, seed=1, return_draws=True).to_numpy()
    np.testing.assert_allclose(alone[..., 0], together[..., 7], rtol=1e-12)


def test_runs_measured_on_a_test_set_spread_by_what_lasts_of_its_noise(fitted) -> None:
    """The same fresh effects, on a finite test set wider by the formula; errors of a population know nothing of it."""
    lasting = with_draws(fitted, lasting=lambda draws: 0.9 * draws["share_n"])
    runs = pd.DataFrame({"depth": [14, 8], "width": [3, 2], "dataset_size": [700, 250]})
    value = {name: values[:, None] for name, values in parameter_draws(lasting).items()}
    log_dense = log_dense_of(value, lasting.frame.covariates(runs))
    with jax.enable_x64(True):
        network = configuration_draws(lasting, runs, seed=5).log_e
        curves = new_runs(lasting, runs, seed=5).log_e - network
        measured = new_runs(lasting, runs, seed=5, n_test=np.array([797.0, 100.0])).log_e - network
        endless = new_runs(lasting, runs, seed=5, n_test=np.array([np.inf, np.inf])).log_e - network
    for i, n_test in enumerate((797, 100)):
        wider = measured_spread(value, log_dense, value["eps_up"], n_test) / spread_at(value, "tau_np", log_dense)
        np.testing.assert_allclose(measured[:, i], (curves * wider)[:, i], rtol=1e-6)
    np.testing.assert_array_equal(endless, curves)
    designs = runs.assign(density=0.1)
    pd.testing.assert_frame_equal(lasting.predict(designs), fitted.predict(designs))
    drawn = [fit.predict(designs, kind="run", return_draws=True).to_numpy() for fit in (lasting, fitted)]
    assert (drawn[0].std((0, 1)) > drawn[1].std((0, 1))).all()


def test_replicates_are_runs_of_their_own_of_one_network(fitted) -> None:
    """Of a network never trained they share the discrepancy; the first is what is predicted without the column. With
    3,000 draws four standard errors of a correlation are .073.
    """
    one = pd.DataFrame({"depth": [14], "width": [3], "dataset_size": [700]})
    runs = one.merge(pd.DataFrame({"replicate": [0, 1, 2]}), how="cross")
    with jax.enable_x64(True):
        drawn, network = new_runs(fitted, runs, seed=5), configuration_draws(fitted, one, seed=5)
    value = {name: values[:, None] for name, values in parameter_draws(fitted).items()}
    for name, of_runs, centre in zip(("tau_np", "tau_p"), drawn, network, strict=True):
        effects = (of_runs - centre) / spread_at(value, name, np.log(value["dense"]))
        effects /= effects.std(0)
        assert np.abs(np.corrcoef(effects.T) - np.eye(3)).max() < 0.073
    levels = runs.merge(pd.DataFrame({"density": [1.0, 0.1]}), how="cross")
    every = fitted.predict(levels, kind="run", seed=5, return_draws=True).to_numpy()
    first = fitted.predict(levels.iloc[:2].drop(columns="replicate"), kind="run", seed=5, return_draws=True)
    np.testing.assert_array_equal(every[..., :2], first.to_numpy())
    named = fitted.predict(levels.assign(replicate="b"), kind="run", seed=5, return_draws=True).to_numpy()
    np.testing.assert_array_equal(named[..., 0], named[..., 2])
    assert (named[..., 0] != every[..., 2]).any() and (every[..., 0] != every[..., 2]).any()
    with pytest.raises(BayeslawError, match="replicate is missing in row 1, 3"):
        fitted.predict(levels.iloc[:4].assign(replicate=[0, None, 1, None]), kind="run")


def test_summaries_are_those_of_the_draws(fitted) -> None:
    designs = designs_of(fitted).set_index(pd.Index(["w", "x", "y", "z"]))
    for kind in ("mean", "run"):
        draws = fitted.predict(designs, kind=kind, return_draws=True)
        assert draws.sizes == {"chain": 2, "draw": 1500, "design": 4}
        table = fitted.predict(designs, kind=kind, interval=0.8)
        assert table.index.tolist() == ["w", "x", "y", "z"]
        assert table["mean"].tolist() == pytest.approx(draws.mean(("chain", "draw")).to_numpy())
        for name, level in (("lower", 0.1), ("median", 0.5), ("upper", 0.9)):
            assert table[name].tolist() == pytest.approx(draws.quantile(level, ("chain", "draw")).to_numpy())


def test_the_mean_rises_as_weights_are_removed(fitted) -> None:
    densities = np.geomspace(1, 1e-3, 12)
    designs = pd.DataFrame({"depth": 14, "width": 3, "dataset_size": 700, "density": densities})
    draws = fitted.predict(designs, return_draws=True).to_numpy()
    assert (np.diff(draws, axis=-1) > 0).all()
    assert (draws.max(-1) < fitted.posterior["eps_up"].to_numpy()).all()


def test_a_run_measured_on_everything_is_no_count(fitted) -> None:
    """With n_test infinite the population error is predicted, without the binomial floor."""
    designs = designs_of(fitted)
    counted, all_of_it = (fitted.predict(designs.assign(n_test=n), kind="run") for n in (797, np.inf))
    assert ((all_of_it["upper"] - all_of_it["lower"]) < (counted["upper"] - counted["lower"])).iloc[0]
    draws = fitted.predict(designs, kind="run", return_draws=True).to_numpy() * 797
    np.testing.assert_allclose(draws, np.round(draws), atol=1e-9)  # what the fitted runs had, where designs do not say


@pytest.mark.parametrize(
    ("designs", "words"),
    [
        ([{"depth": 8}], "pandas DataFrame.*got list"),
        (pd.DataFrame({"depth": [], "width": [], "dataset_size": [], "density": []}), "no rows"),
        (pd.DataFrame({"depth": [8]}), "lack width, dataset_size, density"),
    ],
    ids=["list", "empty", "missing"],
)
def test_what_are_no_designs_is_refused(fitted, designs, words) -> None:
    with pytest.raises(BayeslawError, match=words):
        fitted.predict(designs)


def test_all_faults_of_designs_come_at_once(fitted) -> None:
    designs = designs_of(fitted).astype({"depth": object}).assign(n_test=[100, 0, np.nan, -5])
    designs.loc[0, "depth"] = "eight"
    designs.loc[2, "density"] = 0.0
    with pytest.raises(BayeslawError) as caught:
        fitted.predict(designs, kind="run")
    for part in (
        "row 0, depth = eight",
        "row 2, density = 0.0",
        "row 1, n_test = 0",
        "row 2, n_test = nan",
        "row 3, n_",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["mean", "run"])
def test_numbers_given_as_text_are_numbers(fitted, kind: str) -> None:
    """A network that was trained is taken as such."""
    designs = designs_of(fitted).assign(n_test=797)
    expected = fitted.predict(designs, kind=kind)
    assert expected["trained"].all()
    pd.testing.assert_frame_equal(fitted.predict(designs.astype(str), kind=kind), expected)
    mixed = designs.astype({"depth": object})
    mixed.loc[0, "depth"] = str(mixed.loc[0, "depth"])
    pd.testing.assert_frame_equal(fitted.predict(mixed, kind=kind), expected)


def test_diagnosed_curves_are_the_law_of_the_trained_networks(fitted) -> None:
    curves = trained_curves(fitted)
    densities = fitted.runs["density"].to_numpy()
    assert list(curves) == [f"log_error_at_{at:.3g}" for at in (1.0, np.sqrt(densities.min()), densities.min())]
    value, last = parameter_draws(fitted), fitted.configurations.iloc[[-1]]
    centre = fitted.frame.covariates(last)
    own = (fitted.posterior[name].to_numpy().reshape(len(value["phi"]), -1)[:, -1] for name in ("log_e", "shift_p"))
    log_e, shift = own
    eps_up, p = np.exp(value["log_eps_up"]), value["knee"] * np.exp(shift)
    exponents = {"depth": "phi", "width": "psi", "dataset_size": "chi"}
    m = np.exp(sum(value[exponent] * centre[axis] for axis, exponent in exponents.items())) * densities.min()
    curve = (saturated(np.exp(log_e), eps_up), eps_up, value["gamma"], p, m, value["sharpness"])
    expected = np.log(error_of(*curve))
    computed = curves[list(curves)[-1]].to_numpy().reshape(len(expected), -1)
    assert computed.shape[1] == len(fitted.configurations)
    assert computed[:, -1] == pytest.approx(expected, rel=1e-9)


def test_noise_of_a_new_run_is_correlated_from_round_to_round() -> None:
    """Whatever other rounds are asked for; with 40,000 draws a correlation's standard error is below .005."""
    value = {name: np.full((40_000, 1), number) for name, number in {"sigma": 0.1, "nu": 30.0, "rho": 0.6}.items()}
    noise = standard_noise(np.random.default_rng(0), value, np.array([0, 1, 3, 3]))
    assert noise.shape == (40_000, 4)
    found = np.corrcoef(noise.T)
    assert [found[0, 1], found[0, 2], found[1, 2]] == pytest.approx([0.6, 0.216, 0.36], abs=0.025)
    assert noise.var(axis=0) == pytest.approx(np.full(4, 30 / 28), rel=0.05)
    np.testing.assert_array_equal(noise[:, 2], noise[:, 3])
    np.testing.assert_array_equal(noise[:, :1], standard_noise(np.random.default_rng(0), value, np.array([0])))
    alone = {name: values for name, values in value.items() if name != "rho"}
    apart = np.corrcoef(standard_noise(np.random.default_rng(0), alone, np.array([0, 1])).T)
    assert apart[0, 1] == pytest.approx(0.0, abs=0.025)


def test_densities_count_as_the_nearest_round() -> None:
    assert rounds_at([1.0, 0.8, 0.64, 0.5, 0.8**30]).tolist() == [0, 1, 2, 3, 30]
