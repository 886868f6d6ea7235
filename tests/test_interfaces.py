"""The ASE door: numbers are those of the potential, and nothing is computed or compiled twice."""

from dataclasses import replace

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from numpy.testing import assert_allclose
from structures import toy, triclinic

import jaxmlip
from jaxmlip.errors import DataError, ModelError, NumericalError, PrecisionError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.calculator import PotentialCalculator
from jaxmlip.interfaces.read import read_structure, read_structures
from jaxmlip.models import checkpoint
from jaxmlip.models.pair import LennardJones
from jaxmlip.potential import Potential, add_field
from jaxmlip.system import sum_atoms

ARGON = {"elements": (18,), "epsilon": 0.0104, "sigma": 3.4, "cutoff": 8.5}
CHARGES = np.zeros(119)
CHARGES[[1, 8, 11, 17]] = 0.4, -0.8, 1.0, -1.0
ALPHA = 0.3  # e² Å²/eV


def lennard_jones():
    """Truncated and shifted, as ASE's."""
    return LennardJones(**ARGON, onset=1.0)


def ionic():
    """Lennard-Jones ions with fixed charges, coupled to the field, and a charging energy."""
    model = LennardJones(elements=(1, 8, 11, 17), epsilon=0.01, sigma=1.0, cutoff=4.0)

    def apply(params, system):
        out = model.apply(params, system)
        charges = jnp.asarray(CHARGES)[system.numbers].astype(system.positions.dtype)
        dipole = sum_atoms(system, charges[:, None] * jnp.asarray(system.positions))
        alpha = jnp.broadcast_to(ALPHA * jnp.eye(3), (system.n_graphs, 3, 3))
        energy = out["energy"] + 0.1 * jnp.asarray(system.charge) ** 2
        return {
            **out,
            "energy": energy,
            "charges": charges,
            "dipole": dipole,
            "polarizability": alpha,
        }

    return add_field(Potential(model.init, apply, model.cutoff))


@pytest.fixture
def crystal():
    atoms = ase.build.bulk("Ar", "fcc", a=5.1, cubic=True) * (2, 2, 2)
    strain = np.array([[0, 0.01, 0.02], [0, -0.03, 0.015], [0, 0, 0.02]])
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.fixture
def cluster():
    atoms = ase.Atoms("Ar4", [[0, 0, 0], [3.9, 0, 0], [0, 3.7, 0.2], [0.3, 0.1, 4.0]])
    return atoms


@pytest.fixture
def water():
    return ase.build.molecule("H2O")


def argon_calculator(**options):
    return PotentialCalculator(lennard_jones(), {}, **options)


# --- the numbers ---------------------------------------------------------------------------------


def test_the_calculator_gives_what_predict_gives(crystal):
    crystal.calc = argon_calculator()
    potential = lennard_jones()
    out = jax.jit(jaxmlip.predict(potential.apply))({}, jaxmlip.from_ase(crystal, potential.cutoff))
    assert_allclose(crystal.get_potential_energy(), out["energy"][0], rtol=1e-12)
    assert_allclose(crystal.get_forces(), out["forces"], atol=1e-12)
    assert_allclose(crystal.get_stress(voigt=False), out["stress"][0], atol=1e-14)
    assert_allclose(crystal.get_potential_energies().sum(), out["energy"][0], rtol=1e-12)
    assert crystal.get_potential_energy(force_consistent=True) == crystal.get_potential_energy()


def test_energy_forces_and_stress_agree_with_the_lennard_jones_of_ase(crystal):
    other = crystal.copy()
    other.calc = AseLennardJones(epsilon=0.0104, sigma=3.4, rc=8.5)
    crystal.calc = argon_calculator()
    assert_allclose(crystal.get_potential_energy(), other.get_potential_energy(), rtol=1e-10)
    assert_allclose(crystal.get_forces(), other.get_forces(), atol=1e-10)
    ours, theirs = crystal.get_stress(), other.get_stress()
    assert len(set(np.round(theirs, 6))) == 6  # sheared: an exchange of components would show
    assert_allclose(ours, theirs, atol=1e-10)


