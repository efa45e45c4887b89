from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def figures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_tutorial_runs_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    size = next(cell for cell in notebook.cells if cell.source.startswith("SPACING, SHAPE"))
    size.source = "SPACING, SHAPE, STEPS, ROUNDS = 6.0, (32, 32, 32), 2, 2"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert figures(notebook) == 3
    assert (tmp_path / "run" / "evaluation" / "metrics.json").is_file()


def test_the_committed_tutorial_was_executed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert figures(notebook) == 3
    text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert not any("Traceback" in output.get("text", "") for cell in code for output in cell.outputs)
    assert str(Path.home()) not in text
