"""The benchmark's quick density of model A is that of the NumPyro model that the peers sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import model_a
import numpy as np
import pytest
from numpyro.infer.util import potential_energy
from paper_scale import paper_table


def test_quick_density_is_that_of_the_numpyro_model() -> None:
    """In float32 rows, summed in float64: to a thousandth of a natural log a row, at points about the truth."""
    with jax.enable_x64(True):
        cells = model_a.cells_of(paper_table(12))
        rng = np.random.default_rng(0)
        start = jax.tree.map(jnp.asarray, model_a.start_of(cells))

        def plain(values):
            return potential_energy(model_a.model, (jax.tree.map(jnp.asarray, cells),), {}, values)

        def quick(values):
            laid_out = jax.tree.map(jnp.asarray, model_a.quick_cells(cells))
            return potential_energy(model_a.quick_model, (laid_out,), {}, values)

        both = [jax.jit(jax.value_and_grad(f)) for f in (plain, quick)]
        for _ in range(5):
            values = {k: v + 0.05 * rng.standard_normal(np.shape(v)) for k, v in start.items()}
            (expected, slopes), (found, quick_slopes) = (f(values) for f in both)
            assert float(found) == pytest.approx(float(expected), abs=1e-4 * cells.log_error.size)
            for name in slopes:
                assert np.asarray(quick_slopes[name]) == pytest.approx(
                    np.asarray(slopes[name]), rel=1e-3, abs=1e-4 * float(jnp.abs(slopes[name]).max())
                ), name
