"""What runs on one training subset share: the numbers against plain code, and what predictions make of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpyro.infer.util import log_density
from simulate import CURVATURE, log_dense_of

from bayeslaw import fit, load_runs
from bayeslaw.calibration import evaluate
from bayeslaw.curves import expected_luck
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import prepare
from bayeslaw.frame import make_data, make_frame
from bayeslaw.hierarchy import halfway_prior
from bayeslaw.model import make_model, structure_of
from bayeslaw.precision import in_float64
from bayeslaw.priors import resolve_priors
from bayeslaw.run_likelihood import score_runs
from bayeslaw.simulation import Design, simulate
from bayeslaw.subsets import number_subsets, root_of_covariance, shares_subsets, which_subset

NETWORKS = tuple((depth, width, size) for depth in (8, 20) for width in (4, 16) for size in (1000, 4000))
VALUE = {
    "gamma": 1.1, "knee": 0.02, "plateau": 0.9, "dense": 0.1, "sigma": 0.02, "phi": 0.8, "psi": 1.1, "chi": 0.0,
    "share_c": 0.1, "share_n": 0.7, "alpha": 0.5, "beta": 0.5, "omega": 0.0, "spread_np": 0.05, "share_np": 0.5,
    "spread_p": 0.05, "share_p": 0.5, "kappa": 0.05, "noise_power": 0.5, "floor": 1.0, "nu": 10.0, "sharpness": 2.0,
    "rho": 0.5, **dict.fromkeys(CURVATURE, 0.03),
}  # fmt: skip


def world(spread: float, *, replicates: int = 3, seed: int = 0):
    design = Design(NETWORKS, replicates, tuple(0.8 ** np.arange(0, 24, 4)), n_test=10_000, subsets=True)
    return simulate(design, VALUE | {"spread_subset": spread}, np.random.default_rng(seed))


def test_lucks_of_nested_subsets_go_together():
    """Those of one name as the formula says, of different names not at all; drawn by plain code they do too."""
    rows = pd.DataFrame({"dataset_size": [500, 2000, 500, 2000], "subset_id": ["a", "a", "b", "b"]})
    number, subsets = number_subsets(rows)
    assert subsets["dataset_size"].tolist() == [500, 500, 2000, 2000]
    root = root_of_covariance(subsets, np.log(1000))
    expected = np.array([[2, 0, 0.5, 0], [0, 2, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]])
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-12)
    assert number.tolist() == [0, 2, 1, 3]
    assert which_subset(rows.assign(subset_id=["a", "c", "b", "a"]), subsets).tolist() == [0, -1, 1, 2]
    drawn = np.array([world(0.2, replicates=2, seed=seed).luck for seed in range(300)])
    central = np.sqrt(1000 * 4000)
    wanted = 0.04 * central * np.array([[1 / 1000, 0, 1 / 4000, 0], [0, 1 / 1000, 0, 1 / 4000]])
    error = 4 * 0.04 * central / 1000 * np.sqrt(2 / 300)  # four standard errors of the largest entry
    np.testing.assert_allclose(np.cov(drawn.T)[:2], wanted, atol=error)


def test_subsets_named_by_numbers_are_those_named_by_text():
    rows = pd.DataFrame({"dataset_size": [500, 500, 2000], "subset_id": [3, 10, 3]})
    number, subsets = number_subsets(rows)
    assert subsets["subset_id"].tolist() == ["10", "3", "3"]
    assert number.tolist() == [1, 0, 2]
    for names in (["3", "10", "3"], [3.0, 10.0, 3.0], pd.array([3, 10, 3], dtype="Int64"), [3, "10", 3.0]):
        assert which_subset(rows.assign(subset_id=names), subsets).tolist() == [1, 0, 2]
        assert number_subsets(rows.assign(subset_id=names))[1].equals(subsets)
    assert which_subset(rows.assign(subset_id=[3.0, np.nan, 3.5]), subsets).tolist() == [1, -1, -1]
    assert which_subset(rows.assign(subset_id=np.nan), subsets).tolist() == [-1, -1, -1]


def test_only_subsets_that_networks_share_show_luck():
    runs = world(0.1).runs
    assert shares_subsets(load_runs(runs))
    assert not shares_subsets(load_runs(runs.drop(columns="subset_id")))
    assert not shares_subsets(load_runs(runs[runs["replicate"] == 0]))  # one subset of every size
    own = runs.assign(subset_id=runs["depth"].astype(str) + runs["width"].astype(str) + runs["subset_id"])
    assert not shares_subsets(load_runs(own))  # every network its own
    assert not structure_of(load_runs(runs), subsets=False).subsets


@in_float64
def test_the_density_is_that_of_plain_code():
    """Of the effects and lucks together, in the parametrisation that is sampled, against NumPy."""
    runs = load_runs(world(0.2).runs)
    structure, frame = structure_of(runs, law="joint", deaths=False), make_frame(runs, 0.9)
    data, labels = make_data(runs, frame, subsets=True)
    priors = {k: p.distribution for k, p in resolve_priors(None, law="joint").items() if k not in structure.without()}
    rng = np.random.default_rng(1)
    value = {name: VALUE[name] for name in priors if name in VALUE} | {"spread_subset": 0.2}
    value |= {name: 0.1 for name in priors if name not in value}
    latent = {"log_e_run": -2 + 0.1 * rng.standard_normal(24), "effect_p": 0.1 * rng.standard_normal(24)}
    model, found = make_model(structure), []
    for halfway in (np.zeros(6), rng.standard_normal(6)):
        given = value | latent | {"luck_halfway": halfway}
        found.append(float(log_density(model, (data, priors), {}, given)[0]))
    luck = np.sqrt(0.2) * root_of_covariance(labels.subsets, frame.log_dataset_size) @ halfway

    def of_runs(luck: np.ndarray) -> float:
        """The normal density of log e of the runs of every network, its covariance written out."""
        covariates = frame.covariates(labels.configurations)
        a = value["dense"] * (1 - value["share_c"]) * value["share_n"] * np.exp(-0.5 * covariates["dataset_size"])
        b = value["dense"] * (1 - value["share_c"]) * (1 - value["share_n"]) * np.exp(-0.5 * covariates["parameters"])
        c = value["dense"] * value["share_c"]
        terms = {"a": (value["dense"] - c) * value["share_n"], "b": (value["dense"] - c) * (1 - value["share_n"])}
        log_e = log_dense_of(value | terms | {"c": c}, covariates)
        total, growth = 0.0, np.exp(log_e - np.log(value["dense"])) ** value.get("growth_np", 0.0)
        for i in range(len(log_e)):
            own = np.flatnonzero(data.configuration == i)
            moved = np.log((a[i] * np.exp(luck[data.subset[own]]) + b[i] + c) / (a[i] + b[i] + c))
            left = latent["log_e_run"][own] - log_e[i] - moved
            variance = (value["spread_np"] * growth[i]) ** 2 * (0.5 * np.eye(len(own)) + 0.5)
            total -= 0.5 * (np.linalg.slogdet(variance)[1] + left @ np.linalg.solve(variance, left))
        return total

    prior = halfway_prior(0.2, 6)
    expected = of_runs(luck) - of_runs(np.zeros(6)) + float(prior.log_prob(halfway) - prior.log_prob(np.zeros(6)))
    assert found[1] - found[0] == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def lucky():
    """A world of clear luck, and the fit to all but two networks of it."""
    simulated = world(0.25)
    runs = load_runs(simulated.runs)
    outside = (runs["depth"] == 20) & (runs["width"] == 16)
    return simulated, runs, outside, fit(runs[~outside], law="joint", draws=300, chains=2, progress=False)


def test_the_luck_of_subsets_is_found(lucky):
    """Up to what all subsets of a size have in common, which is the dense law's: within four posterior sd."""
    simulated, _, _, fitted = lucky
    assert fitted.structure.subsets
    luck = fitted.posterior["luck"].to_numpy().reshape(-1, 2, 3)
    apart, true = luck - luck.mean(2, keepdims=True), simulated.luck.reshape(2, 3)
    true = true - true.mean(1, keepdims=True)
    assert (np.abs(apart.mean(0) - true) < 4 * apart.std(0)).all()
    assert apart.std(0).max() < 0.1 < np.abs(true).max()
    spread = fitted.posterior["spread_subset"].to_numpy()
    assert np.quantile(spread, 0.01) < 0.25 < np.quantile(spread, 0.99)