def test_a_compressed_crystal_has_a_negative_stress():
    atoms = ase.build.bulk("Ar", "fcc", a=4.8)
    atoms.calc = argon_calculator()
    assert (atoms.get_stress()[:3] < 0).all()


def test_forces_are_the_negative_slope_of_the_energy(cluster):
    cluster.calc = argon_calculator()
    numerical = calculate_numerical_forces(cluster, eps=1e-4)
    # central differences: error of order eps² times the third derivative
    assert_allclose(cluster.get_forces(), numerical, atol=1e-7)


def test_forces_are_true_under_constraints_and_ase_applies_them(cluster):
    cluster.calc = argon_calculator()
    cluster.set_constraint(FixAtoms([0]))
    assert not cluster.get_forces()[0].any()
    assert np.abs(cluster.get_forces(apply_constraint=False)[0]).max() > 1e-3


def test_the_hessian_is_symmetric_and_the_slope_of_the_forces(cluster):
    cluster.calc = argon_calculator()
    hessian = cluster.calc.get_hessian(cluster)
    assert hessian.shape == (4, 3, 4, 3) and hessian.dtype == np.float64
    flat = hessian.reshape(12, 12)
    assert_allclose(flat, flat.T, atol=1e-12)
    forces = []
    for step in (1e-4, -1e-4):
        moved = cluster.copy()
        moved.positions[1, 2] += step
        forces.append(cluster.calc.get_forces(moved))
    assert_allclose(hessian[1, 2], (forces[1] - forces[0]) / 2e-4, atol=1e-7)


def test_responses_to_the_field(water):
    water.calc = PotentialCalculator(ionic(), {}, name="ionic")
    assert_allclose(water.get_charges(), [-0.8, 0.4, 0.4])
    assert_allclose(water.get_dipole_moment(), water.get_charges() @ water.positions, atol=1e-12)
    born = water.calc.get_born_charges(water)
    assert_allclose(born, water.get_charges()[:, None, None] * np.eye(3), atol=1e-12)
    assert_allclose(water.calc.get_polarizability(water), ALPHA * np.eye(3), atol=1e-12)


def test_what_a_potential_does_not_predict_is_refused(cluster, water):
    cluster.calc = argon_calculator(name="lj")
    for ask in (cluster.get_dipole_moment, cluster.get_charges, cluster.get_stress):
        with pytest.raises(PropertyNotImplementedError):
            ask()
    with pytest.raises(PropertyNotImplementedError, match="'lj' does not depend on the field"):
        cluster.calc.get_born_charges(cluster)
    cluster.set_cell([9, 9, 0])
    cluster.pbc = [True, True, False]
    with pytest.raises(PropertyNotImplementedError, match="needs a volume"):
        cluster.get_stress()
    assert np.isfinite(cluster.get_forces()).all()


def test_the_dipole_of_a_periodic_structure_is_refused(water):
    water.calc = PotentialCalculator(ionic(), {})
    water.set_cell([9, 9, 9])
    water.pbc = [True, True, False]
    with pytest.raises(PropertyNotImplementedError, match="periodic"):
        water.get_dipole_moment()
    assert np.isfinite(water.get_forces()).all()


def test_far_from_the_origin_float32_is_refused_and_float64_is_not(water):
    water.positions += 3000.0
    with pytest.raises(DataError, match="resolves"):
        from_ase(water, 4.0, dtype=np.float32)
    assert from_ase(water, 4.0, dtype=np.float64).edges.mask.sum() == 6


def test_a_dipole_that_is_not_coupled_to_the_field_has_no_silent_zero_response(water):
    model = ionic()
    blind = lambda params, system: model.apply(params, replace(system, field=np.zeros((1, 3))))
    calculator = PotentialCalculator(Potential(model.init, blind, model.cutoff), {})
    with pytest.raises(PropertyNotImplementedError, match="add_field"):
        calculator.get_born_charges(water)


