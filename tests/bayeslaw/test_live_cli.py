"""The command `bayeslaw` on a user's own table, its messages, and networks trained live in a process of their own."""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from command_line import command
from simulate import Truth, simulate

import bayeslaw
from bayeslaw import BayeslawError, cli, suggest, width_grid
from bayeslaw.campaign import add_runs
from bayeslaw.live import Live, LiveRun
from bayeslaw.quickstart import quickstart
from bayeslaw.sweep_file import read_sweep

SHORT = {"chains": 2, "warmup": 100, "draws": 50}


def refused(*arguments: object) -> str:
    """Run a command that must fail with exit code 2 and one message, and give the message."""
    code, output, error = command(*arguments)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def foreign() -> pd.DataFrame:
    """Give eight networks of one depth as somebody else's runner writes them: other names, only what is needed."""
    runs = simulate(Truth(), depths=(8,), widths=(2, 4, 8, 16), replicates=1, seed=9).runs
    names = {"depth": "layers", "width": "channels", "dataset_size": "examples", "density": "keep", "error": "top1"}
    return runs[list(names)].rename(columns=names)


OURS = {"depth": "layers", "width": "channels", "dataset_size": "examples", "density": "keep", "error": "top1"}


@pytest.fixture(scope="module")
def fitted_by_command(foreign, tmp_path_factory) -> tuple[Path, str, str]:
    """Fit the foreign table by the command: the file, and what was printed."""
    folder = tmp_path_factory.mktemp("foreign")
    foreign.to_csv(folder / "runs.csv", index=False)
    mapping = [part for ours, theirs in OURS.items() for part in ("--column", f"{ours}={theirs}")]
    settings = [part for name, value in SHORT.items() for part in (f"--{name}", value)]
    asked = ["--growth", "--baseline", "--repetitions", 4, "--sensitivity"]
    code, output, error = command(
        "fit", folder / "runs.csv", "-o", folder / "fit.nc", *mapping, "--n-test", 797, *settings, "--seed", 5, *asked
    )
    assert code == 0, error
    return folder / "fit.nc", output, error


def test_fit_prints_the_posterior_the_gate_and_what_rests_on_the_prior(fitted_by_command) -> None:
    file, output, error = fitted_by_command
    for part in ("gamma", "p_prime", "driven_by", "gate: FAILED", "ess_bulk", f"written to {file}"):
        assert part in output
    assert "Driven by the prior, not informed by the data: phi (variance " in output
    # The baseline stands in the first table, its refits asked for as in Python, and sensitivities in the second.
    table, sensitivities = output.split("\n\n")[0], output.split("\n\n")[2]
    fit = bayeslaw.load(file)
    best = fit.summary(baseline=True, repetitions=4, seed=5)["least_squares_upper"]
    assert [name in table for name in ("least_squares", "least_squares_lower", "least_squares_upper")] == [True] * 3
    assert f"{best['gamma']:.3f}" in next(line for line in table.splitlines() if line.startswith("gamma"))
    assert sensitivities.split()[:3] == ["prior", "prior_noise", "likelihood"]
    assert {"phi", "p_prime"} <= {line.split()[0] for line in sensitivities.splitlines()}
    lines = error.splitlines()
    assert all(line.startswith("warning: ") for line in lines)
    assert [line.split()[1:4] for line in lines] == [
        ["The", "table", "has"], ["depth", "never", "varies,"], ["The", "table", "has"],
    ]  # fmt: skip
    assert "eps_up is only bounded by 1" in lines[0]
    assert "phi and omega are driven by their priors alone" in lines[1]
    assert "there are no trajectory effects" in lines[2]


def test_growth_is_asked_for_or_left_to_the_number_of_networks(fitted_by_command) -> None:
    """Eight networks are too few for it by default."""
    assert bayeslaw.load(fitted_by_command[0]).structure.growth is True
    assert inspect.signature(cli.fit).parameters["growth"].default is None


