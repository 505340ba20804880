"""Functions that JAX compiles, and letting go of what was compiled: a process can hold only so much code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax

#: Fits of different shapes whose code is held at once. Each takes some 3,000 memory maps; Linux gives a process 65,530,
#: and LLVM ends it where it gets no more.
HELD = 8

_FUNCTIONS: list[Any] = []
_SHAPES: set[Hashable] = set()
_LOCK = threading.Lock()


def jit(function: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """Compile a function like `jax.jit`, and let go of what was compiled when `make_room` says so.

    Args:
        function: The function; without it a decorator is returned.
        settings: Those of `jax.jit`.
    """
    if function is None:
        return lambda function: jit(function, **settings)
    compiled = jax.jit(function, **settings)
    _FUNCTIONS.append(compiled)
    return compiled


def make_room(shape: Hashable) -> None:
    """Say that a fit of some shape comes; where `HELD` others came before it, let go of what was compiled for them.

    Args:
        shape: All that a fit is compiled for.
    """
    with _LOCK:
        if shape in _SHAPES:
            return
        if len(_SHAPES) >= HELD:
            for compiled in _FUNCTIONS:
                compiled.clear_cache()
            _SHAPES.clear()
        _SHAPES.add(shape)
