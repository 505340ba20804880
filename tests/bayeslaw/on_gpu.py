"""Fits on a GPU, beside the same on the CPU of the same machine: `python tests/bayeslaw/on_gpu.py [FOLDER]`.

1. Log densities and gradients of the digits sweep, at the start and at twenty points about it, are the CPU's: to .01
   and to 10^-4 of a gradient's length (rows are computed in float32; stated in advance).
2. Posterior means are the CPU's: all global parameters' within four Monte Carlo standard errors of the difference.
3. The same seed gives the same draws again, and nothing is compiled for them.

Needs JAX with its CUDA plugin. With FOLDER the two fits are kept there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bayeslaw
from bayeslaw import fitting
from bayeslaw.density import flat_potential, shapes_of
from bayeslaw.priors import resolve_priors
from bayeslaw.ridges import StraightContext, ridges_of
from bayeslaw.straight import straighten

POINTS = 20
OF_VALUE, OF_GRADIENT = 1e-2, 1e-4
STANDARD_ERRORS = 4.0
SETTINGS: dict[str, Any] = {"chains": 4, "warmup": 100, "draws": 150, "progress": False}


def density() -> str:
    """Compare log densities and their gradients on both devices."""
    runs = bayeslaw.load_recorded("digits_resnet")
    with jax.enable_x64(True):
        own = fitting.prepare(runs, {}, resolve_priors(None))
        context = StraightContext(own.context, ridges_of(own.data))
        start = straighten(context, fitting.starts_of(own)[0])
        potential, arrays = flat_potential(fitting.straight_density(own), context, shapes_of(start))
        origin = np.concatenate([np.ravel(start[name]) for name, _ in shapes_of(start)])
        rng = np.random.default_rng(0)
        points = [origin + 0.02 * (k > 0) * rng.standard_normal(len(origin)) for k in range(POINTS + 1)]
        both = jax.jit(jax.value_and_grad(potential, argnums=1))
        found = {}
        for kind in ("cpu", "gpu"):
            held = jax.device_put(arrays, jax.devices(kind)[0])
            found[kind] = [jax.device_get(both(held, jax.device_put(q, jax.devices(kind)[0]))) for q in points]
    value = max(abs(a - b) for (a, _), (b, _) in zip(found["cpu"], found["gpu"], strict=True))
    pairs = [(a, b) for (_, a), (_, b) in zip(found["cpu"], found["gpu"], strict=True)]
    gradient = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in pairs)
    assert value < OF_VALUE, value
    assert gradient < OF_GRADIENT, gradient
    return f"log densities differ by {value:.1e} at most, gradients by {gradient:.1e} of their length"


def means(folder: Path) -> str:
    """Compare posterior means."""
    beside = subprocess.Popen([sys.executable, __file__, "--fit", str(folder / "cpu.nc")], env=_on_cpu())
    seconds = _fit(folder / "gpu.nc")
    assert beside.wait() == 0
    fits = {kind: bayeslaw.load(folder / f"{kind}.nc").posterior for kind in ("cpu", "gpu")}
    names = [name for name, values in fits["cpu"].data_vars.items() if set(values.dims) == {"chain", "draw"}]
    distances = {}
    for name in names:
        cpu, gpu = (fits[kind][name] for kind in ("cpu", "gpu"))
        errors = [mcse_of_mean(part.to_numpy()) for part in (cpu, gpu)]
        distances[str(name)] = float(cpu.mean() - gpu.mean()) / float(np.hypot(errors[0], errors[1]))
    worst = max(distances, key=lambda name: abs(distances[name]))
    assert abs(distances[worst]) <= STANDARD_ERRORS, distances
    return f"{len(names)} means, {distances[worst]:+.1f} standard errors apart at most ({worst}); {seconds:.0f} s"


def mcse_of_mean(draws: np.ndarray) -> float:
    """Give the Monte Carlo standard error of the mean of draws `[chains, draws]`."""
    import arviz as az  # after numpyro, which it would load half

    return float(draws.std() / np.sqrt(az.ess(draws, method="mean")))


def again(folder: Path) -> str:
    """Draw the same again."""
    seconds = _fit(folder / "again.nc")
    first, second = (bayeslaw.load(folder / f"{name}.nc").posterior for name in ("gpu", "again"))
    for name, values in first.data_vars.items():
        np.testing.assert_array_equal(values.values, second[name].values, err_msg=str(name))
    return f"{seconds:.0f} s"


def _fit(path: Path) -> float:
    begin = time.perf_counter()
    bayeslaw.fit(bayeslaw.load_recorded("fashion_mnist_resnet"), **SETTINGS).save(path)
    return time.perf_counter() - begin


def _on_cpu() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu"}


def main() -> int:
    if sys.argv[1:2] == ["--fit"]:
        _fit(Path(sys.argv[2]))
        return 0
    print(jax.devices())
    with tempfile.TemporaryDirectory() as temporary:
        folder, failed = Path(sys.argv[1] if sys.argv[1:] else temporary), 0
        folder.mkdir(parents=True, exist_ok=True)
        checks = {"density": density, "means": lambda: means(folder), "again": lambda: again(folder)}
        for name, check in checks.items():
            try:
                print(f"{name}: {check()}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{name} FAILED: {error}", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
