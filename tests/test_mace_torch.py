"""Weights of mace-torch give its energies, forces and stress.

`data/mace_torch.npz` holds a small model with random weights and its float64 predictions, made by

    python benchmarks/compare_mace_torch.py --export tests/data/mace_torch.npz --plain-first
        --hidden 4x0e+4x1o --max-ell 2 --radial 8

(mace-torch 0.3.16, e3nn 0.4.4). Larger and trained models: benchmarks/compare_mace_torch.py.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.mace_torch import convert, projection
from jaxmlip.models.checkpoint import load, potential_of, save
from jaxmlip.system import pad

PATH = Path(__file__).parent / "data" / "mace_torch.npz"


@pytest.fixture(scope="module")
def exported():
    file = np.load(PATH)
    state = {k[6:]: file[k] for k in file if k.startswith("state|")}
    return file, state, json.loads(str(file["settings"]))


@pytest.fixture(scope="module")
def imported(exported, tmp_path_factory):
    """(potential, params, prediction function), after a trip through a file."""
    _, state, settings = exported
    card, params = convert(state, settings)
    path = tmp_path_factory.mktemp("model") / "mace.safetensors"
    save(path, card, params)
    potential, params, _ = load(path)
    return potential, params, jax.jit(jaxmlip.predict(potential.apply))


@pytest.mark.parametrize("structure", ["ethanol", "ice", "crowd"])
def test_energy_forces_and_stress_are_those_of_mace_torch(exported, imported, structure):
    """Limits: a hundred times the round-off of the largest number that is summed (2e4 eV)."""
    file, (potential, params, predict) = exported[0], imported
    names = ("positions", "numbers", "cell", "pbc")
    atoms = Atoms(**{k: file[f"{structure}|{k}"] for k in names})
    system = pad(jaxmlip.from_ase(atoms, potential.cutoff), n_atoms=12, n_neighbors=48)
    out = predict(params, system)
    assert_allclose(out["energy"], file[f"{structure}|energy"], rtol=0, atol=1e-9)
    assert_allclose(out["forces"][: len(atoms)], file[f"{structure}|forces"], rtol=0, atol=1e-12)
    if atoms.pbc.any():
        assert_allclose(out["stress"], file[f"{structure}|stress"], rtol=0, atol=1e-13)


def test_the_projection_of_couplings_loses_nothing(exported):
    _, state, _ = exported
    name = "products.0.symmetric_contractions.contractions"
    for l in (0, 1):
        for degree in (1, 2, 3):
            couplings = state[f"{name}.{l}.U_matrix_{degree}"]
            matrix = projection(couplings, 2, degree, (l, (-1) ** l))
            assert matrix.shape[1] == couplings.shape[-1]  # raises if the remainder is not zero
            assert len(matrix) <= couplings.shape[-1]


def test_couplings_outside_the_basis_are_refused():
    with pytest.raises(ModelError, match="not polynomials"):
        projection(np.random.default_rng(0).normal(size=(9, 9, 2)), 2, 2, (0, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"interactions": ["RealAgnosticDensityInteractionBlock"] * 2}, "cannot be imported"),
        ({"gate": "tanh"}, "not silu"),
    ],
)
def test_other_architectures_are_refused(exported, change, message):
    with pytest.raises(ModelError, match=message):
        convert(exported[1], {**exported[2], **change})


def test_weights_without_a_place_are_refused(exported):
    state = {**exported[1], "joint_embedding.weight": np.ones(3)}
    with pytest.raises(ModelError, match="joint_embedding"):
        convert(state, exported[2])


def test_the_card_has_reference_energies_and_fields(exported):
    card, _ = convert(exported[1], exported[2])
    assert card["reference_energies"][6] == -1029.2
    assert card["fields"]["correlation"] == 3 and card["fields"]["hidden_l"] == 1
    assert potential_of(card).cutoff == 5.0
