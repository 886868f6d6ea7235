"""The packaged potential: it is what its card says, and obeys the laws with its real weights."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import molecule
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip import pretrained
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.md.relax import relax
from jaxmlip.system import pad
from jaxmlip.vibrations import intensities, normal_modes

HELD_OUT = Path(__file__).parent / "data" / "held_out.extxyz"  # GFN2-xTB, see examples/organic
SIZE = 14  # atoms of the largest structure here: one compilation serves all

pytestmark = pytest.mark.skipif(
    "organic" not in pretrained.names(), reason="the packaged weights are absent"
)


@cache
def organic():
    potential, params = jaxmlip.load("organic")
    return potential, jaxmlip.cast(params, np.float64)


@cache
def compiled(transform):
    return jax.jit(transform(organic()[0].apply))


def padded(system):
    return pad(system, n_atoms=SIZE, n_neighbors=15)


def predict(system):
    return jax.tree.map(np.asarray, compiled(jaxmlip.predict)(organic()[1], padded(system)))


@cache
def relaxed_water():
    """Water at the minimum of the model, `ase.Atoms`."""
    potential, params = organic()
    atoms = molecule("H2O")
    system, info = relax(potential, params, padded(from_ase(atoms, potential.cutoff)), fmax=1e-6)
    assert info.converged
    atoms.positions = np.asarray(system.positions)[:3]
    return atoms


def test_the_card_says_what_a_user_must_know():
    card = pretrained.card("organic")
    assert {"level_of_theory", "licence", "limits", "accuracy", "data", "units"} <= set(card)
    assert card["elements"] == [1, 6, 7, 8]
    assert (pretrained.FOLDER / "organic.md").is_file()
    assert pretrained.path_of("organic").stat().st_size < 3e6


def test_held_out_molecules_are_as_good_as_the_card_says():
    """18 frames of 6 molecules: twice the mean errors of the card allows for so few."""
    accuracy = pretrained.card("organic")["accuracy"]
    force, dipole, atomic = [], [], []
    for system, labels in read_labelled(HELD_OUT, organic()[0].cutoff, dtype=np.float64):
        out, n = predict(system), system.n_atoms
        force += np.abs(out["forces"][:n] - labels["forces"]).ravel().tolist()
        dipole += np.abs(out["dipole"] - labels["dipole"]).ravel().tolist()
        atomic.append(abs(out["energy"][0] - labels["energy"][0]) / n)
    assert 1e3 * np.mean(force) < 2 * accuracy["held_out_forces_mae_meV_per_A"]
    assert np.mean(dipole) < 2 * accuracy["held_out_dipole_mae_eA"]
    assert 1e3 * np.mean(atomic) < 2 * accuracy["held_out_energy_mae_meV_per_atom"]


def test_energy_and_dipole_turn_with_the_molecule():
    atoms = molecule("CH3CONH2")
    potential = organic()[0]
    turned, q = atoms.copy(), np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned.positions = atoms.positions @ q.T + [1.0, -2.0, 3.0]
    here, there = (predict(from_ase(a, potential.cutoff)) for a in (atoms, turned))
    assert_allclose(there["energy"], here["energy"], rtol=1e-13)
    assert_allclose(there["forces"][:9], here["forces"][:9] @ q.T, atol=1e-10)
    assert_allclose(there["dipole"], here["dipole"] @ q.T, atol=1e-10)


def test_forces_are_the_slope_of_the_energy():
    atoms = molecule("CH3NO2")
    atoms.rattle(0.05, seed=0)
    cutoff = organic()[0].cutoff
    here = predict(from_ase(atoms, cutoff))
    d = np.random.default_rng(0).normal(size=(7, 3))
    energies = []
    for h in (-2e-3, -1e-3, 1e-3, 2e-3):
        moved = atoms.copy()
        moved.positions += h * d
        energies.append(predict(from_ase(moved, cutoff))["energy"][0])
    slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * 1e-3)
    # fourth order: h^4 times the fifth derivative, some 1e-8 here; energies are rounded to 1e-13
    assert_allclose(slope, -(here["forces"][:7] * d).sum(), rtol=1e-6)


def test_water_has_three_modes_and_sound_sum_rules():
    atoms = relaxed_water()
    system = padded(from_ase(atoms, organic()[0].cutoff))
    hessian = np.asarray(compiled(jaxmlip.hessian)(organic()[1], system))[:3, :, :3]
    born = np.asarray(compiled(jaxmlip.born_charges)(organic()[1], system))[:3]
    assert np.abs(hessian - hessian.transpose(2, 3, 0, 1)).max() < 1e-10 * np.abs(hessian).max()
    assert np.abs(hessian.sum(2)).max() < 1e-9 * np.abs(hessian).max()
    assert np.abs(born.sum(0)).max() < 1e-12
    modes = normal_modes(hessian, atoms.get_masses(), atoms.positions)
    # GFN2-xTB (tblite 0.8, this geometry optimised): 1539, 3643 and 3651 cm⁻¹
    assert_allclose(modes.frequencies_cm1, [1539, 3643, 3651], atol=60)
    assert (intensities(born, modes) > 0).all()


def test_the_calculator_is_the_potential_and_refuses_what_it_cannot_know():
    atoms = molecule("CH3CONH2")
    atoms.calc = jaxmlip.Calculator("organic")
    here = predict(from_ase(atoms, organic()[0].cutoff))
    assert_allclose(atoms.get_potential_energy(), here["energy"][0], rtol=1e-12)
    iron = molecule("CH4")
    iron.numbers[0] = 26
    iron.calc = atoms.calc
    with pytest.raises(ModelError, match="Fe"):
        iron.get_potential_energy()
    ion = molecule("CH4")
    ion.info["charge"] = 1
    ion.calc = atoms.calc
    with pytest.raises(ModelError, match="neutral singlets"):
        ion.get_potential_energy()
