"""The notebooks run from top to bottom with the packaged potential, and carry no outputs."""

from pathlib import Path

import pytest

from jaxmlip import pretrained

nbformat = pytest.importorskip("nbformat", reason="pip install 'jaxmlip[test]' for notebooks")
nbclient = pytest.importorskip("nbclient", reason="pip install 'jaxmlip[test]' for notebooks")
pytest.importorskip("ipykernel", reason="pip install 'jaxmlip[test]' for notebooks")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in cells)


@pytest.mark.skipif("organic" not in pretrained.names(), reason="no packaged model 'organic'")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom(path):
    notebook = nbformat.read(path, 4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    pictures = [
        o
        for c in notebook.cells
        if c.cell_type == "code"
        for o in c.outputs
        if "image/png" in o.get("data", {})
    ]
    assert pictures
