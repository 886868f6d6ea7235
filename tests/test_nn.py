"""The equivariant algebra: against e3nn (an oracle, not a dependency) and against group theory.

Tolerances: 1e-13 where both sides are the same closed form in float64, a few digits more where a
sum of many terms is compared.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from jaxmlip.contractions import gather_rows, overlap_rows, spread_rows
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.harmonics import spherical_harmonics
from jaxmlip.nn.interaction import StateEmbedding
from jaxmlip.nn.linear import ChargeSpinEmbedding, Linear, SpeciesLinear, species_index
from jaxmlip.nn.radial import RadialMLP, bessel, envelope, with_slope
from jaxmlip.nn.readout import cartesian_tensor, conserve_charge, total_dipole
from jaxmlip.nn.symmetric_contraction import (
    SymmetricContraction,
    equivariant_polynomials,
    monomials,
    tensor_weights,
)
from jaxmlip.nn.tensor_product import convolve, natural, paths, tensor_product
from jaxmlip.system import mask_edges, to_edges

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def e3nn():
    return pytest.importorskip("e3nn_jax")


def directions(n, seed=0):
    v = np.random.default_rng(seed).normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def of_degree(l, vectors):
    return spherical_harmonics(vectors, l)[..., l * l :]


def representation(l, rotation):
    """D_l of a proper or improper rotation in the basis of the harmonics: Y(R v) = D Y(v)."""
    v = directions(60, seed=5)
    before, after = (np.array(of_degree(l, x)) for x in (v, v @ rotation.T))
    return np.linalg.lstsq(before, after, rcond=None)[0].T


def random_rotation(improper=False):
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    q = q * np.sign(np.linalg.det(q))
    return -q if improper else q


# --- harmonics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("l", range(7))
def test_harmonics_are_those_of_e3nn(e3nn, l):
    v = directions(20)
    irreps = e3nn.Irreps([(1, (l, (-1) ** l))])
    expected = e3nn.spherical_harmonics(irreps, v, True, "component").array
    assert_allclose(of_degree(l, v), expected, atol=1e-13)


def test_squares_of_harmonics_sum_to_2l_plus_1():
    for l in range(9):
        y = of_degree(l, directions(10))
        assert_allclose((np.array(y) ** 2).sum(-1), 2 * l + 1, rtol=1e-13)


def test_harmonics_are_orthogonal_on_the_sphere():
    """Gauss-Legendre in the polar angle, equal steps in the azimuth: exact to degree 2 l_max."""
    l_max = 5
    z, w = np.polynomial.legendre.leggauss(l_max + 1)
    phi = 2 * np.pi * np.arange(2 * l_max + 2) / (2 * l_max + 2)
    s = np.sqrt(1 - z**2)[:, None]
    v = np.stack([s * np.cos(phi), s * np.sin(phi), z[:, None] + 0 * phi], -1)
    y = spherical_harmonics(v, l_max)
    overlap = np.einsum("z,zpa,zpb->ab", w, y, y) / (2 * len(phi))
    assert_allclose(overlap, np.eye((l_max + 1) ** 2), atol=1e-13)


def test_third_derivatives_of_harmonics_are_finite_along_the_axes():
    function = lambda v: spherical_harmonics(v / jnp.linalg.norm(v), 3)
    second = jax.jit(jax.jacfwd(jax.jacfwd(function)))
    third = jax.jit(jax.jacfwd(second))
    for axis in [(1, 0, 0), (0, 1, 0), (0, 0, -1), (0, -1, 0)]:
        v = jnp.array(axis, float)
        assert np.isfinite(third(v)).all()
        # r dY/dr = 0, and derivatives of a degree-0 function are homogeneous: Euler's theorem
        assert_allclose(third(v) @ v, -2 * second(v), atol=1e-11)


# --- couplings ------------------------------------------------------------------------------------


def test_clebsch_gordan_coefficients_are_those_of_e3nn(e3nn):
    for l1 in range(5):
        for l2 in range(5):
            for l3 in range(abs(l1 - l2), min(l1 + l2, 6) + 1):
                expected = e3nn.clebsch_gordan(l1, l2, l3)
                expected = expected / np.linalg.norm(expected)
                assert_allclose(clebsch_gordan(l1, l2, l3), expected, atol=1e-13)


def test_couplings_are_orthonormal_and_zero_outside_the_triangle():
    assert not clebsch_gordan(1, 1, 3).any()
    for l1, l2 in [(1, 1), (2, 3), (3, 3)]:
        tables = [
            np.sqrt(2 * l + 1) * clebsch_gordan(l1, l2, l) for l in range(abs(l1 - l2), l1 + l2 + 1)
        ]
        u = np.concatenate(tables, -1).reshape((2 * l1 + 1) * (2 * l2 + 1), -1)
        assert_allclose(u @ u.T, np.eye(len(u)), atol=1e-13)


@pytest.mark.parametrize("l1, l2, l3", [(1, 1, 0), (1, 1, 1), (2, 1, 2), (2, 3, 3)])
def test_tensor_product_is_that_of_e3nn(e3nn, l1, l2, l3):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 2 * l1 + 1, 3)), rng.normal(size=(4, 2 * l2 + 1, 3))
    irreps = lambda l: e3nn.Irreps([(1, (l, 1))])
    wrap = lambda l, a: e3nn.IrrepsArray(irreps(l), np.moveaxis(a, -1, -2))
    expected = e3nn.tensor_product(wrap(l1, x), wrap(l2, y), filter_ir_out=irreps(l3)).array
    assert_allclose(tensor_product(x, y, l3), np.moveaxis(np.asarray(expected), -1, -2), atol=1e-13)


@pytest.mark.parametrize("flat", [False, True], ids=["per receiver", "flat"])
def test_convolution_is_a_sum_over_edges_of_tensor_products(flat):
    positions = np.random.default_rng(3).uniform(0.5, 3, (4, 3))
    atoms = Atoms("H2O2", positions, cell=[3.5] * 3, pbc=True)
    system = from_ase(atoms, 3.0, flat=flat)
    rng = np.random.default_rng(4)
    channels = {(0, 1): 3, (1, -1): 2, (1, 1): 2}
    x = {key: rng.normal(size=(4, 2 * key[0] + 1, c)) for key, c in channels.items()}
    couplings = paths(x, 2, natural(2) + [(1, 1)])
    edges, shape = system.edges, system.edges.senders.shape
    harmonics = [jnp.asarray(rng.normal(size=(*shape, 2 * l + 1))) for l in range(3)]
    weights = [rng.normal(size=(*shape, channels[sender])) for sender, _, _ in couplings]
    masked = [mask_edges(system, y) for y in harmonics]
    joined = jnp.concatenate(masked, -1)
    out = convolve(system, to_edges(system, x), joined, weights, couplings)
    expected: dict = {}
    for weight, (sender, l, target) in zip(weights, couplings, strict=True):
        message = np.zeros((4, 2 * target[0] + 1, channels[sender]))
        for e in zip(*np.nonzero(edges.mask), strict=True):
            receiver = edges.receivers[e] if flat else e[0]
            y = np.repeat(np.asarray(harmonics[l])[e][:, None], channels[sender], 1)
            product = tensor_product(x[sender][edges.senders[e]], y, target[0])
            message[receiver] += weight[e] * product
        expected.setdefault(target, []).append(message)
    for key, parts in expected.items():
        assert_allclose(out[key], np.concatenate(parts, -1), atol=1e-12)


PRODUCTS = {
    "nqm,nqc->nmc": (gather_rows, (2, 5, 3), (2, 5, 4)),
    "nqm,nmc->nqc": (spread_rows, (2, 5, 3), (2, 3, 4)),
    "nqc,nmc->nqm": (overlap_rows, (2, 5, 4), (2, 3, 4)),
}


@pytest.mark.parametrize("formula", PRODUCTS)
def test_batched_products_and_their_derivatives_are_those_of_the_einsum(formula):
    product, *shapes = PRODUCTS[formula]
    rng = np.random.default_rng(8)
    x, y = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    plain = lambda x, y: jnp.einsum(formula, x, y)
    assert_allclose(product(x, y), plain(x, y), atol=1e-13)
    # the cube: third derivatives do not vanish; forward over reverse over reverse
    energy = lambda f: lambda x, y: (f(x, y) ** 3).sum()
    second = lambda f: jax.grad(lambda x, y: (jax.grad(energy(f))(x, y) ** 2).sum(), (0, 1))
    third = lambda f: jax.jit(partial(jax.jvp, second(f)))((x, y), (x + 1.0, y - 1.0))
    for a, b in zip(jax.tree.leaves(third(product)), jax.tree.leaves(third(plain)), strict=True):
        assert_allclose(a, b, rtol=1e-11)
    xs = jnp.stack([x, 2 * x, x - 1], axis=-1)
    over_x = lambda f: jax.jit(jax.vmap(jax.grad(energy(f), (0, 1)), (-1, None)))(xs, y)
    for a, b in zip(over_x(product), over_x(plain), strict=True):
        assert_allclose(a, b, rtol=1e-12)


def test_precision_asked_for_reaches_the_products():
    x, y = jnp.ones((1, 2, 3), jnp.float32), jnp.ones((1, 2, 4), jnp.float32)
    gradient = jax.grad(lambda x, y: (gather_rows(x, y) ** 2).sum())

    def asked(x, y):
        with jax.default_matmul_precision("highest"):
            return gradient(x, y)

    text = jax.jit(asked).lower(x, y).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)


def test_slopes_carried_beside_values_are_the_derivatives():
    rng = np.random.default_rng(9)
    r, bond = jnp.asarray(rng.uniform(0.5, 3, 6)), jnp.asarray(rng.uniform(1, 2, 6))
    weights = jnp.asarray(rng.normal(size=(4, 5)))

    def plain(weights, r, bond):
        basis = bessel(r * bond, 5.0, 4)
        return [jnp.tanh(basis @ weights), (basis @ weights) ** 2]

    def third(f):
        energy = lambda *x: sum((y**2).sum() for y in f(*x))
        first = lambda *x: sum((g**2).sum() for g in jax.grad(energy, (0, 1, 2))(*x))
        along = partial(jax.jvp, jax.grad(first, (0, 1, 2)))
        return jax.jit(along)((weights, r, bond), (weights, r + 1, bond))

    expected, found = jax.tree.leaves(third(plain)), jax.tree.leaves(third(with_slope(plain)))
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def test_paths_obey_the_triangle_and_parity():
    for (l1, p1), l2, (l3, p3) in paths(natural(3) + [(1, 1)], 3, natural(3)):
        assert abs(l1 - l2) <= l3 <= l1 + l2 and p3 == p1 * (-1) ** l2


# --- many-body polynomials ------------------------------------------------------------------------


def evaluate(coefficients, x, l_max, degree):
    """Polynomials [n, 2l+1] at components x [(l_max+1)²]."""
    values = np.array([np.prod(x[list(k)]) for k in monomials(l_max, degree)])
    return coefficients @ values


@pytest.mark.parametrize("l_max, degree", [(1, 2), (2, 2), (3, 2), (1, 3), (2, 3), (1, 4)])
def test_polynomials_span_the_symmetric_power(e3nn, l_max, degree):
    """Same number and the same span as e3nn's reduced basis of the symmetric tensor power."""
    irreps = e3nn.s2_irreps(l_max)
    reduced = e3nn.reduced_symmetric_tensor_product_basis(irreps, degree)
    places, weight = monomials(l_max, degree), tensor_weights(l_max, degree)
    place = [places[tuple(sorted(i))] for i in np.ndindex(*(irreps.dim,) * degree)]
    ours, start = equivariant_polynomials(l_max, degree), 0
    flat = np.asarray(reduced.array).reshape(len(place), -1)
    for mul, ir in reduced.irreps:
        basis = ours[ir.l, ir.p]
        assert len(basis) == mul
        theirs = np.zeros((mul * ir.dim, len(places)))
        np.add.at(theirs.T, place, flat[:, start : start + mul * ir.dim])
        theirs = theirs.reshape(mul, ir.dim, -1)
        overlap = np.einsum("rmq,q,kmq->rk", basis, weight, theirs) / ir.dim
        assert_allclose(np.einsum("rk,rmq->kmq", overlap, basis), theirs, atol=1e-12)
        start += mul * ir.dim
    assert sum(len(b) for b in ours.values()) == sum(mul for mul, _ in reduced.irreps)


