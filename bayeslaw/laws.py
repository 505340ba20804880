"""The laws that can be fitted, one small object each, all with the same interface.

A law says how the error of a run depends on its density: from the parameters, the covariates of the network, log e of
the run (the dense law's error before it saturates, discrepancy and run effect included) and how far the run is shifted
sideways, it makes a `curve`; error, slope and inverse are functions of that curve and of log density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayeslaw.compiled import jit
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import ROUND
from bayeslaw.law import (
    Curve,
    Dense,
    log_dense,
    log_error,
    log_error_and_slope,
    log_m_at,
    log_m_star,
    log_slope,
    saturate,
)

#: Halvings of the log density, from 30 below 0, in which the sparse law is inverted.
_HALVINGS = 60
_LOWEST = -30.0
#: Densities on a dip's falling side at which its error is looked at.
_LOOKED_AT = 17
#: Logarithm that stands for a term which is not there.
_NOTHING = -700.0
#: Quadratic terms of the dense law, each with the centred covariates that it multiplies.
CURVATURE = {
    "curvature_depth": ("depth", "depth"),
    "curvature_width": ("width", "width"),
    "curvature_size": ("dataset_size", "dataset_size"),
    "curvature_depth_width": ("depth", "width"),
    "curvature_depth_size": ("depth", "dataset_size"),
    "curvature_width_size": ("width", "dataset_size"),
}


@dataclass(frozen=True)
class Law:
    """The joint law of Rosenfeld et al. (M1), which the others change in one respect each.

    Attributes:
        name: What `fit(law=...)` calls it.
        title: What tables call it.
        source: Where it comes from.
        own: Parameters that only this law has.
        without: Parameters of the joint law that it does not have.
    """

    name: str
    title: str
    source: str
    own: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def log_invariant(self, value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
        """Compute log m* at density 1, relative to the central network."""
        by_data = _by_data(value, covariates)
        return log_m_star(covariates["depth"], covariates["width"], by_data, value["phi"], value["psi"])

    def curve(self, value: Mapping[str, Any], covariates: Mapping[str, Any], log_e: Any, sideways: Any) -> Any:
        """Fix the error curves of runs, in units of density.

        Args:
            value: The law's parameters by name, and `log_eps_up`.
            covariates: Centred logs of `depth`, `width`, `parameters` and `dataset_size`.
            log_e: Logarithm of the dense error of the run, before it saturates.
            sideways: Shift of the run in log p'.

        Returns:
            The curves; all of one broadcastable shape.
        """
        log_eps_np = saturate(log_e, value["log_eps_up"])
        log_p = jnp.log(value["knee"]) + sideways - self.log_invariant(value, covariates)
        return Curve(log_eps_np, value["log_eps_up"], value["gamma"], log_p)

    def log_error(self, curve: Any, log_density: Any) -> jax.Array:
        """Compute the log error of a curve at a log density."""
        return log_error(curve, log_density)

    def log_slope(self, curve: Any, log_density: Any) -> jax.Array:
        """Compute d log error / d log density."""
        return log_slope(curve, log_density)

    def log_error_and_slope(self, curve: Any, log_density: Any) -> tuple[jax.Array, jax.Array]:
        """Compute both, the way that is quickest to differentiate."""
        return log_error_and_slope(curve, log_density)

    def log_density_at(self, curve: Any, log_target: Any) -> jax.Array:
        """Invert the law: the log density at which the error is the target; `inf` where none is low enough."""
        return log_m_at(curve, log_target)


def _by_data(value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
    """Give how far more data move the whole curve to the sparser side."""
    return value.get("chi", 0.0) * covariates["dataset_size"]


class ParameterCountLaw(Law):
    """M0: the invariant is the number of parameters kept, so that phi and psi are not free."""

    def log_invariant(self, value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
        """Take the parameter count."""
        return covariates["parameters"] + _by_data(value, covariates)


class SingleLaw(Law):
    """Equation (1): one network, in units of its density."""

    def log_invariant(self, value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
        """Nothing varies."""
        return 0.0 * covariates["parameters"]


class SharpnessLaw(Law):
    """M2: how sharply the curve bends at its knees is free."""

    def curve(self, value: Mapping[str, Any], covariates: Mapping[str, Any], log_e: Any, sideways: Any) -> Curve:
        """Add the sharpness."""
        return super().curve(value, covariates, log_e, sideways)._replace(sharpness=value["sharpness"])


class DipCurve(NamedTuple):
    """Hold what fixes one curve that dips.

    Attributes:
        rising: The curve without its dip.
        depth: Depth of the dip where it is deepest, in natural logs.
        width: Logarithm of 1 / density there.
    """

    rising: Curve
    depth: Any
    width: Any


class DipLaw(SharpnessLaw):
    r"""M2 with a discrepancy where pruning begins: networks first gain from it, all in the same rounds.

    $$\log \epsilon = \log \epsilon_{M2} - \delta x e^{1 - x}, \qquad x = - \log d / (r \log 1.25)$$

    so that the error of M2 is multiplied by e^-dip after r = `dip_rounds` rounds of 20 %.
    """

    def curve(self, value: Mapping[str, Any], covariates: Mapping[str, Any], log_e: Any, sideways: Any) -> Any:
        """Add the dip."""
        rising = super().curve(value, covariates, log_e, sideways)
        return DipCurve(rising, value["dip"], ROUND * value["dip_rounds"])

    def log_error(self, curve: DipCurve, log_density: Any) -> jax.Array:
        """Take the dip from the rising curve."""
        return super().log_error(curve.rising, log_density) - _dip_and_slope(curve, log_density)[0]

    def log_slope(self, curve: DipCurve, log_density: Any) -> jax.Array:
        """Differentiate both."""
        return super().log_slope(curve.rising, log_density) - _dip_and_slope(curve, log_density)[1]

    def log_error_and_slope(self, curve: DipCurve, log_density: Any) -> tuple[jax.Array, jax.Array]:
        """Compute both."""
        log_error, slope = super().log_error_and_slope(curve.rising, log_density)
        dip, dip_slope = _dip_and_slope(curve, log_density)
        return log_error - dip, slope - dip_slope

    def log_density_at(self, curve: DipCurve, log_target: Any) -> jax.Array:
        """Find the lowest density at which the error is the target: beyond its deepest, the curve only rises."""
        ndim = jnp.ndim(self.log_error(curve, 0.0))
        here = -jnp.linspace(1.0, 0.0, _LOOKED_AT).reshape(-1, *[1] * ndim) * curve.width
        enough = self.log_error(curve, here) <= log_target
        here = jnp.broadcast_to(here, enough.shape)
        first = enough.argmax(0)[None]
        sparser = jnp.where(first > 0, jnp.take_along_axis(here, jnp.maximum(first - 1, 0), 0), _LOWEST)
        found = _halve(self, curve, log_target, sparser[0], jnp.take_along_axis(here, first, 0)[0])
        return jnp.where(enough.any(0), found, jnp.inf)


def _dip_and_slope(curve: DipCurve, log_density: Any) -> tuple[jax.Array, jax.Array]:
    """Compute the dip and its derivative by log density."""
    x = -log_density / curve.width
    dip = curve.depth * jnp.exp(1 - x)
    return dip * x, dip * (x - 1) / curve.width


class AnchoredLaw(Law):
    r"""M3: the dense law describes the error at density 1, and the low plateau is solved from it.

    $$(\epsilon_{np} / \epsilon_{up})^{2/\gamma} = p^2 \left( \frac{\epsilon_1^{2/\gamma} (1 + p^2)}
    {p^2 \epsilon_{up}^{2/\gamma}} - 1 \right)$$

    An error at density 1 below what the high plateau's knee allows has no plateau; the bracket is then let fall to 0
    smoothly, over a twentieth of its unit, so that the posterior stays differentiable.
    """

    def curve(self, value: Mapping[str, Any], covariates: Mapping[str, Any], log_e: Any, sideways: Any) -> Curve:
        """Solve the plateau of the curve that passes the dense error at density 1."""
        joint = super().curve(value, covariates, log_e, sideways)
        power, log_p = 2 / value["gamma"], joint.log_p
        below = power * (jnp.asarray(joint.log_eps_np) - joint.log_eps_up)
        excess = below + jax.nn.softplus(2 * log_p) - 2 * log_p
        solved = (2 * log_p + _log_soft_excess(excess)) / power
        return joint._replace(log_eps_np=joint.log_eps_up + jnp.minimum(solved, -1e-9))


def _log_soft_excess(excess: jax.Array) -> jax.Array:
    """Compute log(e^t - 1), tending to the log of a small positive number where t is not clearly above 0."""
    far = excess > 3.0
    near = jnp.where(far, 0.0, excess)
    soft = jnp.log(jax.nn.softplus(20 * jnp.expm1(near)) / 20)
    return jnp.where(far, excess + jnp.log(-jnp.expm1(-jnp.where(far, excess, 1.0))), soft)


class SparseCurve(NamedTuple):
    """Hold what fixes one curve of the sparse scaling law, all of one broadcastable shape.

    Attributes:
        log_scale: Discrepancy and run effect: what multiplies the error before it saturates.
        log_data: Logarithm of the terms that pruning does not change.
        log_free: Logarithm of the parameter term at density 1, the part whose factor falls with density.
        log_kept: Logarithm of the other part.
        exponent: Of density in the factor (b_S).
        beta: Of the non-zero parameters (b_N).
        sideways: Shift of log density.
        log_eps_up: Upper bound of the error.
    """

    log_scale: Any
    log_data: Any
    log_free: Any
    log_kept: Any
    exponent: Any
    beta: Any
    sideways: Any
    log_eps_up: Any


class SparseLaw(Law):
    r"""The sparse scaling law of Frantar et al., with non-zero parameters N = d P and S = 1 - d.

    $$e = (a_S (1 - S)^{b_S} + c_S) N^{-b_N} + (a_D / D)^{b_D} + c$$

    At density 1 it is the dense law. It has no high plateau of its own; it saturates at eps_up as the dense law does,
    since errors are bounded.
    """

    def curve(self, value: Mapping[str, Any], covariates: Mapping[str, Any], log_e: Any, sideways: Any) -> SparseCurve:
        """Split the dense error into what density changes and what not."""
        dense = dense_of(value)
        log_parameters = dense.log_b - dense.beta * covariates["parameters"]
        log_data = jnp.logaddexp(dense.log_a - dense.alpha * covariates["dataset_size"], jnp.asarray(dense.log_c))
        return SparseCurve(
            log_e - log_dense_at(value, covariates),
            log_data,
            log_parameters + jnp.log(value["sparse_share"]),
            log_parameters + jnp.log1p(-value["sparse_share"]),
            value["sparse_exponent"],
            value["beta"],
            sideways,
            value["log_eps_up"],
        )

    def log_error(self, curve: SparseCurve, log_density: Any) -> jax.Array:
        """Compute the saturated log error."""
        log_d = log_density - curve.sideways
        removable = jnp.logaddexp(curve.log_free + curve.exponent * log_d, curve.log_kept) - curve.beta * log_d
        return saturate(curve.log_scale + jnp.logaddexp(removable, curve.log_data), curve.log_eps_up)

    def log_slope(self, curve: SparseCurve, log_density: Any) -> jax.Array:
        """Differentiate by log density."""
        one = jnp.ones(jnp.broadcast_shapes(*(jnp.shape(part) for part in (*curve, log_density))))
        return jax.jvp(lambda log_d: self.log_error(curve, log_d), (log_density * one,), (one,))[1]

    def log_error_and_slope(self, curve: SparseCurve, log_density: Any) -> tuple[jax.Array, jax.Array]:
        """Compute one after the other."""
        return self.log_error(curve, log_density), self.log_slope(curve, log_density)

    def log_density_at(self, curve: SparseCurve, log_target: Any) -> jax.Array:
        """Find it between a density that no network has and 1."""
        top = self.log_error(curve, jnp.asarray(0.0))
        found = _halve(self, curve, log_target, jnp.full(top.shape, _LOWEST), jnp.zeros(top.shape))
        return jnp.where(top <= log_target, found, jnp.inf)


@jit(static_argnums=0)
def _halve(law: Law, curve: Any, log_target: Any, low: jax.Array, high: jax.Array) -> jax.Array:
    """Halve intervals of log density whose upper end is low enough in error and whose lower end is not."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        enough = law.log_error(curve, middle) <= log_target
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))[1]


