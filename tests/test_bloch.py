"""D(q) of the primitive cell: against supercells, analytic chains, and finite differences."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose
from structures import rattled, triclinic
from test_dual_cutoff import MODEL as DUAL
from test_so3krates import RANDOM, atoms_of, write_weights

from jaxmlip import units
from jaxmlip.derivatives.bloch.matrix import (
    Wave,
    dynamical_matrix,
    dynamical_matrix_slopes,
    dynamical_matrix_strains,
)
from jaxmlip.derivatives.bloch.modes import (
    THZ,
    group_velocities,
    mode_gruneisen,
    phonon_frequencies,
)
from jaxmlip.derivatives.bloch.supercell import (
    door_error,
    dynamical_matrix_supercell,
    dynamical_matrix_unrolled,
)
from jaxmlip.derivatives.second.hessian import hessian, hessian_vector_product
from jaxmlip.derivatives.third import third_derivative_product
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.weights import so3lr
from jaxmlip.models import checkpoint
from jaxmlip.models.mace import MACE
from jaxmlip.models.nequip import NequIP
from jaxmlip.models.pair import LennardJones, Morse
from jaxmlip.neighbors import find_edges
from jaxmlip.nn import blocks
from jaxmlip.nn.blocks import in_blocks
from jaxmlip.potential import Potential, add, scale
from jaxmlip.system import (
    at_receivers,
    cast,
    edge_vectors,
    pad,
    strain,
    sum_atoms,
    sum_edges,
    sum_energies,
    supercell,
    to_edges,
)

KEY = jax.random.key(0)
REPEATS = (3, 2, 1)
WAVES = np.array([[0, 0, 0], [1 / 3, 0, 0], [0, 1 / 2, 0], [2 / 3, 1 / 2, 0]])  # commensurate
MASSES = [12.011, 15.999]


def skewed():
    """Two species in a triclinic cell that is shorter than the cutoffs: images i -> i."""
    cell = [[2.3, 0.1, 0.0], [0.2, 2.5, 0.3], [0.1, 0.3, 2.6]]
    return Atoms("CO", scaled_positions=[[0, 0, 0], [0.47, 0.53, 0.55]], cell=cell, pbc=True)


def network(cutoff=3.0):
    """Two layers of messages and, from conserved charges, a Coulomb energy; params {name: array}.

    The second layer runs in blocks of one atom.
    """

    def init(key, system):
        make = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape)
        return {"embedding": make(0, 9, 4), "radial": make(1, 2, 4, 4), "out": make(2, 4, 2)}

    def apply(params, system):
        vectors = edge_vectors(system)
        r = jnp.linalg.norm(vectors, axis=-1)
        smooth = jnp.where(r < cutoff, (1 - jnp.minimum(r / cutoff, 1)) ** 4, 0)
        basis = jnp.cos(r[..., None] * jnp.arange(1.0, 5)) * smooth[..., None]
        h = params["embedding"][system.numbers].astype(r.dtype)
        for i in range(2):

            def layer(rows, h=h, i=i):
                edges, basis, vectors = rows
                part = replace(system, edges=edges)
                m = to_edges(part, h) * (basis @ params["radial"][i])
                vector = sum_edges(part, m[..., None, :] * vectors[..., :, None])
                return sum_edges(part, m) + (vector**2).sum(1)

            rows = (system.edges, basis, vectors)
            h = jnp.tanh(h + (in_blocks(layer, rows, rows=1) if i else layer(rows)))
        energies, charges = (h @ params["out"]).T
        real = system.atom_mask
        mean = sum_atoms(system, charges) / sum_atoms(system, jnp.ones_like(charges))
        charges = jnp.where(real, charges - mean[system.graph], 0)
        pairs = at_receivers(system, charges) * to_edges(system, charges) / r * smooth
        energies = jnp.where(real, energies + sum_edges(system, pairs), 0)
        return {"energy": sum_energies(system, energies), "energies": energies}

    return Potential(init, apply, cutoff)


def ensemble(potential):
    """The mean energy of two members, which a `vmap` inside the potential evaluates."""

    def init(key, system):
        return jax.vmap(lambda key: potential.init(key, system))(jax.random.split(key))

    def apply(params, system):
        energy = jax.vmap(lambda w: potential.apply(w, system)["energy"])(params)
        return {"energy": energy.mean(0)}

    return Potential(init, apply, potential.cutoff)


LJ = LennardJones(elements=(6, 8), epsilon=0.3, sigma=1.9, cutoff=3.5)
LJ_MATRIX = dynamical_matrix(LJ.apply)  # one for several tests: it compiles once for each shape
TINY = {"elements": (6, 8), "cutoff": 2.7, "n_radial": 3, "radial_widths": (4,), "l_max": 1}
TINY |= {"avg_num_neighbors": 8.0, "channels": 4}
POTENTIALS = {
    "pairs": LJ,
    "sum": add(scale(LJ, 1e-3), ensemble(network())),
    "mace": MACE(**TINY, hidden_l=1, correlation=2),
    "nequip": NequIP(**TINY, n_layers=3),
}


def fourier_sum(potential, params, system, flat=False):
    """D(q) at `WAVES` from the Hessian of a supercell with a neighbour list of its own."""
    large = supercell(system, REPEATS)
    edges = find_edges(large.positions, large.cell[0], True, potential.cutoff, flat=flat)
    rows = jax.jit(hessian(potential.apply, atoms=[0, 1]))(params, replace(large, edges=edges))
    copies = np.stack(np.meshgrid(*map(np.arange, REPEATS), indexing="ij"), -1).reshape(-1, 3)
    rows = np.asarray(rows).reshape(6, len(copies), 6)
    return np.einsum("acb,qc->qab", rows, np.exp(2j * np.pi * WAVES @ copies.T))


slow = partial(pytest.param, marks=pytest.mark.slow)
CASES = [("pairs", True), ("mace", False), slow("sum", False), slow("nequip", False)]


@pytest.mark.parametrize("name, flat", CASES)
def test_dynamical_matrix_is_the_fourier_sum_of_the_hessian_of_a_supercell(name, flat, monkeypatch):
    potential = POTENTIALS[name]
    system = from_ase(skewed(), potential.cutoff, flat=flat)
    params = jax.jit(potential.init)(KEY, system)
    expected = fourier_sum(potential, params, system, flat)
    if name == "nequip":  # one atom a block: phases must follow the edges through the loops
        monkeypatch.setattr(blocks, "CACHE", {"cpu": (0, 1)})
    if name == "pairs":
        system = pad(system, n_atoms=3)
    found = np.asarray(dynamical_matrix(potential.apply)(params, system, WAVES))
    size = np.abs(expected).max()
    assert not found[:, 6:].any() and not found[:, :, 6:].any()  # padding
    found = found[:, :6, :6]
    assert np.abs(found - expected).max() < 1e-10 * size
    assert np.abs(found - found.conj().swapaxes(1, 2)).max() < 1e-12 * size
    assert np.abs(found[0].reshape(6, 2, 3).sum(1)).max() < 1e-11 * size  # translations, at q = 0


def test_doors_under_a_vmap_over_structures():
    """Members with edges of their own are one longer list."""
    rng = np.random.default_rng(0)
    system = from_ase(skewed(), LJ.cutoff)
    wave = Wave(q=jnp.array([0.1, 0.2, 0.3]), marker=jnp.zeros(()))
    x = jnp.asarray(rng.normal(size=(3, 2, 5)))
    shuffled = [rng.integers(0, 2, system.edges.senders.shape) for _ in x]
    edges = [replace(system.edges, senders=jnp.asarray(s)) for s in shuffled]
    both = jax.tree.map(lambda *x: jnp.stack(x), *edges)
    sums = lambda x, e: (wave.sent(x, e) ** 2 * jnp.cos(e.senders)[..., None]).sum()
    expected = [jax.grad(sums)(*pair) for pair in zip(x, edges, strict=True)]
    assert_allclose(jax.vmap(jax.grad(sums))(x, both), jnp.stack(expected), rtol=1e-12)


def test_time_reversal_periods_batches_and_one_program():
    traces = []

    def apply(params, system):
        traces.append(1)
        return LJ.apply(params, system)

    system = from_ase(skewed(), LJ.cutoff)
    matrix = partial(dynamical_matrix(apply), {}, system)
    q = np.array([[0.13, -0.2, 0.31], [0.5, 0.1, 0.0], [0.0, 0.02, -0.4]])
    found = matrix(q)
    first = len(traces)
    limit = 1e-13 * np.abs(found).max()
    assert_allclose(matrix(-q), found.conj(), atol=limit)
    assert_allclose(
        matrix(q[1:] + [1, -2, 3]), found[1:], atol=20 * limit
    )  # phases of large angles
    assert_allclose(jnp.concatenate([matrix(x[None]) for x in q]), found, atol=limit)
    assert len(traces) == first
    assert_allclose(jax.jit(matrix)(q), found, atol=limit)


def test_chain_has_the_analytic_dispersion_and_slope():
    """Nearest neighbours: nu = |sin(pi q)| sqrt(k/m)/pi along the chain; across it k is V'/r."""
    a, mass, q = 2.5, 63.546, np.array([[0.05, 0, 0], [0.3, 0, 0], [0.45, 0, 0]])
    chain = Morse(cutoff=4.0, onset=1.0)
    system = from_ase(Atoms("Cu", cell=[a, 9, 9], pbc=[True, False, False]), chain.cutoff)
    decay = np.exp(-chain.a * (a - chain.r0))
    stiff = 2 * chain.depth * chain.a**2 * (2 * decay**2 - decay)
    across = 2 * chain.depth * chain.a * (decay - decay**2) / a  # compressed: imaginary
    curve = lambda k: np.sign(k) * 2 * THZ * np.sqrt(abs(k) / mass) * np.sin(np.pi * q[:, 0])
    matrix, slopes = dynamical_matrix_slopes(chain.apply)({}, system, q)
    expected = np.stack([curve(across), curve(across), curve(stiff)], 1)
    assert_allclose(phonon_frequencies(matrix, [mass]), expected, rtol=1e-12)
    velocities = group_velocities(matrix, slopes, [mass])
    along = np.pi * a * expected / np.tan(np.pi * q[:, :1])
    assert_allclose(velocities[..., 0], along, rtol=1e-10)
    assert_allclose(velocities[..., 1:], 0, atol=1e-10)
    assert THZ * units.THz == pytest.approx(units.hbar)


