"""Run tables of the paper's size, and far beyond: what the sampler's benchmarks are run on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))

from simulate import Truth, simulate

#: 294 configurations, as in the paper: depth 8 to 98, width multiple 2^-4 to 2^2, 1/64 of the data to all of it.
DEPTHS = (8, 14, 20, 26, 50, 98)
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
DATASET_SIZES = tuple(50_000 // 2**i for i in range(7))
TRUTH = Truth(chi=0.0, omega=0.0, tau_np=0.1, sigma_p=0.0, tau_p=0.06, sigma=0.03, kappa=0.05, noise_power=0.0, nu=5.0)


def paper_table(configurations: int = 152, *, replicates: int = 3, levels: int = 28, seed: int = 0) -> pd.DataFrame:
    """Draw configurations at random and their runs from the model; 152 x 3 x 28 = 12,768 rows.

    Beyond the paper's 294 configurations, widths and dataset sizes between its own are added.
    """
    finer = -(-configurations // 294)
    widths = WIDTHS if finer == 1 else tuple(range(1, 65))[:: max(1, 8 // finer)]
    sizes = DATASET_SIZES
    while len(DEPTHS) * len(widths) * len(sizes) < configurations:
        sizes = tuple(int(50_000 / 64 ** (i / (2 * len(sizes)))) for i in range(2 * len(sizes)))
    count = len(DEPTHS) * len(widths) * len(sizes)
    chosen = np.sort(np.random.default_rng(seed).choice(count, configurations, replace=False))
    return simulate(
        TRUTH,
        depths=DEPTHS,
        widths=widths,
        dataset_sizes=sizes,
        chosen=chosen.tolist(),
        replicates=replicates,
        levels=range(levels),
        n_test=10_000,
        seed=seed,
    ).runs
