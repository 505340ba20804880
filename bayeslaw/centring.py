r"""How far latent effects are sampled in units of their spreads, so that they do not narrow as the spreads do.

Effects x have centres mu and spreads tau that are inferred too. Sampled is

$$(x - \mu) \tau^{-w} + (1 - w) (\mu + s)$$

with w = 0, the effect itself, where its rows tell it, and w = 1, in units of its spread, where they say nothing of it;
anything else would be a funnel (Papaspiliopoulos, Roberts and Skold 2003, "Non-centered parameterizations for
hierarchical models and data augmentation"). Between them

$$w = l^2 / (l^2 + h^2 (1 - l))$$

with l the share of the effect's prior variance that is left when all else is known, and h a half-way mark below 1/2:
l is found at one value of the spread, and more is left where the spread is smaller, which is where the funnel is. So
for log e of networks, about their dense law; or, where runs have their own, for the mean of a network's runs about
that, and for their distances from their mean, both as far as the luck of training subsets does not explain them. So for
sideways effects, about 0. Rows tell the error of a network, which is e times the high plateau where it is small: s is
the plateau's logarithm for log e of networks and means of runs, and 0 for all else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bayeslaw.compiled import jit
from bayeslaw.hierarchy import group_mean, group_total, luck_of_runs, split_spread, spreads_of
from bayeslaw.laws import log_dense_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.axes import Axes
    from bayeslaw.frame import Data

#: Half-way marks h. On the recorded Fashion-MNIST ResNets and digits with the joint law and independent noise, and on
#: the former with correlated noise, .22 for all gave 52, 51 and 34 effective draws per 1,000 gradients (smallest of all
#: parameters); w = l gave 43, 37 and 4, and w = l^(1/3) diverged on the first. With free sharpness and correlated
#: noise .22 for distances diverged on parts of Fashion-MNIST, where few runs let their spread vanish; .12 did not.
HALF_WAY = {"log_e": 0.22, "mean": 0.22, "within": 0.12, "mean_p": 0.22, "within_p": 0.22}
#: Names of a network's mean effect, and of the distances of its runs from it, by the name of the runs' effects.
_PARTS = {"log_e_run": ("mean", "within"), "effect_p": ("mean_p", "within_p")}
_WITHIN = tuple(within for _, within in _PARTS.values())


class Centring(NamedTuple):
    """Hold how far effects are in units of their spreads, from 0 to 1.

    Attributes:
        log_e: For log e of every configuration, `[configurations]`.
        mean: For the mean log e of the runs of every configuration, `[configurations]`.
        within: For their distances from it, `[configurations]`.
        mean_p: For the mean sideways effect of the runs of every configuration, `[configurations]`.
        within_p: For their distances from it, `[configurations]`.
    """

    log_e: Any
    mean: Any
    within: Any
    mean_p: Any
    within_p: Any


def centred(data: Data) -> Centring:
    """Take all effects as they are."""
    own = np.zeros(len(data.depth))
    return Centring(own, own, own, own, own)


def unstandardise(
    centring: Centring, data: Data, value: Mapping[str, Any], effects: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Turn what is sampled into effects.

    Args:
        centring: How far they are in units of their spreads.
        data: The data.
        value: Parameters.
        effects: What is sampled, as far as there is `log_e`, `log_e_run` and `effect_p`.

    Returns:
        The effects, and the log determinant.
    """
    if not effects:
        return {}, 0.0
    centre, log_spread = _priors(data, value, effects)
    parts, log_determinant = _parts(data, effects), jnp.asarray(0.0)
    others = group_total(jnp.ones(len(data.configuration)), data) - 1
    for name, spread in log_spread.items():
        log_determinant += jnp.sum(getattr(centring, name) * spread * (others if name in _WITHIN else 1.0))
    for name, (log_scale, origin, shift) in _maps(centring, data, value, centre, log_spread).items():
        parts[name] = origin + jnp.exp(log_scale) * (parts[name] - shift)
    return _joined(data, parts), log_determinant


def standardise(centring: Centring, data: Data, value: Mapping[str, Any], effects: Mapping[str, Any]) -> dict[str, Any]:
    """Turn effects into what is sampled."""
    if not effects:
        return {}
    centre, log_spread = _priors(data, value, effects)
    parts = _parts(data, effects)
    for name, (log_scale, origin, shift) in _maps(centring, data, value, centre, log_spread).items():
        parts[name] = (parts[name] - origin) * jnp.exp(-log_scale) + shift
    return _joined(data, parts)


