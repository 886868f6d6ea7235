"""A sound potential passes the audit, and each law that one breaks is found and named."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from numpy.testing import assert_allclose
from structures import toy, triclinic

import jaxmlip
from jaxmlip.errors import DataError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.evaluate import of_calculator, of_potential
from jaxmlip.models.pair import LennardJones
from jaxmlip.potential import Potential
from jaxmlip.system import edge_vectors, mask_edges, sum_edges, sum_energies
from jaxmlip.workflows.audit import audit, passed
from jaxmlip.workflows.audit_checks import hole
from jaxmlip.workflows.audit_structures import random_rotation, rotated

CUTOFF = 4.0


def systems():
    return {"crystal": from_ase(triclinic(), None), "molecule": from_ase(molecule("CH3OH"), None)}


def failed(findings):
    return {f.check for f in findings if f.passed is False}


def values(findings):
    return {f.quantity: f.value for f in findings}


@pytest.fixture(scope="module")
def sound():
    return of_potential(toy(CUTOFF), {})


@pytest.mark.parametrize("name", [pytest.param("crystal", marks=pytest.mark.slow), "molecule"])
def test_a_sound_potential_passes(sound, name):
    system = systems()[name]
    masses = np.full(system.n_atoms, 12.0)
    low = of_potential(toy(CUTOFF), {}, dtype=np.float32)
    findings = audit(sound, system, cutoff=CUTOFF, masses=masses, in_float32=low)
    assert passed(findings), [f for f in findings if f.passed is False]
    seen = {f.check for f in findings}
    assert {"rotation", "derivative", "jacobian", "dynamics", "precision", "dimers"} <= seen
    assert ("stress, mirrored" in values(findings)) == (name == "crystal")
    assert ("dipole, turned" in values(findings)) == (name == "molecule")


def of_energies(energies):
    """A potential whose energies of atoms are those of a function of the system."""

    def apply(params, system):
        return {"energy": sum_energies(system, jnp.where(system.atom_mask, energies(system), 0))}

    return of_potential(Potential(lambda key, system: {}, apply, CUTOFF), {})


def smooth(system):
    square = (edge_vectors(system) ** 2).sum(-1)
    return jnp.maximum(1 - square / CUTOFF**2, 0) ** 4


def test_an_energy_with_an_axis_is_found_by_rotation_alone():
    def energies(system):
        return sum_edges(system, smooth(system) * (1 + 0.01 * edge_vectors(system)[..., 0] ** 2))

    found = audit(
        of_energies(energies),
        systems()["crystal"],
        cutoff=CUTOFF,
        only=("rotation", "translation", "permutation", "loop", "jacobian", "extensivity"),
    )
    assert failed(found) == {"rotation"}


@pytest.mark.slow
def test_a_handed_energy_is_found_by_mirrors_alone():
    def energies(system):
        one, weighted = (
            sum_edges(system, w[..., None] * edge_vectors(system))
            for w in (mask_edges(system, smooth(system)), mask_edges(system, smooth(system) ** 2))
        )
        third = sum_edges(system, smooth(system)[..., None] ** 3 * edge_vectors(system))
        return jnp.cross(one, weighted)[:, 0] * third[:, 0] + sum(
            jnp.cross(one, weighted)[:, k] * third[:, k] for k in (1, 2)
        )

    found = values(audit(of_energies(energies), systems()["crystal"], only=("rotation",)))
    assert found["energy, turned"] < 1e-9
    assert found["energy, mirrored"] > 1e-6


def test_a_step_at_the_cutoff_is_found_with_its_height():
    """Lennard-Jones, cut: the pair energy at the cutoff is lost, with and without knowing where."""
    sigma, epsilon, rc = 2.0, 0.01, 5.0

    def energies(system):
        r = jnp.linalg.norm(edge_vectors(system), axis=-1)
        x = (sigma / r) ** 6
        return sum_edges(system, jnp.where(r < rc, 2 * epsilon * (x**2 - x), 0))

    apply = lambda p, s: {"energy": sum_energies(s, jnp.where(s.atom_mask, energies(s), 0))}
    evaluate = of_potential(Potential(lambda *_: {}, apply, rc), {})
    height = 4 * epsilon * ((sigma / rc) ** 6 - (sigma / rc) ** 12)
    for known in (rc, None):
        found = audit(evaluate, systems()["molecule"], cutoff=known, only=("cutoff",))
        assert failed(found) == {"cutoff"}
        assert_allclose(values(found)["step of energy at the cutoff"], height, rtol=1e-3)


class Swirl(Calculator):
    """Forces beside a potential: springs to the centre, and a share of a vortex about z."""

    implemented_properties = ["energy", "forces"]
    share = 0.0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        r = self.atoms.positions - self.atoms.positions.mean(0)
        vortex = np.stack([-r[:, 1], r[:, 0], np.zeros(len(r))], 1)
        self.results = {"energy": 0.5 * (r**2).sum(), "forces": -r + self.share * vortex}


def test_a_calculator_whose_forces_are_no_gradient_is_found():
    """Springs of 1 eV/Å² with a vortex w: J = -1 + w R, so ||J - J^T|| / 2 ||J|| is known."""
    swirl = Swirl()
    swirl.share, system = 0.1, from_ase(molecule("H2O"), None)
    only = ("translation", "derivative", "loop", "jacobian")
    found = audit(of_calculator(swirl), system, only=only)
    assert failed(found) == {"derivative", "loop", "jacobian"}
    # all 9 directions are looked at; in each of 6 seen (all but the centre of mass) -1, and
    # antisymmetric pairs of w along x, y: 4 of 6 entries
    expected = np.sqrt(4 * 0.1**2 / (6 + 4 * 0.1**2))
    assert_allclose(values(found)["asymmetry of the force Jacobian"], expected, rtol=1e-6)
    swirl.share = 0.0
    assert passed(audit(of_calculator(swirl), system, only=only))


def test_a_vortex_heats_a_run_without_a_bath():
    swirl = Swirl()
    swirl.share, system = 0.5, from_ase(molecule("H2O"), None)
    masses = np.array([16.0, 1.0, 1.0])
    found = audit(of_calculator(swirl), system, masses=masses, only=("dynamics",))
    assert failed(found) == {"dynamics"}


def test_an_energy_per_structure_is_not_extensive(sound):
    def evaluate(system):
        out = sound(system)
        return {**out, "energy": out["energy"] ** 2}

    found = audit(evaluate, systems()["crystal"], only=("extensivity", "permutation"))
    assert failed(found) == {"extensivity"}


def test_an_atom_that_knows_its_place_in_the_list_is_found(sound):
    def evaluate(system):
        out = sound(system)
        return {**out, "forces": out["forces"] + 1e-3 * np.arange(system.n_atoms)[:, None]}

    found = audit(evaluate, systems()["crystal"], only=("permutation", "rotation"))
    assert "permutation" in failed(found)


def test_numbers_that_are_not_finite_fail_their_check():
    bad = of_energies(lambda s: jnp.where(s.numbers == 6, jnp.nan, 0.0))
    found = audit(bad, systems()["molecule"], only=("free atoms",))
    assert failed(found) == {"free atoms"} and "not finite" in found[0].note


def test_a_hole_in_the_repulsion_is_measured():
    r = np.linspace(0.5, 4, 200)
    morse = (1 - np.exp(-1.5 * (r - 1.5))) ** 2
    assert hole(r, morse)[0] == 0
    with_hole = morse - 4.0 * np.exp(-(((r - 0.7) / 0.1) ** 2))
    depth, where = hole(r, with_hole)
    top = with_hole[(r > 0.8) & (r < 1.5)].max()
    assert_allclose(depth, top - with_hole[r < 0.8].min(), rtol=1e-12)
    assert 0.8 < where < 1.0


def test_rotations_are_rotations_and_mirrors_keep_cells_right_handed():
    Q = random_rotation(np.random.default_rng(1))
    assert_allclose(Q @ Q.T, np.eye(3), atol=1e-14)
    assert_allclose(np.linalg.det(Q), 1)
    mirrored = rotated(systems()["crystal"], -Q)
    assert np.linalg.det(mirrored.cell[0]) > 0


def test_a_batch_and_a_check_that_does_not_exist_are_refused(sound):
    system = systems()["crystal"]
    with pytest.raises(DataError, match="one structure"):
        audit(sound, jaxmlip.concatenate([system, system]))
    with pytest.raises(DataError, match="unknown checks"):
        audit(sound, system, only=("rotations",))


@pytest.mark.slow
def test_ours_and_the_calculator_of_ours_are_the_same():
    """Through ASE and without: the same numbers, Voigt order and all."""
    model = LennardJones(elements=(6, 8), sigma=1.6, epsilon=0.1, cutoff=CUTOFF)
    system = systems()["crystal"]
    params = model.init(jax.random.key(0), from_ase(triclinic(), CUTOFF))
    from jaxmlip.interfaces.calculator import PotentialCalculator

    ours = of_potential(model, params)(system)
    theirs = of_calculator(PotentialCalculator(model, params))(system)
    for name in ("energy", "forces", "stress"):
        assert_allclose(theirs[name], ours[name], rtol=1e-10, atol=1e-12)
    small = replace(system, positions=system.positions[:1], numbers=system.numbers[:1])
    small = replace(small, graph=system.graph[:1])
    assert np.isfinite(of_potential(model, params)(small)["energy"])
