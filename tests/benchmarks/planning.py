"""How long planning takes: curves at many designs, the adaptive policy, and a frontier.

    uv run python tests/benchmarks/planning.py

4,000 draws of a fit to a simulated table (its chains are short; the draws are repeated). Each line is the best of three
after one call that compiles: law curves of 10,000 designs with the networks' own or fixed plateaus, the same with fresh
discrepancies, the adaptive policy for 100 starts of up to 40 rounds, a frontier of 20 targets over them, and plans over
100 and 10,000 starts with the largest memory the process held.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))

from simulate import Truth, simulate  # pyright: ignore[reportMissingImports]

import bayeslaw
from bayeslaw.objectives import Question, draws_of, values_of
from bayeslaw.plan import judge_starts
from bayeslaw.policies import adaptive, new_runs_of
from bayeslaw.starts import costs_of, make_starts, width_grid

DRAWS = 4000


def main() -> None:
    """Fit once, and time each."""
    fit = repeated(bayeslaw.fit(simulate(Truth(), seed=1).runs, chains=2, warmup=200, draws=250, progress=False))
    target = 2 * float(fit.posterior["eps_np"].median())
    many = make_starts([8, 14, 20, 26, 32, 38, 44, 50, 56, 62], width_grid(1, 64, per_octave=166)[:1000], 1000)
    hundred = make_starts([8, 14, 20, 26], np.unique(width_grid(1, 64, per_octave=4).round(2))[:25], 1000)
    costs, question = costs_of(fit, many), Question(target_error=target)
    drawn = draws_of(fit, many, 0)
    policy = Question(target_error=target, policy="adaptive")
    counts = costs_of(fit, hundred)
    axes = {"depths": hundred["depth"], "widths": hundred["width"], "dataset_size": 1000}
    rows = {
        f"sizes at {len(many):,} starts, discrepancies drawn before": lambda: values_of(
            fit, question, many, costs, drawn
        ),
        "the same with fresh discrepancies": lambda: values_of(fit, question, many, costs, draws_of(fit, many, 0)),
        f"adaptive policy, {len(hundred)} starts": lambda: adaptive(
            policy, hundred, new_runs_of(fit, policy, hundred, counts, 0), counts
        ),
        f"frontier of 20 targets, {len(hundred)} starts": lambda: bayeslaw.frontier(
            fit, np.geomspace(0.03, 0.5, 20), **axes
        ),
        f"plan, {len(hundred)} starts": lambda: fit.plan(target, allow_failed=True, **axes),
        f"judgement of {len(many):,} starts": lambda: judge_starts(fit, question, many, costs, 0),
    }
    table = {name: {"seconds": best_of_three(call), "memory_mib": memory()} for name, call in rows.items()}
    print(pd.DataFrame(table).T.to_string(float_format=lambda v: f"{v:,.2f}"))


def repeated(fit: bayeslaw.Fit) -> bayeslaw.Fit:
    """Repeat draws until there are as many as asked for."""
    times = DRAWS // (fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"])
    tree = fit.tree.copy()
    draws = fit.posterior.isel(draw=np.tile(np.arange(fit.posterior.sizes["draw"]), times))
    tree["posterior"] = type(tree)(draws.assign_coords(draw=np.arange(draws.sizes["draw"])))
    return dataclasses.replace(fit, tree=tree)


def best_of_three(call: Callable[[], Any]) -> float:
    """Call once to compile, then time the best of three."""
    call()
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def memory() -> float:
    """Give the largest memory the process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
