"""Least squares, its bootstrap and the seeds' spread, on runs whose constants are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from bayeslaw.baseline import LeastSquares, least_squares
from bayeslaw.bootstrapping import bootstrap, resample
from bayeslaw.calibration import seed_spread
from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.runs import load_runs

FAMILY = Family("cifar_resnet", (3, 32, 32), 10)
CONSTANTS = {"eps_up": 0.88, "gamma": 0.8, "p_prime": 0.02, "phi": 0.7, "psi": 1.1}
#: The knee so far down that an unpruned network has its low plateau's error to nine digits.
FAR_DOWN = CONSTANTS | {"p_prime": 2e-6}
GRID = {"depths": (8, 14, 20), "widths": (4, 8, 16), "sizes": (50_000, 12_500)}
SEEDS_DIFFER = 0.05


def plateau_of(designs: pd.DataFrame, eps_up: float) -> np.ndarray:
    """Give eps_np by a dense law in plain numbers."""
    parameters = FAMILY.parameters(designs["depth"], designs["width"])
    dense = 0.05 * (designs["dataset_size"] / 25_000) ** -0.6 + 0.04 * (parameters / 1e5) ** -0.5 + 0.02
    return eps_up * dense / np.sqrt(dense**2 + 1)


def error_of(designs: Mapping[str, Any] | pd.DataFrame, eps_np, constants: dict[str, float]) -> np.ndarray:
    """Evaluate the paper's complex form, the width as a multiple of 16 channels."""
    eps_up, gamma, p_prime, phi, psi = constants.values()
    m_star = designs["depth"] ** phi * (designs["width"] / 16) ** psi * designs["density"]
    knee = 1j * p_prime
    return np.asarray(eps_np * abs((m_star - knee * (eps_up / eps_np) ** (1 / gamma)) / (m_star - knee)) ** gamma)


