"""Several devices give what one gives. Run by test_parallel.py in a process with four of them.

Tolerances: 1e-12 of the largest value. Results are not bitwise equal because energies are summed
domain by domain, gradients of ghosts come back in another order, and the compiler orders sums
differently in arrays of other shapes; measured differences are some 1e-15.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from numpy.testing import assert_allclose
from structures import KEY, RNG, ethanol, rattled, slab, small_cell, toy, triclinic

import jaxmlip
from jaxmlip.derivatives import forces, predict
from jaxmlip.models import MACE, NequIP
from jaxmlip.models.pair import LennardJones
from jaxmlip.nn import tensor_product
from jaxmlip.parallel import decompose, device_mesh, distributed, place, restore, to_domains
from jaxmlip.system import concatenate, pad, sum_energies, to_edges

N, CUTOFF = 4, 3.2
ELEMENTS = (1, 6, 8)
MESH = device_mesh(N)
MODELS = {
    "lj": LennardJones(elements=ELEMENTS, sigma=1.2, epsilon=0.1, cutoff=CUTOFF),
    "mace": MACE(
        elements=ELEMENTS,
        cutoff=CUTOFF,
        channels=2,
        l_max=1,
        correlation=2,
        n_radial=3,
        radial_widths=(4,),
        readout_width=2,
        avg_num_neighbors=8.0,
    ),
    "nequip": NequIP(
        elements=ELEMENTS,
        cutoff=CUTOFF,
        channels=2,
        l_max=1,
        parity=False,
        n_layers=2,
        n_radial=3,
        radial_widths=(4,),
        avg_num_neighbors=8.0,
    ),
}


def crystal():
    return rattled(triclinic().repeat((1, 2, 2)))


def cell_below_cutoff():
    return rattled(small_cell().repeat((1, 2, 2)))


STRUCTURES = {f.__name__: f for f in (crystal, slab, ethanol, cell_below_cutoff)}


@functools.cache
def systems():
    """All structures in arrays of one shape, so that one program serves them."""
    found = {k: jaxmlip.from_ase(f(), CUTOFF) for k, f in STRUCTURES.items()}
    atoms = max(s.n_atoms for s in found.values())
    width = max(s.edges.senders.shape[1] for s in found.values())
    return {k: pad(s, n_atoms=atoms, n_neighbors=width) for k, s in found.items()}


@functools.cache
def decompositions():
    """The same in four domains, with the rounds and sizes that all of them need."""
    like = None
    for s in systems().values():
        like = decompose(s, N, grid=(1, 2, 2), like=like)
    return {k: decompose(s, N, grid=(1, 2, 2), like=like) for k, s in systems().items()}


@functools.cache
def potential(name):
    model = MODELS[name]
    return model, jax.jit(model.init)(KEY, systems()["crystal"])


def with_tangents(apply):
    """Prediction, and its derivative along a displacement: of the forces -Hessian . vector."""

    def with_tangents_of(params, system, vector):
        at = lambda r: predict(apply)(params, replace(system, positions=r))
        return jax.jvp(at, (jnp.asarray(system.positions),), (vector,))

    return jax.jit(with_tangents_of)


@functools.cache
def programs(name):
    apply = potential(name)[0].apply
    return with_tangents(apply), with_tangents(distributed(apply, MESH))


def close(value, expected):
    scale = np.nanmax(np.abs(expected), initial=1e-300)
    assert_allclose(np.asarray(value) / scale, np.asarray(expected) / scale, rtol=0, atol=1e-12)


def vector_for(system):
    vector = np.random.default_rng(RNG).normal(size=system.positions.shape)
    return vector * np.asarray(system.atom_mask)[:, None]


EACH = ["lj", "mace", pytest.param("nequip", marks=pytest.mark.slow)]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", EACH)
def test_four_devices_give_what_one_gives(name, structure):
    """Energy, forces and stress, and with them products of Hessian and vector (jvp of grad)."""
    _, params = potential(name)
    system, parts = systems()[structure], decompositions()[structure]
    vector = vector_for(system)
    one, four = programs(name)
    expected = one(params, system, vector)
    found = four(params, place(parts.system, MESH), to_domains(parts, vector))
    for out, known in zip(found, expected, strict=True):
        out = restore(parts, out)
        assert out.keys() == known.keys()
        for key in known:
            close(out[key], known[key])


def test_a_loss_on_forces_has_the_gradient_of_one_device():
    model, params = potential("nequip")
    system, parts = systems()["crystal"], decompositions()["crystal"]

    def slope(apply):
        return jax.jit(jax.grad(lambda w, s: (forces(apply)(w, s) ** 2).sum()))

    expected = slope(model.apply)(params, system)
    found = slope(distributed(model.apply, MESH))(params, place(parts.system, MESH))
    jax.tree.map(close, found, expected)


def test_one_compiled_program_serves_all_structures_of_a_size():
    _, params = potential("lj")
    program = programs("lj")[1]
    for parts in decompositions().values():
        vector = to_domains(parts, vector_for(systems()["slab"]))
        jax.block_until_ready(program(params, place(parts.system, MESH), vector))
    assert program._cache_size() == 1


def run(apply, system, parts, params):
    one = jax.jit(predict(apply))(params, system)
    four = jax.jit(predict(distributed(apply, MESH)))(params, place(parts.system, MESH))
    return restore(parts, four), one


def test_results_do_not_depend_on_who_owns_which_atom():
    system = systems()["crystal"]
    owner = np.random.default_rng(RNG).choice([0, 1, 3], system.n_atoms)  # domain 2 is empty
    parts = decompose(system, N, grid=(N, 1, 1), owner=owner)
    assert parts.atoms[2] == 0
    out, expected = run(toy(CUTOFF).apply, system, parts, {})
    for key in expected:
        close(out[key], expected[key])


def test_flat_edges_and_a_batch_of_structures():
    found = [jaxmlip.from_ase(f(), CUTOFF, flat=True) for f in STRUCTURES.values()]
    system = pad(concatenate(found), n_graphs=6, n_atoms=60)
    parts = decompose(system, N)
    out, expected = run(toy(CUTOFF).apply, system, parts, {})
    for key in expected:
        close(out[key], expected[key])


def test_derivatives_may_be_taken_inside_or_outside():
    model, params = potential("mace")
    parts = decompositions()["crystal"]
    system = place(parts.system, MESH)
    inside = jax.jit(distributed(predict(model.apply), MESH))(params, system)
    outside, _ = programs("mace")[1](params, system, np.zeros(system.positions.shape))
    for key in inside:
        close(inside[key], outside[key])


def test_an_ensemble_is_a_vmap_over_params():
    _, params = potential("lj")
    scales = jnp.array([1.0, 2.0])
    apply = lambda scale, s: {"energy": scale * MODELS["lj"].apply(params, s)["energy"]}
    parts = decompositions()["crystal"]
    many = jax.jit(jax.vmap(distributed(apply, MESH), (0, None)))
    many = many(scales, place(parts.system, MESH))
    close(many["energy"][1], 2 * many["energy"][0])


def test_several_arrays_of_one_layer_travel_in_one_message():
    def apply(params, s):
        x = s.positions
        sent = to_edges(s, {"a": x, "b": x[:, None] * x[:, :, None], "n": s.numbers})
        total = sent["a"].sum((1, 2)) + sent["b"].sum((1, 2, 3)) + sent["n"].sum(1)
        return {"energy": sum_energies(s, total)}

    parts = decompositions()["crystal"]
    four = jax.jit(distributed(apply, MESH))
    placed = place(parts.system, MESH)
    rounds = len(parts.system.edges.halo.offsets)
    text = four.lower({}, placed).as_text()
    assert text.count("collective_permute") == 2 * rounds  # one for reals, one for integers


def test_energies_of_float32_are_summed_as_on_one_device():
    with jax.enable_x64(False):
        system = jaxmlip.cast(systems()["crystal"], np.float32)
        parts = decompose(system, N)
        apply = lambda params, s: {"energy": sum_energies(s, 1e3 + s.positions[:, 0])}
        out = jax.jit(distributed(apply, MESH))({}, place(parts.system, MESH))["energy"]
        expected = apply({}, system)["energy"]
        assert out.dtype == np.float32
        assert_allclose(out, expected, rtol=2e-7)  # one rounding each


def test_a_sum_that_misses_other_devices_is_refused():
    apply = lambda params, s: {"energy": s.positions.sum()[None]}
    system = place(decompositions()["crystal"].system, MESH)
    with pytest.raises(ValueError, match="out_specs"):
        distributed(apply, MESH)({}, system)


def test_memory_of_a_device_falls_with_the_number_of_devices():
    system = jaxmlip.from_ase(bulk("C", "diamond", a=3.57, cubic=True).repeat(6), CUTOFF)
    used = []
    for n in (1, 2, 4):
        mesh, parts = device_mesh(n), decompose(system, n)
        program = jax.jit(predict(distributed(MODELS["lj"].apply, mesh)))
        memory = program.lower({}, place(parts.system, mesh)).compile().memory_analysis()
        used.append(memory.temp_size_in_bytes + memory.argument_size_in_bytes)
    assert used[1] < 0.75 * used[0] and used[2] < 0.45 * used[0], used


def test_blocks_of_atoms_exchange_once_a_layer(monkeypatch):
    """Blocks inside a domain: the same forces, and no more messages than without blocks."""
    model, params = potential("nequip")
    parts = decompositions()["crystal"]
    system, expected = place(parts.system, MESH), None
    counts = []
    for size in (10**6, 3):
        monkeypatch.setattr(tensor_product, "block_rows", lambda *_, n=size, **__: n)
        program = jax.jit(forces(distributed(model.apply, MESH))).lower(params, system)
        counts.append(program.as_text().count("collective_permute"))
        out = program.compile()(params, system)
        expected = out if expected is None else expected
        close(out, expected)
    assert counts[0] == counts[1]