def test_an_energy_alone_that_is_not_finite_is_told(cluster):
    """No atom can be named: that of a solver without a plan, say, is no sum over atoms."""
    apply = lambda params, system: {"energy": jnp.nan * system.positions.sum()[None]}
    cluster.calc = PotentialCalculator(Potential(None, apply, 4.0), {})
    with pytest.raises(NumericalError, match="JM303 Ar4: energy is not finite: nan"):
        cluster.get_potential_energy()


def test_a_crystal_has_born_charges_and_a_polarisability():
    """Of rigid ions: their charges; a cell with a dipole of its own is none of the matter."""
    salt = ase.build.bulk("NaCl", "rocksalt", a=3.6)
    calculator = PotentialCalculator(ionic(), {})
    assert_allclose(calculator.get_born_charges(salt), [np.eye(3), -np.eye(3)], atol=1e-12)
    assert_allclose(calculator.get_polarizability(salt), ALPHA * np.eye(3), atol=1e-12)
    shared = PotentialCalculator(add_field(toy()), {})  # what one atom loses all others get
    with pytest.raises(UsageError, match="JM110"):
        shared.get_born_charges(triclinic())


# --- the cache -----------------------------------------------------------------------------------


def test_charge_and_field_in_info_change_the_energy(water):
    water.calc = PotentialCalculator(ionic(), {})
    neutral, dipole = water.get_potential_energy(), water.get_dipole_moment()
    water.info["charge"] = 2
    assert_allclose(water.get_potential_energy() - neutral, 0.1 * 2**2, rtol=1e-10)
    water.info = {"field": np.array([0.0, 0.0, 0.1])}
    work = dipole[2] * 0.1 + ALPHA * 0.1**2 / 2
    assert_allclose(water.get_potential_energy(), neutral - work, rtol=1e-10)
    water.info["field"][2] = 0.0  # in place
    assert_allclose(water.get_potential_energy(), neutral, rtol=1e-10)


def test_results_are_copies(cluster):
    cluster.calc = argon_calculator()
    forces = cluster.get_forces().copy()
    cluster.get_forces()[:] = 7
    assert_allclose(cluster.get_forces(), forces)
    cluster.calc.get_forces(cluster)[:] = 7
    assert_allclose(cluster.get_forces(), forces)
    assert cluster.get_forces().dtype == np.float64


def counting(counts):
    """Lennard-Jones that counts how often it is traced, and how often differentiated."""

    @jax.custom_jvp
    def marked(x):
        return x

    @marked.defjvp
    def marked_jvp(primals, tangents):
        counts["derivative"] += 1
        return primals[0], tangents[0]

    def apply(params, system):
        counts["energy"] += 1
        out = lennard_jones().apply(params, system)
        return {**out, "energy": marked(out["energy"])}

    return Potential(lennard_jones().init, apply, ARGON["cutoff"])


def test_an_energy_alone_is_not_differentiated(cluster):
    counts = {"energy": 0, "derivative": 0}
    cluster.calc = PotentialCalculator(counting(counts), {})
    cluster.get_potential_energy()
    assert counts == {"energy": 1, "derivative": 0}
    cluster.get_forces()
    assert counts["derivative"] == 1


def test_small_moves_do_not_compile_again(crystal):
    counts = {"energy": 0, "derivative": 0}
    crystal.calc = PotentialCalculator(counting(counts), {})
    crystal.get_forces()
    traced = dict(counts)
    generator = np.random.default_rng(0)
    for _ in range(5):
        crystal.positions += generator.normal(0, 0.05, crystal.positions.shape)
        crystal.get_forces()
        crystal.get_potential_energy()
    assert counts == traced


