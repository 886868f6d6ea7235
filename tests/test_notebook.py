"""The notebooks run from top to bottom; only one whose weights are not packaged carries outputs."""

import os
from pathlib import Path

import pytest

from jaxmlip import pretrained

nbformat = pytest.importorskip("nbformat", reason="pip install 'jaxmlip[test]' for notebooks")
nbclient = pytest.importorskip("nbclient", reason="pip install 'jaxmlip[test]' for notebooks")
pytest.importorskip("ipykernel", reason="pip install 'jaxmlip[test]' for notebooks")

SHARED = Path(__file__).parents[2] / "shared"  # beside a checkout, if at all
NEQUIX = Path(os.environ.get("JAXMLIP_NEQUIX") or SHARED / "weights" / "nequix" / "nequix-mp-1.nqx")
PULLED = "08_pretrained"  # what it shows can be read without its weights: its outputs are kept
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_stored_without_outputs(path):
    if path.stem == PULLED:
        pytest.skip("its outputs are kept")
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in cells)


def test_kept_outputs_are_whole_and_small():
    path = next(p for p in NOTEBOOKS if p.stem == PULLED)
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    assert path.stat().st_size < 300_000


def slow_after_the_first(path):
    return pytest.param(path, marks=[pytest.mark.slow] * (path != NOTEBOOKS[0]), id=path.stem)


@pytest.mark.parametrize("path", map(slow_after_the_first, NOTEBOOKS))
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    if path.stem == PULLED and not NEQUIX.is_file():
        pytest.skip("no weights of nequix-mp-1; JAXMLIP_NEQUIX names their file")
    if path.stem != PULLED and "organic" not in pretrained.names():
        pytest.skip("no packaged model 'organic'")
    if path.stem == PULLED:
        monkeypatch.setenv("JAXMLIP_NEQUIX", str(NEQUIX))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what is imported is not kept
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