#: What says how the dense error differs between networks and dataset sizes.
_BETWEEN_NETWORKS = ("share_c", "share_n", "alpha", "beta", "omega", *CURVATURE)
_JOINT = "Rosenfeld et al., ICML 2021, equation (2)"
_LAWS = (
    Law("joint", "joint law (M1)", _JOINT),
    ParameterCountLaw("parameter_count", "parameters kept (M0)", f"{_JOINT} with m* = P d", without=("phi", "psi")),
    SharpnessLaw("sharpness", "free sharpness (M2)", "Caballero et al., arXiv 2210.14891", own=("sharpness",)),
    DipLaw(
        "dip",
        "free sharpness, dip at first (M2)",
        "Caballero et al., arXiv 2210.14891; that pruning first helps: Jin et al., arXiv 2210.13738",
        own=("sharpness", "dip", "dip_rounds"),
    ),
    AnchoredLaw("anchored", "anchored at density 1 (M3)", f"{_JOINT}, eps_np solved from the error at density 1"),
    SparseLaw(
        "sparse",
        "sparse scaling law",
        "Frantar et al., arXiv 2309.08520",
        own=("sparse_share", "sparse_exponent"),
        without=("gamma", "phi", "psi", "chi", "knee", "omega", *CURVATURE),
    ),
    SingleLaw(
        "single",
        "one network",
        "Rosenfeld et al., ICML 2021, equation (1)",
        without=("phi", "psi", "chi", *_BETWEEN_NETWORKS, "share_np", "share_p"),
    ),
)
LAWS = {law.name: law for law in _LAWS}