def make_runs(
    constants: dict[str, float] = CONSTANTS,
    *,
    depths: Sequence[int] = GRID["depths"],
    widths: Sequence[int] = GRID["widths"],
    sizes: Sequence[int] = GRID["sizes"],
    replicates: int = 1,
    levels: int = 26,
    kept: float = 0.8,
    noise: float = 0.0,
    run_effect: float = 0.0,
) -> pd.DataFrame:
    """Make the run table of a grid, with noise of single rows and of whole runs on the log error."""
    axes = {"depth": depths, "width": widths, "dataset_size": sizes, "replicate": range(replicates)}
    index = pd.MultiIndex.from_product([*axes.values(), range(levels)], names=[*axes, "level"])
    table = index.to_frame(index=False)
    table["density"] = kept ** table["level"]
    rng = np.random.default_rng(0)
    shift = np.repeat(run_effect * rng.standard_normal(len(table) // levels), levels)
    log_error = np.log(error_of(table, plateau_of(table, constants["eps_up"]), constants)) + shift
    table["error"] = np.minimum(np.exp(log_error + noise * rng.standard_normal(len(table))), 1.0)
    return load_runs(table.assign(family="cifar_resnet", dataset="made_up", classes=10, input_shape="[3, 32, 32]"))


@cache
def noisy_runs() -> pd.DataFrame:
    return make_runs(replicates=3, noise=0.04, run_effect=SEEDS_DIFFER)


@cache
def noisy_fit() -> LeastSquares:
    return least_squares(noisy_runs())


def constants_of(fit: LeastSquares) -> dict[str, float]:
    return {name: getattr(fit, name) for name in CONSTANTS}


def cost_of(runs: pd.DataFrame) -> Callable[[dict[str, float]], float]:
    """Make the sum of squared relative deviations, eps_np being the mean unpruned error, with nothing of `bayeslaw`."""
    where = ["depth", "width", "dataset_size"]
    unpruned = runs[runs["density"] == 1].groupby(where)["error"].mean().rename("eps_np")
    runs = runs[runs["error"] > 0].join(unpruned, on=where)
    rows = {name: runs[name].to_numpy(float) for name in ("depth", "width", "density")}
    eps_np, error = runs["eps_np"].to_numpy(float), runs["error"].to_numpy(float)
    return lambda constants: float(np.sum((error_of(rows, eps_np, constants) / error - 1) ** 2))


# The fit


def test_noiseless_runs_give_their_constants_back() -> None:
    runs = make_runs(FAR_DOWN, levels=36, kept=0.64)
    fit = least_squares(runs)
    assert constants_of(fit) == pytest.approx(FAR_DOWN, rel=1e-6)
    assert np.abs(fit.deviations).max() < 1e-7
    assert fit.cost == pytest.approx(np.sum(fit.deviations**2), abs=1e-20)
    assert fit.starts_agreeing > 0.25
    assert fit.fixed == fit.at_edge == ()
    np.testing.assert_allclose(fit.eps_np["eps_np"], plateau_of(fit.eps_np, 0.88), rtol=1e-8)
    assert list(fit.eps_np["runs"]) == [1] * 18


def test_noisy_runs_give_them_back_within_the_bootstraps_spread() -> None:
    fits = list(resample(noisy_runs(), repetitions=40))
    assert len(fits) == 40
    for name, value in CONSTANTS.items():
        spread = np.std([getattr(fit, name) for fit in fits])
        # At density 1 small networks are above their plateau, so that least squares is a little biased: 4, not 3.
        assert abs(getattr(noisy_fit(), name) - value) < 4 * spread, name


def test_deviations_are_those_of_the_direct_form() -> None:
    fit, runs = noisy_fit(), noisy_runs()
    assert fit.rows.index.equals(runs.index)
    assert len(fit.deviations) == len(runs)
    assert fit.cost == pytest.approx(cost_of(runs)(constants_of(fit)), rel=1e-10)
    estimate = fit.predict(runs)
    np.testing.assert_allclose(fit.deviations, estimate / runs["error"] - 1, rtol=0, atol=1e-12)
    assert fit.mean_deviation == pytest.approx(fit.deviations.mean())
    assert fit.sd_deviation == pytest.approx(fit.deviations.std())
    assert abs(fit.mean_deviation) < 0.02
    assert 0.05 < fit.sd_deviation < 0.08


def test_a_slow_optimiser_of_the_direct_form_ends_at_the_same_place() -> None:
    runs = noisy_runs()

    direct = cost_of(runs)

    def cost(theta: np.ndarray) -> float:
        return direct(dict(zip(CONSTANTS, [*np.exp(theta[:3]), *theta[3:]], strict=True)))

    point = np.array([*np.log([0.8, 1.2, 0.05]), 1.0, 1.0])
    for _ in range(3):
        end = scipy.optimize.minimize(
            cost, point, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxfev": 1000}
        )
        point = end.x
    fit = noisy_fit()
    assert fit.cost <= end.fun * (1 + 1e-9)
    assert list(constants_of(fit).values()) == pytest.approx([*np.exp(point[:3]), *point[3:]], rel=1e-4)


def test_seed_and_starts_do_not_matter_where_the_optimum_is_clear() -> None:
    other = least_squares(noisy_runs(), starts=5, seed=7)
    assert constants_of(other) == pytest.approx(constants_of(noisy_fit()), rel=1e-5)
    again = least_squares(noisy_runs(), starts=5, seed=7)
    assert constants_of(again) == constants_of(other)


@pytest.mark.parametrize(
    ("axes", "fixed"),
    [
        ({"depths": [14]}, ("phi",)),
        ({"widths": [8]}, ("psi",)),
        ({"depths": [14], "widths": [8]}, ("phi", "psi")),
    ],
    ids=["depth", "width", "both"],
)
def test_an_axis_that_never_varies_has_its_exponent_fixed(axes: dict[str, list[int]], fixed: tuple[str, ...]) -> None:
    runs = make_runs(FAR_DOWN, levels=36, kept=0.64, **axes)
    fit = least_squares(runs)
    assert fit.fixed == fixed
    assert all(getattr(fit, name) == 0 for name in fixed)
    assert (fit.eps_up, fit.gamma) == pytest.approx((0.88, 0.8), rel=1e-6)
    np.testing.assert_allclose(fit.predict(runs), runs["error"], rtol=1e-6)


def test_a_slope_that_the_runs_do_not_determine_is_named() -> None:
    """The law's limit of an infinite slope: log error falls with m*^2 / (1 + m*^2), no power law in between."""
    runs = make_runs(depths=[8], widths=[16], sizes=[50_000], levels=40)
    share = runs["density"] ** 2 / (runs["density"] ** 2 + 1e-4)
    runs["error"] = 0.9 * (0.1 / 0.9) ** share
    fit = least_squares(runs)
    assert fit.at_edge == ("gamma",)
    assert fit.sd_deviation < 0.03


def test_the_high_plateau_stays_above_every_unpruned_error() -> None:
    runs = make_runs(depths=[8], sizes=[50_000])
    stuck = runs[runs["width"] == 4].index
    runs.loc[stuck, "error"] = 0.93
    runs.loc[runs["error"] > 0.85, "error"] = 0.93
    fit = least_squares(runs)
    assert fit.eps_np["eps_np"].max() == pytest.approx(0.93)
    assert 0.93 < fit.eps_up <= 1


# What is left out


def test_errors_of_zero_count_in_the_plateau_and_not_in_the_deviations() -> None:
    runs = make_runs(replicates=2).assign(n_test=10_000)
    first = runs.index[:26]
    assert (runs.loc[first, "replicate"] == 0).all()
    known = runs.loc[first[0], "error"]
    runs.loc[first[:3], "error"] = 0.0
    fit = least_squares(runs)
    assert len(fit.rows) == len(fit.deviations) == len(runs) - 3
    assert fit.rows.index.equals(runs.index.drop(first[:3]))
    network = (fit.eps_np["depth"] == 8) & (fit.eps_np["width"] == 4) & (fit.eps_np["dataset_size"] == 50_000)
    assert fit.eps_np.loc[network, "eps_np"].item() == pytest.approx(known / 2)
    assert np.isfinite(fit.deviations).all()
    assert np.isfinite(seed_spread(runs))


def test_configurations_without_a_plateau_are_left_out_and_named() -> None:
    runs = make_runs()
    of = runs["depth"].eq(8) & runs["dataset_size"].eq(50_000)
    runs = runs[~(of & runs["width"].eq(4) & runs["level"].eq(0))]
    runs.loc[of & runs["width"].eq(8) & runs["level"].eq(0), "error"] = 0.0
    with pytest.warns(UserWarning) as said:
        fit = least_squares(runs)
    messages = [str(warning.message) for warning in said]
    assert len(messages) == 2
    assert "left out are 1 configurations that have no unpruned run (density 1): depth=8 width=4" in messages[0]
    assert "have an unpruned error of 0: depth=8 width=8 dataset_size=50000" in messages[1]
    assert all(warning.filename == __file__ for warning in said)
    assert len(fit.eps_np) == 16
    assert len(fit.rows) == 16 * 26


def test_tables_that_cannot_be_fitted_say_why() -> None:
    runs = make_runs(depths=[8], sizes=[50_000])
    with pytest.raises(BayeslawError, match="no configuration has a row with density 1"):
        least_squares(runs[runs["level"] > 0])
    with pytest.raises(BayeslawError, match="pruned rows are too few for 4 constants"):
        least_squares(runs[runs["level"] == 0])
    with pytest.raises(BayeslawError, match="2 families"):
        least_squares(pd.concat([runs, runs.assign(family="mlp")]))
    with pytest.raises(BayeslawError, match=r"no column error.*load_runs"):
        least_squares(runs.drop(columns="error"))
    with pytest.raises(BayeslawError, match="no rows"):
        least_squares(runs[:0])
    with pytest.raises(BayeslawError, match=r"starts= .* got 0"):
        least_squares(runs, starts=0)


# Predictions


def test_networks_that_were_not_trained_have_the_dense_laws_plateau() -> None:
    fit = least_squares(make_runs(FAR_DOWN, sizes=[50_000, 12_500, 3_125], levels=36, kept=0.64))
    designs = pd.DataFrame(
        {
            "depth": [26, 14, 20, 8],
            "width": [32, 12, 4, 16],
            "dataset_size": [50_000, 25_000, 6_250, 12_500],
            "density": [1e-6, 1e-4, 1.0, 1e-7],
        }
    )
    expected = error_of(designs, plateau_of(designs, 0.88), FAR_DOWN)
    np.testing.assert_allclose(fit.predict(designs), expected, rtol=1e-5)


def test_predictions_follow_the_rows_whatever_else_is_asked() -> None:
    fit = noisy_fit()
    designs = pd.DataFrame({"depth": [50, 8], "width": [8.0, 4.0], "dataset_size": 50_000, "density": [0.1, 0.5]})
    both = fit.predict(designs)
    assert both.shape == (2,)
    assert both.dtype == np.float64
    assert [float(fit.predict(designs.iloc[[row]])[0]) for row in (0, 1)] == pytest.approx(list(both), rel=1e-12)


def test_what_the_table_cannot_tell_is_refused() -> None:
    design = {"depth": [50], "width": [8], "dataset_size": [50_000], "density": [0.1]}
    few = least_squares(make_runs(depths=[8], widths=[4, 8]))
    with pytest.raises(BayeslawError, match=r"4 configurations .* too few for the dense law's 5 constants"):
        few.predict(pd.DataFrame(design))
    one_size = least_squares(make_runs(sizes=[50_000]))
    assert np.isfinite(one_size.predict(pd.DataFrame(design))).all()
    with pytest.raises(BayeslawError, match="dataset_size never varies"):
        one_size.predict(pd.DataFrame(design).assign(dataset_size=10_000))
    one_network = least_squares(make_runs(depths=[8], widths=[8], sizes=[50_000, 25_000, 12_500]))
    with pytest.raises(BayeslawError, match=r"parameter count \(depth, width\) never varies"):
        one_network.predict(pd.DataFrame(design))
    with pytest.raises(BayeslawError, match="column density missing"):
        one_size.predict(pd.DataFrame(design).drop(columns="density"))
    with pytest.raises(BayeslawError, match=r"row 0: density must be in \(0, 1\], not 1.5"):
        one_size.predict(pd.DataFrame(design).assign(density=1.5))


def test_without_exact_counts_the_dense_law_takes_what_grows_like_them() -> None:
    runs = make_runs(noise=0.02).drop(columns=["input_shape", "classes"]).assign(family="somebodys_net")
    fit = least_squares(runs)
    assert fit.frame.family.width_reference == 1
    assert fit.p_prime == pytest.approx(least_squares(make_runs(noise=0.02)).p_prime * 16**fit.psi, rel=1e-5)
    assert np.isfinite(fit.predict(runs.assign(width=64))).all()


# The bootstrap


def test_whole_trajectories_are_drawn_and_share_their_mean_plateau() -> None:
    runs = noisy_runs()
    of = runs["trajectory"]
    dropped = False
    for fit in resample(runs, repetitions=8, seed=3):
        per_trajectory = fit.rows.index.to_series().map(of).value_counts()
        assert (per_trajectory % 26 == 0).all()
        assert per_trajectory.sum() == len(runs)
        unpruned = fit.rows[fit.rows["density"] == 1].groupby(["depth", "width", "dataset_size"])["error"]
        assert list(fit.eps_np["eps_np"]) == pytest.approx(list(unpruned.mean()))
        assert list(fit.eps_np["runs"]) == list(unpruned.size())
        dropped |= len(fit.eps_np) < 18
    assert dropped


def test_runs_without_noise_leave_nothing_to_bootstrap() -> None:
    runs = make_runs(FAR_DOWN, levels=36, kept=0.64)
    designs = pd.DataFrame({"depth": [8, 26], "width": 8, "dataset_size": 50_000, "density": [1e-6, 1e-5]})
    result = bootstrap(runs, designs, repetitions=5)
    expected = least_squares(runs).predict(designs)
    for name in ("mean", "median", "lower", "upper"):
        np.testing.assert_allclose(result[name], expected, rtol=1e-5)


def test_intervals_are_ordered_reproducible_and_wider_for_runs() -> None:
    designs = noisy_runs().iloc[[0, 10, 20, 25]]
    narrow = bootstrap(noisy_runs(), designs, repetitions=20, seed=5)
    assert list(narrow) == ["depth", "width", "dataset_size", "density", "mean", "median", "lower", "upper"]
    assert narrow.index.equals(designs.index)
    assert (narrow["lower"] < narrow["median"]).all()
    assert (narrow["median"] < narrow["upper"]).all()
    pd.testing.assert_frame_equal(narrow, bootstrap(noisy_runs(), designs, repetitions=20, seed=5))
    half = bootstrap(noisy_runs(), designs, repetitions=20, seed=5, interval=0.5)
    assert ((narrow["lower"] < half["lower"]) & (half["upper"] < narrow["upper"])).all()
    runs = bootstrap(noisy_runs(), designs, repetitions=20, seed=5, kind="run")
    assert ((runs["lower"] < narrow["lower"]) & (narrow["upper"] < runs["upper"])).all()
    assert (runs["upper"] <= 1).all()


def test_run_intervals_cover_fresh_runs() -> None:
    """Stated before the seeds were drawn: between 80 and 97 % of new runs' rows in the 90 % interval."""
    designs = noisy_runs().drop_duplicates(["depth", "width", "dataset_size", "level"])
    result = bootstrap(noisy_runs(), designs, repetitions=30, kind="run")
    rng = np.random.default_rng(11)
    truth = error_of(designs, plateau_of(designs, CONSTANTS["eps_up"]), CONSTANTS)
    shift = np.repeat(SEEDS_DIFFER * rng.standard_normal(18), 26)
    fresh = truth * np.exp(shift + 0.04 * rng.standard_normal(len(designs)))
    covered = np.mean((result["lower"] <= fresh) & (fresh <= result["upper"]))
    assert 0.8 <= covered <= 0.97


def test_arguments_of_the_bootstrap_are_checked() -> None:
    runs = noisy_runs()
    with pytest.raises(BayeslawError, match=r"interval= .* in \(0, 1\); got 90"):
        bootstrap(runs, runs, interval=90)
    with pytest.raises(BayeslawError, match='kind= is "mean" or "run"; got'):
        bootstrap(runs, runs, kind="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BayeslawError, match=r"repetitions= .* got 0"):
        bootstrap(runs, runs, repetitions=0)


def test_a_table_without_trajectories_is_resampled_by_configuration() -> None:
    runs = make_runs(noise=0.04).drop(columns=["trajectory", "replicate"])
    fit = next(resample(runs, repetitions=1))
    assert 1 <= len(fit.eps_np) < 18
    assert len(fit.rows) == len(runs)


# The seeds' spread


def test_seed_spread_by_hand() -> None:
    # Deviations -0.1, 0.1 with n = 2 and -0.2, 0, 0.2 with n = 3; the row alone and the zero say nothing.
    table = pd.DataFrame(
        {
            "depth": [8] * 7,
            "width": 4,
            "dataset_size": 1000,
            "level": [0, 0, 1, 1, 1, 2, 1],
            "density": [1, 1, 0.8, 0.81, 0.79, 0.64, 0.8],
            "error": [0.09, 0.11, 0.16, 0.2, 0.24, 0.5, 0.0],
        }
    )
    expected = np.sqrt((2 * (0.1**2 * 2) + 2 * (0.2**2 * 1.5)) / 5)
    assert seed_spread(table) == pytest.approx(expected)
    assert seed_spread(table.drop(columns="level")) == pytest.approx(np.sqrt(0.02))
    assert np.isnan(seed_spread(table[table["level"] == 2]))


@pytest.mark.parametrize("replicates", [2, 3, 8])
def test_seed_spread_is_that_of_the_seeds(replicates: int) -> None:
    """10 % on 40 x 26 groups of rows: its own standard error is 0.1 / sqrt(2 x 1040 (n - 1)), four of them allowed."""
    runs = make_runs(depths=range(8, 248, 6), widths=[4], sizes=[50_000], replicates=replicates)
    runs["error"] = error_of(runs, 0.05, CONSTANTS) * np.exp(0.1 * np.random.default_rng(1).standard_normal(len(runs)))
    # exp of a normal of sd 0.1 spreads by sqrt(e^0.01 - 1), and dividing by the group's own mean shrinks it by O(1/n).
    assert seed_spread(runs) == pytest.approx(0.1, abs=4 * 0.1 / np.sqrt(2 * 1040 * (replicates - 1)) + 0.001)


def test_nothing_leaks_into_jax_or_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = least_squares(make_runs(depths=[8]))
        fit.predict(pd.DataFrame({"depth": [14], "width": [8], "dataset_size": [50_000], "density": [0.5]}))
    assert not jax.config.jax_enable_x64
