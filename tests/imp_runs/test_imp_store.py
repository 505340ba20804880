"""The store: immutable records, checksummed checkpoints, one protocol, locks, and damage that loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
import torch

from imp_runs.config import Sweep
from imp_runs.errors import BusyError, DamagedError, ImpRunsError, StoppedError
from imp_runs.files import check_seal, read_sealed, sealed, sealed_lines, write_durably
from imp_runs.imp import run_trajectory
from imp_runs.status import status_of
from imp_runs.store import Checkpoint, Store
from imp_runs.table import make_table

KEY = "0123456789abcdef"


class Interrupted(Exception):
    """Stands for whatever ends a process between two levels."""


def without_seconds(store, key):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in store.records(key)]


@pytest.fixture(scope="module")
def whole(toy, digits, tmp_path_factory):
    """Give the records of the toy trajectory, run without interruption."""
    trajectory = toy()
    store = Store(tmp_path_factory.mktemp("whole"), trajectory.protocol)
    run_trajectory(trajectory, digits, store)
    return without_seconds(store, trajectory.key)


@pytest.fixture
def begun(toy, digits, tmp_path):
    """Give the toy trajectory, interrupted after level 1 (of 0, 1, 2), its store and its folder."""
    trajectory, finished = toy(), []

    def interrupt(levels):
        finished.append(levels)
        if len(finished) == 2:
            raise Interrupted

    store = Store(tmp_path / "store", trajectory.protocol)
    with pytest.raises(Interrupted):
        run_trajectory(trajectory, digits, store, progress=interrupt)
    return trajectory, store, store.folder(trajectory.key)


@pytest.fixture
def finished(toy, digits, tmp_path):
    trajectory = toy()
    store = Store(tmp_path / "store", trajectory.protocol)
    run_trajectory(trajectory, digits, store)
    return trajectory, store, store.folder(trajectory.key)


# --- what lies where --------------------------------------------------------------------------------------------------


def test_a_finished_trajectory_leaves_its_records_and_nothing_else(finished):
    _, _, folder = finished
    names = {path.name for path in folder.iterdir()} - {"lock"}
    assert names == {"config.json", "records.jsonl", "done.json"}


def test_a_trajectory_under_way_has_one_checkpoint(begun):
    trajectory, store, folder = begun
    names = {path.name for path in folder.iterdir()} - {"lock"}
    checkpoint = {"checkpoint-002.json", "checkpoint-002.safetensors"}
    assert names == {"config.json", "level-000.json", "level-001.json"} | checkpoint
    assert not store.is_done(trajectory.key)
    assert store.keys() == [trajectory.key]


def test_config_and_store_say_what_is_run(begun):
    trajectory, store, folder = begun
    written = read_sealed(folder / "config.json")
    described = {**trajectory.described, "protocol": dataclasses.asdict(trajectory.protocol)}
    assert written == json.loads(json.dumps(described))
    marker = json.loads((store.path / "store.json").read_text())
    assert marker["protocol"] == written["protocol"]


def test_trajectories_of_other_lengths_share_a_store(tmp_path, toy, digits):
    """One goes further than the protocol says, one less far; what is wanted and what was begun say so."""
    whole = toy(levels=2, epochs=1)
    lengths = {2: whole, 1: dataclasses.replace(whole, levels=1), 4: dataclasses.replace(whole, levels=4)}
    store = Store(tmp_path, whole.protocol)
    store.add_sweep(Sweep("toy", tuple(lengths.values()), whole.protocol))
    assert store.wanted() == {trajectory.key: trajectory for trajectory in lengths.values()}
    for trajectory in lengths.values():
        run_trajectory(trajectory, digits, store)
        assert store.trajectory(trajectory.key) == trajectory
    table = make_table(tmp_path)
    assert table.groupby("trajectory")["level"].max().to_dict() == {t.key: n for n, t in lengths.items()}
    errors = table.pivot(index="level", columns="trajectory", values="error")
    assert (errors.nunique(axis=1) == 1).all()  # as far as they go they are one run
    assert table["protocol_hash"].nunique() == 1
    status = status_of(tmp_path)
    assert (status.records, status.levels, len(status.done)) == (10, 10, 3)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path, toy):
    store = Store(tmp_path, toy().protocol)
    store.folder(KEY).mkdir()
    state = {
        "values": torch.tensor([0.1, -0.0, float("inf"), 1e-45]),
        "bn.running_mean": torch.randn(3, generator=torch.Generator().manual_seed(0)),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    mask = torch.tensor([1.0, 0.0, 1.0])
    store.write_checkpoint(KEY, Checkpoint(3, state, mask))
    read = store.read_checkpoint(KEY)
    assert read is not None
    assert (read.level, read.state.keys()) == (3, state.keys())
    assert torch.equal(read.mask, mask)
    for name, tensor in state.items():
        assert read.state[name].dtype == tensor.dtype
        assert read.state[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_the_newest_checkpoint_is_read_and_older_ones_go(tmp_path, toy):
    store = Store(tmp_path, toy().protocol)
    store.folder(KEY).mkdir()
    assert store.read_checkpoint(KEY) is None
    older: dict = {}
    for level in (9, 10, 100):
        store.write_checkpoint(KEY, Checkpoint(level, {"values": torch.zeros(2)}, torch.ones(1)))
        left = sorted(store.folder(KEY).glob("checkpoint-*"))
        assert [path.name for path in left] == [f"checkpoint-{level:03d}.json", f"checkpoint-{level:03d}.safetensors"]
        older |= {path: path.read_bytes() for path in left}
        for path, content in older.items():  # as if the process had died before it removed them
            path.write_bytes(content)
        assert store.read_checkpoint(KEY).level == level


def test_a_file_is_written_whole_and_leaves_no_temporary(tmp_path):
    write_durably(tmp_path / "file", b"one")
    write_durably(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- records are immutable --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["begun", "finished"])
def test_a_record_is_never_overwritten(where, request):
    trajectory, store, folder = request.getfixturevalue(where)
    name = {"begun": "level-001.json", "finished": "records.jsonl"}[where]
    before = (folder / name).read_bytes()
    record = store.records(trajectory.key)[1]
    store.write_record(trajectory.key, 1, record | {"seconds": 99.0})
    assert (folder / name).read_bytes() == before
    with pytest.raises(ImpRunsError, match=r"another error, n_wrong .*Records are immutable") as caught:
        store.write_record(trajectory.key, 1, record | {"n_wrong": -1, "error": 0.5})
    assert name in str(caught.value)
    with pytest.raises(ImpRunsError, match="another status"):
        store.write_record(trajectory.key, 1, {k: v for k, v in record.items() if k != "status"})
    assert (folder / name).read_bytes() == before
    assert not (folder / "level-001.json").exists() or where == "begun"


def test_a_level_recomputed_with_another_result_is_refused(begun, digits):
    trajectory, _, folder = begun
    record = read_sealed(folder / "level-001.json")
    (folder / "level-001.json").write_bytes(sealed(record | {"n_wrong": record["n_wrong"] + 1}))
    for path in folder.glob("checkpoint-*"):
        path.unlink()
    with pytest.raises(ImpRunsError, match="recomputing this level gave another n_wrong"):
        run_trajectory(trajectory, digits, Store(folder.parents[1], trajectory.protocol))


def test_a_finished_trajectory_is_not_run_again(finished, digits):
    trajectory, store, folder = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    run_trajectory(trajectory, digits, store)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


# --- corrupt checkpoints ----------------------------------------------------------------------------------------------


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty, lambda path: path.unlink()])
def test_a_corrupt_checkpoint_is_named_set_aside_and_recomputed(begun, digits, whole, damage):
    trajectory, store, folder = begun
    damage(folder / "checkpoint-002.safetensors")
    records = {path.name: path.read_bytes() for path in folder.glob("level-*.json")}
    with pytest.raises(DamagedError, match="corrupt checkpoint") as caught:
        store.read_checkpoint(trajectory.key)
    assert all(part in str(caught.value) for part in ("checkpoint-002.safetensors", "no record is lost"))
    (mended,) = run_trajectory(trajectory, digits, store)
    assert "corrupt checkpoint" in mended
    assert (folder / "checkpoint-002.json.damaged").exists()
    assert {path.name: path.read_bytes() for path in folder.glob("level-*.json")} in ({}, records)
    assert without_seconds(store, trajectory.key) == whole


@pytest.mark.parametrize("content", [{"level": 1}, {"level": 12}, {"sha256": "0" * 64}, {"bytes": 3}])
def test_a_summary_that_does_not_fit_its_checkpoint_is_not_believed(begun, digits, whole, content):
    trajectory, store, folder = begun
    summary = read_sealed(folder / "checkpoint-002.json")
    (folder / "checkpoint-002.json").write_bytes(sealed(summary | content))
    with pytest.raises(DamagedError, match="corrupt checkpoint"):
        store.read_checkpoint(trajectory.key)
    assert len(run_trajectory(trajectory, digits, store)) == 1
    assert without_seconds(store, trajectory.key) == whole


@pytest.mark.parametrize("content", [b"", b'{"level": 2', b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_summary_is_not_believed(begun, digits, whole, content):
    trajectory, store, folder = begun
    (folder / "checkpoint-002.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"checkpoint-002.*(damaged|corrupt)"):
        store.read_checkpoint(trajectory.key)
    assert len(run_trajectory(trajectory, digits, store)) == 1
    assert without_seconds(store, trajectory.key) == whole


def test_a_checkpoint_without_its_summary_does_not_count(begun, digits, whole):
    trajectory, store, folder = begun
    (folder / "checkpoint-002.json").unlink()
    assert store.read_checkpoint(trajectory.key) is None
    run_trajectory(trajectory, digits, store)
    assert without_seconds(store, trajectory.key) == whole


# --- damaged records --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "records.jsonl", "done.json"])
def test_every_flipped_bit_of_a_finished_trajectory_is_seen(finished, name):
    trajectory, store, folder = finished
    content = (folder / name).read_bytes()
    for place in range(0, 8 * len(content), 7):  # every byte, another bit of it each time
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError, match="does not match its checksum"):
            check_seal(folder / name, bytes(flipped))
    assert store.is_whole(trajectory.key)


@pytest.mark.parametrize("name", ["config.json", "records.jsonl", "done.json"])
@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty])
def test_a_damaged_file_of_a_finished_trajectory_is_named_and_mended_by_the_next_run(
    finished, digits, whole, name, damage
):
    trajectory, store, folder = finished
    damage(folder / name)
    if name == "records.jsonl":
        with pytest.raises(DamagedError, match=r"records\.jsonl: damaged .*Run the sweep again"):
            make_table(store)
    else:
        assert without_seconds(store, trajectory.key) == whole
    assert store.is_whole(trajectory.key) == (name == "config.json")
    mended = run_trajectory(trajectory, digits, store)
    assert without_seconds(store, trajectory.key) == whole
    assert store.is_whole(trajectory.key)
    assert [f"{name}: damaged" in said for said in mended] == ([] if name == "config.json" else [True])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty])
def test_a_damaged_record_of_a_trajectory_under_way_is_set_aside_and_recomputed(begun, digits, whole, damage):
    trajectory, store, folder = begun
    kept = (folder / "level-000.json").read_bytes()
    damage(folder / "level-001.json")
    with pytest.raises(DamagedError, match=r"level-001\.json: damaged"):
        make_table(store)
    (mended,) = run_trajectory(trajectory, digits, store)
    assert "level-001.json.damaged" in mended
    assert kept != b""
    assert without_seconds(store, trajectory.key) == whole


def test_a_lost_record_below_the_checkpoint_is_recomputed(begun, digits, whole):
    trajectory, store, folder = begun
    (folder / "level-000.json").unlink()
    run_trajectory(trajectory, digits, store)
    assert without_seconds(store, trajectory.key) == whole


def test_a_record_that_lacks_columns_is_named(finished):
    trajectory, store, folder = finished
    record = store.records(trajectory.key)[2]
    records = [*store.records(trajectory.key)[:2], {k: v for k, v in record.items() if k not in ("error", "kept")}]
    (folder / "records.jsonl").write_bytes(sealed_lines(records))
    with pytest.raises(ImpRunsError, match="record of level 2 lacks kept, error") as caught:
        make_table(store)
    assert trajectory.key in str(caught.value)


# --- stores of others -------------------------------------------------------------------------------------------------


def test_a_store_of_another_protocol_is_refused_and_left_alone(finished):
    trajectory, store, _ = finished
    before = {path: path.read_bytes() for path in store.path.rglob("*.json")}
    other = dataclasses.replace(trajectory.protocol, epochs=9, milestones=(0.25,))
    with pytest.raises(ImpRunsError, match="another protocol") as caught:
        Store(store.path, other)
    for part in ("epochs = 2, not 9", "milestones = [0.5, 0.75], not [0.25]", "--store"):
        assert part in str(caught.value)
    assert "batch_size" not in str(caught.value)
    assert {path: path.read_bytes() for path in store.path.rglob("*.json")} == before


def test_a_store_of_older_arithmetic_is_refused(finished):
    trajectory, store, _ = finished
    marker = store.path / "store.json"
    marker.write_bytes(sealed(read_sealed(marker) | {"protocol_hash": "0" * 16}))
    with pytest.raises(ImpRunsError, match="older arithmetic"):
        Store(store.path, trajectory.protocol)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1', b'{"format": 2}', b'{"format": 3}', b"{}"])
def test_a_damaged_or_foreign_store_is_refused(finished, content):
    trajectory, store, _ = finished
    (store.path / "store.json").write_bytes(content)
    with pytest.raises(ImpRunsError, match=r"store\.json: (damaged|format)"):
        Store(store.path, trajectory.protocol)
    with pytest.raises(ImpRunsError, match=r"store\.json: (damaged|format)"):
        Store(store.path)


def test_a_store_without_its_protocol_is_another_one(finished):
    trajectory, store, _ = finished
    (store.path / "store.json").write_text('{"format": 1}')
    with pytest.raises(ImpRunsError, match="another protocol"):
        Store(store.path, trajectory.protocol)


def test_what_is_no_store_is_not_read(tmp_path):
    with pytest.raises(ImpRunsError, match=r"no store here \(no store.json\); run `imp-runs sweep`"):
        Store(tmp_path)
    with pytest.raises(ImpRunsError, match="no store here"):
        Store(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_store_is_left_alone(tmp_path, toy):
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (file, file / "store"):
        with pytest.raises(ImpRunsError, match="a file is in the way; give --store a folder"):
            Store(path, toy().protocol)
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        f"../{KEY}",
        KEY[:-1],
        f"{KEY}0",
        KEY.upper(),
        f"{KEY}\n",
        "é" * 16,
    ],
)
def test_no_key_leaves_the_store(tmp_path, toy, key):
    store = Store(tmp_path, toy().protocol)
    for use in (store.folder, store.is_done, store.records, store.read_checkpoint):
        with pytest.raises(ImpRunsError, match="must be 16 hexadecimal digits"):
            use(key)
    with pytest.raises(ImpRunsError, match="must be 16 hexadecimal digits"):
        store.write_record(key, 0, {})
    assert store.folder(KEY).parent == tmp_path / "trajectories"


def test_foreign_files_among_the_trajectories_are_ignored(finished):
    trajectory, store, _ = finished
    (store.path / "trajectories" / "notes.txt").write_text("mine")
    (store.path / "trajectories" / "..hidden").mkdir()
    assert store.keys() == [trajectory.key]
    assert len(make_table(store)) == 3


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_trajectory_that_runs_elsewhere_is_left_to_it(toy, digits, tmp_path, whole):
    trajectory, other = toy(), toy(replicate=1)
    store = Store(tmp_path, trajectory.protocol)
    with store.locked(trajectory):
        with pytest.raises(ImpRunsError, match="another process is running this trajectory") as caught:
            run_trajectory(trajectory, digits, Store(tmp_path, trajectory.protocol))
        assert str(trajectory) in str(caught.value)
        assert store.records(trajectory.key) == []
        run_trajectory(other, digits, store)
        assert store.is_done(other.key)
    run_trajectory(trajectory, digits, store)
    assert without_seconds(store, trajectory.key) == whole


def test_the_lock_falls_when_a_run_fails(toy, digits, tmp_path):
    def fail(_levels):
        raise Interrupted

    trajectory = toy()
    store = Store(tmp_path, trajectory.protocol)
    with pytest.raises(Interrupted):
        run_trajectory(trajectory, digits, store, progress=fail)
    with store.locked(trajectory):
        assert not store.is_done(trajectory.key)


def test_more_examples_than_there_are_is_refused_before_anything_is_written(toy, digits, tmp_path):
    trajectory = toy(dataset_size=1001)
    store = Store(tmp_path, trajectory.protocol)
    with pytest.raises(ImpRunsError, match="dataset_size 1001 is more than the 1000 training examples of digits"):
        run_trajectory(trajectory, digits, store)
    assert store.keys() == []


# --- the first format, and object stores ------------------------------------------------------------------------------


def first_format(store):
    """Turn a store into what the first version wrote: a file per record, no checksums, no list of sweeps."""
    for path in list(store.path.rglob("*.json")):
        content = read_sealed(path)
        path.write_text(json.dumps(content | ({"format": 1} if path.name == "store.json" else {})))
    for path in list(store.path.rglob("records.jsonl")):
        for record in store.records(path.parent.name):
            (path.parent / f"level-{record['level']:03d}.json").write_text(json.dumps(record))
        path.unlink()


@pytest.mark.parametrize("state", ["begun", "finished"])
def test_a_store_of_the_first_format_is_read_and_continued_as_it_was(state, request, digits, whole):
    trajectory, store, folder = request.getfixturevalue(state)
    first_format(store)
    old = Store(store.path, trajectory.protocol)
    assert old.format == 1
    assert without_seconds(old, trajectory.key) == whole[: 2 if state == "begun" else 3]
    assert old.is_done(trajectory.key) == (state == "finished")
    assert run_trajectory(trajectory, digits, old) == []
    assert without_seconds(old, trajectory.key) == whole
    assert not (folder / "records.jsonl").exists()
    assert len(list(folder.glob("level-*.json"))) == 3
    assert len(make_table(old)) == 3


@pytest.mark.parametrize("url", ["memory://bucket/runs", "file://{}"])
def test_a_store_behind_a_url_is_a_store_like_any_other(toy, digits, tmp_path, whole, url):
    trajectory, finished = toy(), []

    def interrupt(levels):
        finished.append(levels)
        if len(finished) == 2:
            raise Interrupted

    url = url.format(tmp_path / "runs")
    store = Store(url, trajectory.protocol)
    with pytest.raises(Interrupted):
        run_trajectory(trajectory, digits, store, progress=interrupt)
    assert make_table(url)["level"].tolist() == [0, 1]
    assert store.read_checkpoint(trajectory.key).level == 2
    run_trajectory(trajectory, digits, Store(url, trajectory.protocol))
    assert without_seconds(store, trajectory.key) == whole
    assert make_table(url).drop(columns="seconds").to_dict("records") == [
        {column: record[column] for column in make_table(url).columns.drop("seconds")} for record in whole
    ]
    assert {path.name for path in store.folder(trajectory.key).iterdir()} - {"lock"} == {
        "config.json", "records.jsonl", "done.json"
    }  # fmt: skip
    with pytest.raises(ImpRunsError, match="another protocol"):
        Store(url, dataclasses.replace(trajectory.protocol, epochs=9))
    with pytest.raises(ImpRunsError, match="must be 16 hexadecimal digits"):
        store.folder("../outside")


def test_two_runs_of_an_object_store_see_each_other_by_their_signs_of_life(toy, digits):
    trajectory = toy(replicate=5)
    store, seen = Store("memory://bucket/signs", trajectory.protocol), []

    def try_another(_levels):
        with pytest.raises(BusyError, match="another process is running this trajectory"):
            run_trajectory(trajectory, digits, Store("memory://bucket/signs", trajectory.protocol))
        seen.append(store.records(trajectory.key))
        raise Interrupted

    with pytest.raises(Interrupted):
        run_trajectory(trajectory, digits, store, progress=try_another)
    assert len(seen) == 1
    run_trajectory(trajectory, digits, store)
    assert store.is_done(trajectory.key)


# --- what a store says of itself --------------------------------------------------------------------------------------


def test_a_checkpoint_above_a_lost_record_is_used_once_that_is_there_again(toy, digits, tmp_path):
    """However often the run is stopped on its way back: it goes on, it does not begin again each time."""
    trajectory, finished = toy(levels=4), []

    def interrupt(levels):
        finished.append(levels)
        if len(finished) == 4:
            raise Interrupted

    whole, store = (Store(tmp_path / name, trajectory.protocol) for name in ("whole", "store"))
    run_trajectory(trajectory, digits, whole)
    with pytest.raises(Interrupted):
        run_trajectory(trajectory, digits, store, progress=interrupt)
    assert store.read_checkpoint(trajectory.key).level == 4
    path = store.folder(trajectory.key) / "level-001.json"
    path.write_bytes(path.read_bytes()[:-9])
    steps, starts = trajectory.protocol.steps(40), 0
    while not store.is_done(trajectory.key):
        asked = iter(range(10**6))
        with contextlib.suppress(StoppedError):
            run_trajectory(trajectory, digits, store, stop=lambda asked=asked: next(asked) == steps // 2)
        starts += 1
        assert starts <= 2 * 5
    assert without_seconds(store, trajectory.key) == without_seconds(whole, trajectory.key)


def test_a_damaged_entry_of_a_sweep_is_written_again_and_a_damaged_marker_says_how(toy, tmp_path):
    trajectory = toy()
    sweep, store = Sweep("toy", (trajectory,), trajectory.protocol), Store(tmp_path, trajectory.protocol)
    entry = tmp_path / "sweeps" / f"{store.add_sweep(sweep)}.json"
    entry.write_bytes(entry.read_bytes()[:-20])
    with pytest.raises(DamagedError, match="Run the sweep again"):
        status_of(tmp_path)
    store.add_sweep(sweep)
    assert status_of(tmp_path).waiting == (trajectory,)
    assert entry.with_name(f"{entry.name}.damaged").exists()
    marker = tmp_path / "store.json"
    marker.write_bytes(marker.read_bytes().replace(b'"toy"', b'"joy"'))
    with pytest.raises(DamagedError, match="Move it away and run the sweep that began this store"):
        Store(tmp_path)
    marker.unlink()
    assert Store(tmp_path, trajectory.protocol).wanted() == {trajectory.key: trajectory}


def test_a_protocol_of_a_later_version_is_refused(toy, tmp_path):
    store = Store(tmp_path, toy().protocol)
    content = read_sealed(store.path / "store.json")
    content["protocol"]["mixup"] = 0.2
    (store.path / "store.json").write_bytes(sealed(content))
    with pytest.raises(ImpRunsError, match=r"a protocol with mixup.*use the version of imp_runs that wrote it"):
        Store(tmp_path)


def test_no_sign_of_life_is_written_through_a_link(toy, tmp_path):
    outside, store = tmp_path / "outside.txt", Store(tmp_path / "store", toy().protocol)
    outside.write_text("mine")
    store.folder(KEY).mkdir()
    (store.folder(KEY) / "running.json").symlink_to(outside)
    store.life(KEY).show(level=1, step=1, steps=2)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    ("url", "words"),
    [("s4://bucket/runs", "this URL cannot be opened"), ("file://runs/a", r"a file on another host.*file:///FOLDER")],
)
def test_a_url_that_cannot_be_opened_is_said(url, words):
    with pytest.raises(ImpRunsError, match=words):
        Store(url)
