"""Worker processes on this machine, one thread each on a CPU, one process on a GPU, and what they are started with."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imp_runs.config import Trajectory
from imp_runs.errors import ImpRunsError

if TYPE_CHECKING:
    import torch

    from imp_runs.examples import Source

#: What every CPU worker is started with, so that results do not depend on the processor's vector width.
KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
if platform.machine() in {"x86_64", "AMD64"}:
    KERNELS |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}

#: What may compute a run: the fastest, PyTorch, or on a CPU kernels that skip pruned weights.
CHOICES = ("auto", "torch", "sparse")


def default_device() -> str:
    """Choose CUDA when there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_kernels(kernels: str) -> str:
    """Give `kernels` back, or raise an `ImpRunsError` that says what is allowed."""
    if kernels not in CHOICES:
        raise ImpRunsError(f"kernels {kernels!r} must be one of {', '.join(CHOICES)}.")
    return kernels


def checked_device(device: str | None) -> str:
    """Give a device that is there, the default one for none, or raise an `ImpRunsError` that says what to do."""
    if device is None:
        return default_device()
    kind = device.split(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise ImpRunsError(f"device {device!r} must be cpu or cuda.")
    if kind == "cuda" and default_device() != "cuda":
        raise ImpRunsError(f"device {device!r}: PyTorch finds no CUDA device here; give --device cpu.")
    return device


def device_name(device: torch.device | str) -> str:
    """Name a device by its make: a GPU's name, or the processor."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return _processor()


@functools.cache
def _processor() -> str:
    """Name the processor: kernels of one instruction set still round differently on another."""
    wanted = {"vendor_id": "", "cpu family": "family ", "model": "model "}
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        found = {name.strip(): value.strip() for name, _, value in lines}
        if wanted.keys() <= found.keys():
            return "cpu " + " ".join(f"{said}{found[name]}" for name, said in wanted.items())
    return f"cpu {platform.machine()}"


@contextlib.contextmanager
def pinned(device: str) -> Iterator[None]:
    """Set the environment that workers inherit, and restore it."""
    wanted = KERNELS if device == "cpu" else {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def default_workers(device: str) -> int:
    """Count one process per core on a CPU, one on a GPU."""
    return os.cpu_count() or 1 if device == "cpu" else 1


def one_process() -> concurrent.futures.ProcessPoolExecutor:
    """Make a worker process, which starts with the first thing it is given and ends with this one."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker)


def send(pool: concurrent.futures.ProcessPoolExecutor, number: int) -> None:
    """Send a signal to a worker process."""
    for process in list((pool._processes or {}).values()):
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)


@contextlib.contextmanager
def started(device: str) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Start a worker; it is stopped at once where what is done with it fails or is interrupted.

    Args:
        device: What it computes on.

    Yields:
        The worker, as a pool of one process.
    """
    pool = one_process()
    with pinned(device), pool:
        try:
            yield pool
        except BaseException:
            send(pool, signal.SIGTERM)
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch(
    pool: concurrent.futures.Executor, trajectories: Iterable[Trajectory], data_dir: str | Path | None, download: bool
) -> None:
    """Let a worker fetch the datasets of trajectories for all, so that what is missing is said before anything runs.

    Raises:
        ImpRunsError: None of the datasets could be read; where only some could not, their trajectories will fail.
    """
    faults = []
    wanted = dict.fromkeys((t.dataset, t.pool) for t in trajectories)
    for dataset, side in wanted:
        try:
            pool.submit(_fetch, dataset, side, data_dir, download).result()
        except ImpRunsError as error:
            faults.append(error)
    if len(faults) == len(wanted):
        raise faults[0]


def _fetch(dataset: str, pool: int, data_dir: str | Path | None, download: bool) -> None:
    if download:
        from imp_runs.datasets import load_dataset

        load_dataset(dataset, pool=pool, data_dir=data_dir, download=True)
    dataset_of(dataset, pool, data_dir)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all, and the parent sees to it
    steady()
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def steady() -> None:
    """Let PyTorch use one thread and nothing that gives other numbers at another time."""
    import torch

    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler, for a second
    # Every operation here writes what it allocates.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - PyTorch does not declare it
    torch.backends.cudnn.benchmark = False


@functools.cache
def dataset_of(name: str, pool: int, data_dir: str | Path | None) -> Source:
    """Load a dataset once for every worker process."""
    from imp_runs.datasets import load_dataset

    return load_dataset(name, pool=pool, data_dir=data_dir)
