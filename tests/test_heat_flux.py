"""Heat flux: the rate of the energy's centre of gravity, in the open and in crystals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import make_supercell
from numpy.testing import assert_allclose
from structures import ethanol, toy, triclinic

import jaxmlip
from jaxmlip import forces
from jaxmlip.derivatives.heat_flux import heat_flux
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.potential import Potential
from jaxmlip.system import concatenate, edge_vectors, pad, sum_edges, sum_energies, to_edges

CUTOFF = 2.6


def messages():
    """Two rounds of messages: an energy of an atom reaches twice the cutoff."""

    def apply(params, system):
        square = (edge_vectors(system) ** 2).sum(-1)
        near = jnp.where(square < CUTOFF**2, (1 - jnp.minimum(square / CUTOFF**2, 1)) ** 4, 0)
        first = sum_edges(system, near * to_edges(system, system.numbers / 8.0))
        second = sum_edges(system, near * to_edges(system, jnp.tanh(first)))
        energies = jnp.where(system.atom_mask, -jnp.sqrt(1 + second + first**2), 0)
        return {"energies": energies, "energy": sum_energies(system, energies)}

    return Potential(lambda key, system: {}, apply, CUTOFF)


MODELS = [
    pytest.param(messages(), id="messages"),
    pytest.param(toy(3.0), id="toy", marks=pytest.mark.slow),
]


def state(atoms, cutoff, seed=0):
    system = from_ase(atoms, cutoff)
    v = 0.05 * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return system, v, atoms.get_masses()


@pytest.mark.parametrize("model", MODELS)
def test_the_flux_is_the_rate_of_the_centre_of_energy(model):
    # an open structure, by central differences along its motion: error h²
    system, v, masses = state(ethanol(), model.cutoff)
    a = np.asarray(forces(model.apply)({}, system)) / masses[:, None]

    @jax.jit
    def centre(h):
        r = system.positions + h * v + h**2 / 2 * a
        speed = v + h * a
        u = model.apply({}, replace(system, positions=r))["energies"]
        return (r * (u + 0.5 * masses * (speed**2).sum(-1))[:, None]).sum(0)

    h = 1e-4
    rate = (centre(h) - centre(-h)) / (2 * h)
    flux = jax.jit(heat_flux(model.apply))({}, system, v, masses)[0]
    assert_allclose(flux, rate, atol=1e-7 * np.abs(rate).max())


@pytest.mark.parametrize("model", MODELS)
def test_a_molecule_cut_by_the_walls_of_its_box_has_the_flux_of_the_open_one(model):
    atoms = ethanol()
    system, v, masses = state(atoms, model.cutoff)
    flux = jax.jit(heat_flux(model.apply))
    expected = flux({}, system, v, masses)
    atoms.set_cell([[15.0, 0, 0], [3.0, 16.0, 0], [-2.0, 1.0, 17.0]])
    atoms.pbc = True
    atoms.wrap()
    boxed = from_ase(atoms, model.cutoff)
    assert np.asarray(boxed.edges.shifts).any()
    # the same structure, listed at other images: the centre of energy moves, its rate does not
    assert_allclose(flux({}, boxed, v, masses), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("convective", [True, False])
def test_the_flux_of_a_crystal_grows_with_its_cell(convective):
    # a cell smaller than the reach of the messages against eight of it
    model, atoms = messages(), triclinic()
    atoms.rattle(0.1, seed=3)
    flux = jax.jit(heat_flux(model.apply, convective=convective))
    system, v, masses = state(atoms, CUTOFF)
    one = flux({}, system, v, masses)
    many = make_supercell(atoms, [[2, 0, 0], [0, 2, 0], [0, 1, 2]])
    places = np.asarray(atoms.get_scaled_positions(wrap=False))
    there = np.linalg.solve(np.asarray(atoms.cell).T, many.positions.T).T
    apart = there[:, None] - places[None]
    which = np.abs(apart - np.round(apart)).max(-1).argmin(1)
    eight = flux({}, from_ase(many, CUTOFF), v[which], masses[which])
    assert np.abs(one).max() > 1e-6
    assert_allclose(eight, 8 * one, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_flux_does_not_see_the_rest_of_the_batch_nor_padding():
    model = messages()
    parts = [state(a, CUTOFF, seed=i) for i, a in enumerate((triclinic(), ethanol()))]
    flux = jax.jit(heat_flux(model.apply))
    alone = np.concatenate([flux({}, *p) for p in parts])
    batch = pad(concatenate([p[0] for p in parts]), n_atoms=16, n_graphs=3)
    grow = lambda k: np.concatenate([p[k] for p in parts] + [np.ones_like(parts[0][k][:3])])
    found = flux({}, batch, grow(1), grow(2))
    assert_allclose(found[:2], alone, rtol=1e-9, atol=1e-12)
    assert_allclose(found[2], 0)


@pytest.mark.slow
def test_the_flux_turns_with_the_crystal():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    system, v, masses = state(triclinic(), CUTOFF)
    flux = jax.jit(heat_flux(messages().apply))
    turned = replace(system, positions=system.positions @ turn, cell=system.cell @ turn)
    assert_allclose(
        flux({}, turned, v @ turn, masses), flux({}, system, v, masses) @ turn, atol=1e-12
    )


def test_an_energy_without_atoms_is_refused():
    whole = Potential(None, lambda params, system: {"energy": jnp.zeros(1)}, 1.0)
    with pytest.raises(UsageError, match="no energies of atoms"):
        heat_flux(whole.apply)({}, *state(ethanol(), 1.0))


@pytest.mark.slow
def test_a_message_passing_model_has_the_flux_of_its_definition():
    # MACE in a box that its messages cross, against pair by pair: (r_i - r_j) (dU_i/dr_j . v_j)
    from jaxmlip.models import MACE

    model = MACE(elements=(1, 6, 8), channels=4, l_max=1, radial_widths=(4,), cutoff=3.0)
    atoms = triclinic()
    system, v, masses = state(atoms, 3.0)
    params = jaxmlip.cast(model.init(jax.random.key(0), system), np.float64)
    found = jax.jit(heat_flux(model.apply, convective=False))(params, system, v, masses)
    many = atoms.repeat(5)  # open: the cell in the middle knows all that it would know
    cell = from_ase(many, 3.0)
    wide = replace(cell, pbc=np.zeros((1, 3), bool))
    inside = np.abs(np.asarray(cell.edges.shifts)).sum(-1) == 0
    wide = replace(wide, edges=replace(cell.edges, mask=cell.edges.mask & inside))
    energies = lambda r: model.apply(params, replace(wide, positions=r))["energies"]
    middle = np.arange(4) + 4 * 62
    rows = jax.jit(jax.vmap(lambda w: jax.vjp(energies, wide.positions)[1](w)[0]))(
        np.eye(len(many))[middle]
    )
    powers = (np.asarray(rows) * np.tile(v, (125, 1))).sum(-1)  # [4, n]
    apart = many.positions[middle][:, None] - many.positions[None]
    assert_allclose(found[0], (apart * powers[..., None]).sum((0, 1)), rtol=1e-8, atol=1e-10)
