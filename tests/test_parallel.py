"""Domains and their halos (host), and a process with four devices for what needs them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from structures import RNG, ethanol, rattled, slab, small_cell, triclinic

import jaxmlip
from jaxmlip.errors import UsageError
from jaxmlip.models.pair import LennardJones
from jaxmlip.parallel import (
    balance,
    decompose,
    device_mesh,
    distributed,
    from_domains,
    restore,
    to_domains,
)
from jaxmlip.parallel.domains import choose_grid, domains_of
from jaxmlip.parallel.halo import shifted
from jaxmlip.system import concatenate, edge_vectors, pad

STRUCTURES = {
    "crystal": lambda: rattled(triclinic().repeat(2)),
    "slab": lambda: rattled(slab().repeat((2, 2, 1))),
    "molecule": ethanol,
    "cell_below_cutoff": lambda: rattled(small_cell().repeat((2, 2, 1))),
}
CUTOFF = 3.2


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_four_devices(which):
    """parallel_devices.py in a process of its own: the number of devices is fixed at start."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    there = Path(__file__).with_name("parallel_devices.py")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", which]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(there)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ghosts_by_brute_force(system, owner, domain, cutoff):
    """Atoms of other domains with an image within the cutoff of an atom of this one."""
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shifts = shifts * system.pbc[0]
    images = system.positions[None] + (shifts @ system.cell[0])[:, None]
    mine = system.positions[owner == domain]
    distances = np.linalg.norm(images[:, :, None] - mine, axis=-1)
    near = (distances < cutoff).any((0, 2))
    return int((near & (owner != domain)).sum())


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_halo_holds_the_atoms_that_brute_force_finds(name, n):
    system = jaxmlip.from_ase(STRUCTURES[name](), CUTOFF)
    n = min(n, system.n_atoms)
    parts = decompose(system, n)
    owner = domains_of(system, parts.system.edges.halo.grid)
    expected = [ghosts_by_brute_force(system, owner, d, CUTOFF) for d in range(n)]
    assert_array_equal(parts.ghosts.sum(0), expected)
    assert balance(parts)["ghosts_max"] == max(expected)
    assert_array_equal(parts.atoms, np.bincount(owner))
    assert parts.edges.sum() == system.edges.mask.sum()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", STRUCTURES)
def test_senders_reach_the_atoms_that_they_name(name, flat):
    """Exchange by hand: own atoms, then what each round brings; the edges of the whole return."""
    system = jaxmlip.from_ase(STRUCTURES[name](), CUTOFF, flat=flat)
    parts = decompose(system, 4)
    halo, edges = parts.system.edges.halo, parts.system.edges
    original = np.full(parts.system.n_atoms, -1)
    original[parts.rows] = np.arange(system.n_atoms)
    by_domain = original.reshape(4, -1)
    found = []
    for d in range(4):
        rows = list(by_domain[d])
        for table, offset in zip(halo.send, halo.offsets, strict=True):
            source = {t: s for s, t in shifted(halo.grid, offset)}[d]
            rows += list(by_domain[source][table.reshape(4, -1)[source]])
        mine = lambda x, d=d: x.reshape(4, -1, *x.shape[1:])[d]
        mask = mine(edges.mask)
        receivers = mine(edges.receivers) if flat else np.arange(len(mask))[:, None] + 0 * mask
        senders = np.array(rows)[mine(edges.senders)[mask]]
        found.append(np.c_[by_domain[d][receivers[mask]], senders, mine(edges.shifts)[mask]])
    mask = system.edges.mask
    receivers = system.edges.receivers if flat else np.arange(len(mask))[:, None] + 0 * mask
    expected = np.c_[receivers[mask], system.edges.senders[mask], system.edges.shifts[mask]]
    found = np.concatenate(found)
    assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


@pytest.mark.parametrize("name", STRUCTURES)
def test_domains_are_equal_within_one_atom(name):
    system = jaxmlip.from_ase(STRUCTURES[name](), None)
    for n in (1, 2, 3, 4, 6):
        counts = np.bincount(domains_of(system, choose_grid(system, n)), minlength=n)
        assert counts.sum() == system.n_atoms
        assert np.ptp(counts) <= 2  # one for each level of cuts that does not divide evenly


def test_long_cells_are_cut_across_and_cubes_into_cubes():
    long = jaxmlip.from_ase(triclinic().repeat((8, 1, 1)), None)
    cube = jaxmlip.from_ase(triclinic().repeat(4), None)
    assert choose_grid(long, 4) == (4, 1, 1)
    assert choose_grid(cube, 27) == (3, 3, 3)
    assert choose_grid(cube, 64) == (4, 4, 4)


def test_sizes_of_an_earlier_decomposition_are_kept():
    moved = STRUCTURES["crystal"]()
    system = jaxmlip.from_ase(moved, CUTOFF, capacity=16)
    moved.rattle(0.05, seed=RNG + 1)
    first = decompose(system, 4)
    again = decompose(jaxmlip.from_ase(moved, CUTOFF, capacity=16), 4, like=first)
    third = decompose(system, 4, like=again)
    shape = lambda parts: jax.tree.map(np.shape, parts.system)
    assert jax.tree.structure(again.system) == jax.tree.structure(third.system)
    assert shape(again) == shape(third)


def test_one_domain_and_values_there_and_back():
    system = pad(jaxmlip.from_ase(ethanol(), CUTOFF), n_atoms=12)
    parts = decompose(system, 1)
    model = LennardJones(elements=(1, 6, 8), sigma=1.2, cutoff=CUTOFF)
    apply = jax.jit(distributed(model.apply, device_mesh(1)))
    out, expected = restore(parts, apply({}, parts.system)), jax.jit(model.apply)({}, system)
    assert_allclose(out["energies"], expected["energies"], rtol=1e-13)
    values = np.where(system.atom_mask[:, None], system.positions, 0)
    assert_array_equal(from_domains(parts, to_domains(parts, values)), values)


def test_what_cannot_be_decomposed_is_refused():
    system = jaxmlip.from_ase(ethanol(), CUTOFF)
    parts = decompose(system, 2)
    apply = LennardJones(elements=(1, 6, 8), cutoff=CUTOFF).apply
    refused = {
        "10 devices": lambda: decompose(system, 10),
        "0 devices": lambda: decompose(system, 0),
        "no edges": lambda: decompose(jaxmlip.from_ase(ethanol(), None), 2),
        "already decomposed": lambda: decompose(parts.system, 2),
        "has not 2 domains": lambda: decompose(system, 2, grid=(2, 2, 1)),
        "from 0 to 1": lambda: decompose(system, 2, owner=np.full(9, 2)),
        "other layout": lambda: decompose(
            jaxmlip.from_ase(ethanol(), CUTOFF, flat=True), 2, like=parts
        ),
        "need as many devices": lambda: device_mesh(10**6),
        "not decomposed": lambda: distributed(apply, device_mesh(1))({}, system),
        "the mesh 1 devices": lambda: distributed(apply, device_mesh(1))({}, parts.system),
    }
    for message, call in refused.items():
        with pytest.raises(UsageError, match=message):
            call()
    for call in (lambda: pad(parts.system, n_atoms=40), lambda: concatenate([parts.system] * 2)):
        with pytest.raises(ValueError, match="before decompose"):
            call()


def test_edges_without_a_halo_are_what_they_were():
    system = jaxmlip.from_ase(ethanol(), CUTOFF)
    assert system.edges.halo is None
    assert len(jax.tree.leaves(system.edges)) == 3  # per receiver: senders, shifts, mask
    assert edge_vectors(system).shape == (*system.edges.senders.shape, 3)
