"""What test processes have in common: one thread for linear algebra, what was compiled, and the longest test first."""

import os
from pathlib import Path

import pytest

#: Two test processes share the cores. What one compiles serves the other, and the next run of the tests: NumPyro's
#: distributions list their parameters in an order that depends on hashes.
SHARED = {
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
for name, value in SHARED.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks, so that no process has to wait for one at the end."""
    items.sort(key=lambda item: "notebooks" not in item.path.parts)
