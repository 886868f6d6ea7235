"""Every potential obeys the same laws on the same structures, in float64.

Derivatives are compared with fourth-order central differences along random directions: truncation
is below 1e-9 at these steps and round-off about 1e-16 E / h, so 1e-6 relative is a wide limit.
Exact symmetries hold to round-off, 1e-9 relative. All structures have one padded shape, so that
each transform of each model compiles once; that it does is a test too.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose
from structures import KEY, STRUCTURES

import jaxmlip
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import MACE, ZBL, LennardJones, LongRangeMACE, Morse, NequIP
from jaxmlip.potential import add_field
from jaxmlip.system import cast, concatenate, pad, strain

CUTOFF, N_ATOMS, N_NEIGHBORS = 3.5, 9, 20
ELEMENTS = (1, 6, 8)
LEARNED = dict(
    elements=ELEMENTS,
    cutoff=CUTOFF,
    channels=4,
    l_max=2,
    n_layers=2,
    n_radial=4,
    radial_widths=(8,),
    readout_width=4,
    avg_num_neighbors=10.0,
    scale=5.0,
    shift=-1.5,
    charge_spin=True,
    dipole=True,
    polarizability=True,
)
TABLE = ((0.02, 0.03, 0.04), (0.03, 0.05, 0.06), (0.04, 0.06, 0.07))
SIZES = ((1.5, 1.7, 1.8), (1.7, 2.0, 2.1), (1.8, 2.1, 2.2))
MODELS = {
    "MACE": MACE(hidden_l=1, correlation=2, residual_first=False, **LEARNED),
    "NequIP": NequIP(**LEARNED),
    "LennardJones": LennardJones(ELEMENTS, epsilon=TABLE, sigma=SIZES, cutoff=CUTOFF, onset=0.5),
    "Morse": Morse(ELEMENTS, depth=TABLE, a=1.8, r0=SIZES, cutoff=CUTOFF, onset=0.5, smoothness=3),
    "ZBL": ZBL(ELEMENTS, cutoff=CUTOFF),
}
WITH_FIELD = ("MACE", "NequIP")
# shapes, layouts and precisions that compile anew: the doors of `System` are the same for all
MACE_AND_PAIRS = [pytest.param(n, marks=[pytest.mark.slow] * (n == "NequIP")) for n in MODELS]

all_models = pytest.mark.parametrize("name", MODELS)
mace_and_pairs = pytest.mark.parametrize("name", MACE_AND_PAIRS)
charged_models = pytest.mark.parametrize("name", WITH_FIELD)
all_structures = pytest.mark.parametrize("structure", STRUCTURES)


@cache
def potential(name):
    """(apply, params); energies depend on the field where the model has a dipole."""
    model = MODELS[name]
    apply = add_field(model).apply if name in WITH_FIELD else model.apply
    return apply, jax.jit(model.init)(KEY, system_of("ethanol"))


@cache
def compiled(name, transform):
    return jax.jit(transform(potential(name)[0]))


def evaluate(name, system, transform=jaxmlip.predict):
    """Prediction of the real atoms, as numpy."""
    out = compiled(name, transform)(potential(name)[1], system)
    return jax.tree.map(np.asarray, out)


def build(atoms, cutoff=CUTOFF):
    system = from_ase(atoms, cutoff, capacity=N_NEIGHBORS)
    return pad(system, n_atoms=N_ATOMS, n_neighbors=N_NEIGHBORS)


@cache
def system_of(structure):
    return build(STRUCTURES[structure]())


def directions(system, n=3):
    """Random displacements of the real atoms, [n, n_atoms, 3], of unit length."""
    d = np.random.default_rng(0).normal(size=(n, system.n_atoms, 3))
    d = d * system.atom_mask[:, None]
    return d / np.linalg.norm(d, axis=(1, 2), keepdims=True)


def difference(function, h=2e-3):
    """Fourth-order central difference of function(step) at 0."""
    inner, outer = function(h) - function(-h), function(2 * h) - function(-2 * h)
    return (8 * inner - outer) / (12 * h)


def assert_same(found, expected, rtol, scale=None):
    """Difference relative to the largest value: small components are not asked for more."""
    scale = max(np.abs(expected).max(initial=0), 1e-3) if scale is None else scale
    assert_allclose(found, expected, rtol=0, atol=rtol * scale)


def moved(system, displacement):
    return replace(system, positions=system.positions + displacement)


# --- derivatives are derivatives ------------------------------------------------------------------


@all_structures
@all_models
def test_forces_are_minus_the_slope_of_the_energy(name, structure):
    system = system_of(structure)
    forces = evaluate(name, system)["forces"]
    for d in directions(system):
        slope = difference(lambda h, d=d: evaluate(name, moved(system, h * d))["energy"][0])
        assert_same(-(forces * d).sum(), slope, 1e-6, scale=max(np.abs(forces).max(), 1e-3))


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s != "ethanol"])
@all_models
def test_stress_is_the_slope_of_the_energy_with_strain(name, structure):
    system = system_of(structure)
    stress = evaluate(name, system)["stress"][0]
    volume = abs(np.linalg.det(system.cell[0]))
    rng = np.random.default_rng(1)
    for epsilon in rng.normal(size=(3, 1, 3, 3)):
        epsilon = epsilon + epsilon.swapaxes(1, 2)
        energy = lambda h, e=epsilon: evaluate(name, strain(system, h * e))["energy"][0]
        slope = difference(energy, 1e-3) / volume
        assert_same((stress * epsilon[0]).sum(), slope, 1e-6, max(np.abs(stress).max(), 1e-4))


@all_structures
@all_models
def test_the_hessian_is_minus_the_slope_of_the_forces(name, structure):
    system = system_of(structure)
    hessian = evaluate(name, system, jaxmlip.hessian)
    for d in directions(system, 2):
        slope = difference(lambda h, d=d: evaluate(name, moved(system, h * d))["forces"])
        product = np.einsum("iajb,jb->ia", hessian, d)
        assert_same(product, -slope, 1e-6, max(np.abs(hessian).max(), 1e-3))


@all_structures
@all_models
def test_the_hessian_is_symmetric_and_obeys_the_acoustic_sum_rule(name, structure):
    hessian = evaluate(name, system_of(structure), jaxmlip.hessian)
    scale = max(np.abs(hessian).max(), 1e-3)
    assert_same(hessian, hessian.transpose(2, 3, 0, 1), 1e-10, scale)
    assert_same(hessian.sum(2), 0, 1e-9, scale)


@all_structures
@charged_models
def test_dipole_and_polarizability_are_derivatives_by_the_field(name, structure):
    system = system_of(structure)
    out = evaluate(name, system)
    alpha = evaluate(name, system, jaxmlip.polarizability)[0]
    for axis in np.eye(3):
        at = lambda h, a=axis: evaluate(name, replace(system, field=h * a[None]))
        assert_same(out["dipole"][0] @ axis, -difference(lambda h, at=at: at(h)["energy"][0]), 1e-6)
        slope = difference(lambda h, at=at: at(h)["dipole"][0])
        assert_same(alpha @ axis, slope, 1e-6)
    assert_same(alpha, out["polarizability"][0], 1e-9)


@all_structures
@charged_models
def test_born_charges_are_the_slope_of_the_dipole(name, structure):
    system = system_of(structure)
    born = evaluate(name, system, jaxmlip.born_charges)
    if np.any(system.pbc):  # charges brought to their sum by a shift of all atoms: no such dipole
        assert np.isnan(born).all()
        return
    for d in directions(system, 2):
        slope = difference(lambda h, d=d: evaluate(name, moved(system, h * d))["dipole"][0])
        assert_same(np.einsum("iaf,ia->f", born, d), slope, 1e-6, max(np.abs(born).max(), 1e-3))
    assert_same(born.sum(0), 0, 1e-9, max(np.abs(born).max(), 1e-3))  # neutral: no net charge moves


# --- symmetries -----------------------------------------------------------------------------------


def orthogonal(seed, improper):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q)) * (-1 if improper else 1)


def turned(atoms, q):
    return Atoms(
        atoms.symbols, atoms.positions @ q.T, cell=np.asarray(atoms.cell) @ q.T, pbc=atoms.pbc
    )


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "rotoinversion"])
@all_structures
@all_models
def test_rotation_turns_vectors_and_leaves_the_energy(name, structure, improper):
    q = orthogonal(2, improper)
    atoms = STRUCTURES[structure]()
    before, after = (evaluate(name, build(a)) for a in (atoms, turned(atoms, q)))
    scale = max(np.abs(before["forces"]).max(), 1e-2)
    assert_same(after["energy"], before["energy"], 1e-9)
    assert_same(after["forces"], before["forces"] @ q.T, 1e-9, scale)
    if atoms.pbc.any():
        assert_same(after["stress"], q @ before["stress"] @ q.T, 1e-9, scale)
    if name in WITH_FIELD:
        assert_same(after["dipole"], before["dipole"] @ q.T, 1e-9)
        assert_same(after["polarizability"], q @ before["polarizability"] @ q.T, 1e-9)


@all_structures
@all_models
def test_translation_and_wrapping_change_nothing(name, structure):
    atoms = STRUCTURES[structure]()
    shifted = atoms.copy()
    shifted.translate([0.37, -1.9, 2.6])
    shifted.wrap()
    before, after = (evaluate(name, build(a)) for a in (atoms, shifted))
    assert_same(after["energies"], before["energies"], 1e-9)
    assert_same(after["forces"], before["forces"], 1e-9, max(np.abs(before["forces"]).max(), 1e-2))


@all_structures
@all_models
def test_the_order_of_atoms_does_not_matter(name, structure):
    atoms = STRUCTURES[structure]()
    order = np.random.default_rng(3).permutation(len(atoms))
    before, after = (evaluate(name, build(a)) for a in (atoms, atoms[order]))
    n = len(atoms)
    assert_same(after["energy"], before["energy"], 1e-9)
    assert_same(
        after["forces"][:n],
        before["forces"][:n][order],
        1e-9,
        max(np.abs(before["forces"]).max(), 1e-2),
    )


@pytest.mark.parametrize(
    "structure, repeats",
    [
        ("triclinic", (2, 1, 1)),
        ("left_handed", (1, 1, 2)),
        ("slab", (1, 2, 1)),
        ("small_cell", (2, 2, 2)),
        ("single_atom", (2, 2, 2)),
    ],
)
@all_models
def test_the_energy_of_a_supercell_is_that_of_its_cells(name, structure, repeats):
    atoms = STRUCTURES[structure]()
    one, many = evaluate(name, build(atoms)), evaluate(name, build(atoms.repeat(repeats)))
    n, copies = len(atoms), int(np.prod(repeats))
    assert_same(many["energy"], copies * one["energy"], 1e-9)
    assert_same(
        many["forces"][: n * copies],
        np.tile(one["forces"][:n], (copies, 1)),
        1e-9,
        max(np.abs(one["forces"]).max(), 1e-2),
    )
    assert_same(many["stress"], one["stress"], 1e-9, max(np.abs(one["stress"]).max(), 1e-2))


@all_structures
@all_models
def test_forces_add_up_to_zero(name, structure):
    forces = evaluate(name, system_of(structure))["forces"]
    assert_same(forces.sum(0), 0, 1e-11, max(np.abs(forces).max(), 1e-2))


@all_models
def test_a_free_molecule_feels_no_torque(name):
    system = system_of("ethanol")
    forces = evaluate(name, system)["forces"]
    torque = np.cross(system.positions, forces).sum(0)
    assert_same(torque, 0, 1e-10, max(np.abs(forces).max(), 1e-2))


# --- padding, batches, layouts, precision, compilation --------------------------------------------


def relative(found, expected):
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-2)


@mace_and_pairs
def test_padding_and_the_layout_of_edges_change_nothing(name):
    """Flat edges without a padded atom against padded edges per receiver."""
    system = from_ase(STRUCTURES["triclinic"](), CUTOFF, flat=True)
    found, expected = evaluate(name, system), evaluate(name, system_of("triclinic"))
    assert relative(found["energy"], expected["energy"]) < 1e-9
    assert relative(found["forces"], expected["forces"][:4]) < 1e-9
    assert relative(found["stress"], expected["stress"]) < 1e-9
    assert (expected["forces"][4:] == 0).all() and (expected["energies"][4:] == 0).all()


@mace_and_pairs
def test_a_batch_gives_what_its_structures_give_alone(name):
    names = ["ethanol", "triclinic", "slab"]
    batch = pad(concatenate([system_of(s) for s in names]), n_graphs=4)
    found = evaluate(name, batch)
    alone = [evaluate(name, system_of(s)) for s in names]
    assert found["energy"][3] == 0
    assert relative(found["energy"][:3], np.concatenate([a["energy"] for a in alone])) < 1e-9
    assert relative(found["forces"], np.concatenate([a["forces"] for a in alone])) < 1e-9
    assert relative(found["stress"][1:3], np.concatenate([a["stress"] for a in alone[1:]])) < 1e-9
    if name in WITH_FIELD:
        assert relative(found["dipole"][:3], np.concatenate([a["dipole"] for a in alone])) < 1e-9


@mace_and_pairs
def test_float32_forces_are_those_of_float64_to_single_precision(name):
    """1e-5 relative: a hundred roundings of 6e-8 that add up in the worst way."""
    system = system_of("triclinic")
    apply, params = potential(name)
    single = jax.jit(jaxmlip.forces(apply))(cast(params, jnp.float32), cast(system, jnp.float32))
    assert single.dtype == jnp.float32
    assert relative(np.asarray(single), evaluate(name, system)["forces"]) < 1e-5


@all_models
def test_one_padded_shape_is_traced_once(name):
    """And so compiled once."""
    traces = []

    def counted(params, system):
        traces.append(system.positions.shape)
        return MODELS[name].apply(params, system)["energy"]

    function = jax.jit(counted)
    for structure in STRUCTURES:
        function.trace(potential(name)[1], system_of(structure))
    assert len(traces) == 1


# --- limits ---------------------------------------------------------------------------------------


def pair(r, numbers=(6, 8)):
    """Two atoms whose list reaches 0.5 Å beyond the cutoff, as a list with a skin does."""
    direction = np.array([2.0, 1.0, -2.0]) / 3
    return build(Atoms(numbers, [np.zeros(3), r * direction]), CUTOFF + 0.5)


@all_models
def test_energy_forces_and_hessian_are_continuous_at_the_cutoff(name):
    """The envelope leaves as (rc - r)^3 or faster, so the Hessian falls at least linearly."""
    far = evaluate(name, pair(CUTOFF + 1e-9))
    curvature = lambda r: np.abs(evaluate(name, pair(r), jaxmlip.hessian)).max()
    typical = curvature(0.85 * CUTOFF)
    assert (far["forces"] == 0).all() and curvature(CUTOFF + 1e-9) == 0
    near = evaluate(name, pair(CUTOFF - 1e-5))
    assert_same(near["energy"], far["energy"], 1e-12, max(abs(far["energy"][0]), 1.0))
    assert np.abs(near["forces"]).max() < 1e-7 * max(typical, 1e-3)
    assert curvature(CUTOFF - 1e-4) < 0.15 * curvature(CUTOFF - 1e-3) < 0.1 * typical


@all_models
def test_an_isolated_atom_has_its_shift_and_no_force(name):
    out = evaluate(name, build(Atoms("C")))
    assert np.isfinite(out["energy"]).all() and (out["forces"] == 0).all()
    if name != "NequIP":  # whose self-connection gives an atom an energy of its own
        assert_allclose(out["energy"], LEARNED["shift"] if name == "MACE" else 0, atol=1e-12)
    hessian = evaluate(name, build(Atoms("C")), jaxmlip.hessian)
    assert (hessian == 0).all()


@all_models
def test_a_pair_at_three_tenths_of_an_angstrom_is_finite(name):
    out = evaluate(name, pair(0.301))
    assert np.isfinite(out["energy"]).all() and np.isfinite(out["forces"]).all()
    assert np.isfinite(evaluate(name, pair(0.301), jaxmlip.hessian)).all()


@all_models
def test_an_unknown_element_gives_not_a_number(name):
    """In everything, also in derivatives: forces that lack an atom are finite and wrong."""
    out = evaluate(name, build(Atoms("CN", [[0, 0, 0], [0, 0, 1.2]])))
    assert not np.isnan(out["energies"][0])  # which atom it is can be told
    for key in set(out) - {"stress", "energies"}:  # a molecule has no stress
        assert np.isnan(out[key][:2]).all(), key  # the rest is padding


@charged_models
def test_charges_add_up_to_the_charge_and_charge_matters(name):
    neutral = system_of("ethanol")
    cation = replace(neutral, charge=np.array([1.0]), spin=np.array([2.0]))
    before, after = evaluate(name, neutral), evaluate(name, cation)
    assert_allclose(before["charges"].sum(), 0, atol=1e-12)
    assert_allclose(after["charges"].sum(), 1, atol=1e-12)
    assert abs(after["energy"] - before["energy"])[0] > 1e-6
    born = evaluate(name, cation, jaxmlip.born_charges)
    assert_allclose(born.sum(0), np.eye(3), atol=1e-9)  # moving all atoms moves the charge


def test_pseudovectors_of_nequip_keep_the_energy_under_inversion():
    """Three layers: features of unnatural parity (1e, 2o, then 0o) take part."""
    model = NequIP(
        ELEMENTS,
        CUTOFF,
        channels=(3, 2),
        l_max=1,
        n_layers=4,
        n_radial=4,
        radial_widths=(8,),
        avg_num_neighbors=10.0,
    )
    system = system_of("ethanol")
    shapes, rng = jax.eval_shape(model.init, KEY, system), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    assert "0o" in params["params"]["up_3"] and "1e" in params["params"]["up_2"]
    energy = jax.jit(lambda s: model.apply(params, s)["energy"])
    for improper in (False, True):
        q = orthogonal(4, improper)
        other = replace(system, positions=system.positions @ q.T)
        assert_allclose(energy(other), energy(system), rtol=1e-9)


def test_far_sources_need_a_layer_that_feels_them():
    model = LongRangeMACE(**{**LEARNED, "n_layers": 1})
    with pytest.raises(ModelError, match="between layers"):
        jax.eval_shape(model.init, KEY, from_ase(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), CUTOFF))