@pytest.mark.parametrize("l_max, degree", [(3, 2), (2, 3), (3, 3), (2, 4)])
@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "rotoinversion"])
def test_polynomials_are_equivariant(l_max, degree, improper):
    rotation = random_rotation(improper)
    matrices = [representation(l, rotation) for l in range(l_max + 1)]
    x = np.random.default_rng(6).normal(size=(l_max + 1) ** 2)
    turned = np.concatenate([d @ x[l * l : (l + 1) ** 2] for l, d in enumerate(matrices)])
    for (l, p), basis in equivariant_polynomials(l_max, degree).items():
        if l <= l_max:
            d = matrices[l] * (p * (-1) ** l if improper else 1)
            before = evaluate(basis, x, l_max, degree) @ d.T
            assert_allclose(evaluate(basis, turned, l_max, degree), before, atol=1e-11)


def test_polynomials_are_orthogonal_with_squared_norm_2l_plus_1():
    weight = tensor_weights(2, 3)
    for (l, _), basis in equivariant_polynomials(2, 3).items():
        gram = np.einsum("rmq,q,smq->rs", basis, weight, basis)
        assert_allclose(gram, (2 * l + 1) * np.eye(len(basis)), atol=1e-12)


def contraction(l_max, correlation, targets, x, species):
    layer = SymmetricContraction(l_max, correlation, targets, 2)
    params = layer.init(KEY, x, species)
    return jax.jit(layer.apply)(params, x, species), params["params"]


