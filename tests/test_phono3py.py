"""The door to phono3py: exact cubic force constants against its differences, conductivity."""

import json
import sys
from contextlib import suppress
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from crystals import argon, save_argon, skewed
from numpy.testing import assert_allclose

from jaxmlip import units
from jaxmlip.cli.crystal import conductivity as command
from jaxmlip.cli.crystal import own_field
from jaxmlip.cli.crystal.conductivity import conductivity
from jaxmlip.cli.output import Output
from jaxmlip.derivatives.first import forces
from jaxmlip.derivatives.third import cubic_force_constants as columns_of
from jaxmlip.errors import DataError, NumericalError, ResourceError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons import phono3py as door
from jaxmlip.interfaces.phonons.conductivity import thermal_conductivity
from jaxmlip.interfaces.phonons.cubic import irreducible_displacements
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
    atoms, _ = irreducible_displacements(group, rows)
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
    found = thermal_conductivity(crystal, mesh=(6, 6, 6), temperatures=[40.0, 80.0, 160.0])
    assert_allclose(found.kappa, found.mean[:, None, None] * np.eye(3), atol=1e-6)
    assert_allclose(found.mean[1:] / found.mean[:-1], 0.5, rtol=0.1)
    assert 0.2 < found.mean[1] < 1  # W/(m K); about 0.4 by experiment at 80 K
    exact = thermal_conductivity(crystal, mesh=(6, 6, 6), temperatures=[80.0], direct=True)
    assert_allclose(exact.kappa, found.kappa[1:2], rtol=1e-4, atol=1e-9)
    assert exact.mean[0] >= 0.99 * found.mean[1]  # normal processes alone resist no heat


@needs_phono3py
@pytest.mark.slow
def test_harmonic_constants_may_have_a_supercell_of_their_own(hcp, tmp_path):
    """In the same supercell they are the same, and files keep both."""
    crystal = door.phono3py_crystal(
        bulk("Ar", "hcp", a=3.72, c=6.08), (1, 1, 1), harmonic=(2, 2, 1)
    )
    door.with_force_constants(crystal, MODEL, {})
    assert_allclose(crystal.fc2, hcp.fc2, atol=1e-12)
    assert crystal.fc3.shape[1] == 2
    door.write_force_constants(crystal, tmp_path)
    import phono3py

    names = {f"{k}_filename": str(tmp_path / f"{k}.hdf5") for k in ("fc2", "fc3")}
    again = phono3py.load(str(tmp_path / "phono3py.yaml"), **names, log_level=0)
    assert_allclose(again.fc2, hcp.fc2, atol=1e-12)


@needs_phono3py
def test_a_crystal_with_imaginary_modes_conducts_no_number(hcp):
    """phono3py leaves them out of scattering without a word."""
    unstable = copy(hcp)
    unstable.fc2 = -hcp.fc2
    with pytest.raises(NumericalError, match="imaginary"):
        thermal_conductivity(unstable, mesh=(2, 2, 2))
    with pytest.raises(UsageError, match="above zero"):
        thermal_conductivity(hcp, mesh=(2, 2, 2), temperatures=[0.0, 300.0])


@needs_phono3py
def test_a_crystal_without_cubic_constants_conducts_no_number(hcp):
    """kappa goes with the inverse square of cubic constants, without a bound."""
    weak = copy(hcp)
    weak.fc3 = 1e-6 * hcp.fc3
    with pytest.raises(NumericalError, match="40 K.*not scattered"):
        thermal_conductivity(weak, mesh=(3, 3, 2), temperatures=[40.0])
    weak.fc3 = 1e-12 * hcp.fc3
    with pytest.raises(NumericalError, match="nothing scatters"):
        thermal_conductivity(weak, mesh=(3, 3, 2), temperatures=[40.0])


@needs_phono3py
@pytest.mark.slow
def test_cubic_constants_vanish_in_twice_a_primitive_cell_of_inversion_centres():
    crystal = door.phono3py_crystal(bulk("Ar", "fcc", a=5.3), (2, 2, 2))
    door.with_force_constants(crystal, MODEL, {})
    with pytest.raises(NumericalError, match="3 or more"):
        thermal_conductivity(crystal, mesh=(3, 3, 3), temperatures=[40.0])


