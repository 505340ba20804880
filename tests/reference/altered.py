"""Posteriors that are not what was sampled, for tests of what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import xarray as xr

import bayeslaw


def with_draws(fit: bayeslaw.Fit, **changes: Callable[[xr.Dataset], Any]) -> bayeslaw.Fit:
    """Give a fit with draws of some parameters made from those of others, whether it had such parameters or not."""
    tree = fit.tree.copy()
    tree["posterior"] = xr.DataTree(tree["posterior"].to_dataset().assign(changes))
    return dataclasses.replace(fit, tree=tree)
