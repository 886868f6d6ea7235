"""The door to phono3py: exact cubic force constants against its differences, conductivity."""

import sys
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from crystals import argon
from numpy.testing import assert_allclose

from jaxmlip.derivatives.first import forces
from jaxmlip.derivatives.third import cubic_force_constants as columns_of
from jaxmlip.errors import DataError, ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons import phono3py as door
from jaxmlip.interfaces.phonons.phonopy_files import from_phonopy_atoms
from jaxmlip.interfaces.phonons.symmetry import symmetry

needs_phono3py = pytest.mark.skipif(find_spec("phono3py") is None, reason="needs phono3py")
MODEL = argon(2.0, onset=0.5, smoothness=4)  # third derivatives are smooth


CUBE = bulk("Ar", "fcc", a=5.3, cubic=True)


@pytest.fixture(scope="module")
def hcp():
    """Two atoms a cell, equivalent by symmetry, without a centre of inversion at either."""
    crystal = door.phono3py_crystal(bulk("Ar", "hcp", a=3.72, c=6.08), (2, 2, 1))
    return door.with_force_constants(crystal, MODEL, {})


def differences(crystal, distance):
    """fc3 and fc2 of phono3py itself, from our forces on its displaced supercells."""
    crystal.generate_displacements(distance=distance)
    system = from_ase(from_phonopy_atoms(crystal.supercell), MODEL.cutoff + 0.2)
    at = jax.jit(lambda r: forces(MODEL.apply)({}, replace(system, positions=r)))
    cells = crystal.supercells_with_displacements
    crystal.forces = np.array([at(jnp.asarray(c.positions)) for c in cells])
    crystal.produce_fc3(is_compact_fc=True)
    return crystal.fc3, crystal.fc2


@needs_phono3py
def test_cubic_force_constants_are_the_limit_of_finite_differences(hcp):
    errors = []
    for distance in (0.01, 0.005):
        crystal = door.phono3py_crystal(bulk("Ar", "hcp", a=3.72, c=6.08), (2, 2, 1))
        fc3, fc2 = differences(crystal, distance)
        errors.append(np.abs(fc3 - hcp.fc3).max() / np.abs(hcp.fc3).max())
        assert_allclose(hcp.fc2, fc2, atol=20 * distance**2 * np.abs(hcp.fc2).max())
    assert errors[1] < 0.01  # of their step
    assert errors[1] < 0.6 * errors[0], errors  # and vanishes with it, to first order or better


@needs_phono3py
def test_symmetry_gives_what_all_columns_give(hcp):
    system = from_ase(from_phonopy_atoms(hcp.supercell), MODEL.cutoff)
    rows = hcp.primitive.p2s_map
    pairs = [(a, x) for a in rows for x in range(3)]
    whole = np.asarray(jax.jit(columns_of(MODEL.apply, columns=pairs))({}, system))
    n = system.n_atoms
    whole = whole.reshape(len(rows), 3, n, 3, n, 3).transpose(0, 2, 4, 1, 3, 5)
    assert_allclose(hcp.fc3, whole, atol=1e-10 * np.abs(whole).max())
    group = symmetry(from_phonopy_atoms(hcp.supercell))
    atoms, _ = door.irreducible_displacements(group, rows)
    assert len(atoms) < len(pairs)


@needs_phono3py
def test_cubic_force_constants_obey_translations_and_permutations(hcp):
    scale = np.abs(hcp.fc3).max()
    assert_allclose(hcp.fc3.sum(1), 0, atol=1e-11 * scale)
    assert_allclose(hcp.fc3.sum(2), 0, atol=1e-11 * scale)
    assert_allclose(hcp.fc3, hcp.fc3.transpose(0, 2, 1, 3, 5, 4), atol=1e-11 * scale)
    for at, row in enumerate(hcp.primitive.p2s_map):  # and between the first two atoms
        for to, other in enumerate(hcp.primitive.p2s_map):
            swapped = hcp.fc3[to, row].transpose(0, 2, 1, 3)
            assert_allclose(hcp.fc3[at, other], swapped, atol=1e-11 * scale)


@needs_phono3py
def test_files_are_read_by_phono3py(hcp, tmp_path):
    import phono3py

    door.write_force_constants(hcp, tmp_path)
    again = phono3py.load(
        str(tmp_path / "phono3py.yaml"),
        fc3_filename=str(tmp_path / "fc3.hdf5"),
        fc2_filename=str(tmp_path / "fc2.hdf5"),
        log_level=0,
    )
    assert_allclose(again.fc3, hcp.fc3, atol=1e-12)
    assert_allclose(again.fc2, hcp.fc2, atol=1e-12)


@needs_phono3py
@pytest.mark.slow
def test_argon_conducts_less_heat_when_hot():
    """Umklapp scattering above the Debye temperature: kappa falls as 1/T; cubic, so isotropic."""
    crystal = door.phono3py_crystal(CUBE, (2, 2, 2), primitive="F")
    door.with_force_constants(crystal, MODEL, {})
    found = door.thermal_conductivity(crystal, mesh=(6, 6, 6), temperatures=[40.0, 80.0, 160.0])
    assert_allclose(found.kappa, found.mean[:, None, None] * np.eye(3), atol=1e-6)
    assert_allclose(found.mean[1:] / found.mean[:-1], 0.5, rtol=0.1)
    assert 0.2 < found.mean[1] < 1  # W/(m K); about 0.4 by experiment at 80 K
    exact = door.thermal_conductivity(crystal, mesh=(6, 6, 6), temperatures=[80.0], direct=True)
    assert_allclose(exact.kappa, found.kappa[1:2], rtol=1e-4, atol=1e-9)
    assert exact.mean[0] >= 0.99 * found.mean[1]  # normal processes alone resist no heat


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "phono3py", None)
    with pytest.raises(ResourceError, match="conductivity"):
        door.phono3py_crystal(bulk("Ar"), (2, 2, 2))
    slab = bulk("Ar", cubic=True)
    slab.pbc = [True, True, False]
    with pytest.raises(DataError, match="periodic"):
        door.phono3py_crystal(slab, (2, 2, 1))


@needs_phono3py
def test_no_conductivity_without_force_constants():
    crystal = door.phono3py_crystal(bulk("Ar"), (1, 1, 1))
    with pytest.raises(UsageError, match="no force constants"):
        door.thermal_conductivity(crystal)