@needs_phono3py
def test_born_charges_are_those_of_the_atoms_of_the_primitive_cell_field_first():
    cube = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    sign = np.where(cube.numbers == 11, 1.0, -1.0)[:, None, None]
    crystal = door.phono3py_crystal(cube, (2, 1, 1))
    found = door.with_response(crystal, sign * 1.1 * np.eye(3), 2.4 * np.eye(3)).nac_params
    expected = np.where(crystal.primitive.numbers == 11, 1.1, -1.1)[:, None, None] * np.eye(3)
    assert_allclose(found["born"], expected, atol=1e-12)
    assert_allclose(found["dielectric"], 2.4 * np.eye(3), atol=1e-12)
    assert found["factor"] == pytest.approx(units.coulomb_constant, rel=1e-6)

    rough = np.random.default_rng(0).normal(size=(3, 3))
    crystal = door.phono3py_crystal(skewed(bulk("NaCl", "rocksalt", a=5.6), 0.05), (1, 1, 2))
    found = door.with_response(crystal, [rough, -rough], np.eye(3)).nac_params["born"]
    order = [1 if z == 11 else -1 for z in crystal.primitive.numbers]
    assert_allclose(found, np.multiply.outer(order, rough.T), atol=1e-12)


@needs_phono3py
def test_constants_that_do_not_fit_are_refused_before_they_are_computed(hcp, monkeypatch):
    monkeypatch.setattr(door, "host_memory", lambda: 1e4)
    with pytest.raises(ResourceError, match="2 rows and 8 atoms"):
        door.with_force_constants(copy(hcp), None, None)
    with pytest.raises(ResourceError, match="2 rows and 8 atoms"):
        door.check_room(hcp)
    with pytest.raises(ResourceError, match="8 atoms"):
        door.phono3py_crystal(bulk("Ar", "hcp", a=3.72, c=6.08), (2, 2, 1))


@needs_phono3py
def test_the_memory_that_is_planned_holds_the_constants_and_their_slopes(hcp, monkeypatch):
    found = []
    monkeypatch.setattr(door, "_check_room", lambda *sizes: found.append(sizes))
    door.check_room(hcp)
    assert found == [(2, 8, door.n_slopes(hcp))]  # the same from the cell as from the supercell
    monkeypatch.undo()
    least = hcp.fc3.nbytes + door.n_slopes(hcp) * 9 * 8 * 8**2
    monkeypatch.setattr(door, "host_memory", lambda: least)
    with pytest.raises(ResourceError):
        door.check_room(hcp)
    monkeypatch.setattr(door, "host_memory", lambda: 2 * least)
    door.check_room(hcp)


@needs_phono3py
def test_isotopes_of_one_element_are_no_equivalent_atoms():
    mixed = bulk("Ar", "hcp", a=3.72, c=6.08)
    mixed.set_masses([36.0, 40.0])
    with pytest.raises(DataError, match="masses"):
        door.phono3py_crystal(mixed, (1, 1, 1))
    charged, polarised = bulk("Ar"), bulk("Ar")
    polarised.info["field"] = [0.0, 0.0, 0.1]  # supercells would be without it
    with pytest.raises(DataError, match="field"):
        door.phono3py_crystal(polarised, (2, 2, 2))
    charged.info["charge"] = 1.0  # of a supercell it would be another
    with pytest.raises(DataError, match="charge 1"):
        door.phono3py_crystal(charged, (2, 2, 2))


@needs_phono3py
@pytest.mark.slow
def test_the_command_conducts_as_much_as_finite_displacements(folder, capsys, monkeypatch):
    fields = {"cutoff": MODEL.cutoff, "onset": 0.5, "smoothness": 4}
    model = save_argon("argon.safetensors", **fields)
    CUBE.write("ar.cif")
    options = {"mesh": (7, 7, 7), "temperatures": (40.0, 80.0, 40.0), "direct": True}
    conductivity("ar.cif", model=model, json="-", **options)
    found = json.loads(capsys.readouterr().out)

    import phono3py

    relaxed = bulk("Ar", "fcc", a=found["cell_A"][0][0], cubic=True)
    crystal = door.phono3py_crystal(relaxed, (2, 2, 2))
    differences(crystal, 0.005)
    expected = thermal_conductivity(crystal, mesh=(7, 7, 7), temperatures=[40.0, 80.0], direct=True)
    ours = np.array(found["conductivity_direct_W_per_m_K"])
    assert_allclose(ours, expected.direct, rtol=2e-3, atol=1e-6)  # of the step of 0.005 Å
    assert found["n_hessian_slopes"] == 1 and found["cubic_sum_eV_per_A3"] < 1e-10
    assert (folder / "ar_conductivity.png").stat().st_size > 1000
    monkeypatch.chdir("ar_phono3py")  # phono3py looks for constants where it is called
    assert phono3py.load("phono3py.yaml", log_level=0).fc3.shape == (1, 32, 32, 3, 3, 3)


