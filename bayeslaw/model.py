"""The probability model: data in, NumPyro model out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

from bayeslaw.errors import BayeslawError
from bayeslaw.families import Family
from bayeslaw.law import Curve, Dense, log_dense, log_error, log_m_star, log_slope, saturate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayeslaw.priors import Prior

Numbers = jax.Array | np.ndarray[Any, Any]

CONFIGURATION = ["depth", "width", "dataset_size"]
#: Spreads of latent effects; every other parameter enters the likelihood directly.
SPREADS = ("spread_np", "share_np", "tau_p")


@dataclass(frozen=True)
class Frame:
    """Hold what turns a design into the model's covariates, kept with every fit.

    Attributes:
        family: Family of all runs.
        dataset: Label of their dataset.
        chance_error: Error of random guessing, the upper bound of eps_up.
        log_depth: Centre of log depth.
        log_width: Centre of log (width / width_reference).
        log_parameters: Centre of log parameter count.
        log_dataset_size: Centre of log dataset size.
    """

    family: Family
    dataset: str
    chance_error: float
    log_depth: float
    log_width: float
    log_parameters: float
    log_dataset_size: float

    def covariates(self, designs: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Give centred logs of depth, width multiple, parameter count and dataset size, one entry per design."""
        depth, width, size = (designs[name].to_numpy(float) for name in CONFIGURATION)
        return {
            "depth": np.log(depth) - self.log_depth,
            "width": np.log(width / self.family.width_reference) - self.log_width,
            "parameters": np.log(self.family.parameters(depth, width)) - self.log_parameters,
            "dataset_size": np.log(size) - self.log_dataset_size,
        }


class Data(NamedTuple):
    """Hold what the model is conditioned on.

    Attributes:
        response: Empirical logit of the error, `[rows]`.
        log_density: `[rows]`.
        n_test: Number of test examples, `[rows]`; infinite where unknown.
        configuration: Configuration of each trajectory, `[trajectories]`.
        trajectory: Trajectory of each row, `[rows]`.
        depth: Centred log depth, `[configurations]`.
        width: Centred log width multiple, `[configurations]`.
        parameters: Centred log parameter count, `[configurations]`.
        dataset_size: Centred log dataset size, `[configurations]`.
        log_chance: Logarithm of the random-guess error.
    """

    response: Numbers
    log_density: Numbers
    n_test: Numbers
    configuration: Numbers
    trajectory: Numbers
    depth: Numbers
    width: Numbers
    parameters: Numbers
    dataset_size: Numbers
    log_chance: float | jax.Array


@dataclass(frozen=True)
class Structure:
    """Say which parts of the model the data can speak about.

    Attributes:
        depth_varies: Else `phi` is driven by its prior alone.
        width_varies: Else `psi` is driven by its prior alone.
        has_trajectories: Else there are no trajectory effects.
        knows_n_test: Else there is no binomial floor.
    """

    depth_varies: bool
    width_varies: bool
    has_trajectories: bool
    knows_n_test: bool

    def without(self) -> set[str]:
        """Name the parameters that the model does not have."""
        absent = set() if self.has_trajectories else {"share_np", "tau_p"}
        return absent | (set() if self.knows_n_test else {"floor"})


def make_frame(runs: pd.DataFrame, chance_error: float) -> Frame:
    """Centre the covariates on the configurations of a validated run table of one family."""
    first = runs.iloc[0]
    shape = first.get("input_shape")
    classes = first.get("classes")
    family = Family(
        str(first["family"]),
        None if shape is None else _shape(shape),
        None if classes is None or pd.isna(classes) else int(classes),
    )
    configurations = runs[CONFIGURATION].drop_duplicates()
    origin = Frame(family, str(first["dataset"]), chance_error, 0.0, 0.0, 0.0, 0.0)
    centres = {name: float(values.mean()) for name, values in origin.covariates(configurations).items()}
    return Frame(family, origin.dataset, chance_error, *(centres[name] for name in _CENTRES))


_CENTRES = ("depth", "width", "parameters", "dataset_size")


def _shape(value: Any) -> tuple[int, ...]:
    parts = value.strip("[]() ").replace(",", " ").split() if isinstance(value, str) else value
    return tuple(int(part) for part in parts)


