"""The joint law's probability model in plain NumPy: it makes run tables, and gives their log density.

Written from the docstrings of `bayeslaw.model` and the design's formulas, in the paper's units, with the law in its
direct form and the slope by a complex step. Nothing here comes from `bayeslaw`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
from numpy.typing import NDArray

CONFIGURATION = ["depth", "width", "dataset_size"]
CURVATURE = (
    "curvature_depth", "curvature_width", "curvature_size", "curvature_depth_width", "curvature_depth_size",
    "curvature_width_size",
)  # fmt: skip
WIDTH_REFERENCE = 16.0


def count_parameters(depth: int, width: int, channels: int = 1, classes: int = 10) -> tuple[int, int]:
    """Count the prunable and the other parameters of a CIFAR ResNet, layer by layer."""
    blocks = (depth - 2) // 6
    prunable, norms, inputs = 9 * channels * width, [width], width
    for stage, block in itertools.product(range(3), range(blocks)):
        outputs = width * 2**stage
        prunable += 9 * inputs * outputs + 9 * outputs * outputs
        norms += [outputs, outputs]
        if stage > 0 and block == 0:
            prunable += inputs * outputs
            norms.append(outputs)
        inputs = outputs
    return prunable + inputs * classes, 2 * sum(norms) + classes


def kept_by_round(prunable: int, rounds: int) -> list[int]:
    """List the weights kept after every round that removes a fifth, rounded down."""
    kept = [prunable]
    for _ in range(rounds):
        kept.append(kept[-1] - kept[-1] // 5)
    return kept


def error_of(eps_np: Any, eps_up: Any, gamma: Any, p: Any, m: Any, k: Any = 2.0) -> Any:
    """Compute the law, with sharpness k, in its direct form, fine in float64 for slopes of about one."""
    return eps_np * ((m**k + p**k * (eps_up / eps_np) ** (k / gamma)) / (m**k + p**k)) ** (gamma / k)


def slope_of_logit(eps_np: Any, eps_up: Any, gamma: Any, p: Any, m: Any, k: Any = 2.0) -> Any:
    """Differentiate the logit of the error by log m, exactly, by a complex step."""
    step = 1e-20
    error = error_of(eps_np, eps_up, gamma, p, m * np.exp(1j * step), k)
    return np.imag(np.log(error / (1 - error))) / step


def saturated(e: Any, eps_up: Any) -> Any:
    """Bend the dense law towards the high plateau."""
    return eps_up * e / np.sqrt(e**2 + 1)


def observation_of(error: Any, slope: Any, n_test: Any, value: Mapping[str, Any]) -> tuple[Any, Any]:
    """Give location and scale of log((wrong + 1/2) / (right + 1/2)), or of the plain logit where n_test is infinite."""
    known = np.isfinite(n_test)
    count, half = np.where(known, n_test, 1.0), np.where(known, 0.5, 0.0)
    wrong, right = count * error + half, count * (1 - error) + half
    binomial = np.where(known, 1 / wrong + 1 / right, 0.0)
    floor, risen = value.get("floor", 0.0), (2 * error) ** value["noise_power"]
    own = value["sigma"] ** 2 + (value["kappa"] * slope) ** 2
    return np.log(wrong / right), np.sqrt(floor**2 * binomial + risen**2 * own)


def log_dense_of(value: Mapping[str, Any], at: Mapping[str, Any]) -> Any:
    """Compute log e of networks from the terms a, b and c of the dense law and centred logs, curvature included."""
    depth, width, n = (at[name] for name in CONFIGURATION)
    m = at["parameters"] + value.get("omega", 0.0) * depth
    terms = value["a"] * np.exp(-value["alpha"] * n) + value["b"] * np.exp(-value["beta"] * m) + value["c"]
    products = (depth**2, width**2, n**2, depth * width, depth * n, width * n)
    bent = (value.get(name, 0.0) * product for name, product in zip(CURVATURE, products, strict=True))
    return np.log(terms) + sum(bent)


def spread_at(value: Mapping[str, Any], name: str, log_dense: Any, log_width: Any = 0.0) -> Any:
    """Grow a spread of the central network to that of one of this dense error and width; 0 where there is none."""
    where = "p" if name.endswith("_p") else "np"
    error_ratio, width_ratio = np.exp(log_dense) / value["dense"], np.exp(log_width)
    grown = error_ratio ** value.get(f"growth_{where}", 0.0) / width_ratio ** value.get(f"narrow_{where}", 0.0)
    return value.get(name, 0.0) * grown


def measured_spread(value: Mapping[str, Any], log_dense: Any, eps_up: Any, n_test: Any, log_width: Any = 0.0) -> Any:
    """Add to the spread of runs what lasts of their test set's noise: wrong answers vary as those of coins do."""
    wrong = n_test * saturated(np.exp(log_dense), eps_up)
    relative = value.get("lasting", 0.0) * wrong * (1 - wrong / n_test) / wrong**2 if np.isfinite(n_test) else 0.0
    return np.sqrt(spread_at(value, "tau_np", log_dense, log_width) ** 2 + relative)


