"""Networks that die: who counts as dead, what that says of the curve, and runs that die when they are predicted."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from simulate import CURVATURE, Reference

import bayeslaw
from bayeslaw import BayeslawError
from bayeslaw.check_models import model_named
from bayeslaw.checking import draw_values
from bayeslaw.deaths import BORN, DIED, FATES, LIVED, REVIVED, STAYED, STILLBORN, fates_of, let_die, log_probability
from bayeslaw.frame import CONFIGURATION, empirical_logit, error_from_logit, make_data
from bayeslaw.model import structure_of
from bayeslaw.new_runs import run_logits
from bayeslaw.objectives import Question
from bayeslaw.policies import new_runs_of
from bayeslaw.precision import in_float64
from bayeslaw.predict import predict
from bayeslaw.run_likelihood import Sample, new_run_log_likelihood, row_log_likelihood
from bayeslaw.runs import load_runs
from bayeslaw.simulation import simulate
from bayeslaw.starts import costs_of, make_starts

#: Tests that can go wrong by chance do so once in a thousand runs of new seeds.
LEVEL = 1e-3


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    model = model_named("hierarchical")
    straight = {name: prior for name, prior in model.priors.items() if name not in CURVATURE}
    value = draw_values(dataclasses.replace(model, priors=straight), 5)
    value |= {"dies": 0.7, "dies_power": 8.0, "stays": 0.9, "born_dead": 0.05, "born_power": 1.0}
    return load_runs(simulate(model.design, value, np.random.default_rng(1)).runs)


@pytest.fixture(scope="module")
def fitted(table: pd.DataFrame) -> bayeslaw.Fit:
    return bayeslaw.fit(table, seed=0, draws=200, progress=False)


def of_one_run(error: list[float], chance_error: float = 0.9, n_test: float = 10_000) -> list[int]:
    density = 0.8 ** np.arange(len(error))
    return fates_of(np.array(error), np.zeros(len(error), int), np.log(density), chance_error, n_test).tolist()


def test_an_error_near_guessing_that_is_repeated_more_than_by_chance_is_a_dead_networks_wherever_it_comes() -> None:
    errors = [0.1, 0.903, 0.903, 0.903, 0.87, 0.903]
    assert of_one_run(errors) == [BORN, DIED, STAYED, STAYED, REVIVED, DIED]
    assert of_one_run([0.1, 0.903, 0.903, 0.87, 0.903]) == [BORN] + [LIVED] * 4
    assert of_one_run([0.903, 0.903, 0.87, 0.903, 0.903]) == [STILLBORN, STAYED, REVIVED, DIED, STAYED]


def test_a_run_that_begins_pruned_lived_before() -> None:
    error, density = np.array([0.9, 0.9, 0.87]), np.array([0.5, 0.4, 0.32])
    assert fates_of(error, np.zeros(3, int), np.log(density), 0.9).tolist() == [DIED, STAYED, REVIVED]
    assert fates_of(error[2:], np.zeros(1, int), np.log(density[2:]), 0.9).tolist() == [LIVED]


def test_few_test_examples_repeat_by_chance_and_populations_never_do() -> None:
    few, twice = [0.1, 0.86, 0.86, 0.83, 0.86, 0.86, 0.84], [0.1, 0.86, 0.86, 0.83]
    assert of_one_run(few, n_test=200) == [BORN] + [LIVED] * 6
    assert of_one_run(few, n_test=10_000) == [BORN, DIED, STAYED, REVIVED, DIED, STAYED, REVIVED]
    assert of_one_run(twice, n_test=np.inf) == [BORN, DIED, STAYED, REVIVED]


def test_the_error_of_guessing_is_a_dead_networks_though_it_comes_once() -> None:
    assert of_one_run([0.1, 0.7, 0.9]) == [BORN, LIVED, DIED]
    assert of_one_run([0.1, 0.7, 0.9], n_test=1000) == [BORN, LIVED, LIVED]  # as one in thirty living ones have
    assert of_one_run([0.1, 0.5, 1 - 1 / 3], 1 - 1 / 3) == [BORN, LIVED, DIED]


def test_the_same_error_twice_far_from_guessing_is_chance() -> None:
    assert of_one_run([0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.8]) == [BORN] + [LIVED] * 6


def test_rows_of_one_level_do_not_follow_each_other() -> None:
    error, density = np.array([0.1, 0.85, 0.85, 0.85]), np.array([1.0, 0.5, 0.5, 0.5])
    assert fates_of(error, np.zeros(4, int), np.log(density), 0.9).tolist() == [BORN] + [LIVED] * 3


def test_runs_and_their_order_are_kept_apart() -> None:
    error, run = np.array([0.9, 0.85, 0.1, 0.9]), np.array([1, 0, 0, 1])
    density = np.array([0.8, 0.8, 1.0, 1.0])
    assert fates_of(error, run, np.log(density), 0.9).tolist() == [STAYED, LIVED, BORN, STILLBORN]


def test_deaths_are_part_of_the_model_where_there_are_any(table: pd.DataFrame) -> None:
    assert structure_of(table).deaths
    assert not structure_of(table, deaths=False).deaths
    living = table[table["error"] < 0.7]
    assert not structure_of(living).deaths
    assert structure_of(living, deaths=True).deaths
    assert not structure_of(table.drop(columns="trajectory"), deaths=True).deaths


def test_levels_of_dead_networks_are_not_among_the_responses(fitted: bayeslaw.Fit, table: pd.DataFrame) -> None:
    data, labels = make_data(table, fitted.frame, deaths=True)
    fate = labels.rows.fate
    assert int(data.measured.sum()) == np.isin(fate, [LIVED, REVIVED, BORN]).sum()
    assert int(data.at_risk.sum()) == np.isin(fate, [LIVED, DIED]).sum()
    assert int((data.at_risk & ~data.measured).sum()) == (fate == DIED).sum() > 5
    assert data.dead.tolist() == [(fate == REVIVED).sum(), (fate == STAYED).sum()]
    assert np.asarray(data.born).sum(0).tolist() == [(fate == BORN).sum(), (fate == STILLBORN).sum()]
    assert np.asarray(data.born).sum(1).tolist() == [2] * len(labels.configurations)
    assert (np.asarray(data.gap)[data.measured & ~data.at_risk] == np.inf).all()


@in_float64
def test_likelihoods_of_rows_are_those_of_plain_numpy(fitted: bayeslaw.Fit, table: pd.DataFrame) -> None:
    draws = 7
    found = np.concatenate(list(row_log_likelihood(fitted, draws=draws)), axis=1)
    reference = Reference(table)
    reference.log_parameters = np.log(fitted.frame.family.parameters(*np.array(reference.configurations)[:, :2].T))
    value = Sample.of(fitted, draws).value
    chosen = np.linspace(0, 799, draws).round().astype(int)
    effects = [fitted.posterior[name].to_numpy().reshape(800, -1)[chosen] for name in ("log_e_run", "effect_p")]
    expected = reference.log_likelihood_of_rows(value, *effects)
    order = np.lexsort((-table["density"].to_numpy(), reference.trajectory))
    assert found == pytest.approx(expected[:, order], rel=1e-6, abs=1e-6)


@in_float64
def test_runs_that_stay_dead_are_as_likely_as_their_levels(fitted: bayeslaw.Fit, table: pd.DataFrame) -> None:
    """A level more that a network stays dead by changes the likelihood of its run by `stays`, whatever its effects."""
    died = table[table["error"] == 0.9]["trajectory"].iloc[0]
    run = table[table["trajectory"] == died].sort_values("density", ascending=False)
    until = run.iloc[: int(np.argmax(run["error"].to_numpy() == 0.9)) + 1]
    longer = pd.concat([until, until.iloc[[-1]].assign(density=until["density"].min() * 0.5)])
    one, other = (new_run_log_likelihood(fitted, rows, draws=50, progress=False) for rows in (until, longer))
    stays = Sample.of(fitted, 50, until).value["stays"]
    assert other - one == pytest.approx(np.log(stays), rel=1e-6)


def test_posteriors_find_how_networks_die(fitted: bayeslaw.Fit) -> None:
    """The truth within the 99.9 % intervals of a fit to 24 runs; beside the exact posterior of `stays`."""
    posterior = fitted.posterior
    for name, truth in (("dies", 0.7), ("dies_power", 8.0), ("stays", 0.9)):
        lower, upper = np.quantile(posterior[name], [LEVEL / 2, 1 - LEVEL / 2])
        assert lower < truth < upper, name
    fate = fitted.tree["constant_data"]["fate"].to_numpy()
    exact = scipy.stats.beta(1 + (fate == STAYED).sum(), 1 + (fate == REVIVED).sum())
    stays = posterior["stays"].to_numpy().ravel()
    assert stays.mean() == pytest.approx(exact.mean(), abs=5 * exact.std() / np.sqrt(400))
    assert stays.std() == pytest.approx(exact.std(), rel=0.2)


def test_runs_die_as_the_hazard_says_and_stay_dead() -> None:
    rng, draws = np.random.default_rng(0), 4000
    hazard = np.tile([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], (draws, 1))
    own, dead = let_die(hazard, np.full(draws, 0.8), np.array([0.9, 0.91]), rng)
    assert set(own) == {0.9, 0.91}
    before, now = dead[:, :-1].ravel(), dead[:, 1:].ravel()
    again = scipy.stats.binomtest(int(now[before].sum()), int(before.sum()), 0.8)
    first = scipy.stats.binomtest(int(dead[:, 1].sum()), draws, 0.1)
    assert min(again.pvalue, first.pvalue) > LEVEL
    assert not dead[:, 0].any()


@in_float64
def test_hazards_are_powers_of_error_and_odds_at_birth_of_width() -> None:
    names = (("dies", 0.5), ("dies_power", 3.0), ("stays", 0.9), ("born_dead", 0.02), ("born_power", 2.0))
    value = {name: jnp.asarray([[own]]) for name, own in names}
    found = log_probability(value, np.array(FATES), np.log(0.45), np.log(0.9), np.log(0.5))
    assert np.exp(np.asarray(found))[0] == pytest.approx([1 - 0.0625, 0.0625, 0.1, 0.9, 1 / 1.08, 0.08 / 1.08])


def test_new_runs_die_and_their_errors_repeat(fitted: bayeslaw.Fit) -> None:
    networks = fitted.configurations.iloc[[0]]
    designs = networks.merge(pd.DataFrame({"density": 0.8 ** np.arange(0, 40)}), how="cross").assign(n_test=10_000)
    runs = predict(fitted, designs, kind="run", seed=1, return_draws=True).to_numpy().reshape(-1, 40)
    twice = (np.diff(runs) == 0) & (runs[:, 1:] == 0.9)
    assert twice[:, :5].mean() < 0.05 and twice[:, -5:].mean() > 0.3
    for level in (25, 39):  # whatever else is asked for
        alone = predict(fitted, designs.iloc[[level]], kind="run", seed=1, return_draws=True).to_numpy().ravel()
        np.testing.assert_array_equal(alone, runs[:, level])


def test_logits_of_new_runs_are_those_of_the_errors_predicted(fitted: bayeslaw.Fit) -> None:
    """Rounded to counts they are the errors, and a dead network's are exactly those of its error."""
    network, density = fitted.configurations.iloc[[0]], 0.8 ** np.array([0, 5, 12, 20, 30])
    designs = network.merge(pd.DataFrame({"density": density}), how="cross")
    n_test = np.full(5, 10_000.0)
    logits = run_logits(fitted, designs, 3)
    predicted = predict(fitted, designs, kind="run", seed=3, return_draws=True).to_numpy().reshape(-1, 5)
    np.testing.assert_array_equal(error_from_logit(logits, n_test), predicted)
    dead = np.isclose(logits, float(empirical_logit(np.array(0.9), np.array(10_000.0))), rtol=0, atol=1e-9)
    assert dead.mean(0)[0] < 0.02 and dead.mean(0)[-1] > 0.3
    assert (predicted[dead] == 0.9).all()