def make_data(runs: pd.DataFrame, frame: Frame) -> tuple[Data, pd.DataFrame, pd.Index]:
    """Turn a validated run table into arrays.

    Returns:
        The data, the configurations (one row each, in the order of the model's axis) and the trajectory labels.
    """
    configurations = runs[CONFIGURATION].drop_duplicates().sort_values(CONFIGURATION, ignore_index=True)
    keys = runs["trajectory"] if "trajectory" in runs else pd.Series("all", runs.index)
    of_row = runs[CONFIGURATION].merge(configurations.reset_index(), on=CONFIGURATION, how="left")["index"].to_numpy()
    labels = pd.Series(np.arange(len(runs))).groupby([of_row, keys.to_numpy()], sort=True).ngroup().to_numpy()
    first = np.unique(labels, return_index=True)[1]
    n_test = runs["n_test"].to_numpy(float) if "n_test" in runs else np.full(len(runs), np.inf)
    data = Data(
        response=empirical_logit(runs["error"].to_numpy(float), n_test),
        log_density=np.log(runs["density"].to_numpy(float)),
        n_test=n_test,
        configuration=of_row[first],
        trajectory=labels,
        **frame.covariates(configurations),
        log_chance=math.log(frame.chance_error),
    )
    return data, configurations, pd.Index(keys.to_numpy()[first], name="trajectory")


def empirical_logit(error: NDArray, n_test: NDArray) -> NDArray:
    """Compute log((wrong + 1/2) / (right + 1/2)), finite at 0 and at 1; the plain logit where n_test is unknown."""
    known = np.isfinite(n_test)
    count = np.where(known, n_test, 1.0)
    half = np.where(known, 0.5, 0.0)
    return np.log(error * count + half) - np.log((1 - error) * count + half)


def varies(values: pd.Series) -> bool:
    """Say whether a column has more than one value."""
    return bool((values != values.iloc[0]).any())


def structure_of(runs: pd.DataFrame) -> Structure:
    """Look which axes vary and what is known."""
    return Structure(
        depth_varies=varies(runs["depth"]),
        width_varies=varies(runs["width"]),
        has_trajectories="trajectory" in runs,
        knows_n_test="n_test" in runs,
    )


def make_model(priors: Mapping[str, Prior], structure: Structure, *, centred: bool = True):
    """Make the NumPyro model of the joint law.

    For configuration i, trajectory t and row r

        log e_i   ~ Normal(log(a n^-alpha + b m^-beta + c), sigma_np)          discrepancy of the configuration
        log e_it  = log e_i + effect_np,      effect_np ~ Normal(0, tau_np)    the trajectory, up and down
        log p'_it = log p' + effect_p,        effect_p  ~ Normal(0, tau_p)     the trajectory, sideways
        eps_np    = eps_up e_it / sqrt(e_it^2 + 1)
        mean      = law(eps_np, eps_up, gamma, p', m*_r)
        response  ~ StudentT(nu, logit(mean), scale)
        scale^2   = floor^2 binomial + sigma^2 + (kappa d logit mean / d log m*)^2

    The response is the empirical logit, so both ends are safe: an error of 0 of n_test is an ordinary observation with
    its binomial width, and no prediction leaves (0, 1).

    Args:
        priors: Priors by name.
        structure: Which parts the model has.
        centred: Sample the trajectories' log e_it themselves, with log e_i integrated out (`draw_configurations` gives
            it back); right where every trajectory is well measured. Else sample standardised effects, right where
            few groups leave the spreads uncertain.

    Returns:
        A function of `Data` to be given to NumPyro.

    Source:
        Rosenfeld et al., ICML 2021, equation (2); ICLR 2020, equations (4) and (5).
    """
    absent = structure.without()
    globals_ = [name for name in priors if name not in absent and name not in SPREADS]

    def model(data: Data) -> None:
        value = {name: _site(name, priors[name].distribution) for name in globals_}
        spread = {name: _site(name, priors[name].distribution) for name in SPREADS if name not in absent}
        spread |= {k: numpyro.deterministic(k, v) for k, v in split_spread(spread).items()}
        for name, term in split_dense(value).items():
            numpyro.deterministic(name, term)
        log_eps_up = numpyro.deterministic("log_eps_up", data.log_chance + jnp.log(value["plateau"]))
        centre = log_dense(dense_of(value), data.parameters, data.dataset_size)
        latent = _centred_effects if centred else _standardised_effects
        log_e, effect_p = latent(data, centre, spread)
        log_m = log_m_star(data.depth, data.width, 0.0, value["phi"], value["psi"])
        log_eps_np = saturate(log_e, log_eps_up)
        log_p = jnp.log(value["knee"]) + effect_p - jnp.asarray(log_m)[data.configuration]
        row = data.trajectory
        curve = Curve(log_eps_np[row], log_eps_up, value["gamma"], log_p[row])
        location, scale = observation(curve, data.log_density, data.n_test, value)
        numpyro.sample("response", dist.StudentT(value["nu"], location, scale), obs=data.response)

    return model


def _site(name: str, distribution: Any) -> jax.Array:
    return jnp.asarray(numpyro.sample(name, distribution))


