"""What the tests of the posterior share: one simulated run table, and one real fit of it."""

from __future__ import annotations

import os

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

    Twelve configurations with two seeds each hardly tell three shares, which therefore have informative priors. All
    else keeps its default prior.
    """
    priors = {"share_np": dist.Beta(4.0, 4.0), "share_p": dist.Beta(4.0, 4.0), "share_c": dist.Beta(2.0, 20.0)}
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "fitted.nc"
    with FileLock(folder / "fitted.lock"):
        if not file.exists():
            bayeslaw.fit(simulated.runs, priors=priors, chains=2, warmup=300, draws=1500).save(file)
    return bayeslaw.load(file)
