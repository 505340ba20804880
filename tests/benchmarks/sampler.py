"""The sampler against its peers, on the same models and rows, in one run.

    uv run --group bench python tests/benchmarks/sampler.py A
    uv run --group bench python tests/benchmarks/sampler.py B --limit 600
    uv run --group bench python tests/benchmarks/sampler.py simple

`simple` is the joint law with known plateaus on 2,128 rows (`model_simple`), A the hierarchical law at the paper's
scale (`model_a`), B the model that ships as the default, both on the 12,768 rows of `paper_scale`. NumPyro's NUTS with
its defaults and nutpie with low-rank adaptation run, four chains each, until every R-hat is at most 1.01 or the limit
(seconds) is reached; both sample the same density, by default as it would be written for NumPyro, row by row in float64
with automatic derivatives. With `--gradients ours` they get the quick ones that ours has.
Every sampler runs in a process of its own, one after the other. Effective sample sizes are the smallest over all
parameters, ranks on the unconstrained scale. Seconds include the search of the mode, the Hessian and the warm-up;
compilation is counted in `whole` alone for ours. nutpie cannot go on where it stopped: it runs anew with twice the
draws, and the run with the most effective draws a second counts.

Ours has the warm-up and the acceptance rate (.8, as that of peers) that `bayeslaw.fit` takes for 100 configurations or
more. Smaller tables, in which more is narrow, it samples with shorter steps: `--acceptance 0.98`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHAINS, MAX_R_HAT = 4, 1.01
SAMPLERS = ("ours", "numpyro", "nutpie")


def main() -> None:
    """Run every sampler in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["simple", "A", "B"])
    parser.add_argument("--limit", type=float, default=1800.0, help="Seconds for each peer.")
    parser.add_argument("--configurations", type=int, default=152)
    parser.add_argument("--draws", type=int, default=1000, help="Draws of each chain of ours.")
    parser.add_argument("--acceptance", type=float, help="Acceptance rate of ours; default that of fit.")
    parser.add_argument("--terms", choices=["paper", "centred"], default="centred", help="Of A, what peers sample in.")
    parser.add_argument("--gradients", choices=["plain", "ours"], default="plain", help="What peers get of A and B.")
    parser.add_argument("--only", choices=SAMPLERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(run(arguments.only, arguments)))
        return
    results = {}
    for name in SAMPLERS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({"sampler": name, **results[name]}), flush=True)
    rate = {name: result["ess_bulk"] / result["seconds"] for name, result in results.items()}
    for peer in SAMPLERS[1:]:
        print(f"ours / {peer}: {rate['ours'] / rate[peer]:.0f} times the smallest bulk ESS per second")


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one sampler."""
    if name == "numpyro":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={CHAINS}"
    import jax

    with jax.enable_x64(True):
        return {"numpyro": numpyro_nuts, "nutpie": nutpie_low_rank}.get(name, ours)(arguments)


def problem(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what our sampler needs, and for peers the same density in plain coordinates, its context and a start."""
    import jax
    import jax.numpy as jnp
    import model_a
    import model_simple
    from numpyro.infer.util import potential_energy
    from paper_scale import paper_table

    from bayeslaw import fitting
    from bayeslaw.density import named_potential
    from bayeslaw.laplace import laplace
    from bayeslaw.priors import resolve_priors
    from bayeslaw.runs import load_runs

    fitting.bind_submodules()
    if arguments.model == "simple":
        rows, start = jax.tree.map(jnp.asarray, model_simple.make_rows()), jax.tree.map(jnp.asarray, model_simple.START)

        def simple(context: Any, values: dict[str, Any]) -> jax.Array:
            return jnp.asarray(potential_energy(model_simple.model, (context,), {}, values))

        return {
            "named": simple,
            "start": start,
            "approximate": lambda: (rows, laplace(simple, rows, [start], None, {}, {})),
            "peers": (simple, rows, start),
        }
    table = paper_table(arguments.configurations)
    if arguments.model == "A":
        cells = model_a.cells_of(table)
        start = {name: jnp.asarray(value) for name, value in model_a.start_of(cells).items()}
        peers_start = model_a.in_papers_terms(cells, start, 1) if arguments.terms == "paper" else start

        def potential(context: Any, values: dict[str, Any]) -> jax.Array:
            return jnp.asarray(potential_energy(model_a.model, (context,), {}, values))

        def of_papers_terms(context: Any, values: dict[str, Any]) -> jax.Array:
            return of_peers(context, model_a.in_papers_terms(context, values))

        def quick(context: Any, values: dict[str, Any]) -> jax.Array:
            return jnp.asarray(potential_energy(model_a.quick_model, (context,), {}, values))

        context, settings = jax.tree.map(jnp.asarray, cells), (model_a.variances(cells), model_a.groups_of(cells))
        laid_out = jax.tree.map(jnp.asarray, model_a.quick_cells(cells))
        of_peers, context = (quick, laid_out) if arguments.gradients == "ours" else (potential, context)
        return {
            "named": quick,
            "start": start,
            "approximate": lambda: (laid_out, laplace(quick, laid_out, [start], model_a.estimate, *settings)),
            "peers": (of_papers_terms if arguments.terms == "paper" else of_peers, context, peers_start),
        }
    own = fitting.prepare(load_runs(table), {}, resolve_priors(None))
    start = fitting.starts_of(own)[0]
    if arguments.only != "ours" and arguments.gradients == "plain":
        return {"peers": plain_default(own, start)}
    return {
        "named": fitting.straight_density(own),
        "start": start,
        "approximate": lambda: fitting.approximate(own)[:2],
        "peers": (named_potential(own.structure, True), own.context, start),
    }