def test_a_foreign_table_is_fitted_with_what_is_known(fitted_by_command) -> None:
    fit = bayeslaw.load(fitted_by_command[0])
    assert (fit.runs["n_test"] == 797).all()
    assert fit.frame.chance_error == 1.0
    assert fit.structure.has_trajectories is False
    assert not {"tau_p", "tau_np", "share_np", "effect_p"} & set(fit.posterior)
    assert "floor" in fit.posterior
    summary = fit.summary()
    assert summary.loc["phi", "driven_by"] == "prior"
    assert (summary.loc[["gamma", "psi", "knee"], "driven_by"] == "data").all()
    # Nothing is known of other depths but the prior, Normal(1, 1): 100 draws of its sd are good to 0.07, here doubled.
    assert float(fit.posterior["phi"].std()) == pytest.approx(1.0, abs=0.3)
    run, mean = (
        fit.predict(pd.DataFrame({"depth": [8], "width": [3], "dataset_size": [500], "density": [0.1]}), kind=kind)
        for kind in ("run", "mean")
    )
    assert run["upper"][0] - run["lower"][0] > mean["upper"][0] - mean["lower"][0]


def test_the_same_seed_gives_the_same_draws_and_jax_is_left_as_it_was(foreign, fitted_by_command) -> None:
    """What the command fitted, saved and loaded is bit for bit what is fitted here."""
    table = foreign.rename(columns={theirs: ours for ours, theirs in OURS.items()})
    with pytest.warns(UserWarning) as caught:
        fit = bayeslaw.fit(table, n_test=797, seed=5, growth=True, **SHORT)
    assert len(caught) == 3
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32
    loaded = bayeslaw.load(fitted_by_command[0])
    xr.testing.assert_identical(fit.tree, loaded.tree)
    pd.testing.assert_frame_equal(fit.runs, loaded.runs, check_exact=True)
    assert fit.settings == loaded.settings
    designs = pd.DataFrame({"depth": [8, 20], "width": [4, 5], "dataset_size": [250, 700], "density": [0.05, 1.0]})
    for kind in ("mean", "run"):
        pd.testing.assert_frame_equal(
            fit.predict(designs, kind=kind), loaded.predict(designs, kind=kind), check_exact=True
        )


def test_a_fit_that_failed_its_gate_is_no_plan_unless_asked_for(fitted_by_command, tmp_path) -> None:
    """Parameters are counted for families that are known, and this table names none."""
    message = refused("plan", fitted_by_command[0], "--target-error", 0.3)
    assert "failed its gate" in message
    message = refused("plan", fitted_by_command[0], "--target-error", 0.3, "--allow-failed")
    assert "family 'unknown': parameter counts are known for cifar_densenet, cifar_resnet, " in message


@pytest.fixture(scope="module")
def fit_file(fitted, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("command") / "fit.nc"
    fitted.save(path)
    return path


def test_predict_writes_what_fit_predict_gives(fitted, fit_file, tmp_path) -> None:
    grid = ["--depths", "8,14", "--widths", "2.5,8", "--dataset-sizes", "500", "--densities", "1,0.1,0.01"]
    code, output, error = command(
        "predict", fit_file, *grid, "--kind", "run", "--interval", 0.5, "--seed", 2, "-o", tmp_path / "new" / "out.csv"
    )
    assert (code, error) == (0, "")
    written = pd.read_csv(tmp_path / "new" / "out.csv")
    assert len(written) == 12
    assert len(output.splitlines()) == 13
    designs = written[["depth", "width", "dataset_size", "density"]]
    expected = fitted.predict(designs, kind="run", interval=0.5, seed=2)
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, rtol=1e-12)
    for name in ("designs.csv", "designs.parquet"):
        writer = designs.to_csv if name.endswith("csv") else designs.to_parquet
        writer(tmp_path / name, index=False)
        code, again, _ = command(
            "predict", fit_file, "--designs", tmp_path / name, "--kind", "run", "--interval", 0.5, "--seed", 2
        )
        assert (code, again) == (0, output)


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_computed(tmp_path) -> None:
    asked = [
        ["evaluate", "digits_resnet"], ["fit", "digits_resnet"], ["plan", "none.nc"], ["learning-curve", "none.csv"],
    ]  # fmt: skip
    for arguments in asked:
        code, output, error = command(*arguments, "-o", tmp_path)
        assert (code, output) == (2, "")
        said = "".join(error.replace("│", "").split())  # in a box, whose lines break anywhere
        assert "--output" in said and "isadirectory" in said
    assert not list(tmp_path.iterdir())