@pytest.mark.parametrize("l_max, correlation", [(1, 4), (2, 3), (3, 2)])
def test_symmetric_contraction_is_its_definition(l_max, correlation):
    """sum over degrees and polynomials of weight[species] x polynomial, channel by channel."""
    rng, species = np.random.default_rng(7), np.array([0, 1, 1])
    x = {key: jnp.asarray(rng.normal(size=(3, 2 * key[0] + 1, 2))) for key in natural(l_max)}
    out, params = contraction(l_max, correlation, ((0, 1), (1, -1)), x, species)
    stacked = np.concatenate([x[key] for key in natural(l_max)], 1)
    for key in out:
        expected = np.zeros(out[key].shape)
        for nu in range(1, correlation + 1):
            basis = equivariant_polynomials(l_max, nu)[key]
            w = np.asarray(params[f"l{key[0]}_degree{nu}"])
            for n, c in np.ndindex(3, 2):
                values = evaluate(basis, stacked[n, :, c], l_max, nu)
                expected[n, :, c] += w[species[n], :, c] @ values
        assert_allclose(out[key], expected, atol=1e-11)


# --- radial functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("p, smoothness", [(5, 2), (6, 2), (6, 3), (4, 4)])
def test_envelope_vanishes_with_its_derivatives_at_the_cutoff(p, smoothness):
    function = lambda r: envelope(r, 4.0, p=p, smoothness=smoothness)
    assert_allclose(function(0.0), 1)
    for _ in range(smoothness + 1):
        # the next derivative is at most about p^4 / cutoff^k, times the distance 1e-9 to the cutoff
        assert abs(function(4.0 - 1e-9)) < 1e-5 and function(4.0) == 0 and function(100.0) == 0
        function = jax.grad(function)
    assert abs(function(4.0 - 1e-9)) > 1e-3  # and no more than were asked for


