"""Run tables drawn from the model by plain code, and what is true of them.

Written in NumPy from the formulas, the law in its direct form, and not from the code that is sampled: parameters go in
by name, one number each or `[draws, 1]` of a posterior, and the same functions serve the truth and the draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.special

from bayeslaw.curves import NODES
from bayeslaw.families import Family
from bayeslaw.frame import CONFIGURATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FAMILY, _INPUT_SHAPE, _CLASSES = "cifar_resnet", (3, 32, 32), 10
_COVARIATES = ("depth", "width", "parameters", "dataset_size")


@dataclass(frozen=True)
class Design:
    """Say which networks are trained and where their curves are measured.

    Attributes:
        configurations: (depth, width, dataset_size) of every network, in ascending order.
        replicates: Trajectories of each, at most 10.
        densities: Where each trajectory is measured, level by level.
        n_test: Number of test examples, or nothing if the table does not say: then there is no binomial floor.
        subsets: Whether the table says that a replicate's networks were trained on the same examples, those of a
            smaller dataset size among those of a larger one.
    """

    configurations: tuple[tuple[int, int, int], ...]
    replicates: int
    densities: tuple[float, ...]
    n_test: int | None = None
    subsets: bool = False

    @property
    def chance_error(self) -> float:
        """Error of guessing."""
        return 1 - 1 / _CLASSES

    @property
    def configuration(self) -> NDArray[np.intp]:
        """Configuration of each trajectory, `[trajectories]`."""
        return np.repeat(np.arange(len(self.configurations)), self.replicates)

    @property
    def trajectory(self) -> NDArray[np.intp]:
        """Trajectory of each row, `[rows]`."""
        return np.repeat(np.arange(len(self.configuration)), len(self.densities))

    @property
    def rounds(self) -> NDArray[np.float64]:
        """Rounds of 20 % that lead to each density, `[levels]`."""
        return np.log(self.densities) / np.log(0.8)

    def rows(self) -> pd.DataFrame:
        """List the rows of the run table, without their errors."""
        networks = pd.DataFrame(self.configurations, columns=pd.Index(CONFIGURATION)).iloc[self.configuration]
        rows = networks.iloc[self.trajectory].reset_index(drop=True)
        levels = np.arange(len(rows)) % len(self.densities)
        rows = rows.assign(
            replicate=self.trajectory % self.replicates, level=levels, density=np.array(self.densities)[levels]
        )
        shape = ",".join(map(str, _INPUT_SHAPE))
        rows = rows.assign(family=_FAMILY, dataset="simulated", classes=_CLASSES, input_shape=shape)
        rows = rows.assign(subset_id=rows["replicate"].astype(str)) if self.subsets else rows
        return rows if self.n_test is None else rows.assign(n_test=self.n_test)

    def covariates(self, configurations: NDArray | None = None) -> dict[str, NDArray]:
        """Give logs of depth, width, parameter count and dataset size, from the mean of the design's own networks.

        Args:
            configurations: (depth, width, dataset_size), `[networks, 3]`; the design's own if not given.

        Returns:
            One entry per network, by name.
        """

        def logs(networks: Any) -> dict[str, NDArray]:
            depth, width, size = np.array(networks, float).T
            count = Family(_FAMILY, _INPUT_SHAPE, _CLASSES).parameters(depth, width)
            return {k: np.log(v) for k, v in zip(_COVARIATES, (depth, width, count, size), strict=True)}

        centre = {name: values.mean() for name, values in logs(self.configurations).items()}
        asked = logs(self.configurations if configurations is None else configurations)
        return {name: values - centre[name] for name, values in asked.items()}


@dataclass(frozen=True)
class Fault:
    """Say in what the world that makes the tables differs from what the model takes it to be.

    A factor on what makes the data is, to the fit, the inverse factor in its own likelihood. Rows entered again under
    level numbers of their own, in the same trajectory at the same density, multiply the likelihood given the effects
    and nothing else.

    Attributes:
        noise: Factor on the scale of the noise.
        gamma: Factor on the slope of the law.
        copies: How often every row stands in the table.
    """

    noise: float = 1.0
    gamma: float = 1.0
    copies: int = 1


@dataclass(frozen=True)
class Simulated:
    """Hold a run table and the truth behind it.

    Attributes:
        runs: The table; where rows are entered again, the first of each come first.
        value: The parameters by name.
        log_e: Log dense error before it saturates, `[configurations]`.
        log_e_run: The same of the trajectories, the luck of their subsets included, `[trajectories]`.
        shift_p: Sideways shift of the configurations, `[configurations]`.
        effect_p: Sideways effect of the trajectories, that of their configuration included, `[trajectories]`.
        response: Empirical logits of the errors, `[rows]`, every row once.
        dead: Whether a row is a dead network's, `[rows]`.
        luck: Of the subsets, `[dataset sizes x replicates]`, from the smallest; nothing where there is none.
    """

    runs: pd.DataFrame
    value: dict[str, float]
    log_e: NDArray
    log_e_run: NDArray
    shift_p: NDArray
    effect_p: NDArray
    response: NDArray
    dead: NDArray
    luck: NDArray


def simulate(
    design: Design, value: Mapping[str, float], rng: np.random.Generator, fault: Fault | None = None
) -> Simulated:
    """Draw effects, errors and noise, and put them into a run table.

    Errors are not rounded to counts. The model's likelihood is that of a continuous empirical logit, so rounding would
    be a second, small misfit and the calibration of correct code would be off by it; `load_runs` takes any error in
    [0, 1] beside `n_test`, and `empirical_logit` of the error made here is the response drawn, to the last digits. A
    response beyond what 0 or `n_test` wrong can give is cut off there: with ten thousand examples, and priors that keep
    the tails light, that is less than one row in a million.

    Args:
        design: Networks, replicates and densities.
        value: Parameters by the names of `bayeslaw.default_priors`; parts of the model that are not named are not
            there. The law is the joint one, with `sharpness` where that is named; without `phi`, `psi`, shares and
            spreads it is that of one run of one network.
        rng: Source of all randomness.
        fault: What is wrong with the world, if anything.

    Returns:
        The table and the truth.

    Example:
        >>> design = Design(((20, 16, 50_000),), 1, (1.0, 0.1, 0.01))
        >>> value = {"gamma": 1.0, "knee": 0.02, "plateau": 0.9, "dense": 0.1, "sigma": 0.05}
        >>> simulate(design, value, np.random.default_rng(0)).runs["error"].round(2).tolist()
        [0.08, 0.17, 0.73]
    """
    fault = fault or Fault()
    value = dict(value)
    covariates, of_run = design.covariates(), design.configuration
    centre = log_dense(value, covariates)
    none = np.zeros_like(centre)
    spread = {"sigma_np": none, "tau_np": none, "sigma_p": none, "tau_p": none} | spreads(value, covariates)
    spread["tau_np"] = np.hypot(spread["tau_np"], lasting_noise(design, value, covariates))
    log_e = centre + spread["sigma_np"] * rng.standard_normal(len(centre))
    log_e_run = log_e[of_run] + spread["tau_np"][of_run] * rng.standard_normal(len(of_run))
    luck = _draw_luck(design, value, rng) if "spread_subset" in value else {}
    if luck:
        sizes, replicate = np.array(design.configurations)[of_run, 2], np.arange(len(of_run)) % design.replicates
        share = share_of_data(value, covariates)[of_run]
        lucks = np.array([luck[key] for key in zip(sizes, replicate, strict=True)])
        log_e_run = log_e_run + np.log(1 - share + share * np.exp(lucks))
    effect_p = spread["tau_p"][of_run] * rng.standard_normal(len(of_run))
    shift_p = spread["sigma_p"] * rng.standard_normal(len(centre)) if "spread_p" in value else none
    effect_p = shift_p[of_run] + effect_p
    made_with = value | {"gamma": value["gamma"] * fault.gamma}
    location, scale = observation(design, made_with, log_e_run, effect_p)
    noise = rng.standard_t(value["nu"], location.shape) if "nu" in value else rng.standard_normal(location.shape)
    error, dead = _measure(design, value, location, fault.noise * scale, noise, rng)
    runs = design.rows().assign(error=error)
    levels = len(design.densities)
    runs = pd.concat([runs.assign(level=runs["level"] + i * levels) for i in range(fault.copies)], ignore_index=True)
    response, lucks = logit_of_error(error, design.n_test), np.array([luck[key] for key in sorted(luck)])
    return Simulated(runs, value, log_e, log_e_run, shift_p, effect_p, response, dead, lucks)


def _draw_luck(design: Design, value: Mapping[str, float], rng: np.random.Generator) -> dict[Any, float]:
    """Draw the luck of subsets by dataset size and replicate: a sum that grows as examples are taken away."""
    sizes = sorted({network[2] for network in design.configurations}, reverse=True)
    central = np.exp(np.mean(np.log([network[2] for network in design.configurations])))
    found: dict[Any, float] = {}
    for replicate in range(design.replicates):
        luck, before = 0.0, 0.0
        for size in sizes:
            variance = value["spread_subset"] ** 2 * central / size
            luck, before = luck + np.sqrt(variance - before) * rng.standard_normal(), variance
            found[size, replicate] = luck
    return found


def _measure(
    design: Design, value: Mapping[str, float], location: NDArray, scale: NDArray, noise: NDArray, rng: Any
) -> tuple[NDArray, NDArray]:
    """Measure level by level: networks may die, and noise goes with that of the level before if there they lived.

    Returns:
        The errors, and whether they are of dead networks.
    """
    rounds = design.rounds
    error, dead = np.empty_like(location), np.zeros(location.shape, bool)
    hazard = _hazards(design, value, location) if "dies" in value else np.zeros(len(location))
    before = 0.0
    for row, level in enumerate(np.arange(len(location)) % len(rounds)):
        was_dead = level > 0 and dead[row - 1]
        if "dies" in value:
            dead[row] = rng.random() < (value["stays"] if was_dead else hazard[row])
        if dead[row]:
            error[row] = design.chance_error
            continue
        follows = level > 0 and not was_dead
        share = value.get("rho", 0.0) ** (rounds[level] - rounds[level - 1]) if follows else 0.0
        before = share * before + np.sqrt(1 - share**2) * noise[row]
        error[row] = error_of_logit(location[row] + scale[row] * before, design.n_test)
    return error, dead


def _hazards(design: Design, value: Mapping[str, float], location: NDArray) -> NDArray[np.float64]:
    """Give the probability that a living network dies by a level, and by an unpruned one that it never lived."""
    hazard = value["dies"] * (scipy.special.expit(location) / design.chance_error) ** value["dies_power"]
    if "born_dead" not in value or design.rounds[0] > 0:
        return hazard
    first = np.arange(len(location)) % len(design.rounds) == 0
    never = share_born_dead(value, design.covariates())[design.configuration[design.trajectory]]
    return np.where(first, never, hazard)


def share_born_dead(value: Mapping[str, float], covariates: Mapping[str, NDArray]) -> NDArray[np.float64]:
    """Give the probability that runs of networks never live; 0 where there are no deaths."""
    odds = value.get("born_dead", 0.0) * np.exp(-value.get("born_power", 0.0) * covariates["width"])
    return odds / (1 + odds)


def log_dense(value: Mapping[str, Any], covariates: Mapping[str, NDArray]) -> Any:
    """Compute log e of networks by the dense law with its curvature; of a single one it is a constant."""
    if "share_c" not in value:
        return np.log(value["dense"]) + 0 * covariates["depth"]
    bent, axes = 0.0, {"depth": "depth", "width": "width", "size": "dataset_size"}
    for (one, first), (two, second) in itertools.combinations_with_replacement(axes.items(), 2):
        name = f"curvature_{one}" if one == two else f"curvature_{one}_{two}"
        bent = bent + value.get(name, 0.0) * covariates[first] * covariates[second]
    return log_power_laws(value, covariates) + bent


def log_power_laws(value: Mapping[str, Any], covariates: Mapping[str, NDArray]) -> Any:
    """Compute log(a n^-alpha + b (m l^omega)^-beta + c)."""
    c = value["dense"] * value["share_c"]
    a = (value["dense"] - c) * value["share_n"]
    b = value["dense"] - c - a
    capacity = covariates["parameters"] + value.get("omega", 0.0) * covariates["depth"]
    return np.log(a * np.exp(-value["alpha"] * covariates["dataset_size"]) + b * np.exp(-value["beta"] * capacity) + c)


def share_of_data(value: Mapping[str, Any], covariates: Mapping[str, NDArray]) -> Any:
    """Give the share of networks' e that data remove."""
    a = value["dense"] * (1 - value["share_c"]) * value["share_n"]
    return a * np.exp(-value["alpha"] * covariates["dataset_size"]) / np.exp(log_power_laws(value, covariates))


