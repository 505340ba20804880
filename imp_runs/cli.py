"""The command `imp-runs`: sweep, settle, status, table."""

from __future__ import annotations

import sys
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
StoreOption = Annotated[Path, typer.Option(help="Folder of the store.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Folder with the dataset's files.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch missing dataset files.")]
WorkersOption = Annotated[int | None, typer.Option(help="Processes; default one per core on a CPU.", min=1)]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default cuda when there is one.")]
KernelsOption = Annotated[str, typer.Option(help="What computes: auto, torch, or on a CPU sparse.")]
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print runs, steps and estimated time.")] = False,
) -> None:
    """Run the trajectories of a sweep that the store lacks; go on where an interrupted sweep stopped."""
    from imp_runs.config import load_sweep
    from imp_runs.costs import estimate
    from imp_runs.sweep import run_sweep

    described = load_sweep(file)
    options: dict[str, Any] = {
        "data_dir": data_dir, "download": download, "workers": workers, "device": device, "kernels": kernels,
    }  # fmt: skip
    if dry_run:
        cost = estimate(described, store, **options)
        typer.echo(f"sweep         {described.name}")
        typer.echo(f"trajectories  {cost.trajectories} ({cost.missing} to run)")
        typer.echo(f"steps         {cost.steps:,}")
        typer.echo(f"time          about {_duration(cost.seconds)}")
        return
    run_sweep(described, store, **options)
    typer.echo(f"{described.name}: {len(described.trajectories)} trajectories are in {store}")


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
) -> None:
    """Compare the speed of a sweep's networks with that of a plain PyTorch loop, side by side."""
    from imp_runs.config import load_sweep
    from imp_runs.costs import bench as run

    table = run(load_sweep(file), data_dir=data_dir, download=download, device=device, kernels=kernels)
    typer.echo(table.to_string(index=False, float_format=lambda v: f"{v:.1f}"))


@app.command()
def status(store: StoreOption) -> None:
    """Print how far the trajectories of a store have got."""
    from imp_runs.store import Store

    opened = Store(store)
    keys = opened.keys()
    done = [key for key in keys if opened.is_done(key)]
    levels = sum(len(opened.records(key)) for key in keys)
    typer.echo(f"begun     {len(keys)} trajectories")
    typer.echo(f"finished  {len(done)}")
    typer.echo(f"records   {levels}")


@app.command()
def table(
    store: StoreOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet or .csv.")],
    finished: Annotated[bool, typer.Option("--finished", help="Only trajectories that have ended.")] = False,
) -> None:
    """Write the run table of a store."""
    from imp_runs.store import Store
    from imp_runs.table import make_table, write_table

    opened = Store(store)
    rows = make_table(opened)
    if finished:
        rows = rows[rows["trajectory"].map(opened.is_done).astype(bool)].reset_index(drop=True)
    write_table(rows, output)
    typer.echo(f"{output}: {len(rows)} rows, {rows['trajectory'].nunique()} trajectories")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def main() -> None:
    """Run the command; bad input ends it with one message and exit code 2."""
    try:
        app()
    except (ImpRunsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