def test_plan_writes_table_and_figure(fitted, fit_file, tmp_path) -> None:
    code, output, error = command(
        "plan", fit_file, "--target-error", 0.15, "--depths", "8,14", "--widths", "4,8", "--dataset-size", 2000,
        "-o", tmp_path / "plan.csv", "--figure", tmp_path / "plan.png",
    )  # fmt: skip
    assert (code, error) == (0, "")
    plan = fitted.plan(0.15, depths=[8, 14], widths=[4, 8], dataset_size=2000)
    assert output == f"{plan}\n"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "plan.csv"), plan.starts, check_dtype=False, rtol=1e-12)
    assert (tmp_path / "plan.png").stat().st_size > 5000
    # Without lists all fitted starts are offered, at the largest fitted size.
    code, everything, _ = command("plan", fit_file, "--target-error", 0.15)
    own = fitted.plan(0.15, depths=[8, 14], widths=[2, 4, 8], dataset_size=2000)
    assert (code, everything) == (0, f"{own}\n")


def test_plan_answers_other_questions(fitted, fit_file, tmp_path) -> None:
    grid = ("--depths", "8,14", "--widths", "2-8", "--dataset-size", "1000,2000")
    figures = ("--regret-figure", tmp_path / "regret.png", "--reach-figure", tmp_path / "reach.png")
    code, output, _ = command("plan", fit_file, "--target-error", 0.15, "--policy", "adaptive", *grid, *figures)
    axes = {"depths": [8, 14], "widths": width_grid(2, 8), "dataset_size": [1000, 2000]}
    assert (code, output) == (0, f"{fitted.plan(0.15, policy='adaptive', **axes)}\n")
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "regret.png", tmp_path / "reach.png"))
    pareto = tmp_path / "pareto.png"
    code, _, _ = command("plan", fit_file, "--target-error", 0.15, *grid[:4], "--pareto-figure", pareto)
    assert (code, pareto.stat().st_size > 5000) == (0, True)
    code, output, _ = command("plan", fit_file, "--objective", "error", "--max-size", 600, *grid)
    assert (code, output) == (0, f"{fitted.plan(objective='error', max_size=600, **axes)}\n")


def test_suggest_writes_the_sweep_that_comes_next(fitted, fit_file, tmp_path) -> None:
    template, written = tmp_path / "sweep.toml", tmp_path / "next.toml"
    sweep = SWEEP.format(epochs=1, levels=2).replace('"mlp"', '"cifar_resnet"').replace("[2, 3]", "[8]")
    template.write_text(sweep)
    code, output, error = command(
        "suggest", fit_file, "--target-error", 0.15, "--template", template, "--batch", 2, "-o", written
    )
    assert (code, error) == (0, "")
    plan = fitted.plan(0.15, depths=[8, 14], widths=[2, 4, 8], dataset_size=2000)
    found = suggest(fitted, objective=plan, batch=2, progress=False)
    assert output == f"{plan.advice}\n\n{found}\n\nwritten to {written}\n"
    # Fits of the simulated table are of more examples than digits have, so that the runner would refuse this sweep.
    assert sum(grid["replicates"] for grid in read_sweep(written)["grid"]) == 2
    template.write_text(sweep.replace('"digits"', '"mnist"'))
    code, output, error = command("suggest", fit_file, "--target-error", 0.15, "--template", template)
    assert (code, output) == (2, "")
    assert "sweeps cifar_resnet on mnist, but the fit is of cifar_resnet on digits" in error