def law_named(name: str) -> Law:
    """Look a law up.

    Raises:
        BayeslawError: There is no such law.

    Example:
        >>> law_named("joint").source
        'Rosenfeld et al., ICML 2021, equation (2)'
    """
    if name not in LAWS:
        raise BayeslawError(f"law = {name!r} must be one of {', '.join(LAWS)}.")
    return LAWS[name]


def split_dense(value: Mapping[str, Any]) -> dict[str, Any]:
    """Split e~ at the centre into its terms a, b and c.

    Runs at one dataset size, or of one network, inform only sums of these terms; the sum and the shares are sampled
    because they are nearly independent.
    """
    if "share_c" not in value:
        return {}
    removable = value["dense"] * (1 - value["share_c"])
    return {
        "a": removable * value["share_n"],
        "b": removable * (1 - value["share_n"]),
        "c": value["dense"] * value["share_c"],
    }


def dense_of(value: Mapping[str, Any]) -> Dense:
    """Gather the constants of the dense law from parameter values; without shares it is one constant."""
    terms = split_dense(value)
    if not terms:
        return Dense(_NOTHING, 0.0, _NOTHING, 0.0, jnp.log(value["dense"]))
    return Dense(jnp.log(terms["a"]), value["alpha"], jnp.log(terms["b"]), value["beta"], jnp.log(terms["c"]))