@pytest.mark.slow
def test_slopes_of_degenerate_modes_are_one_sided_finite_differences():
    """Rising frequencies after a small step are what its slopes predict, mode by mode."""
    potential = network()  # optical modes of diamond at the zone centre and many more coincide
    system = from_ase(bulk("C", "diamond", a=3.5), potential.cutoff)
    params = potential.init(KEY, system)
    masses, h = [12.0, 12.0], 1e-5
    q = np.array([[0, 0, 0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.0], [0.1, 0.2, -0.3]])
    matrix = dynamical_matrix(potential.apply)
    frequencies = lambda s, q: np.asarray(phonon_frequencies(matrix(params, s, q), masses))
    still = frequencies(system, q)
    moving = np.abs(still) > 1e-3
    assert (~moving).sum() == 3 and (np.abs(np.diff(still)) < 1e-6).sum() >= 6
    # one-sided, as branches cross at a degenerate point, and free of the curvature x h
    slope = lambda f: ((4 * f(h) - f(2 * h) - 3 * still) / (2 * h))[moving]

    direction = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    values = dynamical_matrix_slopes(potential.apply)(params, system, q)
    velocities = np.asarray(group_velocities(*values, masses)) @ direction
    turn = np.asarray(system.cell)[0] @ direction  # in fractions
    expected = slope(lambda h: frequencies(system, q + h * turn))
    assert_allclose(velocities[moving], expected, atol=2e-6)  # third derivative x h^2: 1e-7 here
    assert np.isnan(velocities[~moving]).all()

    shear = np.array([[1.0, 0.4, 0.1], [0.4, -0.3, 0.2], [0.1, 0.2, 0.5]])
    values = dynamical_matrix_strains(potential.apply)(params, system, q)
    found = np.einsum("qmij,ij->qm", mode_gruneisen(*values, masses, along=shear), shear)
    expected = -slope(lambda h: frequencies(strain(system, h * shear[None]), q)) / still[moving]
    assert_allclose(found[moving], expected, atol=2e-6)  # third derivative x h^2: 2e-7 here