def split_spread(spread: Mapping[str, Any]) -> dict[str, Any]:
    """Split the spread of eps_np into the configurations' and the trajectories' part.

    With one replicate only their total is informed; total and share are sampled because they are nearly independent.
    """
    if "share_np" not in spread:
        return {"sigma_np": spread["spread_np"]}
    return {
        "sigma_np": spread["spread_np"] * jnp.sqrt(spread["share_np"]),
        "tau_np": spread["spread_np"] * jnp.sqrt(1 - spread["share_np"]),
    }


def _centred_effects(data: Data, centre: jax.Array, spread: Mapping[str, Any]) -> tuple[jax.Array, Any]:
    """Sample log e of every trajectory, the configurations' own integrated out, and the sideways effects."""
    count = len(data.configuration)
    log_e = _site("log_e_run", dist.ImproperUniform(dist.constraints.real, (), (count,)))
    numpyro.factor("hierarchy", _log_density_of_groups(log_e, data, centre, spread))
    if "tau_p" not in spread:
        return log_e, jnp.zeros(count)
    with numpyro.plate("trajectory", count):
        return log_e, _site("effect_p", dist.Normal(0.0, spread["tau_p"]))


def _standardised_effects(data: Data, centre: jax.Array, spread: Mapping[str, Any]) -> tuple[jax.Array, Any]:
    """Sample effects in units of their spreads."""
    with numpyro.plate("configuration", len(data.depth)):
        discrepancy = _site("discrepancy", dist.Normal())
    log_e = centre + spread["sigma_np"] * discrepancy
    numpyro.deterministic("log_e", log_e)
    log_e = log_e[data.configuration]
    effect_p = jnp.zeros(len(data.configuration))
    if "tau_p" in spread:
        with numpyro.plate("trajectory", len(data.configuration)):
            up, sideways = (_site(name, dist.Normal()) for name in ("standard_np", "standard_p"))
        log_e, effect_p = log_e + spread["tau_np"] * up, spread["tau_p"] * sideways
        numpyro.deterministic("effect_p", effect_p)
    numpyro.deterministic("log_e_run", log_e)
    return log_e, effect_p


def _log_density_of_groups(log_e: jax.Array, data: Data, centre: jax.Array, spread: Mapping[str, Any]) -> jax.Array:
    """Integrate log e_i out: trajectories of a configuration are exchangeable normals, in closed form.

    With R trajectories, mean m and within sum of squares S: (R - 1) log tau^2 + log(tau^2 + R sigma^2)
    + S / tau^2 + R (m - centre)^2 / (tau^2 + R sigma^2), times -1/2. Without trajectory effects tau is 0 and R is 1.
    """
    between, within = spread["sigma_np"] ** 2, spread.get("tau_np", 0.0) ** 2
    size, mean, squares = _group_moments(log_e, data)
    total = within + size * between
    density = jnp.log(total) + size * (mean - centre) ** 2 / total
    if "tau_np" in spread:
        density = density + (size - 1) * jnp.log(within) + squares / within
    return -0.5 * jnp.sum(density)


def _group_moments(log_e: jax.Array, data: Data) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Count the trajectories of every configuration, their mean and their sum of squares around it."""

    def total(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, data.configuration, len(data.depth))

    size = total(jnp.ones_like(log_e))
    mean = total(log_e) / size
    return size, mean, total((log_e - mean[data.configuration]) ** 2)


def draw_configurations(key: jax.Array, value: Mapping[str, Any], data: Data) -> jax.Array:
    """Draw log e of every configuration given its trajectories', the exact conditional of what was integrated out.

    Args:
        key: JAX key.
        value: One draw: constants of the dense law, `sigma_np`, `tau_np` (if there is one) and `log_e_run`.
        data: The data.

    Returns:
        `log_e`, `[configurations]`.
    """
    if "tau_np" not in value:
        return value["log_e_run"][jnp.argsort(data.configuration)]
    centre = log_dense(dense_of(value), data.parameters, data.dataset_size)
    size, mean, _ = _group_moments(value["log_e_run"], data)
    precision = value["sigma_np"] ** -2 + size * value["tau_np"] ** -2
    location = (centre * value["sigma_np"] ** -2 + size * mean * value["tau_np"] ** -2) / precision
    return location + jax.random.normal(key, location.shape) / jnp.sqrt(precision)


def estimate_spreads(value: Mapping[str, Any], data: Data) -> dict[str, jax.Array]:
    """Estimate the spreads by moments, at one value of everything else.

    Args:
        value: Constants of the dense law, `log_e_run` and, with trajectory effects, `effect_p`.
        data: The data.

    Returns:
        `spread_np` and, with trajectory effects, `share_np` (one half where nothing is replicated) and `tau_p`.
    """
    size, mean, squares = _group_moments(value["log_e_run"], data)
    centre = log_dense(dense_of(value), data.parameters, data.dataset_size)
    repeated = jnp.sum(size - 1)
    within = jnp.sum(squares) / jnp.maximum(repeated, 1)
    around = jnp.mean((mean - centre) ** 2)
    between = jnp.maximum(around - within * jnp.mean(1 / size), 0.1 * around)
    if "effect_p" not in value:
        return {"spread_np": jnp.sqrt(around) + 0.01}
    between, within = (jnp.where(repeated > 0, v, around / 2) + 1e-4 for v in (between, within))
    return {
        "spread_np": jnp.sqrt(between + within),
        "share_np": between / (between + within),
        "tau_p": jnp.sqrt(jnp.mean(value["effect_p"] ** 2)) + 0.01,
    }


def spread_variances(data: Data) -> dict[str, float]:
    """Give the variance of each spread's estimate on its unconstrained scale, from the number of its groups."""
    groups, count = len(data.depth), len(data.configuration)
    share = 2 / groups + 2 / (count - groups) if count > groups else 2.0
    return {"spread_np": 0.5 / groups + 0.02, "share_np": min(share, 2.0), "tau_p": 0.5 / count + 0.02}