def spreads(value: Mapping[str, Any], covariates: Mapping[str, NDArray]) -> dict[str, Any]:
    """Give the spreads of networks (`sigma_np`, `sigma_p`) and runs (`tau_np`, `tau_p`), as far as there are such."""
    above = log_dense(value, covariates) - np.log(value["dense"])
    log_grown = {
        name: value.get(f"growth_{name}", 0.0) * above - value.get(f"narrow_{name}", 0.0) * covariates["width"]
        for name in ("np", "p")
    }
    found = {}
    for name in ("np", "p"):
        if f"spread_{name}" in value:
            total, share = value[f"spread_{name}"] * np.exp(log_grown[name]), value.get(f"share_{name}", 1.0)
            found[f"sigma_{name}"], found[f"tau_{name}"] = total * np.sqrt(share), total * np.sqrt(1 - share)
    return found


def lasting_noise(design: Design, value: Mapping[str, Any], covariates: Mapping[str, NDArray]) -> Any:
    """Give by how much log e of networks spreads between runs for test examples that a run keeps getting wrong."""
    if "lasting" not in value or design.n_test is None:
        return 0.0
    e = np.exp(log_dense(value, covariates))
    expected = design.chance_error * value["plateau"] * e / np.sqrt(e**2 + 1)
    return np.sqrt(value["lasting"] * (1 - expected) / (design.n_test * expected))