@pytest.mark.slow
def test_gradients_with_respect_to_params_are_finite_differences():
    potential = network()
    system = from_ase(skewed(), potential.cutoff)
    params = potential.init(KEY, system)
    matrix, q = dynamical_matrix(potential.apply), WAVES[1:3]
    weights = jax.random.normal(KEY, (2, 6))
    loss = jax.jit(lambda p: (weights * jnp.linalg.eigvalsh(matrix(p, system, q))).sum())
    gradient = jax.jit(jax.grad(loss))(params)
    along = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), params)
    at = lambda h: loss(jax.tree.map(lambda x, d: x + h * d, params, along))
    h = 1e-4
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    found = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), gradient, along)))
    assert float(found) == pytest.approx(float(expected), rel=1e-7)


def blind(params, system):
    """Atoms learn how crowded their neighbours are from a gather of its own, not from a door."""
    crowd = lambda values: sum_edges(system, jnp.exp(-(edge_vectors(system) ** 2).sum(-1)) * values)
    density = crowd(jnp.ones(system.edges.mask.shape))
    return {"energy": sum_energies(system, crowd(density[system.edges.senders]))}


def test_other_ways_to_the_same_matrix_and_what_tells_that_it_is_wrong():
    system, q = from_ase(skewed(), LJ.cutoff, flat=True), WAVES[1:2]
    found = dynamical_matrix(LJ.apply)({}, system, q)
    other = dynamical_matrix_supercell(LJ.apply, (3, 1, 1))({}, system, q)
    assert_allclose(other, found, atol=1e-12 * np.abs(found).max())
    assert door_error(LJ.apply)({}, system) < 1e-12
    with pytest.raises(UsageError, match="not commensurate"):
        dynamical_matrix_supercell(LJ.apply, (2, 2, 2))({}, system, q)
    assert door_error(blind)({}, system) > 1e-3