def log_student_t(x: Any, nu: Any, location: Any, scale: Any) -> Any:
    """Compute the log density of Student's t."""
    z = (x - location) / scale
    constant = scipy.special.gammaln((nu + 1) / 2) - scipy.special.gammaln(nu / 2) - np.log(np.pi * nu) / 2
    return constant - np.log(scale) - (nu + 1) / 2 * np.log1p(z**2 / nu)


def log_density_along(value: Mapping[str, Any], density: Any, response: Any, location: Any, scale: Any) -> Any:
    """Compute the log densities of the rows of one trajectory, each given the one before where there is `rho`.

    Locations and scales are `[..., rows]`, of values one row or `[..., 1]`.
    """
    result = log_student_t(response, value["nu"], location, scale)
    order = np.argsort(-density)
    for before, row in itertools.pairwise(order) if "rho" in value else ():
        share = value["rho"] ** (np.log(density[before] / density[row]) / np.log(1 / 0.8))
        nu, share = (np.reshape(part, np.shape(part)[:-1]) for part in np.broadcast_arrays(value["nu"], share))
        residual = (response[before] - location[..., before]) / scale[..., before]
        expected = location[..., row] + scale[..., row] * share * residual
        result[..., row] = log_student_t(response[row], nu, expected, scale[..., row] * np.sqrt(1 - share**2))
    return result


@dataclass(frozen=True)
class Truth:
    """Hold what a table is made of: `p_prime` in the paper's units; it and the dense law are of the central network."""

    gamma: float = 1.3
    phi: float = 0.9
    psi: float = 1.2
    chi: float = 0.1
    p_prime: float = 0.025
    eps_up: float = 0.88
    a: float = 0.06
    alpha: float = 0.6
    b: float = 0.05
    beta: float = 0.5
    omega: float = -0.3
    c: float = 0.01
    sigma_np: float = 0.08
    tau_np: float = 0.1
    sigma_p: float = 0.1
    tau_p: float = 0.12
    sigma: float = 0.05
    kappa: float = 0.1
    noise_power: float = 0.5
    floor: float = 1.0
    nu: float = 8.0


@dataclass(frozen=True)
class Simulated:
    """Hold a run table with the truth behind it: `eps_np` by (depth, width, dataset_size)."""

    runs: pd.DataFrame
    truth: Truth
    eps_np: dict[tuple[int, int, int], float] = field(repr=False)


def simulate(
    truth: Truth,
    *,
    depths: Sequence[int] = (8, 14),
    widths: Sequence[int] = (2, 4, 8),
    dataset_sizes: Sequence[int] = (2000, 250),
    chosen: Sequence[int] | None = None,
    replicates: int = 2,
    levels: Sequence[int] = tuple(range(0, 30, 2)),
    n_test: int = 797,
    seed: int = 0,
) -> Simulated:
    """Draw a run table from the model, errors rounded to counts; `chosen` picks from the grid by position."""
    rng, of_shifts = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    grid = list(itertools.product(depths, widths, dataset_sizes))
    grid = grid if chosen is None else [grid[i] for i in chosen]
    log_m = {(d, w, n): np.log(sum(count_parameters(d, w)) * d**truth.omega) for d, w, n in grid}
    m_0, n_0 = np.mean(list(log_m.values())), np.mean([np.log(n) for _, _, n in grid])
    t, rows, plateaus = truth, [], {}
    for d, w, n in grid:
        dense = t.a * np.exp(-t.alpha * (np.log(n) - n_0)) + t.b * np.exp(-t.beta * (log_m[d, w, n] - m_0)) + t.c
        own = dense * np.exp(t.sigma_np * rng.standard_normal())
        shift = t.sigma_p * of_shifts.standard_normal() - t.chi * (np.log(n) - n_0)
        plateaus[d, w, n] = float(saturated(own, t.eps_up))
        prunable, other = count_parameters(d, w)
        kept = np.array(kept_by_round(prunable, max(levels)))[list(levels)]
        for replicate in range(replicates):
            eps_np = saturated(own * np.exp(t.tau_np * rng.standard_normal()), t.eps_up)
            p = t.p_prime * np.exp(shift + t.tau_p * rng.standard_normal())
            curve = (eps_np, t.eps_up, t.gamma, p, d**t.phi * (w / WIDTH_REFERENCE) ** t.psi * kept / prunable)
            location, scale = observation_of(error_of(*curve), slope_of_logit(*curve), n_test, vars(t))
            share = 1 / (1 + np.exp(-(location + scale * rng.standard_t(t.nu, len(kept)))))
            wrong = np.clip(np.round(share * (n_test + 1) - 0.5), 0, n_test).astype(int)
            rows.append(
                pd.DataFrame({
                    "family": "cifar_resnet", "dataset": "digits", "classes": 10, "input_shape": "1,8,8",
                    "depth": d, "width": w, "dataset_size": n, "replicate": replicate, "level": levels,
                    "density": kept / prunable, "kept": kept, "prunable": prunable, "parameters": prunable + other,
                    "n_wrong": wrong, "n_test": n_test, "error": wrong / n_test,
                })
            )  # fmt: skip
    return Simulated(pd.concat(rows, ignore_index=True), truth, plateaus)