def test_a_level_of_a_new_run_is_counted_on_its_own_test_examples(fitted: bayeslaw.Fit) -> None:
    """Dead, it shows a whole number of them; what it shows does not depend on those of other levels."""
    density, n_test = 0.8 ** np.arange(25, 40), np.where(np.arange(15) % 2, 10_000, 300)
    designs = fitted.configurations.iloc[[0]].merge(pd.DataFrame({"density": density, "n_test": n_test}), how="cross")
    both = run_logits(fitted, designs, 3)
    for count in (300, 10_000):
        own = n_test == count
        shown = empirical_logit(np.array([0.9]), np.array([float(count)]))
        dead = np.isclose(both[:, own], shown, rtol=0, atol=1e-9)
        assert dead.mean(0)[-1] > 0.3
        alone = np.isclose(run_logits(fitted, designs[own], 3), shown, rtol=0, atol=1e-9)
        assert (alone == dead).mean() > 0.99  # what lasts of a test set's noise is that of both


def test_fits_that_differ_in_deaths_are_not_compared(fitted: bayeslaw.Fit, table: pd.DataFrame) -> None:
    other = bayeslaw.fit(table, seed=0, draws=50, warmup=100, deaths=False, progress=False)
    with pytest.raises(BayeslawError, match="differ in deaths"):
        bayeslaw.compare({"a": fitted, "b": other})