def test_envelope_of_two_derivatives_is_that_of_dimenet():
    x, p = np.linspace(0, 0.999, 50), 6
    expected = (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )
    assert_allclose(envelope(jnp.asarray(x) * 5, 5.0, p=6), expected, atol=1e-13)


def test_bessel_functions_are_orthonormal_in_the_ball():
    r, w = np.polynomial.legendre.leggauss(60)
    r, w = 2.5 * (r + 1), 2.5 * w
    b = np.asarray(bessel(jnp.asarray(r), 5.0, 8))
    assert_allclose(np.einsum("r,rk,rl->kl", w * r**2, b, b), np.eye(8), atol=1e-13)


def test_a_zero_radial_basis_gives_zero_weights():
    layer = RadialMLP((8, 8), 5)
    basis = jnp.zeros((3, 4))
    assert not np.asarray(layer.apply(layer.init(KEY, basis), basis)).any()


# --- linear maps and readouts ---------------------------------------------------------------------


@pytest.mark.parametrize("n_species", [3, 12], ids=["all products", "gathered weights"])
def test_linear_by_species_uses_the_weights_of_the_species(n_species):
    x = {(1, -1): jnp.asarray(np.random.default_rng(8).normal(size=(4, 3, 2)))}
    species = np.array([0, 2, 1, 0])
    layer = SpeciesLinear(5, n_species)
    params = layer.init(KEY, x, species)
    w = np.asarray(params["params"]["1o"])
    expected = np.einsum("nmc,ncd->nmd", x[1, -1], w[species]) / np.sqrt(2 * n_species)
    assert_allclose(layer.apply(params, x, species)[1, -1], expected, atol=1e-13)


