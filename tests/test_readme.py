"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest

import jaxmlip
from jaxmlip import pretrained

README = Path(__file__).parent.parent / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.skipif("organic" not in pretrained.names(), reason="the packaged weights are absent")
def test_the_snippets_of_the_readme_run_in_order(capsys):
    names = {}
    for block in blocks():
        exec(compile(block, str(README), "exec"), names)
    assert names["H"].shape == (9, 3, 9, 3)
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_configuration_of_the_readme_is_understood(tmp_path):
    from jaxmlip.train.config.read import read_config
    from jaxmlip.train.objective.terms import make_terms

    (text,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    for name in ("train.extxyz", "valid.extxyz", "hessians.npz"):
        (tmp_path / name).touch()
    (tmp_path / "train.yaml").write_text(text)
    config = read_config(tmp_path / "train.yaml")
    assert config.ensemble == 4 and set(make_terms(config)) == {"energy", "forces", "hessian"}


def test_the_map_names_every_room():
    text = README.read_text()
    for path in Path(jaxmlip.__file__).parent.iterdir():
        if path.is_dir() and path.name != "__pycache__" or path.suffix == ".py":
            if not path.name.startswith(("__", ".")):
                assert f"`{path.name}" in text, f"{path.name} is not in the README's tree"
