"""Every sign, shape and unit against ASE: the table of conventions under test."""

import ase.units
import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose
from structures import ethanol, slab, toy, triclinic

import jaxmlip
from jaxmlip import units
from jaxmlip.interfaces.ase import from_ase, to_ase

PAIRS = {
    "fs": ase.units.fs,
    "kB": ase.units.kB,
    "bohr": ase.units.Bohr,
    "GPa": ase.units.GPa,
    "hartree": ase.units.Hartree,
    "debye": ase.units.Debye,
    "invcm": ase.units.invcm,
    "kcal_mol": ase.units.kcal / ase.units.mol,
    "kJ_mol": ase.units.kJ / ase.units.mol,
    "second": ase.units.second,
    "bar": ase.units.bar,
    "hbar": ase.units._hbar * ase.units.J * ase.units.second,
}


@pytest.mark.parametrize("name", PAIRS)
def test_units_are_those_of_ase(name):
    assert_allclose(getattr(units, name), PAIRS[name], rtol=1e-14)


def test_derived_constants_agree_with_published_figures():
    assert_allclose(units.coulomb_constant, 14.3996, rtol=1e-5)  # eV Å / e²
    # 42.2561 km/mol per (D/Å)²/amu, the constant of quantum chemistry codes
    assert_allclose(units.infrared_intensity * units.debye**2, 42.2561, rtol=1e-5)
    assert_allclose(units.THz / units.invcm, 33.35641, rtol=1e-6)


@pytest.mark.parametrize("make", [ethanol, triclinic, slab])
def test_structures_come_back_as_they_went(make):
    atoms = make()
    atoms.info.update(charge=1.0, spin=2.0, field=np.array([0.1, 0.0, -0.2]))
    (back,) = to_ase(from_ase(atoms, 4.0))
    assert_allclose(back.positions, atoms.positions, atol=0)
    assert (back.numbers == atoms.numbers).all() and (back.pbc == atoms.pbc).all()
    if atoms.pbc.any():
        assert_allclose(np.asarray(back.cell), np.asarray(atoms.cell.complete()), atol=0)
    assert back.info["charge"] == 1.0 and back.info["spin"] == 2.0
    assert_allclose(back.info["field"], [0.1, 0.0, -0.2])


def lennard_jones(cutoff):
    """LJ with a shift, epsilon = sigma = 1, as ase.calculators.lj has it."""
    from jaxmlip.potential import Potential
    from jaxmlip.system import edge_vectors, sum_edges, sum_energies

    def apply(params, system):
        c6 = 1 / (edge_vectors(system) ** 2).sum(-1) ** 3
        energies = 0.5 * sum_edges(system, 4 * (c6**2 - c6) - 4 * (cutoff**-12 - cutoff**-6))
        return {"energy": sum_energies(system, energies), "energies": energies}

    return Potential(lambda key, system: {}, apply, cutoff)


@pytest.mark.parametrize("scale", [0.95, 1.05])
def test_energy_forces_and_stress_have_the_sign_and_unit_of_ase(scale):
    from ase.calculators.lj import LennardJones

    cell = scale * 1.6 * np.array([[1.0, 0.1, 0.0], [0.2, 1.1, 0.0], [0.0, 0.1, 0.9]])
    atoms = Atoms("Ar2", [[0, 0, 0], [0.8, 0.9, 0.7]], cell=cell, pbc=True)
    atoms.calc = LennardJones(epsilon=1, sigma=1, rc=2.5)
    system = from_ase(atoms, 2.5)
    out = jax.jit(jaxmlip.predict(lennard_jones(2.5).apply))({}, system)
    assert_allclose(out["energy"][0], atoms.get_potential_energy(), rtol=1e-10)
    assert_allclose(out["forces"], atoms.get_forces(), atol=1e-9)
    assert_allclose(out["stress"][0], atoms.get_stress(voigt=False), rtol=1e-9, atol=1e-10)


def test_stress_of_a_molecule_is_refused_as_nan():
    out = jax.jit(jaxmlip.predict(toy().apply))({}, from_ase(ethanol(), 4.0))
    assert np.isnan(out["stress"]).all() and np.isfinite(out["forces"]).all()


def test_shapes_of_second_derivatives():
    potential, system = jaxmlip.add_field(toy()), from_ase(ethanol(), 4.0)
    shape = lambda transform: jax.eval_shape(transform(potential.apply), {}, system).shape
    assert shape(jaxmlip.hessian) == (9, 3, 9, 3)
    assert shape(jaxmlip.born_charges) == (9, 3, 3)
    assert shape(jaxmlip.polarizability) == (1, 3, 3)


def test_a_dipole_points_from_minus_to_plus():
    atoms = Atoms("HF", [[0, 0, 0], [0, 0, 1.0]])

    def apply(params, system):
        charges = np.array([0.3, -0.3])
        return {"energy": np.zeros(1), "dipole": (charges[:, None] * system.positions).sum(0)[None]}

    from jaxmlip.potential import Potential

    coupled = jaxmlip.add_field(Potential(None, apply, 1.0))
    at = lambda transform: jax.jit(transform(coupled.apply))({}, from_ase(atoms, None))
    assert_allclose(at(jaxmlip.dipole), [[0, 0, -0.3]])
    born = at(jaxmlip.born_charges)
    assert_allclose(born, [0.3 * np.eye(3), -0.3 * np.eye(3)])
