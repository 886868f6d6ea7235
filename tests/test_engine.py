"""The fast ways through the network are the plain way: same numbers, same derivatives, any order.

Plain: all edges at once and channels on every edge. Fast: blocks of atoms that recompute, nested
where the gathered features are large too, and neighbours of the first layer summed by species.
Tolerances are relative round-off of float64 sums of a few hundred terms, 1e-10.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import MACE, NequIP
from jaxmlip.models import mace as mace_module
from jaxmlip.nn import blocks, tensor_product

SMALL = dict(cutoff=4.0, channels=4, n_radial=4, radial_widths=(8,), avg_num_neighbors=10.0)
MODELS = {
    "MACE": MACE(elements=(13, 14), l_max=1, correlation=2, **SMALL),
    "NequIP": NequIP(elements=(13, 14), n_layers=2, l_max=1, **SMALL),
}
ALL, FEW = (2**40, 2**40), (0, 2**12)  # bytes at once, bytes of a block


@cache
def crystal():
    atoms = bulk("Si", cubic=True)
    atoms.numbers[:3] = 13
    atoms.rattle(0.1, seed=1)
    return from_ase(atoms, 4.0)


@pytest.fixture
def limits(monkeypatch):
    """Sizes of the blocks, most of the outer ones, whether the first layer is summed by species."""

    def choose(cache, outer, by_species):
        monkeypatch.setitem(blocks.CACHE, jax.default_backend(), cache)
        monkeypatch.setattr(blocks, "cores", lambda: 1)  # blocks are larger where there are many
        monkeypatch.setattr(blocks, "OUTER", outer)
        monkeypatch.setattr(mace_module, "few_species", lambda *_, **__: by_species)

    return choose


NESTED = "nested blocks, first layer by species"
WAYS = {
    "blocks": (FEW, 32, False),
    NESTED: (FEW, 2, True),
}


def energy_of(name):
    moved = lambda x: jaxmlip.system.replace(crystal(), positions=x)
    return lambda params, x: MODELS[name].apply(params, moved(x))["energy"].sum()


def derivatives(name, order=3):
    """Energy, gradients, jvp of the gradient; of order 3 also its vjp and a third derivative."""
    x = jnp.asarray(crystal().positions)
    u, v = np.random.default_rng(0).normal(size=(2, *x.shape))
    energy = energy_of(name)

    @jax.jit
    def everything(params, x):
        slope = partial(jax.grad(energy, argnums=1), params)
        along = lambda x: jax.jvp(slope, (x,), (u,))[1]
        value, (of_params, of_x) = jax.value_and_grad(energy, argnums=(0, 1))(params, x)
        found = {
            "energy": value,
            "gradient": of_x,
            "gradient of params": of_params,
            "jvp of gradient": along(x),
        }
        return (
            found
            if order == 2
            else found
            | {
                "vjp of gradient": jax.vjp(slope, x)[1](jnp.asarray(v))[0],
                "third derivative": jax.grad(lambda x: (along(x) * v).sum())(x),
            }
        )

    return everything(params_of(name), x)


def loops(name) -> int:
    """Loops over blocks in the program of the energy."""
    x = jnp.asarray(crystal().positions)
    return str(jax.make_jaxpr(energy_of(name))(params_of(name), x)).count("scan[")


def members(name):
    """Two sets of params, stacked."""
    return jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params_of(name))


def gradients(name):
    """Of two members, one after the other."""
    slope = jax.jit(jax.grad(energy_of(name), argnums=1))
    both, x = members(name), jnp.asarray(crystal().positions)
    return [slope(jax.tree.map(lambda w, i=i: w[i], both), x) for i in range(2)]


@cache
def params_of(name):
    return jax.jit(MODELS[name].init)(jax.random.key(0), crystal())


@cache
def plain(evaluate, *given):
    """What `evaluate` finds the plain way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocks.CACHE, jax.default_backend(), ALL)
        patch.setattr(mace_module, "few_species", lambda *_, **__: False)
        return evaluate(*given)