def log_dense_at(value: Mapping[str, Any], covariates: Mapping[str, Any]) -> jax.Array:
    """Compute log e of networks by the dense law and its curvature, from parameter values and centred covariates."""
    return log_power_laws(value, covariates) + curvature(value, covariates)


def log_power_laws(value: Mapping[str, Any], covariates: Mapping[str, Any]) -> jax.Array:
    """Compute the log of the three terms of the dense law.

    Its m is the parameter count times depth^`omega`: deep and wide networks of one count need not be equally good.
    """
    capacity = covariates["parameters"] + value.get("omega", 0.0) * covariates["depth"]
    return log_dense(dense_of(value), capacity, covariates["dataset_size"])


def curvature(value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
    """Say how far log e is off the power laws, the same way for all networks of a neighbourhood.

    Discrepancies are each network's own, so that those of many cancel out. But where a law is not quite right networks
    are off together, the more the further they lie from what was fitted: a quadratic in the logs of depth, width and
    dataset size says so.
    """
    terms = (value[name] * covariates[one] * covariates[two] for name, (one, two) in CURVATURE.items() if name in value)
    return sum(terms, 0.0)


def share_of_data(value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
    """Give the share of networks' e that data remove, by the power laws.

    Args:
        value: Constants of the dense law.
        covariates: Centred covariates of the networks.
    """
    of_data = jnp.log(split_dense(value)["a"]) - value["alpha"] * covariates["dataset_size"]
    return jnp.exp(of_data - log_power_laws(value, covariates))


def moved_by_luck(share: Any, luck: Any) -> Any:
    """Say how far luck moves log e, being a factor exp(luck) on a share of e: log(1 + share (exp(luck) - 1)).

    Example:
        >>> [round(float(moved_by_luck(share, jnp.log(1.1))), 4) for share in (0.0, 0.5, 1.0)]
        [0.0, 0.0488, 0.0953]
    """
    return jnp.log1p(share * jnp.expm1(luck))


def spread_of_luck(value: Mapping[str, Any], covariates: Mapping[str, Any]) -> Any:
    """Give by how much the luck of subsets of networks' dataset sizes spreads."""
    return value["spread_subset"] * jnp.exp(-0.5 * covariates["dataset_size"])
