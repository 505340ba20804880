"""What ten thousand trajectories of the paper cost, on paper: `python tests/benchmarks/paper_cost.py`.

CIFAR ResNets under `paper_cifar`: 160 epochs, 41 trainings a trajectory, of which all but the first begin at the
rewinding step. Three multiply-adds, six operations, per weight use and example: forward, and twice that backward. Every
training counts as dense: a GPU does not skip pruned weights.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bayeslaw.families import Family
from imp_runs.config import PROTOCOLS

DEPTHS, WIDTHS, DIVISORS = (8, 14, 20, 26, 50, 98), (4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64)
TRAJECTORIES = 10_000
#: Operations per second that a data-centre GPU is assumed to keep up on these networks, several packed on it; the
#: dense TF32 peak of an H100 is 495e12.
SUSTAINED = 20e12


def operations() -> pd.DataFrame:
    """Give the operations of one trajectory of every network and dataset size."""
    protocol, family = PROTOCOLS["paper_cifar"], Family("cifar_resnet", (3, 32, 32), 10)
    grid = pd.MultiIndex.from_product([DEPTHS, WIDTHS, DIVISORS], names=["depth", "width", "divisor"]).to_frame(False)
    trainings = 1 + protocol.levels * (1 - protocol.rewind)
    examples = protocol.epochs * 50_000 / grid["divisor"]
    return grid.assign(operations=6 * family.macs(grid["depth"], grid["width"]) * examples * trainings)


if __name__ == "__main__":
    table = operations()
    each = table["operations"]
    hours = each / SUSTAINED / 3600
    print(f"a trajectory: {each.median():.2g} (median), {each.mean():.2g} (mean) operations")
    print(f"GPU-hours of {TRAJECTORIES:,}, spread evenly over the grid: {TRAJECTORIES * hours.mean():,.0f}")
    for name, some in (
        ("widths to 16", table["width"] <= 16),
        ("widths to 16, depths to 26", (table["width"] <= 16) & (table["depth"] <= 26)),
    ):
        print(f"  {name}: {TRAJECTORIES * hours[some].mean():,.0f}")
    top = np.sort(each)[::-1].cumsum() / each.sum()
    print(f"  the dearest tenth of the grid takes {top[len(top) // 10]:.0%} of it")