def test_linear_channels_may_differ_by_key():
    x = {key: jnp.ones((2, 2 * key[0] + 1, 4)) for key in natural(2)}
    layer = Linear((((0, 1), 7), ((2, 1), 3)))
    out = layer.apply(layer.init(KEY, x), x)
    assert {key: v.shape for key, v in out.items()} == {(0, 1): (2, 1, 7), (2, 1): (2, 5, 3)}


def test_neutral_singlets_have_no_charge_embedding(molecule):
    layer = ChargeSpinEmbedding(4)
    params = layer.init(KEY, molecule)
    assert not np.asarray(layer.apply(params, molecule)).any()


@pytest.fixture
def molecule():
    atoms = Atoms("OH2", np.random.default_rng(9).normal(size=(3, 3)))
    return from_ase(atoms, 5.0)


def test_charges_sum_to_the_charge_of_the_structure(molecule):
    charged = jax.tree.map(jnp.asarray, molecule)
    object.__setattr__(charged, "charge", jnp.array([-2.0]))
    q = conserve_charge(charged, jnp.array([0.3, 0.1, -1.0]))
    assert_allclose(q.sum(), -2.0, atol=1e-14)
    assert_allclose(q[0] - q[1], 0.2, atol=1e-14)  # differences are kept


def test_dipole_of_point_charges(molecule):
    q = jnp.array([-1.0, 0.5, 0.5])
    expected = (np.asarray(q)[:, None] * molecule.positions).sum(0, keepdims=True)
    assert_allclose(total_dipole(molecule, q, jnp.zeros((3, 3))), expected, atol=1e-14)


def test_l2_features_make_symmetric_traceless_tensors_that_rotate():
    rotation, x = random_rotation(), np.random.default_rng(10).normal(size=(2, 5))
    scalar = jnp.array([1.0, 2.0])
    t = np.asarray(cartesian_tensor(scalar, jnp.asarray(x)))
    assert_allclose(np.trace(t, axis1=1, axis2=2), 3 * scalar, atol=1e-13)
    assert_allclose(t, t.swapaxes(1, 2), atol=1e-14)
    turned = cartesian_tensor(scalar, jnp.asarray(x @ representation(2, rotation).T))
    assert_allclose(turned, rotation @ t @ rotation.T, atol=1e-12)


def test_unknown_elements_and_padding_are_told_apart_from_known_ones():
    index, known = species_index(np.array([8, 0, 1, 7]), (1, 8))
    assert index.tolist() == [1, 0, 0, 0] and known.tolist() == [True, False, True, False]