def curve(
    value: Mapping[str, Any],
    log_e: Any,
    effect_p: Any,
    covariates: Mapping[str, Any],
    chance_error: float,
    density: Any,
) -> tuple[Any, Any]:
    """Compute the law and its slope d log error / d log density.

    Source:
        Rosenfeld et al., ICML 2021, equations (1) and (2), squared: with A = p (eps_up / eps_np)^(1 / gamma),
        eps = eps_np ((m^2 + A^2) / (m^2 + p^2))^(gamma / 2). Another sharpness stands for every 2 of it.
    """
    k = value.get("sharpness", 2.0)
    eps_up = chance_error * value["plateau"]
    eps_np = eps_up * np.exp(log_e) / np.sqrt(np.exp(2 * log_e) + 1)
    exponents = {"depth": "phi", "width": "psi", "dataset_size": "chi"}
    invariant = sum(value.get(exponent, 0.0) * covariates[axis] for axis, exponent in exponents.items())
    m, p = density * np.exp(invariant), value["knee"] * np.exp(effect_p)
    low, high = p * (eps_up / eps_np) ** (1 / value["gamma"]), p
    error = eps_np * ((m**k + low**k) / (m**k + high**k)) ** (value["gamma"] / k)
    return error, value["gamma"] * (m**k / (m**k + low**k) - m**k / (m**k + high**k))