CASES = [
    ("MACE", NESTED, 2),
    pytest.param("MACE", NESTED, 3, marks=pytest.mark.slow),
    pytest.param("MACE", "blocks", 3, marks=pytest.mark.slow),
    pytest.param("NequIP", "blocks", 3, marks=pytest.mark.slow),
    pytest.param("NequIP", NESTED, 3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, way, order", CASES)
def test_every_derivative_is_that_of_the_plain_way(name, way, order, limits):
    expected = plain(derivatives, name, order)
    limits(*WAYS[way])
    assert loops(name), "nothing was done in blocks"
    found = derivatives(name, order)
    for key, value in expected.items():
        for a, b in zip(jax.tree.leaves(found[key]), jax.tree.leaves(value), strict=True):
            scale = float(jnp.abs(b).max()) + 1e-3
            assert_allclose(a, b, atol=1e-10 * scale, rtol=0, err_msg=key)


@pytest.mark.parametrize("name", [pytest.param("MACE", marks=pytest.mark.slow), "NequIP"])
def test_an_ensemble_is_a_vmap_over_params(name, limits):
    expected = plain(gradients, name)
    limits(FEW, 2, True)
    assert loops(name)
    forces = jax.jit(jax.vmap(jax.grad(energy_of(name), argnums=1), (0, None)))
    found = forces(members(name), jnp.asarray(crystal().positions))
    for one, alone in zip(found, expected, strict=True):
        assert_allclose(one, alone, atol=1e-10 * float(jnp.abs(alone).max()))


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_way_has_no_blocks(name):
    assert plain(loops, name) == 0


@pytest.mark.parametrize("cores", [1, 64])
def test_blocks_hold_what_they_promise(cores, limits, monkeypatch):
    limits((100, 40), 32, True)
    monkeypatch.setattr(blocks, "cores", lambda: cores)
    shares = cores if jax.default_backend() == "cpu" else 1  # each core has a cache of its own
    assert blocks.block_rows(10, 10) == 10  # all at once
    assert blocks.block_rows(1000, 10) == 4 * shares
    assert blocks.block_rows(1000, 10**6) == 1  # never none


def memory(model, system) -> float:
    """Bytes for each atom beside parameters and results, of energy and forces."""
    params = jax.eval_shape(model.init, jax.random.key(0), system)
    program = jax.jit(jaxmlip.forces(model.apply)).lower(params, system).compile()
    return program.memory_analysis().temp_size_in_bytes / system.n_atoms


@pytest.mark.parametrize("variant, most", [("gated", 1.5), ("density", 1.1)])
def test_what_an_edge_needs_is_not_stored_for_all_edges(variant, most, limits):
    """The plain model keeps distances, harmonics and their slopes: numbers, no hidden layers."""
    limits((0, 2**18), 32, False)
    system = from_ase(bulk("Si", cubic=True) * (6, 6, 6), 4.0)
    settings = SMALL | {"channels": 2, "radial_widths": (64,)}
    model = lambda **more: MACE(elements=(13, 14), l_max=1, correlation=2, **settings, **more)
    assert memory(model(**{variant: True}), system) < most * memory(model(), system)


class Device:
    """Of which JAX may use so many bytes; asked for its memory again and again, it counts."""

    def __init__(self, stats):
        self.stats, self.asked = stats, 0

    def memory_stats(self):
        self.asked += 1
        if isinstance(self.stats, Exception):
            raise self.stats
        return self.stats


@pytest.mark.parametrize(
    "stats, expected",
    [
        ({"bytes_limit": 2**36}, (2**33, 2**32)),
        ({"bytes_limit": 2**32}, (2**29, 2**28)),
        ({"bytes_in_use": 1}, blocks.DEVICE),
        (None, blocks.DEVICE),
        (NotImplementedError(), blocks.DEVICE),
    ],
)
def test_blocks_are_a_share_of_the_memory_that_a_device_tells(stats, expected, monkeypatch):
    device = Device(stats)
    monkeypatch.setattr(jax, "default_backend", lambda: "device")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    blocks.device_limits.cache_clear()
    try:
        whole, block = expected
        assert blocks.block_rows(1000, whole // 1000) == 1000
        assert blocks.block_rows(1000, whole // 1000 + 2**10) == block // (whole // 1000 + 2**10)
        assert device.asked == 1
    finally:
        blocks.device_limits.cache_clear()


def test_rows_that_fill_a_block_change_nothing():
    x = np.arange(7.0)
    slope = jax.grad(lambda x: (blocks.in_blocks(jnp.sqrt, x + 1, rows=3) ** 3).sum())
    assert_allclose(blocks.in_blocks(jnp.sqrt, x, rows=3), np.sqrt(x))
    assert_allclose(slope(x), 1.5 * np.sqrt(x + 1), atol=1e-12)


def test_few_species_are_those_that_save_work():
    """About a species for 4 neighbours where there are many channels, fewer where there are not."""
    system = crystal()
    k = system.edges.senders.shape[1]
    few = partial(tensor_product.few_species, system, l_max=3)
    assert few(k // 4, channels=128) and not few(k // 4 + 1, channels=128)
    assert few(k // 8, channels=16) and not few(k // 4, channels=16)
