"""Many structures relaxed at once: each ends as it would alone, in one program."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose, assert_array_equal

from jaxmlip import units
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md import fire, hydrostatic, relax, relax_batch, relax_cell
from jaxmlip.models import LennardJones
from jaxmlip.potential import Potential
from jaxmlip.system import cast, concatenate, pad

ARGON = LennardJones(elements=(18,), cutoff=6.0, smoothness=3)


def cluster(n, seed=0):
    """Argon in a ball, no two atoms on top of each other."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n ** (1 / 3)))
    places = 3.9 * np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:n]
    return Atoms(f"Ar{n}", positions=places + rng.normal(0, 0.1, (n, 3)))


def crystal(a, repeats, seed=0):
    atoms = bulk("Ar", "fcc", a, cubic=True).repeat(repeats)
    atoms.rattle(0.1, seed=seed)
    return atoms


def batch_of(frames, extra=0):
    systems = [from_ase(atoms, 0.1, dtype="float64") for atoms in frames]
    batch = replace(concatenate([replace(s, edges=None) for s in systems]), edges=None)
    if not extra:
        return batch
    return pad(batch, n_atoms=batch.n_atoms + extra, n_graphs=batch.n_graphs + 1)


def counted():
    traces = []

    def apply(params, system):
        traces.append(1)
        return ARGON.apply(params, system)

    return Potential(ARGON.init, apply, ARGON.cutoff), traces


def test_two_three_and_four_atoms_are_all_at_the_minimum_of_their_pairs():
    # one, three and six pairs of depth epsilon, 2^(1/6) sigma apart: one program
    frames = [cluster(n, seed=1) for n in (2, 3, 4)]
    frames[2].positions[3] = [1.9, 1.9, 3.0]  # not the square, which is no minimum
    potential, traces = counted()
    end, infos = relax_batch(potential, {}, batch_of(frames), fmax=1e-6, method=fire())
    assert len(traces) == 1 and all(info.converged for info in infos)
    energies = [info.energy for info in infos]
    assert_allclose(energies, -ARGON.epsilon * np.array([1, 3, 6]), rtol=1e-9)
    apart = np.linalg.norm(end.positions[1] - end.positions[0])
    assert_allclose(apart, 2 ** (1 / 6) * ARGON.sigma, rtol=1e-6)


@pytest.mark.slow
def test_each_structure_ends_as_it_would_alone():
    # molecules and a crystal, held atoms, padding; minima of an energy are its property
    frames = [cluster(2), crystal(5.4, (2, 1, 1)), cluster(7)]
    batch, (potential, traces) = batch_of(frames, extra=3), counted()
    fixed = np.zeros(batch.n_atoms, bool)
    fixed[[0, 12]] = True
    end, infos = relax_batch(potential, {}, batch, fmax=1e-6, fixed=fixed)
    assert len(traces) <= 3 and len(infos) == 4  # a list that overflows is compiled again
    assert_array_equal(end.positions[fixed], batch.positions[fixed])
    energies = ARGON.apply({}, end)["energy"]
    first = 0
    for i, atoms in enumerate(frames):
        own = slice(first, first + len(atoms))
        alone = from_ase(atoms, ARGON.cutoff, dtype="float64")
        alone, info = relax(ARGON, {}, alone, fmax=1e-6, fixed=fixed[own])
        assert infos[i].converged and infos[i].fmax <= 1e-6
        assert_allclose([infos[i].energy, energies[i]], info.energy, atol=1e-9)
        assert abs(infos[i].n_steps - info.n_steps) <= 2  # sums run in another order
        first += len(atoms)


@pytest.mark.slow
@pytest.mark.parametrize("free", [None, hydrostatic])
def test_cells_end_at_the_pressure_each_by_itself(free):
    frames = [crystal(5.1, 1), crystal(5.5, (2, 1, 1), seed=1), crystal(5.3, (1, 1, 2), seed=2)]
    options = {"pressure": 0.05 * units.GPa, "fmax": 1e-7, "stress": 1e-9, "free": free}
    end, infos = relax_batch(ARGON, {}, batch_of(frames), **options)
    for i, atoms in enumerate(frames):
        alone = from_ase(atoms, ARGON.cutoff, dtype="float64")
        alone, info = relax_cell(ARGON, {}, alone, **options)
        assert infos[i].converged and infos[i].stress <= 1e-9
        assert_allclose(infos[i].energy, info.energy, atol=1e-9)
        assert_allclose(np.linalg.det(end.cell[i]), np.linalg.det(alone.cell[0]), rtol=1e-6)
        if free is None:
            # equal crystals whatever the start: a third of the volume an atom
            assert_allclose(
                np.linalg.det(end.cell[i]) / len(atoms), np.linalg.det(end.cell[0]) / 4, rtol=1e-6
            )


@pytest.mark.slow
def test_a_structure_that_breaks_does_not_break_the_others():
    batch = batch_of([cluster(3), cluster(5)])
    positions = jnp.asarray(batch.positions)
    broken = replace(batch, positions=positions.at[1].set(positions[0]))  # no finite energy
    alone, _ = relax_batch(ARGON, {}, batch_of([cluster(5)]), method=fire(), fmax=1e-5)
    end, infos = relax_batch(ARGON, {}, broken, method=fire(), fmax=1e-5)
    assert not infos[0].converged and "not finite" in infos[0].reason
    assert infos[1].converged
    assert_allclose(end.positions[3:], alone.positions, atol=1e-4)


@pytest.mark.slow
def test_a_force_whose_square_is_too_large_does_not_break_the_others():
    # in float32; FIRE would go where no number is
    batch = cast(batch_of([cluster(3), cluster(2)]), "float32")
    positions = np.array(batch.positions)
    positions[4] = positions[3] + [0.02, 0, 0]
    close = replace(batch, positions=positions)
    end, infos = relax_batch(ARGON, {}, close, method=fire(), fmax=1e-3)
    assert infos[0].converged
    assert infos[1].converged or "not finite" in infos[1].reason
    assert np.isfinite(end.positions).all()


@pytest.mark.slow
def test_a_hundred_structures_of_different_sizes_are_compiled_six_times_at_most():
    frames = [cluster(n, seed=n) for n in range(2, 102)]
    batch, (potential, traces) = batch_of(frames), counted()
    end, infos = relax_batch(potential, {}, batch, fmax=1e-3)
    assert len(traces) <= 6
    assert sum(info.converged for info in infos) == 100
    assert_allclose(
        jax.jit(ARGON.apply)({}, end)["energy"], [info.energy for info in infos], atol=1e-9
    )
    assert jnp.isfinite(end.positions).all()
