"""The command `imp-runs`: what it prints, what it writes, and one message with exit code 2 for bad input."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

import imp_runs.cli
from imp_runs.errors import ImpRunsError, optional
from imp_runs.status import duration
from imp_runs.store import Store
from imp_runs.table import COLUMNS


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process and give exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["imp-runs", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            imp_runs.cli.main()
        code = caught.value.code
        return (0 if code is None else int(code), *capsys.readouterr())

    return run


def refused(outcome: tuple[int, str, str], *parts: str) -> None:
    code, output, message = outcome
    assert (code, output) == (2, "")
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    assert "Traceback" not in message
    for part in parts:
        assert part in message


def test_help_is_there_and_loads_no_torch():
    script = "import sys; from imp_runs.cli import main\ntry: main()\nfinally: assert not sys.modules.keys() & {heavy}"
    heavy = "{'torch', 'pandas', 'sklearn', 'tqdm'}"
    for arguments, parts in (
        (["--help"], ["sweep", "status", "table"]),
        (["sweep", "--help"], ["--store", "--data-dir", "--download", "--workers", "--device", "--dry-run"]),
        (["table", "--help"], ["--output", "-o", "--finished"]),
    ):
        code = script.replace("{heavy}", heavy)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        assert all(part in plain for part in parts)


def test_the_distribution_installs_the_command():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="imp-runs")
    assert entry.load() is imp_runs.cli.main


def test_no_argument_prints_the_help(command):
    code, output, message = command()
    assert code == 2
    assert "Usage" in output + message


def test_a_dry_run_prints_runs_steps_and_time_and_writes_nothing(command, whole, tmp_path):
    store = tmp_path / "store"
    code, output, message = command("sweep", whole.file, "--store", store, "--dry-run", "--device", "cpu")
    assert (code, message) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["sweep"] == "toys"
    assert lines["trajectories"] == "24 (24 to run)"
    assert lines["steps"] == f"{whole.table['steps'].sum():,}"
    assert re.fullmatch(r"about (\d+ h )?\d+ min( \d+ s)?", lines["time"])
    assert not store.exists()


def test_a_dry_run_leaves_out_what_is_done(command, whole):
    code, output, _ = command("sweep", whole.file, "--store", whole.store, "--dry-run")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert (lines["trajectories"], lines["steps"], lines["time"]) == ("24 (0 to run)", "0", "about 0 min 0 s")


def test_a_finished_sweep_is_not_run_again(command, whole):
    outcome = command("sweep", whole.file, "--store", whole.store)
    assert outcome == (0, f"toys: 24 trajectories are in {whole.store}\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 min 0 s"), (59.6, "1 min 0 s"), (754, "12 min 34 s"), (3599.7, "1 h 0 min"), (90_061, "25 h 1 min")],
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text


def test_status_counts_trajectories_and_records(command, whole, tmp_path):
    code, output, message = command("status", "--store", whole.store)
    assert (code, message) == (0, "")
    assert dict(line.split(maxsplit=1) for line in output.replace("time left", "time_left").splitlines()) == {
        "trajectories": "24",
        "done": "24",
        "running": "0",
        "failed": "0",
        "waiting": "0",
        "records": "72 of 72",
        "time_left": "about 0 min 0 s",
    }

    shutil.copytree(whole.store, tmp_path / "store")
    key = Store(whole.store).keys()[0]
    (tmp_path / "store" / "trajectories" / key / "done.json").unlink()
    output = command("status", "--store", tmp_path / "store")[1]
    assert "done          23\n" in output
    assert "waiting       1\n" in output


def test_the_table_is_written_as_parquet_and_csv(command, whole, tmp_path):
    for name, read in (("runs.parquet", pd.read_parquet), ("runs.csv", pd.read_csv)):
        file = tmp_path / "out" / name
        code, output, message = command("table", "--store", whole.store, "-o", file)
        assert (code, output, message) == (0, f"{file}: 72 rows, 24 trajectories\n", "")
        table = read(file)
        assert tuple(table.columns) == COLUMNS
        assert table["n_wrong"].tolist() == whole.table["n_wrong"].tolist()


def test_the_table_of_finished_trajectories_leaves_out_the_others(command, whole, tmp_path):
    store, file = tmp_path / "store", tmp_path / "runs.parquet"
    shutil.copytree(whole.store, store)
    first, *others = Store(store).keys()
    (store / "trajectories" / first / "done.json").unlink()
    assert "69 rows, 23 trajectories" in command("table", "--store", store, "-o", file, "--finished")[1]
    assert set(pd.read_parquet(file)["trajectory"]) == set(others)
    for key in others:
        (store / "trajectories" / key / "done.json").unlink()
    assert "0 rows, 0 trajectories" in command("table", "--store", store, "-o", file, "--finished")[1]
    assert tuple(pd.read_parquet(file).columns) == COLUMNS


def test_the_table_of_an_empty_store_is_empty(command, toy, tmp_path):
    Store(tmp_path / "store", toy().protocol)
    for options in ([], ["--finished"]):
        outcome = command("table", "--store", tmp_path / "store", "-o", tmp_path / "runs.csv", *options)
        assert outcome[:2] == (0, f"{tmp_path / 'runs.csv'}: 0 rows, 0 trajectories\n")
        assert tuple(pd.read_csv(tmp_path / "runs.csv").columns) == COLUMNS


def test_bad_input_ends_with_one_message(command, whole, tmp_path):
    store, empty = tmp_path / "store", tmp_path / "empty"
    empty.mkdir()
    toml = tmp_path / "sweep.toml"

    refused(command("status", "--store", empty), "no store here")
    refused(command("table", "--store", empty, "-o", tmp_path / "runs.csv"), "no store here")
    refused(command("table", "--store", whole.store, "-o", tmp_path / "runs.txt"), ".parquet or .csv")
    refused(command("sweep", tmp_path / "none.toml", "--store", store), "there is no such sweep file")
    toml.write_text("[grid")
    refused(command("sweep", toml, "--store", store), "not a TOML file", str(toml))

    text = whole.file.read_text()
    toml.write_text(text.replace('"mlp"', '"cifar_resnet"').replace("epochs = 1", "epochs = 0"))
    refused(command("sweep", toml, "--store", store), "grid.depth 2 must be 6D+2", "protocol.epochs = 0")
    toml.write_text(text.replace("[40]", "[40, 1001]"))
    for options in ([], ["--dry-run"]):
        refused(command("sweep", toml, "--store", store, "--device", "cpu", *options), "dataset_size 1001 is more than")
    toml.write_text(text.replace('"digits"', '"svhn"'))
    outcome = command("sweep", toml, "--store", store, "--data-dir", empty, "--device", "cpu")
    refused(outcome, "dataset 'svhn' could not be read", "--download", "--data-dir")
    toml.write_text(text.replace("epochs = 1", "epochs = 3"))
    for options in ([], ["--dry-run"]):
        refused(command("sweep", toml, "--store", whole.store, *options), "another protocol", "epochs = 1, not 3")
    refused(command("sweep", whole.file, "--store", whole.file), "a file is in the way")
    assert list(empty.iterdir()) == []
    assert not (tmp_path / "runs.csv").exists()
    assert not (tmp_path / "runs.txt").exists()


def test_a_file_that_cannot_be_written_ends_with_one_message(command, whole, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(command("table", "--store", whole.store, "-o", tmp_path / "file" / "runs.csv"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_damaged_record_ends_with_one_message(command, whole, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(whole.store, store)
    record = store / "trajectories" / Store(store).keys()[5] / "records.jsonl"
    record.write_text(record.read_text()[:-20])
    refused(
        command("table", "--store", store, "-o", tmp_path / "runs.csv"), str(record), "damaged", "Run the sweep again"
    )
    code, output, message = command("status", "--store", store)
    assert (code, message) == (0, "")
    assert "done          23\nrunning       0\nfailed        1\n" in output
    assert f": {record}: damaged" in output
    assert not (tmp_path / "runs.csv").exists()

    code, output, message = command("sweep", whole.file, "--store", store, "--device", "cpu", "--workers", 1)
    assert (code, output) == (0, f"toys: 24 trajectories are in {store}\n")
    assert message == f"mended: {record}: damaged (it does not match its checksum). Run the sweep again: " + (
        "the file is set aside and what it held is recomputed. Now it is records.jsonl.damaged.\n"
    )
    whole.assert_same(store)


def test_an_engine_that_cannot_be_had_is_refused_before_anything_runs(command, whole, tmp_path):
    store = tmp_path / "store"
    run = ("sweep", whole.file, "--device", "cpu", "--store")
    refused(command(*run, store, "--engine", "pbs"), "engine 'pbs' must be one of local, ray, slurm")
    refused(command(*run, store, "--engine", "slurm", "--option", "partition"), "must be name=value")
    refused(command(*run, "memory://runs"), "seen by one process only")
    with pytest.raises(ImpRunsError, match=r"needs no_such, .*pip install 'bayeslaw\[imp,ray\]'"):
        optional("no_such.part", "ray")
    assert not store.exists()
