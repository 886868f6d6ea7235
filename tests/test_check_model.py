"""`jaxmlip check-model`: a table, JSON, and an exit status."""

import json

import pytest
import typer
from ase.build import molecule
from ase.io import write
from structures import KEY, SPRINGS, card
from test_audit import Swirl
from typer.testing import CliRunner

from jaxmlip.cli.check_model import check_model
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import checkpoint

APP = typer.Typer()
APP.command()(check_model)


class Vortex(Swirl):
    share = 0.1


def run(*arguments):
    return CliRunner().invoke(APP, [str(a) for a in arguments])


def test_a_calculator_of_forces_without_a_potential_fails(folder):
    write(folder / "water.xyz", molecule("H2O"))
    only = ["--only", "translation", "--only", "jacobian"]
    found = run("test_check_model:Vortex", folder / "water.xyz", *only, "--json", "out.json")
    assert found.exit_code == 1
    result = json.loads((folder / "out.json").read_text())
    assert result["failed"] == ["jacobian"] and result["passed"] is False
    one = [f for f in result["findings"] if f["check"] == "jacobian"][0]
    assert one["value"] > one["limit"]


@pytest.mark.slow
def test_a_model_of_ours_passes_at_a_structure_made_for_it(folder):
    model = checkpoint.build(card("Morse", SPRINGS))
    params = model.init(KEY, from_ase(molecule("H2O"), SPRINGS["cutoff"]))
    checkpoint.save(folder / "springs.safetensors", card("Morse", SPRINGS), params)
    only = ["--only", "rotation", "--only", "derivative", "--only", "cutoff"]
    found = run(folder / "springs.safetensors", *only, "--json", "out.json")
    result = json.loads((folder / "out.json").read_text())
    assert found.exit_code == (0 if result["passed"] else 1)
    checks = {f["check"] for f in result["findings"]}
    assert checks == {"rotation", "derivative", "cutoff"}
    assert {"rotation", "derivative"}.isdisjoint(result["failed"])


def test_what_cannot_be_checked_is_refused_before_it_is_computed(folder):
    for arguments, words in (
        (["ase.calculators.emt:EMT"], "give a FILE"),
        (["no_such_module:X", "cu.xyz"], "cannot make the calculator"),
        (["organic", "--only", "rotations"], "unknown check"),
    ):
        found = run(*arguments)
        assert found.exit_code != 0 and words in str(found.exception)


@pytest.mark.slow
def test_the_packaged_potential_passes(folder):
    found = run("organic", "--json", "out.json")
    result = json.loads((folder / "out.json").read_text())
    assert found.exit_code == 0, result["failed"]
