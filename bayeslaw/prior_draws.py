"""What the priors alone say: error curves drawn from the model before any run is seen."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from numpyro import handlers

from bayeslaw.curves import Drawn, mean_errors, unique_rows
from bayeslaw.density import Context
from bayeslaw.errors import BayeslawError
from bayeslaw.fitting import chance_error_of, derived_values
from bayeslaw.frame import (
    CONFIGURATION,
    Data,
    Frame,
    along_trajectories,
    check_one_family,
    error_from_logit,
    gaps,
    make_frame,
    n_test_of,
    tested_on,
)
from bayeslaw.laws import law_named
from bayeslaw.model import EFFECTS, Structure, make_model, structure_of
from bayeslaw.precision import in_float64
from bayeslaw.predict import check_designs, summarise
from bayeslaw.priors import resolve_priors
from bayeslaw.runs import load_runs
from bayeslaw.subsets import number_subsets, root_of_covariance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from numpyro.distributions import Distribution

    from bayeslaw.families import Family

#: Densities of a curve where none are given: how many, and the lowest where no runs say how far pruning goes.
POINTS, LOWEST = 40, 1e-3
#: Draws computed at once; always as many, so that another number of draws compiles nothing.
_BATCH = 500


@dataclass(frozen=True)
class PriorPredictive:
    """Hold error curves drawn from the priors.

    Attributes:
        table: The designs with `mean`, `median`, `lower`, `upper` of the error.
        draws: Errors, dimensions `draw` and `design`; a draw is one set of parameters, with the same effects along a
            curve.
        parameters: The drawn parameters, one row per draw.
        frame: Family, random-guess error and centre.
        kind: `mean` or `run`.
        interval: Probability between `lower` and `upper`.
    """

    table: pd.DataFrame
    draws: xr.DataArray
    parameters: pd.DataFrame
    frame: Frame
    kind: str
    interval: float

    @property
    def centre(self) -> dict[str, float]:
        """The central network, in the units of the table: what the priors of `knee` and `dense` are about."""
        frame = self.frame
        logs = (frame.log_depth, frame.log_width, frame.log_parameters, frame.log_dataset_size)
        depth, multiple, parameters, size = (float(value) for value in np.exp(logs))
        width = multiple * frame.family.width_reference
        return {"depth": depth, "width": width, "parameters": parameters, "dataset_size": size}

    def __str__(self) -> str:
        centre = ", ".join(f"{name} {value:,.4g}" for name, value in self.centre.items())
        shown = self.table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return f"{shown}\n\nPriors are about the central network: {centre}; random guessing errs by " + (
            f"{self.frame.chance_error:.3g}."
        )


@in_float64
def prior_predictive(
    networks: Any,
    designs: pd.DataFrame | None = None,
    *,
    priors: Mapping[str, Distribution] | None = None,
    law: str = "sharpness",
    effects: Sequence[str] = EFFECTS,
    noise: str = "student_t",
    steep: bool = True,
    growth: bool | None = None,
    correlated: bool = True,
    family: Family | None = None,
    n_test: int | None = None,
    chance_error: float | None = None,
    kind: str = "mean",
    interval: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> PriorPredictive:
    """Draw error curves from the model with its priors, before any run or beside a run table whose errors are not used.

    Args:
        networks: What a fit will be about: a run table (a path, a DataFrame, or what `load_runs` gave), or one row per
            network with `depth`, `width` and `dataset_size`. Their geometric mean is the centre that the priors are
            about, as in a fit of these networks (`PriorPredictive.centre`).
        designs: Networks and densities to draw curves of, one row each: `depth`, `width`, `dataset_size`, `density`;
            default all networks, from density 1 to the lowest of the runs, or to 0.001.
        priors: NumPyro distributions by parameter name, in place of defaults, as in `bayeslaw.fit`.
        law: Name of the law, as there.
        effects: Where the effects of a training run act, as there.
        noise: Noise of single levels, as there.
        steep: Whether that noise grows with the local slope, as there.
        growth: Whether spreads grow with the error; by default with 20 networks or more, as there.
        correlated: Whether the noise is correlated along a trajectory, as there.
        family: Family of networks that are no run table; it gives parameter counts and, by its classes, the
            random-guess error.
        n_test: Number of test examples, for `kind="run"`; default that of the runs, else the whole population.
        chance_error: Error of random guessing, in (0, 1), where neither table nor family has it.
        kind: `"mean"`: a network's curve averaged over runs; `"run"`: what one run would measure.
        interval: Probability of the equal-tailed interval, in (0, 1).
        draws: Number of draws, 1 or more.
        seed: Seed of the draws.

    Returns:
        The curves.

    Raises:
        BayeslawError: Networks or designs lack a column or are out of range, priors are unknown, or an argument is out
            of its range.

    Example:
        >>> from bayeslaw import Family
        >>> networks = pd.DataFrame({"depth": [8, 14, 20], "width": 16, "dataset_size": 50_000})
        >>> drawn = prior_predictive(networks, family=Family("cifar_resnet", (3, 32, 32), 10), draws=200)
        >>> {name: round(value, 1) for name, value in drawn.centre.items()}
        {'depth': 13.1, 'width': 16.0, 'parameters': 155040.0, 'dataset_size': 50000.0}
    """
    if draws < 1:
        raise BayeslawError(f"draws = {draws} must be 1 or more.")
    table = _table(networks, family, n_test, chance_error)
    frame = make_frame(table, chance_error_of(table))
    designs = default_designs(table) if designs is None else designs.copy()
    designs = check_designs(designs, interval, kind)
    if "n_test" not in designs and "n_test" in table:
        designs["n_test"] = table["n_test"].median()
    structure = structure_of(
        table,
        law=law,
        effects=tuple(effects),
        noise=noise,
        steep=steep,
        growth=growth,
        correlated=correlated,
        deaths=False,
    )
    resolved = resolve_priors(priors, law=law)
    distributions = {k: v.distribution for k, v in resolved.items() if k not in structure.without()}
    configurations, of_row = unique_rows(designs, CONFIGURATION)
    order = along_trajectories(of_row, np.log(designs["density"].to_numpy(float)))
    data = _data(frame, designs.iloc[order], configurations, of_row[order])
    if structure.subsets:  # those of a dataset size are trained on the same examples
        of_configuration, subsets = number_subsets(configurations.assign(subset_id="new"))
        root = root_of_covariance(subsets, frame.log_dataset_size)
        data = data._replace(subset=of_configuration, luck_root=root)
    values = _draw(structure, Context(data, distributions), draws, seed)
    values |= derived_values(values, frame)
    parameters = {name: value for name, value in values.items() if value.ndim == 1}
    if kind == "mean":
        columns = {name: value[:, None] for name, value in parameters.items()}
        log_e = values["log_e"]
        drawn = Drawn(*(effect[:, of_row] for effect in (log_e, values.get("shift_p", np.zeros_like(log_e)))))
        errors = mean_errors(law_named(law), columns, frame, designs, drawn)
    else:
        errors = error_from_logit(values["response"][:, 0, np.argsort(order)], n_test_of(designs))
    return PriorPredictive(
        designs.assign(**summarise(errors, interval)),
        xr.DataArray(errors, dims=("draw", "design"), name="error"),
        pd.DataFrame(parameters).rename_axis("draw"),
        frame,
        kind,
        interval,
    )


@functools.cache
def _sampler(structure: Structure) -> Callable[[Context, jax.Array], dict[str, jax.Array]]:
    """Compile the model run forwards, effects standardised: the other parametrisation is no sampler but a density."""
    model = make_model(structure, centred=False)

    def one(context: Context, key: jax.Array) -> dict[str, jax.Array]:
        trace = handlers.trace(handlers.seed(model, key)).get_trace(context.data, context.priors)
        return {name: site["value"] for name, site in trace.items() if site["type"] in ("sample", "deterministic")}

    return jax.jit(jax.vmap(one, (None, 0)))


def _draw(structure: Structure, context: Context, draws: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Draw all that the model has, `[draws, ...]` by name."""
    key, sampler = jax.random.PRNGKey(seed), _sampler(structure)
    batches = [
        sampler(context, jax.random.split(jax.random.fold_in(key, i), _BATCH)) for i in range(-(-draws // _BATCH))
    ]
    return {name: np.concatenate([batch[name] for batch in batches])[:draws] for name in batches[0]}


def _table(networks: Any, family: Family | None, n_test: int | None, chance_error: float | None) -> pd.DataFrame:
    """Make a run table of networks that are none yet: two replicates each, with an error that nothing looks at."""
    if not isinstance(networks, pd.DataFrame) or "error" in networks:
        table = load_runs(networks, n_test=n_test, chance_error=chance_error)
        check_one_family(table)
        return table
    wanted = networks.filter(CONFIGURATION).drop_duplicates().assign(density=1.0, error=0.5)
    if family is not None:
        wanted["family"] = family.name
        if family.input_shape is not None:
            wanted["input_shape"] = ",".join(str(size) for size in family.input_shape)
        if family.classes is not None:
            wanted["classes"] = family.classes
    both = pd.concat([wanted.assign(replicate=i) for i in range(2)], ignore_index=True)
    return load_runs(both, n_test=n_test, chance_error=chance_error)


def default_designs(table: pd.DataFrame) -> pd.DataFrame:
    """Cross all networks of a run table with densities from 1 down to its lowest."""
    lowest = float(table["density"].min())
    densities = np.geomspace(1.0, lowest if lowest < 1 else LOWEST, POINTS)
    networks = table[CONFIGURATION].drop_duplicates().sort_values(CONFIGURATION)
    return networks.merge(pd.DataFrame({"density": densities}), how="cross")


def _data(frame: Frame, designs: pd.DataFrame, configurations: pd.DataFrame, of_row: NDArray[np.integer]) -> Data:
    """Condition the model on nothing: one run of every network, whose responses are to be drawn, a line each.

    Designs come by configuration, from the densest to the sparsest, as noise that is correlated wants them.
    """
    log_density = np.log(designs["density"].to_numpy(float))
    return Data(
        response=cast("Any", None),
        log_density=log_density[None],
        n_test=n_test_of(designs)[None],
        gap=gaps(of_row, log_density)[None],
        measured=np.ones((1, len(designs)), bool),
        at_risk=np.zeros((1, len(designs)), bool),
        configuration=np.arange(len(configurations)),
        trajectory=of_row,
        **frame.covariates(configurations),
        log_chance=jnp.log(frame.chance_error),
        tested=tested_on(of_row, n_test_of(designs)),
        dead=np.zeros(2),
    )
