"""The notebooks run from top to bottom; only one whose weights are not packaged carries outputs.

Running is slow; that what they call is there is checked always. What they compute, the snippets of
the README do too (test_readme.py).
"""

import ast
import importlib
import inspect
import os
from pathlib import Path

import pytest

import jaxmlip
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


def tree_of(path):
    """The code of all cells; lines for the notebook alone (%, !) left out."""
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines()]
    return ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))


def ours(tree):
    """What the notebook imports of this package: {its name there: the object}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("jaxmlip"):
                    module = importlib.import_module(name.name)
                    found[name.asname or "jaxmlip"] = module if name.asname else jaxmlip
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxmlip"):
            module = importlib.import_module(node.module)
            found |= {name.asname or name.name: member(module, name.name) for name in node.names}
    return found


def member(module, name):
    if not hasattr(module, name):  # a submodule that nothing has imported yet
        importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name)


def resolved(node, names):
    """The object of this package that `a.b.c` names; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolved(node.value, names)
        return None if owner is None else member(owner, node.attr)
    return None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_calls_only_what_there_is(path):
    """Every name of this package exists and every call fits the signature."""
    tree = tree_of(path)
    names, calls = ours(tree), 0
    for node in ast.walk(tree):
        resolved(node, names)  # raises AttributeError or ImportError
        if isinstance(node, ast.Call) and callable(target := resolved(node.func, names)):
            if any(isinstance(a, ast.Starred) for a in node.args):
                continue
            keywords = {k.arg: None for k in node.keywords if k.arg}
            inspect.signature(target).bind_partial(*node.args, **keywords)
            calls += 1
    assert calls


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
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