def test_a_small_molecule_never_compiles_twice(cluster):
    counts = {"energy": 0, "derivative": 0}
    cluster.calc = PotentialCalculator(counting(counts), {})
    for scale in (1.0, 3.0, 0.9):  # from all neighbours to none and back
        moved = cluster.copy()
        moved.positions *= scale
        cluster.calc.get_forces(moved)
    assert counts["energy"] == 1


def test_a_denser_structure_widens_the_neighbour_list_and_loses_no_edge(crystal):
    shared = argon_calculator()
    for a in (1.2, 1.0, 0.85, 1.2):
        atoms = crystal.copy()
        atoms.set_cell(atoms.cell * a, scale_atoms=True)
        fresh = argon_calculator().get_potential_energy(atoms)
        assert_allclose(shared.get_potential_energy(atoms), fresh, rtol=1e-12)


def test_forces_and_stress_at_every_step_share_one_backward_pass(crystal):
    crystal.calc = argon_calculator()
    along = []
    for _ in range(4):
        crystal.positions[0, 0] += 0.01
        crystal.get_forces()
        along.append("stress" in crystal.calc.results)
        crystal.get_stress()
    assert along == [False, True, True, True]


# --- at work -------------------------------------------------------------------------------------


def test_two_precisions_side_by_side(cluster):
    single, double = argon_calculator(dtype="float32"), argon_calculator(dtype="float64")
    e32, e64 = single.get_potential_energy(cluster), double.get_potential_energy(cluster)
    assert e32 != e64
    assert_allclose(e32, e64, rtol=1e-5)
    assert double.get_potential_energy(cluster) == e64


def test_double_precision_without_x64_is_refused():
    with jax.enable_x64(False), pytest.raises(PrecisionError):
        argon_calculator(dtype="float64")


def test_relaxation_with_a_fixed_atom(cluster):
    cluster.calc = argon_calculator()
    cluster.set_constraint(FixAtoms([0]))
    assert BFGS(cluster, logfile=None).run(fmax=1e-4, steps=200)
    assert not cluster.positions[0].any()
    distances = cluster.get_all_distances()[np.triu_indices(4, 1)]
    assert_allclose(distances, 2 ** (1 / 6) * 3.4, rtol=2e-3)  # a tetrahedron at the minimum


def test_relaxation_of_a_cell():
    atoms = ase.build.bulk("Ar", "fcc", a=5.0)
    atoms.calc = argon_calculator()
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    assert_allclose(atoms.get_stress(), 0, atol=3e-5)  # fmax over 36 Å³


def test_unknown_elements_are_refused_by_name(crystal):
    crystal.numbers[:2] = 26
    crystal.calc = argon_calculator(elements=["Ar"], name="argon")
    with pytest.raises(ModelError, match=r"'argon' knows Ar; structure has Fe \(atoms 0-1\)"):
        crystal.get_potential_energy()


def test_a_result_that_is_not_finite_names_the_atom(crystal):
    crystal.numbers[5] = 26  # the potential gives NaN for elements it does not know
    crystal.calc = argon_calculator()
    with pytest.raises(NumericalError, match=r"atom 5 \(Fe\)") as caught:
        crystal.get_potential_energy()
    assert caught.value.exit_code == 4
    assert crystal.calc.results == {}


def test_a_broken_geometry_does_not_spoil_the_next(cluster):
    cluster.calc = argon_calculator()
    energy = cluster.get_potential_energy()
    broken = cluster.copy()
    broken.positions[2] = np.nan
    with pytest.raises(DataError, match="atom 2"):
        cluster.calc.get_potential_energy(broken)
    assert cluster.get_potential_energy() == energy


