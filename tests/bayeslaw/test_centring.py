"""Effects in units of their spreads: by how much, against plain NumPy, one configuration after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from bayeslaw.axes import axes_from, lay_out, seeds_of
from bayeslaw.centring import Centring, centred, choose_centring, standardise
from bayeslaw.frame import Data

#: Three configurations with 3, 1 and 2 runs.
CONFIGURATION = np.array([0, 1, 2, 0, 0, 2])
ABOVE = np.array([-0.5, 0.1, 0.4])
VALUE = {
    "dense": 0.2, "share_c": 0.0, "share_n": 1.0, "alpha": 1.0, "beta": 1.0, "spread_np": 0.3, "share_np": 0.6,
    "growth_np": 0.5, "spread_p": 0.15, "share_p": 0.3, "growth_p": -0.8, "plateau": 0.7,
}  # fmt: skip


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def data(subset: Any = (), luck_root: Any = ()) -> Data:
    """With alpha = 1 and nothing but it, log dataset size sets the dense law: each network lies `ABOVE` the centre."""
    nothing, zeros = np.zeros(0), np.zeros(3)
    rows = [nothing] * 6
    found = Data(*rows, CONFIGURATION, nothing, zeros, zeros, zeros, -ABOVE, 0.0, nothing)
    return found._replace(subset=np.array(subset, int), luck_root=np.array(luck_root))


def spreads(name: str) -> np.ndarray:
    grown = {"np": 0.3 * np.exp(0.5 * ABOVE), "p": 0.15 * np.exp(-0.8 * ABOVE)}
    size, total = np.array([3, 1, 2]), grown["np"]
    return {
        "log_e": np.sqrt(0.6) * total,
        "mean": total * np.sqrt(0.6 + 0.4 / size),
        "within": np.sqrt(0.4) * total,
        "mean_p": grown["p"] * np.sqrt(0.3 + 0.7 / size),
        "within_p": np.sqrt(0.7) * grown["p"],
    }[name]


def power_of(left: Any, half_way: float = 0.22) -> Any:
    odds = np.square(left / half_way)
    return odds / (odds + 1 - left)


@pytest.mark.parametrize("lucky", [False, True])
def test_effects_are_in_units_of_their_spreads_by_the_formula(lucky: bool) -> None:
    """Counted from where the luck of their training subsets puts them: here data remove all of the error."""
    rng = np.random.default_rng(0)
    luck, parts, value = np.zeros(6), {}, VALUE
    if lucky:
        subset, root, halfway = np.array([0, 1, 1, 1, 0, 0]), rng.standard_normal((2, 2)), rng.standard_normal(2)
        luck, value = 0.2 * (root @ halfway)[subset], VALUE | {"spread_subset": 0.04, "luck_halfway": halfway}
        parts = {"subset": subset, "luck_root": root}
    centring = Centring(*rng.uniform(0, 1, (5, 3)))
    effects = {"log_e_run": rng.standard_normal(6), "effect_p": rng.standard_normal(6)}
    found = {k: np.asarray(v) for k, v in standardise(centring, data(**parts), value, effects).items()}
    centre = np.log(0.2) + ABOVE
    plateau = np.log(VALUE["plateau"])
    for name, about, shared, lifted, mean_name, within_name in (
        ("log_e_run", centre, luck, plateau, "mean", "within"),
        ("effect_p", np.zeros(3), np.zeros(6), 0.0, "mean_p", "within_p"),
    ):
        for i in range(3):
            own, lucks = (part[i == CONFIGURATION] for part in (effects[name], shared))
            middle = about[i] + lucks.mean()
            w = getattr(centring, mean_name)[i]
            mean = (own.mean() - middle) / spreads(mean_name)[i] ** w + (1 - w) * (middle + lifted)
            w, lucks = getattr(centring, within_name)[i], lucks - lucks.mean()
            apart = (own - own.mean() - lucks) / spreads(within_name)[i] ** w + (1 - w) * lucks
            assert found[name][i == CONFIGURATION] == pytest.approx(mean + apart)
    alone = {"log_e": rng.standard_normal(3)}
    w, found = centring.log_e, standardise(centring, data(), VALUE, alone)["log_e"]
    expected = (alone["log_e"] - centre) / spreads("log_e") ** w + (1 - w) * (centre + plateau)
    assert np.asarray(found) == pytest.approx(expected)


def test_effects_taken_as_they_are_stay_as_they_are_but_errors_are_in_units_of_the_plateau() -> None:
    effects = {"log_e_run": np.arange(6.0), "effect_p": np.arange(6.0)}
    found = standardise(centred(data()), data(), VALUE, effects)
    assert np.asarray(found["effect_p"]) == pytest.approx(effects["effect_p"])
    assert np.asarray(found["log_e_run"]) == pytest.approx(effects["log_e_run"] + np.log(VALUE["plateau"]))


def test_by_how_much_is_what_is_left_of_their_prior_variance() -> None:
    """Of a random posterior whose configurations are independent given one shared parameter, matrix by matrix."""
    rng = np.random.default_rng(1)
    where = {"effect_p": np.arange(6), "log_e_run": np.arange(6, 12), "z": np.array(12)}
    layout = lay_out(where, {"effect_p": CONFIGURATION, "log_e_run": CONFIGURATION})
    group = np.concatenate([CONFIGURATION, CONFIGURATION, [-1]])
    root = 8 * rng.standard_normal((13, 13))
    apart = (group[:, None] != group) & (group[:, None] >= 0) & (group >= 0)
    precision = np.where(apart, 0.0, root @ root.T / 10 + 60 * np.eye(13))
    axes, _ = axes_from(layout, seeds_of(layout, 13) @ precision)
    effects = {"log_e_run": np.zeros(6), "effect_p": np.zeros(6)}
    found = choose_centring(data(), VALUE, effects, axes, where, 13)
    covariance = np.linalg.inv(precision[:12, :12])
    for start, mean_name, within_name, half_way in ((6, "mean", "within", 0.12), (0, "mean_p", "within_p", 0.22)):
        for i in range(3):
            own = start + np.flatnonzero(i == CONFIGURATION)
            block, size = covariance[np.ix_(own, own)], len(own)
            left = min(block.mean() / spreads(mean_name)[i] ** 2, 1.0)
            assert getattr(found, mean_name)[i] == pytest.approx(power_of(left))
            centre = np.eye(size) - 1 / size
            within = np.trace(centre @ block @ centre) / max(size - 1, 1)
            left = min(within / spreads(within_name)[i] ** 2, 1.0)
            assert getattr(found, within_name)[i] == pytest.approx(power_of(left, half_way))
    assert 0.05 < found.mean_p.min() < found.mean_p.max()
    assert not found.log_e.any()