def test_bad_input_gets_one_message(fit_file, foreign, tmp_path) -> None:
    table = tmp_path / "runs.csv"
    foreign.to_csv(table, index=False)
    (tmp_path / "designs.csv").write_text("depth,width\n8,4\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    grid = ["--depths", "8", "--widths", "4", "--dataset-sizes", "500"]
    for arguments, words in (
        (["fit", tmp_path / "none.csv"], "no such file"),
        (["fit", "digits"], "run table is read from .parquet or .csv"),
        (["fit", table], "depth"),
        (["fit", "digits_resnet", "--law", "cubic"], "law = 'cubic' must be one of joint, parameter_count"),
        (["fit", "digits_resnet", "--effects", "q"], "effects = ['q'] must be of np, p"),
        (["fit", "digits_resnet", "--noise", "white"], "noise = 'white' must be one of student_t, normal"),
        (["fit", "digits_resnet", "--law", "single"], "is equation (1), for one network; the table has 45"),
        (["compare", fit_file], "two fits or more; got 1"),
        (["fit", table, "--column", "depth"], "--column 'depth' must be ours=yours"),
        (["fit", table, "--column", "depth=layer"], "layer"),
        (["predict", tmp_path / "none.nc", *grid], "there is no such file"),
        (["predict", table, *grid], "not a fit written by Fit.save"),
        (["predict", fit_file, *grid, "--densities", "1,x"], "--densities '1,x' must be numbers"),
        (["predict", fit_file, "--depths", "8"], "--widths '' must be numbers"),
        (["predict", fit_file, *grid, "--densities", "2"], "density = 2"),
        (["predict", fit_file, *grid, "--kind", "curve"], "kind = 'curve'"),
        (["predict", fit_file, *grid, "--interval", "90"], "interval = 90.0"),
        (["predict", fit_file, "--designs", tmp_path / "none.csv"], "not a readable table of designs"),
        (["predict", fit_file, "--designs", tmp_path / "broken.parquet"], "not a readable table of designs"),
        (["predict", fit_file, "--designs", tmp_path / "designs.csv"], "designs lack dataset_size, density"),
        (["predict", fit_file, *grid, "-o", table / "out.csv"], "runs.csv"),
        (["plan", fit_file, "--target-error", "15"], "fraction in (0, 1)"),
        (["plan", fit_file, "--target-error", "0.0001"], "out of reach"),
        (["plan", fit_file, "--target-error", "0.1", "--confidence", "1"], "confidence = 1.0"),
        (["plan", fit_file], "'size' needs target_error"),
        (["plan", fit_file, "--target-error", "0.1", "--widths", "8-2"], "widths run from above 0"),
        (["suggest", fit_file, "--target-error", "0.15", "--template", tmp_path / "no.toml"], "not a readable sweep"),
        (["evaluate-plans", "digits_resnet", "--factors", "x"], "--factors 'x' must be numbers"),
        (["evaluate-plans", "digits_resnet", "--factors", "90"], "no recorded network reaches such a target below"),
        (
            [
                "autopilot",
                "--target-error",
                "0.1",
                "--depths",
                "8",
                "--widths",
                "2",
                "--dataset-size",
                9,
                "-o",
                tmp_path,
            ],
            "give either --template, to run live, or --replay",
        ),
        (["quickstart", "--network", "8,4"], "must be depth,width,dataset_size"),
        (["quickstart", "-o", tmp_path, "--network", "8,4,777"], "(8, 4, 777) is not in digits_resnet; choose one of"),
    ):
        assert words in refused(*arguments), arguments


def test_a_fit_is_kept_though_what_is_asked_beside_it_fails(fitted_by_command, foreign, tmp_path) -> None:
    """Least squares needs unpruned rows; where no fit can be written, none is made."""
    table, file = tmp_path / "runs.csv", tmp_path / "new" / "fit.nc"
    foreign.assign(keep=0.99 * foreign["keep"]).to_csv(table, index=False)
    mapping = [part for ours, theirs in OURS.items() for part in ("--column", f"{ours}={theirs}")]
    settings = [part for name, value in SHORT.items() for part in (f"--{name}", value)]
    arguments = ["fit", table, *mapping, "--n-test", 797, *settings, "--growth", "--baseline"]
    code, _, error = command(*arguments, "-o", file)
    assert code == 2
    assert "least squares takes eps_np from the unpruned error" in error
    assert bayeslaw.load(file).settings["draws"] == SHORT["draws"]
    assert "a file ending in .nc" in refused(*arguments, "-o", tmp_path / "fit.csv")
    assert "cannot be written to" in refused(*arguments, "-o", table / "fit.nc")


def test_fits_of_one_name_are_compared_by_their_paths(fitted_by_command, tmp_path) -> None:
    file, _, _ = fitted_by_command
    again = tmp_path / "fit.nc"
    again.write_bytes(file.read_bytes())
    (tmp_path / "other.nc").write_bytes(file.read_bytes())
    code, _, error = command("compare", file, again, tmp_path / "other.nc", "-o", tmp_path / "table.csv")
    assert code == 0, error
    assert set(pd.read_csv(tmp_path / "table.csv")["fit"]) == {str(file), str(again), "other"}
    assert "--leave-out largest says what is left out" in refused("compare", file, again, "--leave-out", "largest")


def test_the_quickstart_is_the_same_by_command_and_by_python() -> None:
    ours, theirs = (inspect.signature(call).parameters for call in (quickstart, cli.quickstart))
    assert theirs["target_error"].default == ours["target_error"].default
    assert theirs["network"].default == ",".join(map(str, ours["network"].default))


def test_help_of_every_command_names_its_options() -> None:
    for arguments, parts in (
        ([], ["quickstart", "fit", "predict", "plan", "compare", "evaluate", "learning-curve", "check"]),
        (["fit"], ["RUNS", "--column", "--n-test", "--chance-error", "--chains", "--warmup", "--draws", "--seed"]),
        (["predict"], ["FIT", "--depths", "--designs", "--kind", "--interval", "--output"]),
        (["plan"], ["FIT", "--target-error", "--confidence", "--allow-failed", "--figure", "--policy", "--objective"]),
        (["suggest"], ["FIT", "--template", "--batch", "--budget", "--output"]),
        (["autopilot"], ["--template", "--replay", "--tolerance", "--budget", "--output"]),
        (["quickstart"], ["--network", "--target-error", "--output"]),
        (["check"], ["--output", "--model", "--repetitions", "--fault", "--processes", "--seed"]),
    ):
        code, output, error = command(*arguments, "--help")
        assert (code, error) == (0, "")
        assert all(part in output for part in parts)


SWEEP = """
name = "tiny"
[grid]
family = "mlp"
dataset = "digits"
depth = [2, 3]
width = [2, 4]
dataset_size = [40, 80]
replicates = 3
[protocol]
name = "tiny"
epochs = {epochs}
batch_size = 20
levels = {levels}
"""


def live(folder: Path, *, epochs: int = 1, levels: int = 2, **row: object) -> LiveRun:
    """Start the network of a row under a protocol that takes well under a second."""
    (folder / "sweep.toml").write_text(SWEEP.format(epochs=epochs, levels=levels))
    network = {"depth": 3, "width": 4, "dataset_size": 40, "replicate": 0} | row
    return LiveRun(pd.Series(network), folder / "sweep.toml", folder / "live" / "store")


def test_a_live_run_gives_the_run_table_of_its_network_alone(tmp_path) -> None:
    table = live(tmp_path).wait()
    assert table["level"].tolist() == [0, 1, 2]
    network = table[["family", "dataset", "depth", "width", "dataset_size", "replicate"]].drop_duplicates()
    assert network.to_numpy().tolist() == [["mlp", "digits", 3, 4, 40, 0]]
    assert table["n_test"].nunique() == 1
    np.testing.assert_allclose(table["error"], table["n_wrong"] / table["n_test"])
    pd.testing.assert_frame_equal(bayeslaw.load_runs(table)[["density", "error"]], table[["density", "error"]])


def test_the_live_runner_makes_one_more_replicate(tmp_path) -> None:
    """What an autopilot runs: networks of its choice, under the template's protocol, each time the next seed."""
    (tmp_path / "sweep.toml").write_text(SWEEP.format(epochs=1, levels=2))
    runner = Live(tmp_path / "sweep.toml", tmp_path / "store", arguments=("--device", "cpu", "--workers", "1"))
    about = runner.describe().iloc[0]
    said = about[["family", "dataset", "classes", "input_shape"]].tolist()
    assert said == ["mlp", "digits", 10, (1, 8, 8)]
    assert about["density"] == pytest.approx(0.8**2)
    chosen = pd.DataFrame({"depth": [3, 2], "width": [2, 5], "dataset_size": [40, 60], "density": [0.8, 0.5]})
    first = runner.run(chosen, pd.DataFrame())
    assert first.groupby("width")["level"].max().to_dict() == {2: 1, 5: 3}
    networks = first[["depth", "width", "dataset_size", "replicate"]].drop_duplicates()
    assert sorted(networks.itertuples(index=False, name=None)) == [(2, 5, 60, 0), (3, 2, 40, 0)]
    second = runner.run(chosen.iloc[:1], first)
    networks = second[["depth", "width", "dataset_size", "replicate"]].drop_duplicates()
    assert networks.to_numpy().tolist() == [[3, 2, 40, 1]]
    assert set(first["trajectory"]).isdisjoint(second["trajectory"])
    # Added one after the other, as a campaign does, they are one table.
    (tmp_path / "campaign").mkdir()
    together = add_runs(tmp_path / "campaign", add_runs(tmp_path / "campaign", pd.DataFrame(), first), second)
    assert len(together) == len(first) + len(second)
    assert together["trajectory"].nunique() == 3
    broken = Live(tmp_path / "sweep.toml", tmp_path / "store", arguments=("--device", "abacus"))
    with pytest.raises(BayeslawError, match=r"the sweep .* failed: .*abacus"):
        broken.run(chosen.iloc[:1], pd.concat([first, second]))


def test_a_live_run_that_fails_says_why(tmp_path) -> None:
    run = live(tmp_path, dataset_size=10**6)
    with pytest.raises(bayeslaw.BayeslawError, match=r"the live run failed: .*1000000"):
        run.wait()


def test_a_stopped_live_run_leaves_no_process(tmp_path) -> None:
    """Its workers go with it; stopping again, or after the end, does nothing."""
    run = live(tmp_path, epochs=5000, levels=30, dataset_size=80)
    process = run._process.pid
    deadline = time.monotonic() + 60
    while not (family := descendants(process)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert family
    run.stop()
    run.stop()
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in (process, *family) if Path(f"/proc/{pid}").exists()]


def descendants(process: int) -> list[int]:
    """List the processes that a process has started, and theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    own = [pid for pid, parent in parents.items() if parent == process]
    return own + [pid for child in own for pid in descendants(child)]


def test_live_runs_need_pytorch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(bayeslaw.BayeslawError, match=r"pip install 'bayeslaw\[imp\]'"):
        live(tmp_path)
    assert not (tmp_path / "live").exists()
    assert os.listdir(tmp_path) == ["sweep.toml"]


def test_watch_lays_what_was_measured_over_the_bands_and_refuses_runs_of_others(fitted, tmp_path):
    from bayeslaw.live import plot_over_bands
    from imp_runs.config import Protocol, Trajectory
    from imp_runs.datasets import load_dataset
    from imp_runs.imp import run_trajectory
    from imp_runs.store import Store

    protocol, fit = Protocol(name="watched", epochs=1, batch_size=50, levels=3), tmp_path / "fit.nc"
    fitted.save(fit)
    for family, depth, width in (("cifar_resnet", 8, 2), ("mlp", 2, 2)):
        store = Store(tmp_path / family, protocol)
        run_trajectory(Trajectory(family, "digits", depth, width, 100, 0, 1, protocol), load_dataset("digits"), store)
    figure = tmp_path / "curves.png"
    code, output, error = command("watch", tmp_path / "cifar_resnet", fit, "-o", figure, "--once")
    assert (code, error) == (0, "")
    assert "done          1" in output
    assert f"{figure} drawn at" in output
    assert figure.read_bytes().startswith(b"\x89PNG")
    refusal = refused("watch", tmp_path / "mlp", fit, "--once")
    assert "holds runs of mlp on digits, the fit is of cifar_resnet on digits" in refusal
    from imp_runs.table import make_table

    table = make_table(tmp_path / "cifar_resnet")
    (ax,) = plot_over_bands(fitted, table).axes
    (points,) = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert points.get_xdata().tolist() == table["density"].tolist()
    assert points.get_ydata().tolist() == table["error"].tolist()
    assert len(ax.collections) == 2  # the curve's band and a new run's


def test_a_template_that_is_wrong_is_said_in_one_message(tmp_path) -> None:
    """By the runner's words, as an error of ours; rounds of another share are none that plans count in."""
    for wrong, words in (
        ("momentun = 0.5", "unknown entry protocol.momentun"),
        ("prune_fraction = 0.5", "plans and their prices count in rounds of 20%"),
    ):
        (tmp_path / "sweep.toml").write_text(f"{SWEEP.format(epochs=1, levels=2)}{wrong}\n")
        with pytest.raises(BayeslawError, match=words):
            Live(tmp_path / "sweep.toml", tmp_path / "store").describe()


def test_the_live_runner_goes_as_far_as_the_longest_grid(tmp_path) -> None:
    text = SWEEP.format(epochs=1, levels=2).replace("replicates = 3", "replicates = 3\nlevels = 7")
    (tmp_path / "sweep.toml").write_text(text)
    about = Live(tmp_path / "sweep.toml", tmp_path / "store").describe().iloc[0]
    assert about["density"] == pytest.approx(0.8**7)


def test_seeds_that_diverged_at_once_are_not_tried_again(tmp_path) -> None:
    """Their one row is none of a run table; the next round takes the next seed instead of the same one for ever."""
    text = SWEEP.format(epochs=1, levels=2) + 'learning_rate = 1e30\nprecision = "float32"\n'
    (tmp_path / "sweep.toml").write_text(text)
    runner = Live(tmp_path / "sweep.toml", tmp_path / "store", arguments=("--device", "cpu", "--workers", "1"))
    chosen = pd.DataFrame({"depth": [3], "width": [2], "dataset_size": [40], "density": [0.8]})
    assert runner.run(chosen, pd.DataFrame()).empty
    assert runner.run(chosen, pd.DataFrame()).empty
    from imp_runs.table import make_table

    table = make_table(tmp_path / "store")
    assert table["status"].tolist() == ["diverged", "diverged"]
    assert sorted(table["replicate"]) == [0, 1]