def observation(design: Design, value: Mapping[str, Any], log_e_run: Any, effect_p: Any) -> tuple[Any, Any]:
    """Give location and scale of every row's empirical logit, `[..., rows]`, from effects `[..., trajectories]`."""
    of_row = design.configuration[design.trajectory]
    covariates = {name: values[of_row] for name, values in design.covariates().items()}
    density = np.tile(design.densities, len(design.configuration))
    effects = log_e_run[..., design.trajectory], effect_p[..., design.trajectory]
    error, slope = curve(value, *effects, covariates, design.chance_error, density)
    scale = structural_scale(value, error, slope)
    if design.n_test is None:
        return np.log(error / (1 - error)), scale
    wrong, right = design.n_test * error + 0.5, design.n_test * (1 - error) + 0.5
    return np.log(wrong / right), np.sqrt(scale**2 + value["floor"] ** 2 * (1 / wrong + 1 / right))


def structural_scale(value: Mapping[str, Any], error: Any, slope: Any) -> Any:
    """Give the scale of a population error's logit about the curve, from the curve's error and slope, broadcast."""
    jitter = value.get("kappa", 0.0) * slope / (1 - error)
    return np.hypot(value["sigma"], jitter) * (2 * error) ** value.get("noise_power", 0.0)


def log_likelihood(
    design: Design, value: Mapping[str, Any], log_e_run: Any, effect_p: Any, response: NDArray, dead: NDArray
) -> NDArray[np.float64]:
    """Compute the joint log density of the responses of living networks, given the effects of the trajectories.

    Args:
        design: Where they were measured.
        value: The parameters.
        log_e_run: Log dense error of the trajectories, `[..., trajectories]`.
        effect_p: Their sideways effects, likewise.
        response: Empirical logits, `[rows]`.
        dead: Whether a row is a dead network's, `[rows]`.

    Returns:
        Log densities, `[...]`.
    """
    location, scale = (part[..., ~dead] for part in observation(design, value, log_e_run, effect_p))
    residual = (response[~dead] - location) / scale
    if "rho" in value:
        rounds = np.tile(design.rounds, len(design.configuration))[~dead]
        follows = (np.diff(design.trajectory, prepend=-1) == 0) & ~np.concatenate([[False], dead[:-1]])
        share = np.where(follows[~dead], value["rho"] ** np.abs(np.diff(rounds, prepend=0.0)), 0.0)
        before = np.concatenate([np.zeros_like(residual[..., :1]), residual[..., :-1]], axis=-1)
        residual, scale = (residual - share * before) / np.sqrt(1 - share**2), scale * np.sqrt(1 - share**2)
    squared = residual**2
    if "nu" not in value:
        return np.sum(-0.5 * squared - np.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1)
    nu = value["nu"]
    constant = scipy.special.gammaln((nu + 1) / 2) - scipy.special.gammaln(nu / 2) - 0.5 * np.log(np.pi * nu)
    return np.sum(constant - np.log(scale) - (nu + 1) / 2 * np.log1p(squared / nu), axis=-1)


