"""Predictions: what they condition on, against plain Monte Carlo, and bad designs."""

import numpy as np
import pandas as pd
import pytest

from bayeslaw import BayeslawError
from bayeslaw.predict import new_runs, parameter_draws
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
    log_m = value["phi"] * centre["depth"] + value["psi"] * centre["width"]
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
        ratio = (density**2 + upper**2) / (density**2 + knee**2)
        total.append((eps_up * share * ratio ** (value["gamma"] / 2)).mean(0))
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