MACE_FIELDS = {"elements": (18,), "cutoff": 5.0}


@pytest.mark.parametrize("inside", [True, False])
def test_what_the_energy_of_a_model_splits_already_is_not_split_again(inside, monkeypatch):
    added, response = [], (np.ones((2, 3, 3)), np.eye(3))
    given = SimpleNamespace(with_response=lambda crystal, *response: added.append(response))
    monkeypatch.setattr(own_field, "predicted", lambda model: True)
    monkeypatch.setattr(own_field, "own_response", lambda *_, **__: response)
    monkeypatch.setattr(own_field, "in_matrices", lambda *_, **__: inside)
    card = {"architecture": "DualCutoff", "fields": MACE_FIELDS}  # planned, but not for far charges
    found = command._split(None, None, None, SimpleNamespace(card=card), given)
    assert found == (own_field.IN_MODEL if inside else "model")
    assert added == ([] if inside else [response])


@pytest.mark.parametrize(
    "architecture, fields, told",
    [
        ("LennardJones", {"onset": 0.6, "smoothness": 3}, None),
        ("LennardJones", {"onset": 0.6, "smoothness": 2}, "than 2 deriv"),
        ("LennardJones", {"onset": 1.0, "smoothness": 3}, "than 0 deriv"),
        ("MACE", MACE_FIELDS | {"smoothness": 4}, None),
        ("MACE", MACE_FIELDS, "than 2 deriv"),
        ("So3krates", {"elements": (18,)}, "than 1 deriv"),
        ("So3krates", {"elements": (18,), "coulomb_width": 0.0}, "than 2 deriv"),
        ("DualCutoff", MACE_FIELDS | {"short": {"smoothness": 3}}, "than 2 deriv"),
        ("DualCutoff", MACE_FIELDS | {n: {"smoothness": 3} for n in ("short", "long")}, None),
    ],
)
def test_third_derivatives_that_jump_at_the_cutoff_are_told(architecture, fields, told):
    """`derivatives.third`: an envelope of smoothness 2 leaves them with steps."""
    model = SimpleNamespace(card={"architecture": architecture, "fields": fields})
    output = Output(json=None)
    command._warn(model, None, bulk("Ar", a=20.0, cubic=True), (1, 1, 1), output)
    assert [told in w for w in output.warnings] == ([True] if told else [])


@needs_phono3py
@pytest.mark.parametrize("change", [{"charge": 1.0}, {"field": [0, 0, 0.1]}, {"masses": [36, 40]}])
def test_what_supercells_cannot_hold_is_refused_before_relaxing(change, folder, monkeypatch):
    model, atoms = save_argon("argon.safetensors"), bulk("Ar", "hcp", a=3.72, c=6.08)
    atoms.set_masses(change.get("masses", [40, 40]))
    atoms.info |= {k: v for k, v in change.items() if k != "masses"}
    atoms.write("ar.xyz", columns=["symbols", "positions", "masses"])
    monkeypatch.setattr(command, "_relaxed", lambda *_, **__: pytest.fail("relaxed"))
    with pytest.raises(DataError, match=next(iter(change))):
        conductivity("ar.xyz", model=model)


@needs_phono3py
@pytest.mark.slow
def test_forces_of_a_crystal_that_is_not_relaxed_are_told(folder, capsys):
    model, atoms = save_argon("argon.safetensors"), bulk("Ar", "hcp", a=3.72, c=6.08)
    atoms.positions[1, 2] += 0.1
    atoms.write("ar.cif")
    options = {"mesh": (3, 3, 2), "temperatures": (40.0, 40.0, 10.0), "supercell": (2, 2, 1)}
    with suppress(NumericalError):  # its modes may be imaginary
        conductivity("ar.cif", model=model, json="-", relax=False, **options)
    assert "away from a minimum" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperatures": (0.0, 300.0, 100.0)},
        {"temperatures": (300.0, 100.0, 100.0)},
        {"temperatures": (100.0, 800.0, np.inf)},
        {"supercell": (2, 0, 2)},
        {"mesh": (11, 11, -1)},
        {"boundary": 0.0},
        {"fmax": 0.0},
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_before_anything_is_read(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"--{name}"):
        conductivity("there_is_no_such_file.cif", **wrong)


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
        thermal_conductivity(crystal)
