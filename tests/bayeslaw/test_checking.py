"""Simulation-based calibration: its test against enumeration, its simulator against the oracle, and the real path."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from simulate import Reference, measured_spread
from typer.testing import CliRunner

import bayeslaw
from bayeslaw.check_models import describe_fault, model_named, models
from bayeslaw.checking import KEPT, LEVEL, Check, draw_values, judge
from bayeslaw.cli import app
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import make_data, make_frame
from bayeslaw.model import structure_of
from bayeslaw.plan_checking import check_plans
from bayeslaw.plots import plot_ranks
from bayeslaw.runs import load_runs
from bayeslaw.simulation import Design, Fault, log_likelihood, mean_error, observation, simulate, spreads
from bayeslaw.uniformity import counts_below, holm, simultaneous_band, uniformity_p_value

#: Data sets of the short check. With `LEVEL` and the seeds below it was fixed before the check was first run.
REPETITIONS, SEED = 40, 1
#: What two ways of computing the same number in double precision may differ by.
ROUNDING = 1e-10


# The test of uniformity


def plain_tail(ranks: tuple[int, ...], largest: int) -> float:
    """Give the statistic by its definition, one rank at a time."""
    tails = []
    for rank in range(1, largest + 1):
        count, share = sum(r < rank for r in ranks), rank / (largest + 1)
        below = sum(scipy.stats.binom.pmf(range(count + 1), len(ranks), share))
        above = sum(scipy.stats.binom.pmf(range(count, len(ranks) + 1), len(ranks), share))
        tails.append(min(1.0, 2 * min(below, above)))
    return min(tails)


@pytest.mark.parametrize(("total", "largest"), [(1, 1), (1, 4), (4, 3), (6, 2), (3, 7)])
def test_p_values_are_those_of_counting_every_outcome(total: int, largest: int) -> None:
    outcomes = list(itertools.product(range(largest + 1), repeat=total))
    tails = np.array([plain_tail(ranks, largest) for ranks in outcomes])
    for ranks, tail in zip(outcomes, tails, strict=True):
        as_extreme = np.mean(tails <= tail * (1 + 1e-9))
        assert uniformity_p_value(ranks, largest) == pytest.approx(as_extreme, abs=1e-12), ranks


def test_uniform_ranks_are_rejected_as_often_as_the_level_says() -> None:
    """Of 600 tests; the limits are four standard errors, fixed before the seed."""
    rng = np.random.default_rng(0)
    p_values = np.array([uniformity_p_value(rng.integers(KEPT + 1, size=60), KEPT) for _ in range(600)])
    for level in (0.01, 0.1, 0.5):
        # Discrete: at most the level, and not far below it.
        share, error = np.mean(p_values <= level), np.sqrt(level * (1 - level) / 600)
        assert -0.1 * level - 4 * error < share - level < 4 * error


def test_shift_width_and_tails_are_seen() -> None:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(1000)
    for draws in (normal + 0.3, normal * 1.3, normal * 0.75, np.where(rng.random(1000) < 0.03, 9.0, normal)):
        ranks = np.minimum((scipy.stats.norm.cdf(draws) * (KEPT + 1)).astype(int), KEPT)
        assert uniformity_p_value(ranks, KEPT) < 1e-3


def test_ranks_leave_the_band_where_their_p_value_is_below_the_level() -> None:
    rng, seen = np.random.default_rng(2), set()
    low, high = simultaneous_band(0.2, 40, 20)
    for _ in range(300):
        ranks = rng.integers(21, size=40)
        counts = counts_below(ranks, 20)
        leaves = bool(((counts < low) | (counts > high)).any())
        assert leaves == (uniformity_p_value(ranks, 20) <= 0.2)
        seen.add(leaves)
    assert seen == {True, False}


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        p_values = rng.random(6) ** 4
        level = rng.random()
        rejected = np.zeros(6, bool)
        for step, i in enumerate(np.argsort(p_values)):
            if p_values[i] > level / (6 - step):
                break
            rejected[i] = True
        assert ((holm(p_values) <= level) == rejected).all()


# The simulator


@pytest.fixture(scope="module")
def hierarchical():
    model = model_named("hierarchical")
    value = draw_values(model, 5)
    return model, simulate(model.design, value, np.random.default_rng(5))


def test_log_likelihood_is_that_of_the_oracle(hierarchical) -> None:
    """The oracle of the tests reads the table; its law is written otherwise, its slope is a complex step."""
    model, simulated = hierarchical
    reference = Reference(load_runs(simulated.runs))
    # The oracle counts the parameters of networks for one input channel, these have three.
    reference.log_parameters = model.design.covariates()["parameters"]
    rows = reference.log_likelihood_of_rows(simulated.value, simulated.log_e_run, simulated.effect_p)
    effects = simulated.log_e_run, simulated.effect_p
    ours = log_likelihood(model.design, simulated.value, *effects, simulated.response, simulated.dead)
    dead = simulated.dead
    assert dead.any() and (np.isin(reference.fates(), ["died", "stayed", "born dead"]) == dead).all()
    came = reference.log_probability_of_fates(simulated.value, *effects)
    assert ours == pytest.approx(rows.sum() - came.sum(), rel=ROUNDING)
    assert [tuple(name[:3]) for name in reference.trajectories[::2]] == list(model.design.configurations)


def test_the_table_gives_the_response_that_was_drawn(hierarchical) -> None:
    model, simulated = hierarchical
    table = load_runs(simulated.runs)
    data, labels = make_data(table, make_frame(table, 0.9))
    assert labels.rows.response == pytest.approx(simulated.response, rel=ROUNDING)
    assert list(labels.configurations.itertuples(index=False, name=None)) == list(model.design.configurations)
    for name, values in model.design.covariates().items():
        assert getattr(data, name) == pytest.approx(values, abs=ROUNDING)
    assert (labels.rows.trajectory == model.design.trajectory).all()
    assert (data.configuration == model.design.configuration).all()


def test_counted_twice_is_every_row_twice_in_its_own_trajectory(hierarchical) -> None:
    model, simulated = hierarchical
    again = simulate(model.design, simulated.value, np.random.default_rng(5), Fault(copies=2))
    tables = [load_runs(runs) for runs in (simulated.runs, again.runs)]
    (once, labels), (twice, labels_twice) = (make_data(table, make_frame(table, 0.9)) for table in tables)
    for name in labels.rows._fields:
        np.testing.assert_array_equal(getattr(labels_twice.rows, name), np.tile(getattr(labels.rows, name), 2))
    np.testing.assert_array_equal(twice.configuration, once.configuration)
    np.testing.assert_array_equal(again.response, simulated.response)


def test_noise_and_effects_have_the_spreads_of_the_model(hierarchical) -> None:
    """Kolmogorov-Smirnov at 1e-3 each on 40 tables, of what the truth says is standard; fixed before the seed."""
    model, simulated = hierarchical
    design, value = model.design, simulated.value
    spread = {name: np.asarray(s) for name, s in spreads(value, design.covariates()).items()}
    central = value["spread_p"] * np.sqrt(1 - value["share_p"])
    width = design.covariates()["width"]
    above = (np.log(spread["tau_p"] / central) + value["narrow_p"] * width) / value["growth_p"]
    log_dense = np.log(value["dense"]) + above
    measured = measured_spread({**value, "tau_np": 0.0}, log_dense, 0.9 * value["plateau"], design.n_test)
    measured = np.hypot(spread["tau_np"], measured)
    assert (measured > 1.001 * spread["tau_np"]).all()
    of_run, rng = design.configuration, np.random.default_rng(6)
    noise, own, up, sideways, shifts = [], [], [], [], []
    for _ in range(40):
        drawn = simulate(design, value, rng)
        location, scale = observation(design, value, drawn.log_e_run, drawn.effect_p)
        noise.append(((drawn.response - location) / scale)[~drawn.dead])
        up.append((drawn.log_e_run - drawn.log_e[of_run]) / measured[of_run])
        sideways.append((drawn.effect_p - drawn.shift_p[of_run]) / spread["tau_p"][of_run])
        own.append(drawn.log_e)
        shifts.append(drawn.shift_p / spread["sigma_p"])
    own = (np.array(own) - np.mean(own, axis=0)) / spread["sigma_np"] * np.sqrt(40 / 39)
    for sample in (up, sideways, own, shifts):
        assert scipy.stats.kstest(np.ravel(sample), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(np.concatenate(noise), scipy.stats.t(value["nu"]).cdf).pvalue > 1e-3
    total = value["spread_np"] ** 2 * np.exp(2 * value["growth_np"] * above - 2 * value["narrow_np"] * width)
    assert spread["sigma_np"] ** 2 + spread["tau_np"] ** 2 == pytest.approx(total)


def test_faults_are_factors_on_what_makes_the_data() -> None:
    design = Design(((20, 16, 50_000),), 1, (1.0, 0.1, 0.01, 1e-3))
    value = {"gamma": 1.2, "knee": 0.02, "plateau": 0.9, "dense": 0.1, "sigma": 0.05}
    plain = simulate(design, value, np.random.default_rng(0))
    location, _ = observation(design, value, plain.log_e_run, plain.effect_p)
    noisy = simulate(design, value, np.random.default_rng(0), Fault(noise=1.5))
    assert noisy.response - location == pytest.approx(1.5 * (plain.response - location))
    steeper = simulate(design, value, np.random.default_rng(0), Fault(gamma=2.0))
    moved, _ = observation(design, value | {"gamma": 2.4}, plain.log_e_run, plain.effect_p)
    assert steeper.response - moved == pytest.approx(plain.response - location)
    assert steeper.value == value
    assert describe_fault(Fault(1.5, 2.0, 2)) == "noise scale x 1.5, gamma x 2, likelihood counted 2 times"


def test_mean_error_is_the_average_over_fresh_runs(hierarchical) -> None:
    """Against plain Monte Carlo of 200,000 runs, to four of its standard errors."""
    model, simulated = hierarchical
    design, value, rng = model.design, simulated.value, np.random.default_rng(7)
    spread = {k: np.asarray(v)[3] for k, v in spreads(value, design.covariates()).items()}
    alone = Design((design.configurations[3],), 1, (0.02,))
    noiseless = {k: v for k, v in value.items() if k not in ("kappa", "nu")} | {"sigma": 1e-9}
    # The network alone would be its own centre; move the covariates' part into the knee and log e.
    covariates = {k: v[3] for k, v in design.covariates().items()}
    exponents = {"depth": "phi", "width": "psi", "dataset_size": "chi"}
    invariant = sum(value[exponent] * covariates[axis] for axis, exponent in exponents.items())
    noiseless["knee"] *= np.exp(-invariant)
    log_e = simulated.log_e[3] + spread["tau_np"] * rng.standard_normal((200_000, 1))
    effect_p = simulated.shift_p[3] + spread["tau_p"] * rng.standard_normal((200_000, 1))
    logit, _ = observation(alone, noiseless, log_e, effect_p)
    error = 1 / (1 + np.exp(-logit))
    mean = mean_error(design, value, (simulated.log_e[3], simulated.shift_p[3]), design.configurations[3], 0.02)
    assert abs(mean - error.mean()) < 4 * error.std() / np.sqrt(len(error))


# The check


class Checked(NamedTuple):
    """Hold the short check, its folder, the lines there before the kill, and the compilations before and after it."""

    result: Check
    folder: Path
    before: list[str]
    compiled: tuple[int, int]


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Checked:
    """Run the short check in two parts: the second begins where a kill cut the file short within a line."""
    events: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    folder = tmp_path_factory.mktemp("check") / "single"
    bayeslaw.check("single", repetitions=12, seed=SEED, output=folder)
    first = len(events)
    text = (folder / "ranks.csv").read_text()
    (folder / "ranks.csv").write_text(text[: text.rindex("\n10,") + 8])
    result = bayeslaw.check("single", repetitions=REPETITIONS, seed=SEED, output=folder)
    return Checked(result, folder, text.splitlines(), (first, len(events) - first))


def without_seconds(lines: list[str]) -> list[str]:
    return [line.rpartition(",")[0] for line in lines]


def test_the_small_model_is_calibrated(checked) -> None:
    result = checked.result
    quantities = ["gamma", "knee", "plateau", "dense", "sigma", "log_likelihood", "prediction"]
    assert result.ranks.columns.tolist() == quantities
    assert result.ranks.shape == (REPETITIONS, 7)
    assert not result.rejected, str(result)
    assert (result.fits["divergences"] == 0).all()
    assert "accepted at the family-wise level 1%" in str(result)


def test_nothing_is_compiled_after_the_first_data_sets(checked) -> None:
    assert checked.compiled[0] > 0
    assert checked.compiled[1] == 0


def test_a_check_that_was_stopped_is_continued(checked) -> None:
    """The rows of before the kill stay, those it cost are done again and come out the same, and order is restored."""
    result, folder, before, _ = checked
    lines = (folder / "ranks.csv").read_text().splitlines()
    assert lines[:11] == before[:11]
    assert without_seconds(lines[:13]) == without_seconds(before)
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(REPETITIONS)]
    again = bayeslaw.check("single", repetitions=REPETITIONS, seed=SEED, output=folder)
    pd.testing.assert_frame_equal(again.table, result.table)
    pd.testing.assert_frame_equal(again.fits, result.fits)
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "table.csv", index_col=0), result.table, rtol=1e-5, check_dtype=False
    )
    with pytest.raises(BayeslawError, match=r"holds ranks with another seed; give another folder"):
        bayeslaw.check("single", repetitions=1, seed=SEED + 1, output=folder)


def test_a_strong_fault_is_rejected() -> None:
    result = bayeslaw.check("single", repetitions=5, fault=Fault(noise=2.0), seed=SEED)
    assert result.rejected
    assert result.table.loc["sigma", "rejected"]
    assert result.table.loc["sigma", "mean"] < 0.3
    assert "REJECTED" in str(result)
    assert "fault: noise scale x 2" in str(result)


def test_ranks_of_a_posterior_too_narrow_are_drawn_and_named(tmp_path) -> None:
    """Ranks made up: uniform but for one quantity, whose truths lie in the tails."""
    rng, model = np.random.default_rng(4), model_named("hierarchical")
    names = [*model.priors, "log_likelihood"]
    rows = pd.DataFrame(rng.integers(KEPT + 1, size=(200, len(names))), columns=names)
    rows["phi"] = np.where(rng.random(200) < 0.5, rows["phi"] // 3, KEPT - rows["phi"] // 3)
    rows = rows.assign(draws=1000, ess=300.0, r_hat=1.01, divergences=0, seconds=2.0)
    rows.loc[:4, "divergences"] = 3
    result = judge(model, Fault(), rows)
    assert result.table.index[result.table["rejected"]].tolist() == ["phi"]
    assert result.table.loc["phi", "sd"] > 1.1
    assert "5 with divergences" in str(result)
    figure = plot_ranks(result)
    figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 20_000
    assert len(figure.axes) == len(names)
    assert figure.get_suptitle().startswith(
        "the default model, twelve networks: 200 data sets, fault: none; rejected at 1%"
    )
    panel = figure.axes[names.index("phi")]
    assert panel.get_title().startswith("phi   p = ")
    low, high = simultaneous_band(LEVEL / len(names), 200, KEPT)
    drawn = panel.get_lines()[0].get_ydata()
    share = np.arange(1, KEPT + 1) / (KEPT + 1)
    assert drawn == pytest.approx([np.mean(rows["phi"] < r) - s for r, s in enumerate(share, 1)])
    assert ((drawn > high / 200 - share) | (drawn < low / 200 - share)).any()


def test_every_model_is_stated_whole() -> None:
    """Priors for exactly the parameters that its fit samples, and predictions where nothing was measured."""
    for model in models().values():
        table = load_runs(simulate(model.design, draw_values(model, 0), np.random.default_rng(0)).runs)
        structure = structure_of(table, **model.settings)
        assert set(model.priors) == set(bayeslaw.default_priors(structure.law)) - structure.without()
        assert model.design.configurations == tuple(sorted(model.design.configurations))
        for _, density in model.predictions.values():
            assert not np.isclose(model.design.densities, density).any()
    assert len(model_named("few").design.configurations) < 8 <= len(model_named("hierarchical").design.configurations)


def test_the_command_ends_with_1_where_ranks_are_rejected(checked, tmp_path) -> None:
    """Ranks on disk decide: the same folder is accepted as it is, and rejected once sigma's ranks are all 0."""
    there = tmp_path / "single"
    there.mkdir()
    for name in ("ranks.csv", "settings.json"):
        (there / name).write_text((checked.folder / name).read_text())
    arguments = ["check", "--model", "single", "--repetitions", str(REPETITIONS), "--seed", str(SEED), "-o"]
    accepted = CliRunner().invoke(app, [*arguments, str(tmp_path)])
    assert accepted.exit_code == 0, accepted.output
    assert "accepted at the family-wise level 1%" in accepted.output
    assert (there / "ranks.png").read_bytes().startswith(b"\x89PNG")
    ranks = pd.read_csv(there / "ranks.csv")
    ranks.assign(sigma=0).to_csv(there / "ranks.csv", index=False)
    rejected = CliRunner().invoke(app, [*arguments, str(tmp_path)])
    assert rejected.exit_code == 1
    assert "REJECTED" in rejected.output
    assert pd.read_csv(there / "table.csv", index_col=0).query("rejected").index.tolist() == ["sigma"]
    assert json.loads((there / "settings.json").read_text())["draws_ranked_among"] == KEPT


