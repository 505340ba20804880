"""What the default model costs by the size of the table: time a gradient, and memory.

    uv run python tests/benchmarks/cost.py -o tests/benchmarks/cost

Tables of 10^3 to 3 x 10^5 rows (`paper_scale`: three runs of 28 densities a network), each in a process of its own:
seconds a gradient (the best of three times 50, one thread), and of a whole `fit` of two chains and 100 draws after 100
of warm-up the seconds and the largest memory the process held. Writes `cost.csv` and `cost.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

CONFIGURATIONS = (12, 36, 119, 357, 1190, 3572)
GRADIENTS = 50


def main() -> None:
    """Measure every size in a process of its own, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("cost"))
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only)))
        return
    rows = []
    flags = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    for configurations in CONFIGURATIONS:
        command = [sys.executable, __file__, "--only", str(configurations)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=flags)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.output / "cost.csv", index=False)
    draw(table, arguments.output / "cost.png")


def measure(configurations: int) -> dict[str, Any]:
    """Time gradients and a fit of one table."""
    from paper_scale import paper_table

    import bayeslaw

    runs = bayeslaw.load_runs(paper_table(configurations))
    measured = gradient(runs)
    begin = time.perf_counter()
    bayeslaw.fit(runs, chains=2, warmup=100, draws=100, progress=False)
    seconds, held = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return measured | {"fit_seconds": seconds, "memory_mib": held}


def gradient(runs: pd.DataFrame) -> dict[str, Any]:
    """Time gradients of one table, on the device that JAX chooses."""
    import jax
    import numpy as np

    from bayeslaw import fitting
    from bayeslaw.density import flat_potential, shapes_of
    from bayeslaw.priors import resolve_priors
    from bayeslaw.ridges import StraightContext, ridges_of
    from bayeslaw.straight import straighten

    with jax.enable_x64(True):
        own = fitting.prepare(runs, {}, resolve_priors(None))
        context = StraightContext(own.context, ridges_of(own.data))
        start = straighten(context, fitting.starts_of(own)[0])
        shapes = shapes_of(start)
        density, arrays = flat_potential(fitting.straight_density(own), context, shapes)
        origin = np.concatenate([np.ravel(start[name]) for name, _ in shapes])
        slope = jax.grad(lambda q: density(arrays, q))
        shift = jax.jit(lambda q: jax.lax.fori_loop(0, GRADIENTS, lambda _, q: q - 1e-12 * slope(q), q))
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            jax.block_until_ready(shift(origin))
            times.append((time.perf_counter() - begin) / GRADIENTS)
    return {"rows": len(runs), "dimensions": len(origin), "gradient_ms": 1e3 * min(times[1:])}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot both against the number of rows, the first beside a line of slope one."""
    import matplotlib.pyplot as plt

    figure, (gradient, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    last = table.iloc[-1]
    gradient.loglog(table["rows"], table["gradient_ms"], "o-")
    linear = last["gradient_ms"] * table["rows"] / last["rows"]
    gradient.loglog(table["rows"], linear, ":", color="0.5", label="in proportion to rows")
    gradient.set(ylabel="milliseconds a gradient")
    gradient.legend(frameon=False)
    memory.semilogx(table["rows"], table["memory_mib"], "o-")
    memory.set(ylabel="largest memory of a fit, MiB", ylim=(0, None))
    for panel in (gradient, memory):
        panel.set(xlabel="rows of the run table")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
