"""Scope float64 to the package's own computations, so that JAX's global configuration stays as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax


def in_float64[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with 64-bit JAX types, whatever the caller's setting, on the calling thread alone."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wrapped
