"""One thread for linear algebra, since two test processes share the cores, and the longest test first."""

import os

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks, so that no process has to wait for one at the end."""
    items.sort(key=lambda item: "notebooks" not in item.path.parts)