def test_the_calculator_of_a_saved_potential(tmp_path, cluster, water):
    card = {"architecture": "LennardJones", "fields": ARGON, "elements": [18], "name": "argon"}
    checkpoint.save(tmp_path / "argon.safetensors", card, {})
    cluster.calc = jaxmlip.Calculator(tmp_path / "argon.safetensors", dtype="float32")
    assert cluster.calc.name == "argon"
    model = LennardJones(**ARGON)
    expected = model.apply({}, jaxmlip.from_ase(cluster, model.cutoff))["energy"][0]
    assert_allclose(cluster.get_potential_energy(), expected, rtol=1e-5)
    with pytest.raises(ModelError, match=r"'argon' knows Ar; structure has H \(atoms 1-2\); O"):
        cluster.calc.get_potential_energy(water)


# --- structures by name and from files -----------------------------------------------------------


def test_molecules_by_name():
    assert read_structure("CH3CH2OH").get_chemical_formula() == "C2H6O"
    assert read_structure("water").get_chemical_formula() == "H2O"
    assert read_structure("O2").info["spin"] == 3  # a triplet
    assert len(read_structures("C6H6")) == 1


@pytest.mark.parametrize(
    "name",
    [
        "a.xyz",
        "a.extxyz",
        "a.cif",
        "POSCAR",
        "a.vasp",
        "a.traj",
        "a.xsf",
        "a.json",
        "a.db",
        "geometry.in",
        "a.gen",
        "a.xyz.gz",
        "a.cif.gz",
        "a.xyz.xz",
    ],
)
def test_a_crystal_comes_back_from_every_format(tmp_path, crystal, name):
    kind = {"geometry.in": "aims", "a.xyz": "extxyz", "a.xyz.gz": "extxyz", "a.xyz.xz": "extxyz"}
    ase.io.write(tmp_path / name, crystal, format=kind.get(name))
    back = read_structure(tmp_path / name)
    assert (back.numbers == crystal.numbers).all() and back.pbc.all()
    assert_allclose(back.cell.cellpar(), crystal.cell.cellpar(), rtol=1e-5)
    assert_allclose(
        back.get_all_distances(mic=True), crystal.get_all_distances(mic=True), atol=1e-4
    )


@pytest.mark.parametrize("name", ["a.xyz", "a.pdb", "a.mol", "a.sdf", "a.cube", "a.gen"])
def test_a_molecule_comes_back_from_every_format(tmp_path, water, name):
    if name == "a.cube":
        water.cell = [5, 5, 5]
        ase.io.write(tmp_path / name, water, data=np.zeros((2, 2, 2)))
    elif name in ("a.mol", "a.sdf"):
        rows = "".join(
            f"{x:10.4f}{y:10.4f}{z:10.4f} {s:<3} 0  0\n"
            for s, (x, y, z) in zip(water.symbols, water.positions, strict=True)
        )
        (tmp_path / name).write_text(
            f"water\n\n\n  3  0  0  0  0  0  0  0  0  0  1 V2000\n{rows}M  END\n"
        )
    else:
        ase.io.write(tmp_path / name, water)
    back = read_structure(tmp_path / name)
    assert (back.numbers == water.numbers).all()
    assert_allclose(back.get_all_distances(), water.get_all_distances(), atol=1e-3)


def test_constraints_of_a_file_are_kept(tmp_path, crystal):
    crystal.set_constraint(FixAtoms([0, 3]))
    ase.io.write(tmp_path / "POSCAR", crystal)
    assert list(read_structure(tmp_path / "POSCAR").constraints[0].index) == [0, 3]


def test_one_frame_of_many(tmp_path, water):
    frames = [water.copy() for _ in range(3)]
    for i, atoms in enumerate(frames):
        atoms.info["step"] = i
    ase.io.write(tmp_path / "a.xyz", frames)
    assert read_structure(tmp_path / "a.xyz").info["step"] == 2
    assert read_structure(tmp_path / "a.xyz", frame=0).info["step"] == 0
    assert [a.info["step"] for a in read_structures(tmp_path / "a.xyz")] == [0, 1, 2]
    with pytest.raises(DataError, match="no frame 3"):
        read_structure(tmp_path / "a.xyz", frame=3)
