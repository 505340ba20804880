"""The joint law's probability model in plain NumPy: it makes run tables, and the log density that the model must have.

Written from the docstring of `bayeslaw.model` and the design's formulas, in the paper's units and with the law in its
direct form; nothing here comes from `bayeslaw`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

WIDTH_REFERENCE = 16.0


def count_parameters(depth: int, width: int, channels: int = 1, classes: int = 10) -> tuple[int, int]:
    """Count prunable and other parameters of a CIFAR ResNet, layer by layer."""
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


def error_of(eps_np, eps_up, gamma, p, m):
    """Compute the law in its direct form, fine in float64 for slopes of about one."""
    return eps_np * ((m**2 + p**2 * (eps_up / eps_np) ** (2 / gamma)) / (m**2 + p**2)) ** (gamma / 2)


def slope_of_logit(eps_np, eps_up, gamma, p, m):
    """Differentiate the logit of the error by log m, by central differences."""
    step = 1e-5

    def logit(m):
        error = error_of(eps_np, eps_up, gamma, p, m)
        return np.log(error / (1 - error))

    return (logit(m * np.exp(step)) - logit(m * np.exp(-step))) / (2 * step)


def observation_of(error, slope, n_test, sigma, kappa, floor):
    """Give location and scale of log((wrong + 1/2) / (right + 1/2)), or of the plain logit where n_test is infinite."""
    location, binomial = np.log(error / (1 - error)), np.zeros_like(error)
    known = np.isfinite(n_test)
    wrong, right = (n_test * error + 0.5)[known], (n_test * (1 - error) + 0.5)[known]
    location[known] = np.log(wrong / right)
    binomial[known] = 1 / wrong + 1 / right
    return location, np.sqrt(floor**2 * binomial + sigma**2 + (kappa * slope) ** 2)


@dataclass(frozen=True)
class Truth:
    """Hold what a table is made of: `p_prime` in the paper's units, the dense law about the configurations' centre."""

    gamma: float = 1.3
    phi: float = 0.9
    psi: float = 1.2
    p_prime: float = 0.025
    eps_up: float = 0.88
    a: float = 0.06
    alpha: float = 0.6
    b: float = 0.05
    beta: float = 0.5
    c: float = 0.01
    sigma_np: float = 0.08
    tau_np: float = 0.1
    tau_p: float = 0.12
    sigma: float = 0.05
    kappa: float = 0.1
    floor: float = 1.0
    nu: float = 8.0


@dataclass(frozen=True)
class Simulated:
    """Hold a run table and the latent truth behind it."""

    runs: pd.DataFrame
    truth: Truth
    eps_np: dict[tuple[int, int, int], float] = field(repr=False)

    def mean_error(self, depth: int, width: int, dataset_size: int, density: NDArray) -> NDArray:
        """Compute the configuration's curve with all run effects zero."""
        t, m = self.truth, depth**self.truth.phi * (width / WIDTH_REFERENCE) ** self.truth.psi * density
        return error_of(self.eps_np[depth, width, dataset_size], t.eps_up, t.gamma, t.p_prime, m)


def simulate(
    truth: Truth,
    *,
    depths=(8, 14),
    widths=(2, 4, 8),
    dataset_sizes=(1000, 500),
    replicates: int = 2,
    levels=tuple(range(0, 30, 2)),
    n_test: int = 797,
    seed: int = 0,
) -> Simulated:
    """Draw a run table from the model."""
    rng = np.random.default_rng(seed)
    grid = list(itertools.product(depths, widths, dataset_sizes))
    log_m = {(d, w, n): np.log(sum(count_parameters(d, w))) for d, w, n in grid}
    m_0, n_0 = np.mean(list(log_m.values())), np.mean([np.log(n) for _, _, n in grid])
    t, rows, plateaus = truth, [], {}
    for d, w, n in grid:
        dense = t.a * np.exp(-t.alpha * (np.log(n) - n_0)) + t.b * np.exp(-t.beta * (log_m[d, w, n] - m_0)) + t.c
        of_configuration = dense * np.exp(t.sigma_np * rng.standard_normal())
        plateaus[d, w, n] = t.eps_up * of_configuration / np.hypot(of_configuration, 1)
        prunable, other = count_parameters(d, w)
        for replicate in range(replicates):
            e = of_configuration * np.exp(t.tau_np * rng.standard_normal())
            eps_np, p = t.eps_up * e / np.hypot(e, 1), t.p_prime * np.exp(t.tau_p * rng.standard_normal())
            kept = np.maximum(1, np.round(prunable * 0.8 ** np.asarray(levels)))
            m = d**t.phi * (w / WIDTH_REFERENCE) ** t.psi * kept / prunable
            curve = (eps_np, t.eps_up, t.gamma, p, m)
            tests = np.full(len(m), float(n_test))
            location, scale = observation_of(
                error_of(*curve), slope_of_logit(*curve), tests, t.sigma, t.kappa, t.floor
            )
            share = 1 / (1 + np.exp(-(location + scale * rng.standard_t(t.nu, len(m)))))
            wrong = np.clip(np.round(share * (n_test + 1) - 0.5), 0, n_test).astype(int)
            rows.append(
                pd.DataFrame({
                    "family": "cifar_resnet", "dataset": "digits", "classes": 10, "input_shape": "1,8,8",
                    "depth": d, "width": w, "dataset_size": n, "replicate": replicate, "level": levels,
                    "density": kept / prunable, "kept": kept.astype(int), "prunable": prunable,
                    "parameters": prunable + other, "n_wrong": wrong, "n_test": n_test, "error": wrong / n_test,
                })  # fmt: skip
            )
    return Simulated(pd.concat(rows, ignore_index=True), truth, plateaus)
