"""The fast ways through the network are the plain way: same numbers, same derivatives, any order.

Plain: all edges at once and channels on every edge. Fast: blocks of atoms that recompute, nested
where the gathered features are large too, and neighbours of the first layer summed by species.
Tolerances are relative round-off of float64 sums of a few hundred terms, 1e-10.
"""

from functools import partial

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


@pytest.fixture(scope="module")
def system():
    atoms = bulk("Si", cubic=True)
    atoms.numbers[:3] = 13
    atoms.rattle(0.1, seed=1)
    return from_ase(atoms, 4.0)


@pytest.fixture
def limits(monkeypatch):
    """Sizes of the blocks, most of the outer ones, whether the first layer is summed by species."""

    def choose(cache, outer, by_species):
        monkeypatch.setitem(blocks.CACHE, jax.default_backend(), cache)
        monkeypatch.setattr(blocks, "OUTER", outer)
        monkeypatch.setattr(mace_module, "few_species", lambda *_, **__: by_species)

    return choose


NESTED = "nested blocks, first layer by species"
WAYS = {
    "blocks": (FEW, 32, False),
    NESTED: (FEW, 2, True),
}


def energy_of(model, system):
    return lambda params, x: model.apply(params, jaxmlip.system.replace(system, positions=x))[
        "energy"
    ].sum()


def derivatives(model, params, system):
    """Energy, gradients, jvp and vjp of the gradient, a third derivative."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, *system.positions.shape))
    energy = energy_of(model, system)
    x = jnp.asarray(system.positions)

    @jax.jit
    def everything(params, x):
        slope = partial(jax.grad(energy, argnums=1), params)
        along = lambda x: jax.jvp(slope, (x,), (u,))[1]
        return {
            "energy": energy(params, x),
            "gradient": slope(x),
            "gradient of params": jax.grad(energy)(params, x),
            "jvp of gradient": along(x),
            "vjp of gradient": jax.vjp(slope, x)[1](jnp.asarray(v))[0],
            "third derivative": jax.grad(lambda x: (along(x) * v).sum())(x),
        }

    return everything(params, x)


@pytest.fixture(scope="module")
def plain(system):
    """{name: (params, derivatives)} of the plain way."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocks.CACHE, jax.default_backend(), ALL)
        patch.setattr(mace_module, "few_species", lambda *_, **__: False)
        for name, model in MODELS.items():
            params = jax.jit(model.init)(jax.random.key(0), system)
            out[name] = params, derivatives(model, params, system)
    return out


CASES = [
    ("MACE", NESTED),
    ("NequIP", "blocks"),
    pytest.param("MACE", "blocks", marks=pytest.mark.slow),
    pytest.param("NequIP", NESTED, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, way", CASES)
def test_every_derivative_is_that_of_the_plain_way(name, way, plain, system, limits):
    params, expected = plain[name]
    limits(*WAYS[way])
    found = derivatives(MODELS[name], params, system)
    for key, value in expected.items():
        for a, b in zip(jax.tree.leaves(found[key]), jax.tree.leaves(value), strict=True):
            scale = float(jnp.abs(b).max()) + 1e-3
            assert_allclose(a, b, atol=1e-10 * scale, rtol=0, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_is_a_vmap_over_params(name, plain, system, limits):
    params, expected = plain[name]
    limits(FEW, 2, True)
    both = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    energy = energy_of(MODELS[name], system)
    forces = jax.jit(jax.vmap(jax.grad(energy, argnums=1), (0, None)))
    found = forces(both, jnp.asarray(system.positions))
    assert_allclose(found[0], expected["gradient"], atol=1e-10)
    other = jax.tree.map(lambda x: x[1], both)
    alone = jax.jit(jax.grad(energy, argnums=1))(other, jnp.asarray(system.positions))
    assert_allclose(found[1], alone, atol=1e-10 * float(jnp.abs(alone).max()))


def test_blocks_hold_what_they_promise(limits):
    limits((100, 40), 32, True)
    cores = blocks.cores() if jax.default_backend() == "cpu" else 1
    assert blocks.block_rows(10, 10) == 10  # all at once
    assert blocks.block_rows(1000, 10) == 4 * cores
    assert blocks.block_rows(1000, 10**6) == 1  # never none


def test_rows_that_fill_a_block_change_nothing():
    x = np.arange(7.0)
    slope = jax.grad(lambda x: (blocks.in_blocks(jnp.sqrt, x + 1, rows=3) ** 3).sum())
    assert_allclose(blocks.in_blocks(jnp.sqrt, x, rows=3), np.sqrt(x))
    assert_allclose(slope(x), 1.5 * np.sqrt(x + 1), atol=1e-12)


def test_few_species_are_those_that_save_work(system):
    """About a species for 4 neighbours where there are many channels, fewer where there are not."""
    k = system.edges.senders.shape[1]
    few = partial(tensor_product.few_species, system, l_max=3)
    assert few(k // 4, channels=128) and not few(k // 4 + 1, channels=128)
    assert few(k // 8, channels=16) and not few(k // 4, channels=16)