def choose_centring(
    data: Data,
    value: Mapping[str, Any],
    effects: Mapping[str, Any],
    axes: Axes,
    where: Mapping[str, NDArray],
    dimensions: int,
) -> Centring:
    """Look how much of the effects' prior variance is left.

    Args:
        data: The data.
        value: Parameters, where the posterior is.
        effects: The effects there.
        axes: Coordinates in which the posterior is round, made of effects as they are.
        where: Where the entries of every value are in the flat position, which may hold other things too.
        dimensions: Entries of that position.
    """
    _, log_spread = _priors(data, value, effects)
    variance, configuration = axes.own_variances(dimensions), np.asarray(data.configuration)
    size = np.bincount(configuration, minlength=len(data.depth))
    found = {"log_e": variance[where["log_e"]]} if "log_e" in effects else {}
    for name, (mean, within) in _PARTS.items():
        if name not in effects:
            continue
        weight = np.zeros(dimensions)
        weight[where[name]] = 1 / size[configuration]
        of_these = np.isin(axes.own, where[name]).any(1)
        found[mean] = axes.own_variances_of(weight)[of_these]
        total = np.bincount(configuration, variance[where[name]], len(size))
        found[within] = (total - size * found[mean]) / np.maximum(size - 1, 1)
    left = {name: np.clip(v * np.exp(-2 * np.asarray(log_spread[name])), 0.0, 1.0) for name, v in found.items()}
    return centred(data)._replace(**{k: v**2 / (v**2 + HALF_WAY[k] ** 2 * (1 - v)) for k, v in left.items()})


@jit
def _priors(data: Data, value: Mapping[str, Any], effects: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give the dense law's log e, `[..., configurations]`, and the log spreads of the effects, as in `Centring`."""
    centre = log_dense_at(value, data.covariates)
    spread = spreads_of({**value, **split_spread(value)}, data, centre)
    found = {}
    if "log_e" in effects:
        found["log_e"] = jnp.log(spread["sigma_np"])
    size = group_total(jnp.ones(len(data.configuration)), data)
    for name, where in (("log_e_run", "np"), ("effect_p", "p")):
        if name in effects:
            mean, within = _PARTS[name]
            found[mean] = 0.5 * jnp.log(spread[f"sigma_{where}"] ** 2 + spread[f"tau_{where}"] ** 2 / size)
            found[within] = jnp.log(spread[f"tau_{where}"])
    return centre, found


def _maps(
    centring: Centring, data: Data, value: Mapping[str, Any], centre: Any, log_spread: Mapping[str, Any]
) -> dict[str, tuple[Any, Any, Any]]:
    """Give log scale, origin and shift of the lines x = origin + scale (z - shift) from what is sampled to effects."""
    log_scale = {name: getattr(centring, name) * spread for name, spread in log_spread.items()}
    log_scale |= {name: log_scale[name][..., data.configuration] for name in _WITHIN if name in log_scale}
    left = {name: 1 - getattr(centring, name) for name in log_scale}
    left |= {name: left[name][..., data.configuration] for name in _WITHIN if name in left}
    lucks = _parts(data, {"log_e_run": luck_of_runs(value, data)}) if "luck_halfway" in value else {}
    origin = {"log_e": centre, "mean": centre + lucks.get("mean", 0.0), "within": lucks.get("within", 0.0)}
    lift = {name: jnp.log(value["plateau"]) for name in ("log_e", "mean")}
    return {
        name: (scale, origin.get(name, 0.0), left[name] * (origin.get(name, 0.0) + lift.get(name, 0.0)))
        for name, scale in log_scale.items()
    }


def _parts(data: Data, effects: Mapping[str, Any]) -> dict[str, Any]:
    """Take effects of runs apart into a network's mean and distances from it, named as in `Centring`."""
    parts = dict(effects)
    for name, (mean, within) in _PARTS.items():
        if name in parts:
            of_runs = parts.pop(name)
            parts[mean] = group_mean(of_runs, data)
            parts[within] = of_runs - parts[mean][..., data.configuration]
    return parts


def _joined(data: Data, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put effects of runs together again."""
    effects = {"log_e": parts["log_e"]} if "log_e" in parts else {}
    for name, (mean, within) in _PARTS.items():
        if mean in parts:
            effects[name] = parts[mean][..., data.configuration] + parts[within]
    return effects