def imported(folder):
    """The tiny So3krates with its physical terms, and a crystal smaller than its cutoffs."""
    write_weights(RANDOM, folder)
    card, params = so3lr.read(folder / "params.pkl")
    checkpoint.save(folder / "ours.safetensors", card, params)
    potential, params, _ = checkpoint.load(folder / "ours.safetensors")
    return potential, cast(params, jnp.float64), atoms_of("ice")


def dual(folder):
    return DUAL, None, rattled(triclinic())


@pytest.mark.slow
@pytest.mark.parametrize("make", [imported, dual])
def test_other_models_know_their_neighbours_through_the_doors(make, tmp_path):
    """And their third derivatives are the slope of their Hessian, symmetric in both directions."""
    potential, params, atoms = make(tmp_path)
    system = from_ase(atoms, potential.cutoff)
    params = jax.jit(potential.init)(KEY, system) if params is None else params
    assert door_error(potential.apply)(params, system) < 1e-10
    u, v = np.random.default_rng(0).normal(size=(2, system.n_atoms, 3)) / 10
    third = jax.jit(third_derivative_product(potential.apply))
    product = jax.jit(hessian_vector_product(potential.apply))
    at = lambda h: product(params, replace(system, positions=system.positions + h * v), u)
    h = 2e-3
    slope = (8 * (at(h) - at(-h)) - at(2 * h) + at(-2 * h)) / (12 * h)
    found = third(params, system, u, v)
    assert_allclose(found, slope, atol=1e-6 * np.abs(slope).max())
    assert_allclose(third(params, system, v, u), found, atol=1e-9 * np.abs(found).max())


def test_open_cluster_gives_the_same_matrix_at_any_wavevector():
    system, q = from_ase(skewed(), LJ.cutoff), np.array([[0.123, -0.4, 0.77]])
    found = LJ_MATRIX({}, system, q)
    cluster = dynamical_matrix_unrolled(LJ.apply, 1)({}, system, q)
    assert_allclose(cluster, found, atol=1e-12 * np.abs(found).max())


def test_single_precision():
    system = from_ase(skewed(), LJ.cutoff, dtype=np.float32)
    found = LJ_MATRIX({}, system, WAVES)
    exact = LJ_MATRIX({}, from_ase(skewed(), LJ.cutoff), WAVES)
    assert found.dtype == np.complex64
    assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())  # cancelling terms


def test_what_cannot_be_meant_is_refused():
    system = from_ase(skewed(), LJ.cutoff)
    matrix = LJ_MATRIX
    for bad in ([0.1, 0.2, 0.3], np.zeros((0, 3)), np.zeros((2, 2))):
        with pytest.raises(UsageError, match="q has shape"):
            matrix({}, system, bad)
    with pytest.raises(UsageError, match="no edges"):
        matrix({}, replace(system, edges=None), WAVES)
    blind = lambda params, system: LJ.apply(params, replace(system, wave=None))
    with pytest.raises(UsageError, match="no phase"):
        dynamical_matrix(blind)({}, system, WAVES)
