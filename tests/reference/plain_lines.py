"""The density of all rows as it would be written without a thought for speed: the oracle of `bayeslaw.lines`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bayeslaw.laws import Law
from bayeslaw.lines import LineNoise, Places
from bayeslaw.noise import LogitNoise


class PlainLines(LineNoise):
    """Sum single rows, line by line: error and slope apart, and automatic derivatives of both."""

    def __init__(self, law: Law, curve: Any, places: Places, value: Mapping[str, Any]) -> None:
        super().__init__(law, curve, places, value)
        curve = jax.tree.map(lambda part: part[:, None] if jnp.ndim(part) else part, curve)
        log_density, n_test, gap, self.measured, self.at_risk = (part.T for part in places[:5])
        log_mean, slope = law.log_error(curve, log_density), law.log_slope(curve, log_density)
        self.rows = LogitNoise(log_mean, slope, n_test, self.value, gap)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Compute the log density of all responses together."""
        total = jnp.sum(jnp.where(self.measured, self.rows.log_prob(jnp.asarray(value).T), 0.0))
        if "dies" not in self.value:
            return total
        share = jnp.exp(self.rows.log_mean - self.places.log_chance)
        hazard = self.value["dies"] * share ** self.value["dies_power"]
        return total + jnp.sum(jnp.where(self.at_risk, jnp.log(jnp.where(self.measured, 1 - hazard, hazard)), 0.0))
