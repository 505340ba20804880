"""The command `imp-runs`: sweep, settle, bench, status, watch, table."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from imp_runs.errors import ImpRunsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Iterative magnitude pruning with rewinding: run sweeps, keep their records, make run tables.",
)
StoreOption = Annotated[str, typer.Option(help="Folder of the store, or the URL of an object store.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Folder with the dataset's files.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch missing dataset files.")]
WorkersOption = Annotated[int | None, typer.Option(help="Processes; default one per core on a CPU.", min=1)]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default cuda when there is one.")]
KernelsOption = Annotated[str, typer.Option(help="What computes: auto, torch, or on a CPU sparse.")]
PackOption = Annotated[
    int | None, typer.Option(help="Networks stacked; default 1, on a GPU what bench found best, or by size.", min=1)
]
StreamsOption = Annotated[int | None, typer.Option(help="Stacks side by side; default likewise.", min=1)]
FileArgument = Annotated[Path, typer.Argument(help="TOML file of the sweep.")]


@app.command()
def sweep(
    file: FileArgument,
    store: StoreOption,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    kernels: KernelsOption = "auto",
    pack: PackOption = None,
    streams: StreamsOption = None,
    engine: Annotated[str, typer.Option(help="Who runs them: local, ray or slurm.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster, for instance auto or ray://head:10001.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs per trajectory (ray: a fraction will do).", min=0)] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="More for the engine, name=value, for instance partition=gpu; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print runs, steps and estimated time.")] = False,
) -> None:
    """Run the trajectories of a sweep that the store lacks; go on where an interrupted sweep stopped."""
    from imp_runs.config import load_sweep
    from imp_runs.costs import estimate
    from imp_runs.status import duration
    from imp_runs.sweep import run_sweep

    described = load_sweep(file)
    options: dict[str, Any] = {
        "data_dir": data_dir, "download": download, "workers": workers, "device": device, "kernels": kernels,
        "pack": pack, "streams": streams,
    }  # fmt: skip
    if dry_run:
        cost = estimate(described, store, **options)
        typer.echo(f"sweep         {described.name}")
        typer.echo(f"trajectories  {cost.trajectories} ({cost.missing} to run)")
        typer.echo(f"steps         {cost.steps:,}")
        typer.echo(f"time          about {duration(cost.seconds)}")
        return
    named = dict(_pair(entry) for entry in option or [])
    with _terminable():
        done = run_sweep(described, store, engine=engine, address=address, gpus=gpus, options=named, **options)
    for said in done.mended:
        typer.echo(f"mended: {said}", err=True)
    if engine == "slurm":
        where = f"in {', '.join(done.jobs)}; follow with imp-runs status --store {store}" if done.jobs else "is missing"
        typer.echo(f"{described.name}: {done.submitted} of {done.wanted} trajectories submitted, {where}")
    else:
        typer.echo(f"{described.name}: {done.wanted} trajectories are in {store}")


@app.command()
def settle(
    file: FileArgument,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    kernels: KernelsOption = "auto",
) -> None:
    """Check that the training is long enough: half as many epochs again, at the smallest dataset size."""
    from imp_runs.config import load_sweep
    from imp_runs.settle import settle as run

    table = run(load_sweep(file), data_dir=data_dir, download=download, workers=workers, device=device, kernels=kernels)
    typer.echo(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))


@app.command()
def bench(
    file: FileArgument,
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    kernels: Annotated[str, typer.Option(help="What is compared with torch: auto, or on a CPU sparse.")] = "auto",
    pack: Annotated[list[int] | None, typer.Option(help="Networks stacked, to be tried; repeatable.", min=1)] = None,
    streams: Annotated[list[int] | None, typer.Option(help="Stacks side by side, likewise.", min=1)] = None,
) -> None:
    """Compare the speed of a sweep's networks with that of a plain PyTorch loop, side by side; remember the best."""
    from imp_runs.config import load_sweep
    from imp_runs.costs import bench as run

    options: dict[str, Any] = {"device": device, "kernels": kernels, "packs": pack, "streams": streams}
    table = run(load_sweep(file), data_dir=data_dir, download=download, **options)
    typer.echo(table.to_string(index=False, formatters={"of_peak": "{:.1%}".format}, float_format="{:.1f}".format))


@app.command()
def status(store: StoreOption) -> None:
    """Print how far the trajectories of a store have got, which failed and why, and the time left."""
    from imp_runs.status import status_of

    typer.echo(status_of(store))


@app.command()
def watch(
    store: Annotated[str, typer.Argument(help="Folder of the store, or the URL of an object store.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Figure: .png, .pdf, .svg.")] = Path("curves.png"),
    every: Annotated[float, typer.Option(help="Seconds between two drawings.", min=0)] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Draw once.")] = False,
) -> None:
    """Draw the curves measured so far, again and again while something runs or waits."""
    from imp_runs.watch import watch as run

    run(store, output=output, every=every, once=once, say=typer.echo)


@app.command()
def table(
    store: StoreOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet or .csv.")],
    finished: Annotated[bool, typer.Option("--finished", help="Only trajectories that have ended.")] = False,
) -> None:
    """Write the run table of a store."""
    from imp_runs.files import check_output
    from imp_runs.store import Store
    from imp_runs.table import ENDINGS, make_table, write_table

    check_output(output, "table", ENDINGS)
    opened = Store(store)
    rows = make_table(opened)
    if finished:
        rows = rows[rows["trajectory"].map(opened.is_done).astype(bool)].reset_index(drop=True)
    write_table(rows, output)
    typer.echo(f"{output}: {len(rows)} rows, {rows['trajectory'].nunique()} trajectories")


def _pair(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not name or not equals:
        raise ImpRunsError(f"--option {entry!r} must be name=value, for instance partition=gpu.")
    return name, value


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 do what Ctrl-C does: stop the workers, which write checkpoints."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    names = [name for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    except KeyboardInterrupt as interrupted:
        number = interrupted.args[0] if interrupted.args else signal.SIGINT
        print("stopped; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(128 + int(number)) from None
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def main() -> None:
    """Run the command; bad input ends it with one message and exit code 2."""
    try:
        app()
    except (ImpRunsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
