"""What is seen of a sweep while it runs: a line per trajectory, the total, and the curves so far."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time

import pytest

from imp_runs.config import Sweep
from imp_runs.errors import ImpRunsError
from imp_runs.life import Life, alive, read_life
from imp_runs.status import status_of
from imp_runs.store import Store
from imp_runs.watch import plot_measured, save_whole, watch


def test_a_terminal_shows_the_total_and_a_line_for_every_running_trajectory(whole, tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [sys.executable, "-m", "imp_runs.cli", "sweep", str(whole.file), "--store", str(tmp_path / "store")]
    process = subprocess.Popen([*command, "--device", "cpu", "--workers", "2"], stderr=slave, stdout=subprocess.DEVNULL)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert process.wait(240) == 0
    text = shown.decode()
    assert re.search(r"toys: .*\| \d+/72 ", text)
    assert re.search(r"toys: .*\| 72/72 ", text)
    lines = re.findall(r"mlp depth 2 width \d digits n=40 replicate \d+: level \d of 2", text)
    assert len({line.split(":")[0] for line in lines}) >= 2


def test_the_curves_of_a_store_are_drawn_with_every_trajectory_and_level(whole, tmp_path):
    figure = plot_measured(whole.table, "so far")
    (ax,) = [ax for ax in figure.axes if ax.get_visible()]
    assert len(ax.lines) == 24
    drawn = sorted(tuple(map(float, point)) for line in ax.lines for point in line.get_xydata())
    assert drawn == sorted(map(tuple, whole.table[["density", "error"]].astype(float).to_numpy().tolist()))
    assert ax.get_title() == "mlp on digits: depth 2, n = 40"
    with pytest.raises(ImpRunsError, match=r"\.pdf, \.png, \.svg; change the ending"):
        save_whole(figure, tmp_path / "curves.txt")


def test_watching_ends_when_nothing_runs_or_waits(whole, tmp_path):
    said: list[str] = []
    watch(whole.store, output=tmp_path / "curves.png", every=0.0, say=said.append)
    assert "done          24" in said[0]
    assert f"\n{tmp_path / 'curves.png'} drawn at " in said[0]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_watching_a_store_without_records_draws_nothing_yet(toy, tmp_path):
    Store(tmp_path / "store", toy().protocol)
    said: list[str] = []
    watch(tmp_path / "store", output=tmp_path / "curves.png", once=True, say=said.append)
    assert len(said) == 1
    assert not (tmp_path / "curves.png").exists()


def test_signs_of_life_come_and_go_stale(tmp_path, monkeypatch):
    path = tmp_path / "running.json"
    life = Life(path)
    assert not alive(path)
    life.show(level=3, step=7, steps=20)
    assert alive(path)
    assert (read_life(path) or {})["level"] == 3
    life.show(level=4, step=0, steps=20)
    assert (read_life(path) or {})["level"] == 3  # not more often than every ten seconds
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 61)
    assert not alive(path)
    life.end()
    assert read_life(path) is None
    path.write_text('{"upda')
    assert not alive(path)


def test_status_tells_running_waiting_and_interrupted_apart_and_estimates_the_rest(whole, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(whole.store, store)
    opened = Store(store)
    wanted = opened.wanted()
    gone, running, *_ = opened.keys()
    shutil.rmtree(opened.folder(gone))
    shutil.rmtree(opened.folder(running))
    with opened.locked(wanted[running]):
        Life(opened.folder(running) / "running.json").show(level=1, step=1, steps=2)
        status = status_of(store)
    assert (len(status.done), list(status.running), list(status.waiting)) == (22, [wanted[running]], [wanted[gone]])
    assert (status.records, status.levels) == (66, 72)
    same = whole.table[whole.table["width"] == wanted[gone].width].groupby("trajectory")["seconds"].sum()
    other = whole.table[whole.table["width"] == wanted[running].width].groupby("trajectory")["seconds"].sum()
    expected = same.drop([gone, running], errors="ignore").mean() + other.drop([gone, running], errors="ignore").mean()
    assert status.seconds == pytest.approx(expected)
    assert f"running: {wanted[running]}: level 1 of 2, on " in str(status)


def test_the_time_left_counts_levels_and_processes(toy, tmp_path) -> None:
    """Two short runs took 1 s a level, and one went no further than level 3; a long one is left, two run together."""
    short, ended = dataclasses.replace(toy(width=3), levels=1), toy(width=5, levels=2)
    long, again = dataclasses.replace(toy(width=3, replicate=1), levels=9), toy(width=5, levels=2, replicate=1)
    store = Store(tmp_path, short.protocol)
    store.add_sweep(Sweep("toy", (short, long, ended, again), short.protocol))
    for trajectory, levels, status in ((short, 1, "trained"), (ended, 0, "exhausted")):
        store.folder(trajectory.key).mkdir(parents=True)
        for level in range(levels + 1):
            store.write_record(trajectory.key, level, {"level": level, "status": status, "seconds": 1.0})
        store.mark_done(trajectory.key, levels=levels, status=status)
    assert status_of(store).seconds == pytest.approx(10 + 1)
    for trajectory in (long, again):
        store.folder(trajectory.key).mkdir(parents=True)
        store.life(trajectory.key).show(level=0, step=1, steps=2)
    assert status_of(store).seconds == pytest.approx(10 + 1)  # one process, whose time is both's
    store.write_record(long.key, 0, {"level": 0, "status": "trained", "seconds": 4.0})
    assert status_of(store).seconds == pytest.approx(9 * 6 / 3 + 1)


def test_where_a_figure_cannot_go_is_said_before_anything_is_read(tmp_path) -> None:
    with pytest.raises(ImpRunsError, match=r"a folder; name the file, for instance .*figure\.pdf"):
        watch(tmp_path / "no store", output=tmp_path, once=True)
    with pytest.raises(ImpRunsError, match=r"can be written as .pdf, .png, .svg"):
        watch(tmp_path / "no store", output=tmp_path / "curves.txt", once=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ImpRunsError, match="cannot be written"):
        watch(tmp_path / "no store", output=tmp_path / "file" / "curves.png", once=True)
