"""Every notebook runs from top to bottom on the recorded data, with the real sampler."""

from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_executed_and_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "committed unexecuted"
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    executed = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(FOLDER))
    printed = "".join(
        output.text for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )  # fmt: skip
    assert "gate: passed" in printed
    assert "Start from depth" in printed


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_from_runs_to_plan", "02_planning_a_campaign"]
