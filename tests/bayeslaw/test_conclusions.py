"""The paper's conclusions as probabilities, against plain loops over draws."""

import dataclasses

import numpy as np
import pytest

from bayeslaw import BayeslawError, Family, conclude, size_draws
from bayeslaw.counts import FORMS

GRID = {"depths": [8, 14], "widths": [2, 4, 8]}
SIZE = 250


@pytest.fixture(scope="module")
def target(fitted) -> float:
    """Choose an error that some draws' smallest start misses."""
    row = fitted.configurations.to_numpy().tolist().index([8, 2, SIZE])
    return float(fitted.posterior["eps_np"][..., row].median())


@pytest.fixture(scope="module")
def found(fitted, target):
    return conclude(fitted, target, **GRID, dataset_size=SIZE)


def sizes_of(fitted, target: float, depth: float, width: float) -> np.ndarray:
    return size_draws(fitted, target, depths=[depth], widths=[width], dataset_size=SIZE).to_numpy().ravel()


def test_statements_are_those_of_a_loop_over_draws(fitted, target, found) -> None:
    ends = {(d, w): sizes_of(fitted, target, d, w) for d in GRID["depths"] for w in GRID["widths"]}
    whole = {start: sum(map(float, fitted.frame.family.counts(*start))) for start in ends}
    pruned, larger, helps = [], [], []
    for draw in range(len(ends[8, 2])):
        own = {start: sizes[draw] for start, sizes in ends.items() if np.isfinite(sizes[draw])}
        if not own:
            continue
        best, smallest = min(own, key=lambda start: own[start]), min(own, key=lambda start: whole[start])
        prunable, unprunable = map(float, fitted.frame.family.counts(*best))
        pruned.append((own[best] - unprunable) / prunable <= 0.8)
        larger.append(best != smallest)
        depth, width = smallest
        beside = [(14, width)] * (depth == 8) + [(depth, 2 * width)] * (width < 8)
        if any(start in own for start in beside):
            helps.append(min(own.get(start, np.inf) for start in beside) < own[smallest])
    assert found.statements["probability"].tolist() == pytest.approx([np.mean(x) for x in (pruned, larger, helps)])
    assert 0.05 < found.statements["probability"].iloc[1] < 0.95
    assert found.statements["p_asked"].tolist() == pytest.approx([len(x) / 3000 for x in (pruned, larger, helps)])
    independent = np.sqrt(np.mean(larger) * (1 - np.mean(larger)) / len(larger))
    assert 0.5 * independent < found.statements["mcse"].iloc[1] < 4 * independent


def test_too_wide_is_the_best_start_made_wider(fitted, target, found) -> None:
    starts = [(d, w) for d in GRID["depths"] for w in GRID["widths"]]
    ends = np.array([sizes_of(fitted, target, *start) for start in starts])
    any_ = np.isfinite(ends).any(0)
    for factor in (2, 4):
        wider = np.array([sizes_of(fitted, target, d, factor * w) for d, w in starts])
        best = ends.argmin(0)
        regret = 100 * (wider[best, np.arange(len(best))] / ends.min(0) - 1)[any_]
        row = found.too_wide.loc[f"{factor} x the best width"]
        expected = [*np.quantile(regret, [0.5, 0.05, 0.95]), np.mean(regret > 0)]
        assert row.tolist() == pytest.approx(expected)


def test_exponents_are_those_of_the_counts(fitted, target, found) -> None:
    """ResNets of 16 channels grow as depth^1.45 from 8 to 14 layers, and in width as w^2 but for the first layer."""
    wide = conclude(fitted, target, depths=[8], widths=[16], dataset_size=SIZE).exponents.iloc[0]
    assert wide["a_l"] == pytest.approx(1.45, abs=0.005)
    assert 1.98 < wide["a_w"] < 2.0
    phi = fitted.posterior["phi"].to_numpy()
    assert wide["p_depth_hurts"] == np.mean(wide["a_l"] > phi)
    row = found.exponents.iloc[0]
    quantiles = np.quantile(row["a_w"] - fitted.posterior["psi"].to_numpy(), [0.5, 0.05, 0.95])
    assert row[["width_excess_median", "width_excess_lower", "width_excess_upper"]].tolist() == pytest.approx(quantiles)
    assert "a pruned one" in str(found)


def test_a_law_without_exponents_has_no_conclusions(fitted) -> None:
    posterior = fitted.tree["posterior"].to_dataset().drop_vars(["phi", "psi"])
    tree = fitted.tree.copy()
    tree["posterior"] = type(tree)(posterior)
    with pytest.raises(BayeslawError, match="no phi and no psi"):
        conclude(dataclasses.replace(fitted, tree=tree), 0.1, **GRID, dataset_size=SIZE)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_exponents_of_depth_are_those_of_a_step_to_a_network_that_there_is(name) -> None:
    """The next depth, or of the deepest network the one before; counts grow along it."""
    family = Family(name, (3, 32, 32), 10)
    depths = [depth for depth in range(2, 300) if FORMS[name].has_depth(np.array(float(depth)))]
    for place, depth in enumerate(depths):
        expected = depths[place + 1] if place + 1 < len(depths) else None
        if expected or depth < 200:
            assert family.next_depth(depth) == (expected or depths[place - 1])
            grown = np.log(family.counts(family.next_depth(depth), 8)[0] / family.counts(depth, 8)[0])
            assert np.sign(grown) == np.sign(family.next_depth(depth) - depth)


def test_a_family_of_few_depths_is_concluded_on(fitted, target) -> None:
    family = Family("tinyimagenet_resnet", (3, 64, 64), 10)  # it has these depths in common with what was fitted
    found = conclude(fitted, target, depths=[50, 152], widths=[2, 4], dataset_size=SIZE, family=family)
    assert np.isfinite(found.exponents[["a_l", "a_w"]]).all(axis=None)
