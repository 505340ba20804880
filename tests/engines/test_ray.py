"""A real Ray cluster of two nodes on this machine, one of them killed in the middle.

`uv run --extra ray pytest -n0 tests/engines/test_ray.py`; the daemons end with the test.
"""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest

os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

import ray
from ray.cluster_utils import Cluster

from imp_runs.store import Store
from imp_runs.sweep import run_sweep

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def cluster():
    quiet = {"include_dashboard": False, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    nodes = [made.add_node(num_cpus=1, **quiet) for _ in range(2)]
    try:
        yield made, nodes
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_node_that_dies_in_the_middle_costs_nothing_but_time(cluster, whole, wait, tmp_path):
    made, nodes = cluster
    store, failed = tmp_path / "store", []

    def run() -> None:
        try:
            run_sweep(whole.sweep, store, device="cpu", engine="ray", address=made.address)
        except BaseException as error:
            failed.append(error)

    ray.init(address=made.address, log_to_driver=False)
    thread = threading.Thread(target=run)
    thread.start()
    running = lambda: list(store.glob("trajectories/*/running.json"))  # noqa: E731
    wait(lambda: len(running()) == 2 or failed, 300, "two nodes at work")
    assert not failed
    made.remove_node(nodes[0], allow_graceful=False)
    assert len(list(store.glob("trajectories/*/done.json"))) < 6
    thread.join(600)
    assert not thread.is_alive()
    assert not failed, failed
    assert sum(node["Alive"] for node in ray.nodes()) == 2  # the head and the node that is left
    whole.assert_same(store)
    # Again: nothing is missing, nothing is run.
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.json*")}
    again = run_sweep(whole.sweep, store, device="cpu", engine="ray", address=made.address)
    assert (again.wanted, again.submitted) == (6, 0)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.json*")} == before


def test_stacks_are_tasks(cluster, whole, tmp_path):
    made, _ = cluster
    ray.init(address=made.address, log_to_driver=False)
    for _ in range(2):
        again = run_sweep(whole.sweep, tmp_path / "store", device="cpu", engine="ray", address=made.address, pack=3)
    assert again.submitted == 0
    whole.assert_stacked(tmp_path / "store", 3)


def test_a_fraction_of_a_gpu_is_asked_for(cluster, whole, tmp_path):
    made, _ = cluster
    ray.init(address=made.address, log_to_driver=False)
    made.add_node(num_cpus=2, num_gpus=1, include_dashboard=False)
    few = whole.sweep.trajectories[:4]
    sweep = dataclasses.replace(whole.sweep, trajectories=few)
    taken = []

    def look() -> None:
        while not finished.is_set():
            taken.append(1 - ray.available_resources().get("GPU", 0.0))
            finished.wait(0.2)

    finished = threading.Event()
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        # A GPU that is only declared: the sharing is Ray's, the computing is done on the CPU.
        run_sweep(sweep, tmp_path / "store", device="cpu", engine="ray", address=made.address, gpus=0.5)
    finally:
        finished.set()
        watcher.join()
    assert {round(share, 3) for share in taken} <= {0.0, 0.5, 1.0}
    assert max(taken) == pytest.approx(1.0)  # two at once on one GPU
    assert Store(tmp_path / "store").is_done(few[0].key)
