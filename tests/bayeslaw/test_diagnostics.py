"""The gate: one failure planted for every rule trips that rule and no other."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from bayeslaw.diagnostics import diagnose

CHAINS, DRAWS = 4, 500
RULES = ["r_hat", "ess_bulk", "ess_tail", "divergences", "bfmi"]


def sound() -> dict[str, np.ndarray]:
    """Give independent draws of two parameters and of a vector, no divergences, and energies that mix."""
    rng = np.random.default_rng(0)
    return {
        "gamma": rng.normal(size=(CHAINS, DRAWS)),
        "phi": rng.normal(size=(CHAINS, DRAWS)),
        "effect_p": rng.normal(size=(CHAINS, DRAWS, 3)),
        "diverging": np.zeros((CHAINS, DRAWS), bool),
        "energy": rng.normal(size=(CHAINS, DRAWS)),
    }


def tree_of(values: dict[str, np.ndarray]) -> xr.DataTree:
    groups = {"posterior": ("gamma", "phi", "effect_p"), "sample_stats": ("diverging", "energy")}
    dims = ("chain", "draw", "trajectory")
    return xr.DataTree.from_dict(
        {
            group: xr.Dataset({name: (dims[: values[name].ndim], values[name]) for name in names})
            for group, names in groups.items()
        }
    )


def autocorrelated(coefficient: float, size: tuple[int, int], seed: int) -> np.ndarray:
    """Draw stationary chains of first-order autoregression with unit variance."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size)
    for i in range(1, size[1]):
        values[:, i] = coefficient * values[:, i - 1] + np.sqrt(1 - coefficient**2) * values[:, i]
    return values


def failed(values: dict[str, np.ndarray]) -> list[str]:
    """Name the rules that are not met, and check that verdict, sentences and text agree with the table."""
    diagnosis = diagnose(tree_of(values))
    assert diagnosis.table.index.tolist() == RULES
    names = [str(rule) for rule in diagnosis.table.index[~diagnosis.table["passed"]]]
    assert diagnosis.passed == (not names)
    assert [sentence.split(" = ")[0] for sentence in diagnosis.failures] == names
    for name, sentence in zip(names, diagnosis.failures, strict=True):
        assert diagnosis.table.loc[name, "remedy"]
        assert sentence.endswith(": " + diagnosis.table.loc[name, "remedy"])
    assert str(diagnosis).endswith("gate: passed") == diagnosis.passed
    assert all(sentence in str(diagnosis) for sentence in diagnosis.failures)
    return names


def test_sound_draws_pass() -> None:
    assert failed(sound()) == []


def test_one_chain_elsewhere_trips_r_hat() -> None:
    """A shift of half a standard deviation of one of four chains of 5,000 draws: R-hat about 1.02."""
    rng = np.random.default_rng(1)
    values = {name: np.tile(value, (1, 10, *[1] * (value.ndim - 2))) for name, value in sound().items()}
    values |= {name: rng.normal(size=values[name].shape) for name in ("gamma", "phi", "effect_p", "energy")}
    values["phi"][2] += 0.5
    names = failed(values)
    assert names[0] == "r_hat"
    table = diagnose(tree_of(values)).table
    assert table.loc["r_hat", "parameter"] == "phi"
    assert 1.01 < table.loc["r_hat", "value"] < 1.1
    # Chains that disagree have by definition few effective draws of their mean; the other rules hold.
    assert set(names) <= {"r_hat", "ess_bulk", "ess_tail"}


def test_sticky_draws_trip_effective_sample_sizes_alone() -> None:
    """Autocorrelation .85 leaves about (1 - .85) / (1 + .85) = 8 % of 2,000 draws.

    Half chains are brought to one mean and one variance, so that R-hat has nothing to say.
    """
    values = sound()
    halves = autocorrelated(0.85, (CHAINS, DRAWS), 2).reshape(2 * CHAINS, -1)
    halves = (halves - halves.mean(1, keepdims=True)) / halves.std(1, keepdims=True)
    values["phi"] = halves.reshape(CHAINS, DRAWS)
    names = failed(values)
    assert "ess_bulk" in names
    assert set(names) <= {"ess_bulk", "ess_tail"}
    row = diagnose(tree_of(values)).table.loc["ess_bulk"]
    assert row["parameter"] == "phi"
    assert 80 < row["value"] < 320


