"""Where the curves of networks lie, draw by draw: trained ones by their own posterior, others with a discrepancy."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from bayeslaw.compiled import jit
from bayeslaw.errors import BayeslawError
from bayeslaw.frame import CONFIGURATION, Frame
from bayeslaw.hierarchy import spreads_at
from bayeslaw.laws import Law, log_dense_at, share_of_data, spread_of_luck
from bayeslaw.precision import in_float64
from bayeslaw.subsets import SUBSET, which_subset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.posterior import Fit

#: Trained networks whose curves are diagnosed.
CURVES = 30
#: Gauss-Hermite nodes per run effect.
NODES = 7
#: Designs computed at once; bounds the memory at draws x NODES^2 x this many numbers.
BLOCK = 16
#: Networks whose discrepancies one thread draws at a time.
_AT_ONCE = 256
#: What a fit keeps of trained networks, in the order of `Drawn`.
_OWN = ("log_e", "shift_p")


class Drawn(NamedTuple):
    """Hold draws of where the curves of networks, or of runs, lie, each `[draws, networks]`.

    Attributes:
        log_e: Log dense error, discrepancy included.
        sideways: Shift in log p'.
    """

    log_e: NDArray[np.float64]
    sideways: NDArray[np.float64]


def parameter_draws(fit: Fit) -> dict[str, NDArray]:
    """Flatten chain and draw of all parameters that are one number per draw."""
    posterior = fit.posterior
    values = {k: v.to_numpy().ravel() for k, v in posterior.data_vars.items() if v.ndim == 2}
    return {str(k): v for k, v in values.items()} | {"log_eps_up": np.log(values["eps_up"])}


def network_values(value: dict[str, Any], covariates: dict[str, Any], n_test: Any = None) -> dict[str, Any]:
    """Put the spreads of networks in place of those of the central one, `[draws, networks]`.

    Args:
        value: Draws of the parameters, and `log_eps_up`, each `[draws, 1]`.
        covariates: Of the networks, by name.
        n_test: Test examples that their runs are measured on, `[networks]`; nothing for population errors.
    """
    return value | _centre_and_spreads(value, covariates, n_test)[1]


def expected_luck(fit: Fit, runs: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray]:
    """Say where the luck of runs can lie (`bayeslaw.subsets`): that of a subset which fitted runs saw too is known.

    Args:
        fit: The posterior.
        runs: One row per run, with its configuration and, as far as it is known, `subset_id`.

    Returns:
        The share of e that it acts on (`moved_by_luck`), luck as far as it is known, and the spread of what is not,
        each `[draws, runs]`.
    """
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    shape = (len(value["dense"]), len(runs))
    if "spread_subset" not in value:
        return np.zeros(shape), np.zeros(shape), np.zeros(shape)
    covariates = fit.frame.covariates(runs)
    share, spread = (np.asarray(part(value, covariates)) for part in (share_of_data, spread_of_luck))
    if "luck" not in fit.posterior:  # a family of which nothing was measured
        return share, np.zeros(shape), spread * np.ones(shape)
    luck = fit.posterior["luck"].to_numpy().reshape(shape[0], -1)
    which = which_subset(runs, pd.DataFrame({name: fit.posterior[f"subset_{name}"].to_numpy() for name in SUBSET}))
    return share, np.where(which >= 0, luck[:, which], 0.0), np.where(which >= 0, 0.0, spread)


def configuration_draws(fit: Fit, configurations: pd.DataFrame, seed: int) -> Drawn:
    """Draw where the curves of configurations lie: their own posterior, else fresh discrepancies."""
    value = parameter_draws(fit)
    own = [fit.posterior[name].to_numpy().reshape(len(value["dense"]), -1) for name in _OWN if name in fit.posterior]
    known = {tuple(row): i for i, row in enumerate(fit.configurations.itertuples(index=False, name=None))}
    # A network's draws lie beside each other while they are made: one row for each.
    covariates = {name: column[:, None] for name, column in fit.frame.covariates(configurations).items()}
    centre, scales = _centre_and_discrepancies(value, covariates)
    shape = (len(configurations), len(value["dense"]))
    results = [np.array(np.broadcast_to(about, shape)) for about in (centre, 0.0)]
    scales = [np.broadcast_to(scale, shape) for scale in scales]
    networks = list(configurations[CONFIGURATION].itertuples(index=False, name=None))
    strange = [row for row in networks if row not in known]
    if strange and fit.law.name == "single":
        row = strange[0]
        raise BayeslawError(
            f"depth {row[0]:g}, width {row[1]:g}, dataset_size {row[2]:g} was not fitted, and law = 'single' "
            "speaks of the fitted network alone; fit several configurations with law = 'joint'."
        )

    def fill(start: int) -> None:
        for i, row in enumerate(networks[start : start + _AT_ONCE], start):
            if row in known:
                for result, draws in zip(results, own, strict=False):
                    result[i] = draws[:, known[row]]
                continue
            rng = generator(seed, row, "discrepancy")
            for result, scale in zip(results, scales, strict=True):
                result[i] += scale[i] * rng.standard_normal(shape[1])

    with ThreadPoolExecutor() as pool:  # NumPy draws without holding up other threads
        list(pool.map(fill, range(0, len(networks), _AT_ONCE)))
    return Drawn(*(result.T for result in results))


@jit
def _centre_and_discrepancies(value: dict[str, Any], covariates: dict[str, Any]) -> tuple[jax.Array, list[Any]]:
    """Give log e by the dense law, and how far networks spread around it and sideways."""
    centre, spreads = _centre_and_spreads(value, covariates)
    return centre, [spreads.get(name, 0.0) for name in ("sigma_np", "sigma_p")]


@jit
def _centre_and_spreads(
    value: dict[str, Any], covariates: dict[str, Any], n_test: Any = None
) -> tuple[jax.Array, dict[str, Any]]:
    centre = log_dense_at(value, covariates)
    return centre, spreads_at(value, centre, covariates["width"], n_test)


def generator(seed: int, row: tuple[Any, ...], purpose: str) -> np.random.Generator:
    """Make the generator of one use of randomness, named by configuration (and replicate) and purpose."""
    name = ",".join(x if isinstance(x, str) else f"{float(x):.9g}" for x in row)
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}:{name}".encode())])


@in_float64
def trained_curves(fit: Fit) -> xr.Dataset:
    """Compute the curves of trained networks, draw by draw, for diagnostics.

    Args:
        fit: The posterior.

    Returns:
        `log_error_at_D` for D the greatest, the middle and the least density fitted: log error of a run without
        effects, with dimensions `chain`, `draw` and `network`, at most `CURVES` networks, evenly chosen. Nothing where
        no run was fitted.
    """
    if fit.runs.empty:
        return xr.Dataset()
    chosen = np.unique(np.linspace(0, len(fit.configurations) - 1, CURVES).round().astype(int))
    networks = fit.configurations.iloc[chosen]
    value = {k: v[:, None] for k, v in parameter_draws(fit).items()}
    drawn = Drawn(*(effect[:, chosen] for effect in configuration_draws(fit, fit.configurations, 0)))
    curve = fit.law.curve(value, fit.frame.covariates(networks), *drawn)
    log_density = np.log(fit.runs["density"].to_numpy(float))
    ends = np.array([log_density.max(), (log_density.max() + log_density.min()) / 2, log_density.min()])
    shape = (fit.posterior.sizes["chain"], fit.posterior.sizes["draw"], len(chosen))
    dimensions = ("chain", "draw", "network")
    curves = {f"{np.exp(at):.3g}": np.asarray(fit.law.log_error(curve, at)) for at in ends}
    return xr.Dataset({f"log_error_at_{at}": (dimensions, draws.reshape(shape)) for at, draws in curves.items()})


@jit(static_argnums=0)
def average_error(
    law: Law, value: dict[str, Any], covariates: dict[str, Any], log_e: Any, shift_p: Any, log_density: Any
) -> jax.Array:
    """Average the error over the effects of a new run, by Gauss-Hermite quadrature.

    Args:
        law: The law.
        value: Its parameters and `log_eps_up`, each `[draws, 1]`, and the spreads of runs of the networks (`tau_np`,
            `tau_p`, where there are any), `[draws, designs]` or `[draws, 1]`.
        covariates: Of the designs, by name, each `[designs]`.
        log_e: Of the configuration, `[draws, designs]`.
        shift_p: Its sideways shift, likewise.
        log_density: `[designs]`.

    Returns:
        Mean error, `[draws, designs]`.
    """
    (up, up_weight), (sideways, sideways_weight) = _nodes("tau_np" in value), _nodes("tau_p" in value)
    effects = np.repeat(up, len(sideways)), np.tile(sideways, len(up))

    def add(total: jax.Array, node: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        weight, up, sideways = node
        shifted = log_e + value.get("tau_np", 0.0) * up, shift_p + value.get("tau_p", 0.0) * sideways
        return total + weight * jnp.exp(law.log_error(law.curve(value, covariates, *shifted), log_density)), None

    nothing = jnp.zeros(jnp.broadcast_shapes(jnp.shape(log_e), jnp.shape(log_density)))
    nodes = np.outer(up_weight, sideways_weight).ravel(), *effects
    return jax.lax.scan(add, nothing, tuple(jnp.asarray(node) for node in nodes))[0]


def _nodes(varies: bool) -> tuple[NDArray, NDArray]:
    """Give nodes and weights of a standard normal effect, or of one that is not there."""
    if not varies:
        return np.zeros(1), np.ones(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, weights / weights.sum()


def mean_errors(law: Law, value: dict[str, Any], frame: Frame, designs: pd.DataFrame, drawn: Drawn) -> NDArray:
    """Average the error of designs over the effects of a new run, its subset's included, a block of designs at a time.

    Args:
        law: The law.
        value: Draws of the parameters, and `log_eps_up`, each `[draws, 1]`.
        frame: What turns designs into covariates.
        designs: One row per network and density.
        drawn: Where the curves of the configurations lie, `[draws, designs]`.

    Returns:
        Mean errors, `[draws, designs]`.
    """

    def one(covariates: dict[str, Any], log_density: NDArray, *drawn: NDArray) -> tuple[jax.Array]:
        of_networks = network_values(value, covariates)
        if "spread_subset" in value:
            luck = share_of_data(value, covariates) * spread_of_luck(value, covariates)  # to first order
            of_networks["tau_np"] = jnp.hypot(of_networks.get("tau_np", 0.0), luck)
        return (average_error(law, of_networks, covariates, *drawn, log_density),)

    return by_block(one, frame, designs, *drawn)[0]


def by_block(
    function: Callable[..., tuple[jax.Array, ...]], frame: Frame, designs: pd.DataFrame, *columns: NDArray
) -> tuple[NDArray, ...]:
    """Call a function of covariates, log density and columns `[..., designs]` with blocks of equal size."""
    covariates, log_density = frame.covariates(designs), np.log(designs["density"].to_numpy(float))
    order = np.pad(np.arange(len(designs)), (0, -len(designs) % BLOCK), mode="edge")
    parts = []
    for block in order.reshape(-1, BLOCK):
        own = {name: values[block] for name, values in covariates.items()}
        found = function(own, log_density[block], *(column[..., block] for column in columns))
        parts.append([np.asarray(part) for part in found])
    return tuple(np.concatenate(part, axis=1)[:, : len(designs)] for part in zip(*parts, strict=True))


def unique_rows(designs: pd.DataFrame, names: list[str]) -> tuple[pd.DataFrame, NDArray]:
    """Give the different values of some columns, as far as there are such, and which of them every row has."""
    names = [name for name in names if name in designs]
    different = designs[names].drop_duplicates().reset_index(drop=True)
    index = designs[names].merge(different.reset_index(), on=names, how="left")["index"]
    return different, index.to_numpy()