def test_bad_arguments_are_refused() -> None:
    for arguments, message in (
        ({"model": "big"}, "model = 'big' must be one of single, few, hierarchical"),
        ({"fault": "bug"}, "fault = 'bug' must be one of none, noise, gamma, double"),
        ({"repetitions": 0}, "repetitions = 0 and processes = 1 must be whole numbers from 1 up"),
    ):
        with pytest.raises(BayeslawError, match=message):
            bayeslaw.check(**arguments)


def test_a_world_is_planned_in_and_looked_up(tmp_path) -> None:
    """Two worlds through the real fit and planner, stopped after the first and gone on with: the same rows."""
    whole = check_plans(worlds=2, output=tmp_path / "plan", progress=False)
    kept = (tmp_path / "plan" / "ranks.csv").read_text().splitlines()
    (tmp_path / "plan" / "ranks.csv").write_text("\n".join(kept[:2]) + "\n")
    again = check_plans(worlds=2, output=tmp_path / "plan", progress=False)
    pd.testing.assert_frame_equal(again.worlds.drop(columns="seconds"), whole.worlds.drop(columns="seconds"))
    probabilities = whole.worlds.filter(regex=r"^(best|feasible|reach)_")
    assert ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
    assert whole.worlds["size"].between(0, 100).all()
    assert (whole.worlds[["expected_regret", "realised_regret"]] >= 0).all(axis=None)