def test_runs_on_a_known_subset_are_predicted_better(lucky):
    """Log density and intervals of new networks, with and without the name of the subset, and without such a model."""
    _, runs, outside, fitted = lucky
    new = runs[outside]
    known, nameless = (score_runs(fitted, rows)["log_density"].sum() for rows in (new, new.drop(columns="subset_id")))
    assert known > nameless + 2
    designs = new[new["level"] == 0].assign(replicate=lambda rows: rows["replicate"])
    width = [np.log(p["upper"] / p["lower"]).mean() for p in (
        fitted.predict(designs, kind="run"), fitted.predict(designs.drop(columns="subset_id"), kind="run")
    )]  # fmt: skip
    assert width[0] < 0.8 * width[1]
    numbered = fitted.predict(designs.assign(subset_id=designs["subset_id"].astype(int)), kind="run")
    np.testing.assert_array_equal(numbered["upper"], fitted.predict(designs, kind="run")["upper"])
    _, luck, unknown = expected_luck(fitted, designs)
    assert (unknown == 0).all()
    assert (luck != 0).all()


def test_runs_of_a_replicate_share_a_new_subset(lucky):
    """Two networks of one replicate go together, of different replicates not; a mean is an average over subsets."""
    _, _, _, fitted = lucky
    designs = pd.DataFrame({"depth": 14, "width": [8, 12, 8], "dataset_size": 1000, "density": 1.0})
    draws = fitted.predict(designs.assign(replicate=[1, 1, 2]), kind="run", return_draws=True)
    logs = np.log(draws.to_numpy().reshape(-1, 3))
    mean = fitted.predict(designs, kind="mean", return_draws=True).to_numpy().reshape(-1, 3)
    same, other = np.corrcoef((logs - np.log(mean)).T)[0, 1:]
    assert same > other + 0.3
    assert np.exp(logs).mean(0) == pytest.approx(mean.mean(0), rel=0.05)


def test_a_table_without_names_of_subsets_has_no_luck():
    runs = load_runs(world(0.2).runs.drop(columns="subset_id"))
    own = prepare(runs, {"law": "joint"}, resolve_priors(None, law="joint"))
    assert not own.structure.subsets
    assert "spread_subset" not in own.priors
    assert own.data.luck_root.shape == (0, 0)


def test_runs_measured_later_are_predicted_from_the_whole_table(lucky):
    _, runs, outside, _ = lucky
    found = evaluate(runs[~outside], law="joint", later=runs[outside], repetitions=2, draws=150)
    assert list(found.gates) == ["whole table"]
    assert len(found.rows) == outside.sum()
    assert len(found.scores) == 6
    assert "2 networks measured later" in str(found)
    with pytest.raises(BayeslawError, match=r"later holds runs of .*other.*, and what is fitted"):
        evaluate(runs[~outside], later=runs[outside].assign(dataset="other"))
