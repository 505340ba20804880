"""Every notebook runs from top to bottom on the recorded data, with the real sampler."""

from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What every notebook must print, whatever else it does.
SAID = {
    "01_from_runs_to_plan": ["gate: passed", "Start from depth"],
    "02_planning_a_campaign": ["gate: passed", "Start from depth"],
    "03_making_runs": ["8 of 16 were missing and have been run", "done          16", "272 rows of 16 trajectories"],
}


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
    for said in SAID[path.stem]:
        assert said in printed


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SAID)