class Reference:
    """Compute the model's log density for a run table, its pieces broadcast over leading axes of parameter values.

    `configurations` are in ascending order, `trajectories` in ascending order of (configuration, key).
    """

    def __init__(self, runs: pd.DataFrame, chance_error: float = 0.9) -> None:
        self.runs, self.chance_error = runs, chance_error
        self.configurations = sorted(set(runs[CONFIGURATION].itertuples(index=False, name=None)))
        keys = runs["trajectory"] if "trajectory" in runs else ["all"] * len(runs)
        of_row = [(*row, key) for row, key in zip(runs[CONFIGURATION].itertuples(index=False), keys, strict=True)]
        self.trajectories = sorted(set(of_row))
        self.trajectory = np.array([self.trajectories.index(name) for name in of_row])
        self.configuration = np.array([self.configurations.index(name[:3]) for name in self.trajectories])
        self.log_depth, self.log_width, self.log_size = np.log(np.array(self.configurations, float)).T
        self.log_width = self.log_width - np.log(WIDTH_REFERENCE)
        self.log_parameters = np.log([sum(count_parameters(int(d), int(w))) for d, w, _ in self.configurations])
        self.n_test = runs["n_test"].to_numpy(float) if "n_test" in runs else np.full(len(runs), np.inf)
        known = np.isfinite(self.n_test)
        count, half = np.where(known, self.n_test, 1.0), np.where(known, 0.5, 0.0)
        error = runs["error"].to_numpy(float)
        self.response = np.log((count * error + half) / (count * (1 - error) + half))

    def p_prime(self, value: Mapping[str, Any]) -> Any:
        """Turn the knee of the central network into the paper's unit, at the central dataset size."""
        return value["knee"] * np.exp(value["phi"] * self.log_depth.mean() + value["psi"] * self.log_width.mean())

    @property
    def centred_width(self) -> NDArray[np.float64]:
        """Log width of the configurations about their mean."""
        return self.log_width - self.log_width.mean()

    def log_dense(self, value: Mapping[str, Any]) -> Any:
        """Compute the log of the dense law about the centre, `[..., configurations]`."""
        logs = (self.log_depth, self.log_width, self.log_size, self.log_parameters)
        at = dict(zip((*CONFIGURATION, "parameters"), (each - each.mean() for each in logs), strict=True))
        c = value["dense"] * value["share_c"]
        a = (value["dense"] - c) * value["share_n"]
        return log_dense_of({**value, "a": a, "b": value["dense"] - c - a, "c": c}, at)

    def fates(self) -> list[str]:
        """Tell row by row what became of the network: dead is guessing, and near it what is repeated beyond chance."""
        error, density = (self.runs[name].to_numpy(float) for name in ("error", "density"))
        orders = []
        for t in range(len(self.trajectories)):
            own = np.flatnonzero(self.trajectory == t)
            orders.append(own[np.argsort(-density[own])])
        rare = 1 / np.sqrt(4 * np.pi * np.median(self.n_test) * self.chance_error * (1 - self.chance_error)) < 0.01
        dead_errors, followed = {self.chance_error} if rare else set(), []
        for order in orders:
            followed += [(error[before], error[row]) for before, row in itertools.pairwise(order)]
        for own in {own for own, then in followed if own == then and own >= 0.9 * self.chance_error}:
            then = [after == own for before, after in followed if before == own]
            same = 1 / np.sqrt(4 * np.pi * np.median(self.n_test) * own * (1 - own))
            if scipy.stats.binomtest(sum(then), len(then), same, alternative="greater").pvalue < 0.01:
                dead_errors.add(own)
        found, names = [""] * len(error), {True: ("died", "stayed"), False: ("lived", "revived")}
        for order in orders:
            was_dead = False
            for row in order:
                dead = any(abs(error[row] - own) < 1e-9 for own in dead_errors)
                found[row], was_dead = names[dead][was_dead], dead
            if density[order[0]] == 1:
                found[order[0]] = {"lived": "born alive", "died": "born dead"}[found[order[0]]]
        return found

    def log_probability_of_fates(self, value: Mapping[str, Any], log_e: Any, effect_p: Any) -> Any:
        """Compute the log probability of what became of every row's network, as `log_likelihood_of_rows` does."""
        mean = error_of(*self._curves(value, log_e, effect_p))
        hazard = value["dies"] * (mean / self.chance_error) ** value["dies_power"]
        stays = value["stays"] + 0 * mean
        width = self.centred_width[self.configuration[self.trajectory]]
        never = 1 / (1 + np.exp(value["born_power"] * width) / value["born_dead"]) + 0 * mean
        each = {"lived": 1 - hazard, "died": hazard, "revived": 1 - stays, "stayed": stays}
        each |= {"born alive": 1 - never, "born dead": never}
        return np.stack([np.log(each[fate])[..., row] for row, fate in enumerate(self.fates())], axis=-1)

    def log_likelihood_of_rows(self, value: Mapping[str, Any], log_e: Any, effect_p: Any) -> Any:
        """Compute the log density of every response, given those of trajectories; values are `[..., 1]`.

        With deaths among the values, that of dead networks is the probability of their fate, of the others of both.
        """
        curve = self._curves(value, log_e, effect_p)
        mean = error_of(*curve)
        location, scale = observation_of(mean, slope_of_logit(*curve), self.n_test, value)
        dead = np.zeros(len(self.runs), bool)
        if "dies" in value:
            dead = np.isin(self.fates(), ["died", "stayed", "born dead"])
        if "rho" not in value:
            measured = log_student_t(self.response, value["nu"], location, scale)
        else:
            measured = self._given_the_row_before(value, location, scale, dead)
        measured = np.where(dead, 0.0, measured)
        return measured + self.log_probability_of_fates(value, log_e, effect_p) if "dies" in value else measured

    def _curves(self, value: Mapping[str, Any], log_e: Any, effect_p: Any) -> tuple[Any, ...]:
        """Give the arguments of `error_of` for every row."""
        of_row = self.configuration[self.trajectory]
        depth, width = np.exp(self.log_depth[of_row]), np.exp(self.log_width[of_row])
        eps_up = self.chance_error * value["plateau"]
        eps_np = saturated(np.exp(log_e[..., self.trajectory]), eps_up)
        p = self.p_prime(value) * np.exp(effect_p[..., self.trajectory])
        m = depth ** value["phi"] * width ** value["psi"] * self.runs["density"].to_numpy(float)
        m = m * np.exp(value.get("chi", 0.0) * (self.log_size - self.log_size.mean())[of_row])
        return (eps_np, eps_up, value["gamma"], p, m, value.get("sharpness", 2.0))

    def _given_the_row_before(self, value: Mapping[str, Any], location: Any, scale: Any, dead: NDArray) -> Any:
        """Correlate residuals along each trajectory, row by row, rho a round of 20 %; locations are `[..., rows]`.

        Dead rows part a trajectory.
        """
        result, density = np.zeros(np.broadcast_shapes(location.shape, scale.shape)), self.runs["density"].to_numpy()
        part = np.zeros(len(dead), int)
        for t in range(len(self.trajectories)):
            own = np.flatnonzero(self.trajectory == t)
            order = own[np.argsort(-density[own])]
            part[order] = np.cumsum(dead[order])
        for t, k in set(zip(self.trajectory[~dead].tolist(), part[~dead].tolist(), strict=True)):
            own = np.flatnonzero((self.trajectory == t) & (part == k) & ~dead)
            parts = (self.runs["density"].to_numpy(float)[own], self.response[own], location[..., own], scale[..., own])
            result[..., own] = log_density_along(value, *parts)
        return result

    def log_density_of_groups(self, effects: NDArray, centre: NDArray, sigma: NDArray, tau: NDArray) -> float:
        """Compute the log density of effects of the trajectories, jointly normal within a configuration."""
        total = 0.0
        for i in range(len(self.configurations)):
            own = effects[self.configuration == i]
            covariance = sigma[i] ** 2 * np.ones((len(own), len(own))) + tau[i] ** 2 * np.eye(len(own))
            total += scipy.stats.multivariate_normal.logpdf(own, np.full(len(own), centre[i]), covariance)
        return float(total)