def plain_default(own: Any, start: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Give the default model's density row by row, in float64 and with automatic derivatives, context and start."""
    import jax
    import jax.numpy as jnp
    from plain_lines import PlainLines

    from bayeslaw import model
    from bayeslaw.density import Context, named_potential
    from bayeslaw.frame import Data

    model.LineNoise = PlainLines  # for this process
    data = Data(*(jnp.asarray(part) for part in own.data))
    return named_potential(own.structure, True), Context(data, own.context.priors), jax.tree.map(jnp.asarray, start)


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Find the Laplace axes and sample, twice: the second time nothing is compiled."""
    import inspect

    import bayeslaw
    from bayeslaw.density import flat_potential, shapes_of
    from bayeslaw.fitting import LONG_STEPS
    from bayeslaw.sampler import sample

    given, warmup = problem(arguments), inspect.signature(bayeslaw.fit).parameters["warmup"].default
    settings = {"warmup": warmup, "target_acceptance": arguments.acceptance or LONG_STEPS}

    def once(seed: int) -> tuple[Any, float]:
        start = time.perf_counter()
        context, found = given["approximate"]()
        drawn = sample(
            *flat_potential(given["named"], context, shapes_of(given["start"])), found.mode, found.axes, seed=seed,
            chains=CHAINS, draws=arguments.draws, progress=False, **settings,
        )  # fmt: skip
        return drawn, time.perf_counter() - start

    whole = once(0)[1]
    drawn, seconds = once(1)
    statistics = drawn.statistics
    figures = judge(drawn.positions) | {"divergences": int(statistics["diverging"].sum())}
    return figures | {"seconds": seconds, "whole": whole, "leapfrogs_a_draw": float(statistics["n_steps"].mean())}


def judge(positions: Any) -> dict[str, Any]:
    """Find the worst of all parameters in draws `[chains, draws, dimensions]`."""
    import arviz as az
    import xarray as xr

    draws = xr.Dataset({"x": (("chain", "draw", "dimension"), positions)})
    least = {kind: float(az.ess(draws, method=kind)["x"].min()) for kind in ("bulk", "tail")}
    r_hat = float(az.rhat(draws)["x"].max())
    chains, length, dimensions = positions.shape
    return {
        "dimensions": dimensions, "chains": chains, "draws": length, "ess_bulk": least["bulk"],
        "ess_tail": least["tail"], "r_hat": r_hat,
    }  # fmt: skip


def numpyro_nuts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run NumPyro's NUTS with its defaults from draws around the start, 500 draws at a time after 500 of warm-up."""
    import jax
    import numpy as np
    from jax.flatten_util import ravel_pytree
    from numpyro.infer import MCMC, NUTS

    from bayeslaw.density import flat_potential, shapes_of

    named, context, start = problem(arguments)["peers"]
    density, arrays = flat_potential(named, context, shapes_of(start))
    centre = ravel_pytree(start)[0]
    begin = centre + 0.1 * jax.random.normal(jax.random.PRNGKey(1), (CHAINS, len(centre)))
    kernel = NUTS(potential_fn=lambda q: density(arrays, q))
    mcmc = MCMC(kernel, num_warmup=500, num_samples=500, num_chains=CHAINS, chain_method="parallel", progress_bar=False)
    start, parts, leapfrogs = time.perf_counter(), [], 0
    mcmc.warmup(jax.random.PRNGKey(0), init_params=begin, extra_fields=("num_steps",), collect_warmup=True)
    leapfrogs += int(mcmc.get_extra_fields()["num_steps"].sum())
    while True:
        mcmc.run(jax.random.PRNGKey(len(parts) + 2), extra_fields=("num_steps",))
        parts.append(np.asarray(mcmc.get_samples(group_by_chain=True)))
        leapfrogs += int(mcmc.get_extra_fields()["num_steps"].sum())
        mcmc.post_warmup_state = mcmc.last_state
        seconds = time.perf_counter() - start
        figures = judge(np.concatenate(parts, axis=1))
        print(figures | {"seconds": seconds}, file=sys.stderr)
        if figures["r_hat"] <= MAX_R_HAT or seconds > arguments.limit:
            return figures | {"seconds": seconds, "gradients": leapfrogs}


def nutpie_low_rank(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run nutpie with low-rank adaptation, anew with twice the draws while R-hat fails; the best run counts."""
    import jax
    import numpy as np
    import nutpie
    from jax.flatten_util import ravel_pytree

    from bayeslaw.density import flat_potential, shapes_of

    named, context, start = problem(arguments)["peers"]
    flat, arrays = flat_potential(named, context, shapes_of(start))
    centre = np.asarray(ravel_pytree(start)[0])
    gradient = jax.jit(jax.value_and_grad(lambda q: -flat(arrays, q)))

    def density(q: Any) -> tuple[float, Any]:
        with jax.enable_x64(True):  # every chain is a thread of its own
            value, slope = gradient(q)
            return float(value), np.asarray(slope)

    def begin(seed: int) -> Any:
        return centre + 0.1 * np.random.default_rng(seed).standard_normal(len(centre))

    density(centre)
    model = nutpie.compiled_pyfunc.from_pyfunc(
        len(centre), lambda: density, lambda *_: lambda q: {"x": np.asarray(q)}, [np.dtype(float)], [(len(centre),)],
        ["x"], make_initial_point_fn=begin,
    )  # fmt: skip
    begun, draws, best = time.perf_counter(), 500, {"ess_bulk": 0.0, "seconds": 1.0}
    while True:
        start = time.perf_counter()
        trace = nutpie.sample(
            model, draws=draws, tune=max(500, draws), chains=CHAINS, cores=CHAINS, seed=draws,
            adaptation="low_rank", progress_bar=False, save_warmup=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        figures = judge(np.asarray(trace.posterior["x"]))
        steps = int(np.sum(trace.sample_stats["n_steps"])) + int(np.sum(trace.warmup_sample_stats["n_steps"]))
        figures |= {"seconds": seconds, "gradients": steps}
        print(figures, file=sys.stderr)
        best = max(best, figures, key=lambda run: run["ess_bulk"] / run["seconds"])
        spent = time.perf_counter() - begun
        if figures["r_hat"] <= MAX_R_HAT or spent + 2 * seconds > arguments.limit:
            return best
        draws *= 2


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "reference")]
    main()