def contracted(layer, params, x, species, u, v):
    """Derivatives of what a contraction gives, along u and v, of all orders to the third."""

    def total(params, x):
        out = layer.apply(params, x, species)
        return sum((jnp.sin(y) * (i + 1)).sum() for i, y in enumerate(out.values()))

    slope = jax.grad(total, argnums=1)
    along = lambda x: jax.jvp(partial(slope, params), (x,), (u,))[1]
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), a, b)))
    both = jax.tree.map(lambda w: jnp.stack([w, 1.1 * w]), params)
    return {
        "gradient": slope(params, x),
        "gradient of params": jax.grad(total)(params, x),
        "vmap over params": jax.vmap(slope, (0, None))(both, x),
        "jvp of gradient": along(x),
        "third derivative": jax.grad(lambda x: dot(along(x), v))(x),
    }


@pytest.mark.parametrize(("l_max", "correlation"), [(2, 3), (1, 4), (2, 4)])
def test_term_by_term_and_matrix_product_are_the_same_contraction(l_max, correlation, monkeypatch):
    """Which of the two runs is decided by the number of terms alone."""
    evaluate = lambda layer, params, x, species, *_: layer.apply(params, x, species)
    assert_both_ways_are_the_same(evaluate, l_max, correlation, monkeypatch)


SLOW = pytest.mark.slow  # to compile


@pytest.mark.parametrize(
    ("l_max", "correlation"),
    [(1, 3), *(pytest.param(*case, marks=SLOW) for case in ((1, 4), (2, 3), (2, 4)))],
)
def test_both_ways_to_contract_have_the_same_derivatives(l_max, correlation, monkeypatch):
    """To third order, forward and backward, and over members."""
    assert_both_ways_are_the_same(contracted, l_max, correlation, monkeypatch)


def assert_both_ways_are_the_same(evaluate, l_max, correlation, monkeypatch):
    """To 1e-12 of the largest number of a kind: the round-off of sums of some 1e4 terms."""
    from jaxmlip.nn import symmetric_contraction as contraction

    rng = np.random.default_rng(0)
    shapes = {(l, (-1) ** l): (5, 2 * l + 1, 3) for l in range(l_max + 1)}
    x, u, v = ({key: rng.normal(size=shape) for key, shape in shapes.items()} for _ in range(3))
    species = np.array([0, 1, 1, 0, 1])
    layer = SymmetricContraction(l_max, correlation, ((0, 1), (1, -1)), 2)
    params = layer.init(jax.random.key(0), x, species)
    found = []
    for limit in (0, 10**9):
        monkeypatch.setattr(contraction, "UNROLLED_TERMS", limit)
        found.append(jax.jit(partial(evaluate, layer))(params, x, species, u, v))
    for key, expected in found[1].items():
        scale = max(float(jnp.abs(b).max()) for b in jax.tree.leaves(expected))
        for a, b in zip(jax.tree.leaves(found[0][key]), jax.tree.leaves(expected), strict=True):
            assert_allclose(a, b, rtol=0, atol=1e-12 * scale, err_msg=key)


def test_polynomials_of_low_degree_do_not_depend_on_the_limit():
    everything, low = equivariant_polynomials(2, 4), equivariant_polynomials(2, 4, 1)
    assert set(low) == {key for key in everything if key[0] <= 1}
    for key in low:
        assert_allclose(low[key], everything[key], atol=0)


def test_gaussians_overlap_their_neighbours_alike():
    from jaxmlip.nn.radial import gaussians

    values = gaussians(np.linspace(0, 4.0, 5), 4.0, 5)
    assert_allclose(np.diag(values), 1.0)
    assert_allclose(np.diag(values, 1), np.exp(-0.5))


@pytest.mark.parametrize("charge, known", [(-1.0, True), (0.5, False), (-1.9, False), (2.0, False)])
def test_a_charge_that_the_table_does_not_hold_is_not_a_number(charge, known):
    system = replace(from_ase(Atoms("H"), None), charge=np.array([charge]))
    embedding = StateEmbedding((("charge", 4, 3, 1, False),), 2)  # charges -1, 0 and 1
    params = embedding.init(jax.random.key(0), system)
    assert np.isfinite(embedding.apply(params, system)).all() == known