def split_dense(value: Mapping[str, Any]) -> dict[str, Any]:
    """Split e~ at the centre into its terms a, b and c.

    Runs at one dataset size, or of one network, inform only sums of these terms; the sum and the shares are sampled
    because they are nearly independent.
    """
    removable = value["dense"] * (1 - value["share_c"])
    return {
        "a": removable * value["share_n"],
        "b": removable * (1 - value["share_n"]),
        "c": value["dense"] * value["share_c"],
    }


def dense_of(value: Mapping[str, Any]) -> Dense:
    """Gather the constants of the dense law from parameter values."""
    terms = split_dense(value)
    return Dense(jnp.log(terms["a"]), value["alpha"], jnp.log(terms["b"]), value["beta"], jnp.log(terms["c"]))


def observation(curve: Curve, log_m: Any, n_test: Any, value: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Give location and scale of the empirical logit of a measured error.

    Args:
        curve: Curve of the trajectory.
        log_m: Where on the curve.
        n_test: Test examples; infinite for the population error.
        value: `sigma`, `kappa` and, where there is one, `floor`.

    Returns:
        Location and scale, broadcast.
    """
    log_mean = log_error(curve, log_m)
    mean = jnp.exp(log_mean)
    slope = log_slope(curve, log_m) / (1 - mean)
    known = jnp.isfinite(n_test)
    count, half = jnp.where(known, n_test, 1.0), jnp.where(known, 0.5, 0.0)
    wrong, right = count * mean + half, count * (1 - mean) + half
    binomial = jnp.where(known, 1 / wrong + 1 / right, 0.0) * value.get("floor", 0.0) ** 2
    scale = jnp.sqrt(binomial + value["sigma"] ** 2 + (value["kappa"] * slope) ** 2)
    return jnp.log(wrong) - jnp.log(right), scale


def starting_values(data: Data, structure: Structure) -> dict[str, NDArray]:
    """Guess where the posterior is: plateaus from the densest rows, all else in the middle of the priors."""
    densest = np.full(len(data.configuration), -np.inf)
    np.maximum.at(densest, data.trajectory, data.log_density)
    chosen = data.log_density >= densest[data.trajectory] - 1e-9
    of_row = data.configuration[data.trajectory][chosen]
    total = np.bincount(of_row, data.response[chosen], len(data.depth))
    logit = total / np.bincount(of_row, minlength=len(data.depth))
    share = np.clip(1 / (1 + np.exp(-logit)) / math.exp(data.log_chance), 1e-4, 0.98)
    values = {"log_e_run": np.log(share / np.sqrt(1 - share**2))[data.configuration]}
    return values | ({"effect_p": np.zeros(len(data.configuration))} if structure.has_trajectories else {})


def check_one_family(runs: pd.DataFrame) -> None:
    """Refuse a table of several families: their exponents differ, and pooling was not asked for.

    Raises:
        BayeslawError: There is more than one (family, dataset).
    """
    pairs = runs[["family", "dataset"]].drop_duplicates()
    if len(pairs) > 1:
        names = ", ".join(f"{family} on {dataset}" for family, dataset in pairs.itertuples(index=False))
        raise BayeslawError(
            f"the table holds {len(pairs)} families ({names}), which do not share their exponents; fit one at a time: "
            "runs[(runs.family == ...) & (runs.dataset == ...)]."
        )
