"""Code compiled for fits of many shapes is let go of, and that of the same shape is kept."""

import jax.numpy as jnp
import numpy as np
import pytest
from simulate import Truth, simulate

import bayeslaw
from bayeslaw import axes, compiled, sampler


@pytest.fixture
def apart(monkeypatch):
    """Count from nothing, and hold one shape only."""
    monkeypatch.setattr(compiled, "_SHAPES", set())
    monkeypatch.setattr(compiled, "HELD", 1)


def maps() -> int:
    """Count the memory maps of this process, of which there can be so many."""
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def test_the_same_shape_is_kept_and_others_make_room(apart):
    twice = compiled.jit(lambda x: 2 * x)
    assert float(twice(jnp.ones(()))) == 2.0
    compiled.make_room("one")
    compiled.make_room("one")
    assert twice._cache_size() == 1
    compiled.make_room("another")
    assert twice._cache_size() == 0
    assert float(twice(jnp.ones(()))) == 2.0


def test_fits_of_other_shapes_do_not_pile_up(apart):
    """Three of them hold no more code than one, and the first one, made again, gives the same draws."""
    runs = simulate(Truth(), levels=(0, 5, 10, 15, 20)).runs
    tables = [runs[runs["level"] <= last] for last in (20, 15, 10, 20)]
    held, fits = [], []
    for table in tables:
        fits.append(bayeslaw.fit(table, chains=2, warmup=100, draws=50, progress=False))
        held.append((sampler._advance._cache_size(), axes.value_and_gradient._cache_size(), maps()))
    assert len({one[:2] for one in held}) == 1
    assert max(one[2] for one in held[1:]) < 1.5 * held[0][2]
    first, again = (fit.posterior["phi"].to_numpy() for fit in (fits[0], fits[-1]))
    np.testing.assert_array_equal(first, again)