def test_a_network_that_never_lived_says_nothing_of_curves(fitted: bayeslaw.Fit, table: pd.DataFrame) -> None:
    """Its run is as likely as it is not to live, and to stay dead, wherever its effects are."""
    first = table[CONFIGURATION].drop_duplicates().iloc[0]
    own = (table[CONFIGURATION] == first).all(axis=1)
    run = own & (table["trajectory"] == table[own]["trajectory"].iloc[0])
    dead = table.drop(columns="n_wrong")
    dead.loc[run, "error"] = 0.9
    never = dead[run].sort_values("density", ascending=False)
    with_it = new_run_log_likelihood(fitted, never, draws=50, progress=False)
    value = {name: part.ravel() for name, part in Sample.of(fitted, 50, never).value.items()}
    odds = value["born_dead"] * np.exp(-value["born_power"] * fitted.frame.covariates(never.iloc[[0]])["width"])
    expected = np.log(odds / (1 + odds)) + (len(never) - 1) * np.log(value["stays"])
    assert with_it.ravel() == pytest.approx(expected, rel=1e-6)


def test_networks_that_never_lived_are_fitted_and_expected_again(fitted: bayeslaw.Fit, table: pd.DataFrame) -> None:
    first = table[CONFIGURATION].drop_duplicates().iloc[0]
    dead = table.drop(columns="n_wrong")
    dead.loc[(dead[CONFIGURATION] == first).all(axis=1), "error"] = 0.9
    fit = bayeslaw.fit(dead, seed=0, draws=100, progress=False)
    assert np.isfinite(fit.posterior["log_e"]).all()
    designs = fit.configurations.iloc[[0]].assign(density=1.0, n_test=10_000)
    shares = [
        (predict(own, designs, kind="run", seed=2, return_draws=True).to_numpy() == 0.9).mean() for own in (fitted, fit)
    ]
    assert shares[0] + 0.05 < shares[1] < 0.6