def test_sticky_tails_trip_tail_ess_alone() -> None:
    """Signs are independent from draw to draw while the size of a draw persists: the mean mixes, the tails do not."""
    rng = np.random.default_rng(3)
    values = sound()
    size = np.exp(1.0 * autocorrelated(0.97, (CHAINS, DRAWS), 4))
    values["effect_p"][..., 1] = size * rng.choice([-1.0, 1.0], (CHAINS, DRAWS))
    table = diagnose(tree_of(values)).table
    # Folded R-hat looks at the same tails, so it may fail with it; nothing else does.
    assert [rule for rule in failed(values) if rule != "r_hat"] == ["ess_tail"]
    assert table.loc["ess_tail", "parameter"] == "effect_p[1]"
    assert table.loc["ess_bulk", "passed"]


@pytest.mark.parametrize("count", [1, 7])
def test_any_divergence_trips_its_rule_alone(count: int) -> None:
    values = sound()
    values["diverging"][1, :count] = True
    assert failed(values) == ["divergences"]
    assert diagnose(tree_of(values)).table.loc["divergences", "value"] == count


def test_slow_energy_trips_bfmi_alone_and_names_the_chain() -> None:
    """BFMI of a first-order autoregression is 2 (1 - coefficient): 0.2 at 0.9."""
    values = sound()
    values["energy"][2] = autocorrelated(0.9, (1, DRAWS), 5)
    assert failed(values) == ["bfmi"]
    row = diagnose(tree_of(values)).table.loc["bfmi"]
    assert row["parameter"] == "chain 2"
    # The estimate's standard deviation over 500 draws is about 0.04.
    assert row["value"] == pytest.approx(0.2, abs=0.12)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_a_draw_that_is_not_finite_fails(bad: float) -> None:
    values = sound()
    values["effect_p"][0, 10, 2] = bad
    assert {"r_hat", "ess_bulk", "ess_tail"} <= set(failed(values))
    assert diagnose(tree_of(values)).table.loc["r_hat", "parameter"] == "effect_p[2]"


def test_a_parameter_that_never_moves_fails() -> None:
    values = sound()
    values["phi"][:] = 0.5
    assert "r_hat" in failed(values)
    assert diagnose(tree_of(values)).table.loc["r_hat", "parameter"] == "phi"


@pytest.mark.parametrize("energy", [1.0, np.nan], ids=["constant", "not a number"])
def test_an_energy_without_variance_fails(energy: float) -> None:
    values = sound()
    values["energy"][3] = energy
    assert failed(values) == ["bfmi"]
    assert diagnose(tree_of(values)).table.loc["bfmi", "parameter"] == "chain 3"


def test_the_gate_passes_the_real_fit(fitted) -> None:
    diagnosis = fitted.diagnose()
    assert diagnosis.passed, str(diagnosis)
    assert diagnosis.failures == []


def test_a_prediction_that_does_not_mix_fails_though_every_parameter_does() -> None:
    """Two parameters share fast draws; what they differ by, a hundredth of their size, is sticky."""
    values = sound()
    halves = autocorrelated(0.85, (CHAINS, DRAWS), 2).reshape(2 * CHAINS, -1)
    halves = (halves - halves.mean(1, keepdims=True)) / halves.std(1, keepdims=True)
    values["phi"] = values["gamma"] + 0.01 * halves.reshape(CHAINS, DRAWS)
    assert failed(values) == []
    tree = tree_of(values)
    difference = tree["posterior"]["phi"] - tree["posterior"]["gamma"]
    table = diagnose(tree, xr.Dataset({"log_error": difference})).table
    names = table.index[~table["passed"]]
    assert "ess_bulk" in names
    assert set(names) <= {"ess_bulk", "ess_tail"}
    assert table.loc["ess_bulk", "parameter"] == "log_error"