def mean_error(
    design: Design,
    value: Mapping[str, float],
    effects: tuple[float, float],
    network: tuple[int, int, int],
    density: float,
) -> float:
    """Average the error of a network over the effects of a new run, by the quadrature that `predict` defines it with.

    Args:
        design: Its networks are the centre of the covariates.
        value: Parameters by name, one number each.
        effects: Log dense error of the network, discrepancy included, and its sideways shift.
        network: Depth, width and dataset size.
        density: Where on the curve.

    Returns:
        The mean error.
    """
    covariates = design.covariates(np.array([network]))
    spread = spreads(value, covariates)
    if "spread_subset" in value:
        of_luck = share_of_data(value, covariates) * np.exp(-covariates["dataset_size"] / 2)
        spread["tau_np"] = np.hypot(spread.get("tau_np", 0.0), value["spread_subset"] * of_luck)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    up, sideways = spread.get("tau_np", 0.0) * nodes[:, None], spread.get("tau_p", 0.0) * nodes
    error, _ = curve(value, effects[0] + up, effects[1] + sideways, covariates, design.chance_error, density)
    return float(weights @ np.broadcast_to(error, (NODES, NODES)) @ weights / weights.sum() ** 2)


def error_of_logit(logit: NDArray, n_test: int | None) -> NDArray:
    """Undo the empirical logit, without rounding to a count; the plain logit where n_test is unknown."""
    share = scipy.special.expit(logit)
    return share if n_test is None else np.clip((share * (n_test + 1) - 0.5) / n_test, 0.0, 1.0)


def logit_of_error(error: NDArray, n_test: int | None) -> NDArray:
    """Compute the empirical logit of an error."""
    if n_test is None:
        return scipy.special.logit(error)
    return np.log((n_test * error + 0.5) / (n_test * (1 - error) + 0.5))
