"""D3(BJ) dispersion against the program of its authors, and as a potential like any other.

`data/d3_hcno.npz` holds the elements H, C, N and O of the table in torch-dftd 0.5.3 (MIT); numbers
are those of dftd3 1.7.0 (simple-dftd3) for PBE without three-body terms, cutoffs 12 and 9 Å.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip import units
from jaxmlip.derivatives import dynamical_matrix, dynamical_matrix_supercell
from jaxmlip.errors import DataError, UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.d3 import d3_damping, d3_tables
from jaxmlip.models import D3, checkpoint
from jaxmlip.system import concatenate, pad

TABLES = Path(__file__).parent / "data" / "d3_hcno.npz"
PBE = {"s8": 0.7875, "a1": 0.4289, "a2": 4.4407 * units.bohr}


def pair():
    water = Atoms("OH2", [[3.1, 0.2, 0.4], [3.9, 0.5, 0.9], [3.3, -0.7, 0.2]])
    return molecule("CH3CN") + water


def crystal():
    positions = [[0.1, 0, 0], [1.9, 1.8, 0.2], [1.2, 0.1, 0.1]]
    positions += [[2.6, 2.7, 0.4], [0.3, 2.2, 2.1], [1.1, 2.6, 2.4]]
    cell = [[3.9, 0.1, 0], [0.4, 4.1, -0.2], [0, 0.3, 4.4]]
    return Atoms("C2O2NH", positions, cell=cell, pbc=True)


def model(elements=(1, 6, 7, 8), **options):
    return D3(**d3_tables(elements, TABLES), **PBE, **options)


ENERGIES = [-0.11517519570234554, -0.5488020554213917, 0]  # eV
FORCES = {  # eV/Å, of one atom of each
    6: [-1.366498459168e-02, -8.797600373204e-04, -2.511402813952e-03],
    10: [9.691901051e-02, 1.79403681825e-01, 5.488493191e-03],
}
VIRIAL = np.array(  # eV, of the crystal
    [
        [0.44974931, -0.09160316, -0.01444829],
        [-0.09160316, 0.15579944, -0.00290919],
        [-0.01444829, -0.00290919, 0.52808411],
    ]
)


def test_energy_forces_and_stress_are_those_of_the_reference_program():
    sharp = model(cutoff=12.0, count_cutoff=9.0, onset=1.0)  # it cuts, and so do we
    batch = concatenate([from_ase(a, sharp.cutoff) for a in (pair(), crystal())])
    out = jax.jit(jaxmlip.predict(sharp.apply))({}, pad(batch, n_atoms=18, n_graphs=3))
    assert_allclose(out["energy"], ENERGIES, atol=2e-8)  # their radii are rounded elsewhere
    for atom, expected in FORCES.items():
        assert_allclose(out["forces"][atom], expected, atol=1e-8)
    volume = abs(np.linalg.det(crystal().cell))
    assert_allclose(out["stress"][1] * volume, VIRIAL, atol=3e-8)  # eight digits above
    assert not np.any(out["forces"][15:]) and np.isnan(out["stress"][0]).all()


@pytest.mark.slow
def test_slopes_and_curvatures_are_smooth_where_pairs_fade_and_unknown_elements_are_nan():
    """Over 0.4 Å in which pairs pass the beginning and the end of both switches."""
    short = model((1, 8), cutoff=4.0, count_cutoff=3.0, onset=0.5, smoothness=4)
    atoms = Atoms("OHOH", [[0, 0, 0], [0.9, 0.2, 0], [1.95, 0.1, 0.3], [3.8, 0.1, 0.6]])
    system = jax.tree.map(jnp.asarray, from_ase(atoms, short.cutoff + 1))
    along = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))

    @jax.jit
    def orders(x, numbers):
        moved = lambda x: replace(system, positions=system.positions + x * along, numbers=numbers)
        energy = lambda x: short.apply({}, moved(x))["energy"][0]
        slope = lambda x: jax.jvp(energy, (x,), (1.0,))
        curvature = lambda x: jax.jvp(lambda x: slope(x)[1], (x,), (1.0,))
        third = jax.jvp(lambda x: curvature(x)[1], (x,), (1.0,))[1]
        return *slope(x), curvature(x)[1], third

    h = 1e-5
    for x in np.linspace(-0.2, 0.2, 9):
        before, here, after = (orders(x + s * h, system.numbers) for s in (-1, 0, 1))
        for order in (0, 1, 2):  # fourth derivatives are continuous: h
            difference = (after[order] - before[order]) / (2 * h)
            assert_allclose(here[order + 1], difference, rtol=1e-6, atol=10.0 ** (order - 8))
    assert np.isnan(orders(0.0, system.numbers.at[2].set(6))[0])


def test_a_tail_alone_has_the_coefficients_of_atoms_without_neighbours():
    """Two atoms far apart, undamped: references by weights exp(-4 CN²), -C6/r^6 - C8/r^8."""
    free = D3(**d3_tables((6, 8), TABLES), s8=1.0, a1=0.0, a2=0.0, cutoff=40.0, onset=1.0)
    system = from_ase(Atoms("CO", [[0, 0, 0], [0, 0, 30.0]]), free.cutoff)
    references = np.asarray(free.references)[0, 1]
    exists = np.einsum("iiaa->ia", np.asarray(free.references)) > 0
    weights = exists * np.exp(-4 * np.square(free.coordination))
    weights /= weights.sum(1, keepdims=True)
    c6 = weights[0] @ references @ weights[1]
    c8 = 3 * c6 * np.prod(free.moments)
    found = jax.jit(free.apply)({}, system)["energy"][0]
    assert_allclose(found, -c6 / 30.0**6 - c8 / 30.0**8, rtol=1e-6)  # CN of 1e-7 is not nothing


def test_tables_and_parameters_come_from_files_of_others_and_travel_with_the_card(tmp_path):
    file = tmp_path / "parameters.toml"
    file.write_text(
        "[parameter.pbe]\nd3.bj = {a1=0.4289, s8=0.7875, a2=4.4407}\n"
        "[parameter.old]\nd3.zero = {rs6=1.2, s8=0.7}\n"
    )
    assert d3_damping("PBE", file) == {"s6": 1.0} | PBE
    with pytest.raises(DataError, match="no parameters of D3.BJ. for 'old'"):
        d3_damping("old", file)
    with pytest.raises(DataError, match=r"elements \[2\]"):
        d3_tables((1, 2), TABLES)
    fields = d3_tables((1, 8), TABLES) | PBE
    card = json.loads(json.dumps({"architecture": "D3", "fields": fields}))
    assert checkpoint.build(card) == D3(**fields)
    with pytest.raises(UsageError, match="expected .* for 2 elements"):
        system = from_ase(molecule("OH"), 3.0)
        jax.eval_shape(D3(**(fields | {"radii": (1.0,)})).apply, {}, system)


@pytest.mark.parametrize("elements", [(), (6, "C"), [[1, 6]], [(1, 6), (8,)], 6, (1.5,), (6, 6)])
def test_elements_are_different_atomic_numbers(elements):
    with pytest.raises(UsageError, match="atomic numbers, each once"):
        d3_tables(elements, TABLES)


def test_a_functional_is_a_name():
    with pytest.raises(UsageError, match="must be a name"):
        d3_damping(3)


def test_memory_does_not_grow_with_the_elements_that_a_model_knows():
    """Of all arrays in its program of energy and forces, the largest."""
    system, n = from_ase(crystal(), 9.0), 10

    def most(model):
        forces = jax.grad(lambda r: model.apply({}, replace(system, positions=r))["energy"].sum())
        program = jax.make_jaxpr(forces)(system.positions)
        return max(v.aval.size for e in program.eqns for v in e.outvars)

    few = model((1, 6, 7, 8), cutoff=9.0)
    again = lambda x, axes: np.tile(x, [n] * axes + [1] * (np.ndim(x) - axes)).tolist()
    other = {k: again(getattr(few, k), 1) for k in ("coordination", "radii", "moments")}
    other |= {"references": again(few.references, 2), "elements": tuple(range(1, 4 * n + 1))}
    assert most(replace(few, **other)) == most(few)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("jaxmlip.interfaces.d3.files", lambda package: None)
    with pytest.raises(DataError, match="pip install --no-deps torch-dftd"):
        d3_tables((1,))


@pytest.mark.slow
def test_dynamical_matrices_are_those_of_a_supercell():
    # C6 depends on neighbours of neighbours, whose phases the doors of the system carry
    short = model((6, 8), cutoff=5.0, count_cutoff=4.0)
    atoms = Atoms("CO", [[0, 0, 0], [1.2, 0.3, 0.1]], cell=[2.9, 3.1, 3.3], pbc=True)
    system, q = from_ase(atoms, short.cutoff), np.array([[0.5, 1 / 3, 0], [0, -1 / 3, 0]])
    found = dynamical_matrix(short.apply)({}, system, q)
    expected = dynamical_matrix_supercell(short.apply, (2, 3, 1))({}, system, q)
    assert_allclose(found, expected, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("elements", [(3, 9, 17), (26, 8, 79), (57, 35, 82)])
def test_every_element_agrees_with_the_reference_program(elements):
    """Where both wheels are installed: their tables and their program."""
    dftd3 = pytest.importorskip("dftd3.interface", reason="dftd3 is not installed")
    try:
        tables = d3_tables(tuple(sorted(elements)))
    except DataError as error:
        pytest.skip(str(error))
    full = D3(**tables, **d3_damping("b3lyp"), cutoff=30.0, count_cutoff=30.0)
    atoms = Atoms(list(elements), [[0, 0, 0], [1.9, 0.2, 0], [0.3, 2.2, 0.3]])
    other = d3_damping("b3lyp")
    damping = dftd3.RationalDampingParam(**other | {"a2": other["a2"] / units.bohr, "s9": 0.0})
    theirs = dftd3.DispersionModel(atoms.numbers, atoms.positions / units.bohr)
    theirs = theirs.get_dispersion(damping, grad=True)
    out = jax.jit(jaxmlip.predict(full.apply))({}, from_ase(atoms, full.cutoff))
    assert_allclose(out["energy"][0], theirs["energy"] * units.hartree, atol=1e-8)
    forces = -theirs["gradient"] * units.hartree / units.bohr
    assert_allclose(out["forces"], forces, atol=1e-8)
