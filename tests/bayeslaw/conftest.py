"""What the tests of the posterior share: one simulated run table, and one real fit of it."""

from __future__ import annotations

import os

import numpy as np
import numpyro.distributions as dist
import pytest
from filelock import FileLock
from simulate import Simulated, Truth, simulate

import bayeslaw


@pytest.fixture(scope="session")
def simulated() -> Simulated:
    """Give 24 trajectories of 12 configurations, drawn from the model with known constants."""
    return simulate(Truth(), seed=1)


@pytest.fixture(scope="session")
def fitted(simulated, tmp_path_factory) -> bayeslaw.Fit:
    """Fit the table once for all tests and all workers.

    Twelve configurations say little about the dense law's shape and the split of small noises: for these there are
    informative priors. All that is pruning's own keeps its default prior.
    """
    priors = {
        "alpha": dist.LogNormal(np.log(0.6), 0.2),
        "beta": dist.LogNormal(np.log(0.5), 0.2),
        "c": dist.LogNormal(np.log(0.01), 0.3),
        "share_np": dist.Beta(4.0, 4.0),
        "sigma": dist.LogNormal(np.log(0.05), 0.5),
        "floor": dist.LogNormal(0.0, 0.1),
    }
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "fitted.nc"
    with FileLock(folder / "fitted.lock"):
        if not file.exists():
            bayeslaw.fit(simulated.runs, priors=priors, chains=2, warmup=300, draws=1500).save(file)
    return bayeslaw.load(file)