def test_new_runs_never_live_as_often_as_the_posterior_says(fitted: bayeslaw.Fit) -> None:
    """Three times as wide as any that was trained, of errors at which none dies."""
    designs = pd.DataFrame({"depth": [8], "width": 48, "dataset_size": 50_000, "density": 1.0, "n_test": 10_000})
    runs = np.concatenate(
        [predict(fitted, designs, kind="run", seed=seed, return_draws=True).to_numpy().ravel() for seed in range(20)]
    )
    value = {name: fitted.posterior[name].to_numpy().ravel() for name in ("born_dead", "born_power")}
    odds = value["born_dead"] * np.exp(-value["born_power"] * fitted.frame.covariates(designs)["width"])
    found = scipy.stats.binomtest(int((runs == 0.9).sum()), len(runs), float((odds / (1 + odds)).mean()))
    assert found.pvalue > LEVEL and (runs == 0.9).sum() > 10


def test_plans_count_on_runs_that_never_live(fitted: bayeslaw.Fit) -> None:
    """They guess at every round, as often as the posterior says: one in twenty of networks like the central one."""
    starts = make_starts([8], [2, 4], 50_000)
    runs = new_runs_of(fitted, Question(target_error=0.2), starts, costs_of(fitted, starts), 3)
    value = {name: fitted.posterior[name].to_numpy().ravel() for name in ("born_dead", "born_power")}
    for row, run in zip(fitted.frame.covariates(starts)["width"], runs, strict=True):
        never = np.isclose(run.population, np.log(0.9 / 0.1), rtol=0, atol=1e-12)
        assert (never.all(1) == never[:, 0]).all()
        odds = value["born_dead"] * np.exp(-value["born_power"] * row)
        found = scipy.stats.binomtest(int(never[:, 0].sum()), len(never), float((odds / (1 + odds)).mean()))
        assert found.pvalue > LEVEL and never[:, 0].any()
