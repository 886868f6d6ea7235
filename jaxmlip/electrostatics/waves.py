"""Structure factors as matrix products, and the energy of the smooth part of a kernel.

The phase exp(i k.r) of an integer wavevector is a product of one factor per axis, so that
sum_i w_i exp(i k.r_i) for the whole box of k is a product of two matrices: the factors of x and y
of all atoms, and those of z with the weights. Cosines and sines of each axis (not complex numbers)
give all signs of k from one octant of the box.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.system import System

HIGHEST = jax.lax.Precision.HIGHEST
ELEMENTS = 2**21  # of the left matrix at once
SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # of the y and z components


def fractions(positions, cell):
    """Fractional coordinates [..., n, 3] of the home cell, in -1/2 ... 1/2."""
    inverse = jnp.linalg.inv(cell)
    f = jnp.einsum("...na,...ab->...nb", positions, inverse, precision=HIGHEST)
    return f - jax.lax.stop_gradient(jnp.round(f))


def octants(f, weights, box):
    """[..., 2, 2, 2, nx, ny, nz]: sums over atoms of weights and (cos or sin) of each axis.

    f [..., n, 3] fractions, weights [..., n]; 2: cosine and sine; nx = box[0] + 1 ...
    """
    rows = 4 * (box[0] + 1) * (box[1] + 1) * max(1, f[..., 0, 0].size)
    n = f.shape[-2]
    chunk = max(1, min(n, ELEMENTS // rows))
    if chunk == n:
        return _octants(f, weights, box)
    extra = -n % chunk
    split = lambda x, rank: jnp.moveaxis(
        jnp.pad(x, [(0, 0)] * (x.ndim - rank) + [(0, extra)] + [(0, 0)] * (rank - 1)).reshape(
            *x.shape[: x.ndim - rank], -1, chunk, *x.shape[x.ndim - rank + 1 :]
        ),
        -rank - 1,
        0,
    )
    parts = split(f, 2), split(weights, 1)
    some = jax.checkpoint(lambda total, x: (total + _octants(*x, box), None))
    shape = jax.eval_shape(lambda x: _octants(x[0][0], x[1][0], box), parts)
    return jax.lax.scan(some, jnp.zeros(shape.shape, shape.dtype), parts)[0]


def _octants(f, weights, box):
    x, y, z = (_factors(f[..., i], box[i]) for i in range(3))
    z = z * weights[..., None, None]
    left = x[..., :, None, :, None] * y[..., None, :, None, :]
    sums = jnp.einsum("...npqxy,...nrz->...pqrxyz", left, z, precision=HIGHEST)
    return sums


def _factors(f, largest):
    """cos and sin of 2 pi m f for m = 0 ... largest, [..., 2, largest + 1]."""
    turns = f[..., None] * jnp.arange(largest + 1, dtype=f.dtype)
    turns = turns - jax.lax.stop_gradient(jnp.round(turns))
    angle = 2 * jnp.pi * turns
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -2)


def _signs_of_products() -> np.ndarray:
    """[2, 4, 8]: cosine and sine of x +- y +- z from products of the cosines and sines of each."""
    table = np.zeros((2, 4, 2, 2, 2))
    for p, q, r in np.ndindex(2, 2, 2):
        for which, (s, t) in enumerate(SIGNS):
            factor = 1j**p * (1j * s) ** q * (1j * t) ** r
            table[:, which, p, q, r] = factor.real, factor.imag
    return table.reshape(2, 4, 8)


def signed(sums):
    """Cosine and sine sums for the four signs of (y, z), [2, ..., 4, nx, ny, nz]."""
    table = jnp.asarray(_signs_of_products(), sums.dtype)
    products = sums.reshape(*sums.shape[:-6], 8, *sums.shape[-3:])
    return jnp.einsum("tso,...oxyz->t...sxyz", table, products, precision=HIGHEST)


def wavevectors(cell, box):
    """Integers [4, nx, ny, nz, 3] and how often each stands for itself and its opposite."""
    dtype = cell.dtype
    m = jnp.stack(jnp.meshgrid(*(jnp.arange(n + 1, dtype=dtype) for n in box), indexing="ij"), -1)
    signs = jnp.asarray([(1, s, t) for s, t in SIGNS], dtype)
    once = jnp.where(m == 0, 0.5, 1.0).prod(-1)  # zeros have no sign
    return signs[:, None, None, None] * m, once


def structure_factors(system: System, positions, charges, dipoles, cell, box):
    """Cosine and sine sums of charges and dipoles, two [n_graphs, 4, nx, ny, nz]."""
    sums = lambda r, w: octants(fractions(r, cell), w, box)
    total = (
        sums(positions, charges)
        if dipoles is None
        else _with_dipoles(sums, positions, charges, dipoles)
    )
    total = _of_all_devices(system, total)
    return signed(total if system.wave is None else system.wave.sum(total))


def _with_dipoles(sums, positions, charges, dipoles):
    """q + mu.grad is a derivative along (weight, position), at weights of one."""
    ones = jnp.ones_like(charges)
    return jax.jvp(sums, (positions, ones), (dipoles, charges))[1]


def _of_all_devices(system, total):
    halo = None if system.edges is None else system.edges.halo
    return total if halo is None else halo.sum(total)


def wave_response(system: System, positions, charges, dipoles, cell, box, transform):
    """Energy that is zero, and whose second derivative along a wave of displacements is not.

    Displacements with the wavevector q change the structure factor at k + q to first order, where
    it is otherwise zero: D(q) gets G(k+q) (dS/dr_a)* (dS/dr_b) with S = sum_i q_i
    exp(-i (k+q).r_i). `wave.seen` is zero but for the derivative along the wave.
    """
    wave = system.wave
    q = jnp.where(system.pbc[0], wave.q - jnp.round(wave.q), 0).astype(cell.dtype)
    box = tuple(n + 1 for n in box)
    sums = lambda r, w: _shifted(r, w, q, cell, box)
    total = (
        sums(positions, charges)
        if dipoles is None
        else _with_dipoles(sums, positions, charges, dipoles)
    )
    c, s = total = _of_all_devices(system, total)
    (c_seen, s_seen), c_turned = wave.seen(total), wave.seen(c, turned=True)
    m, often = wavevectors(cell, box)
    weights = often / 2 * jnp.moveaxis(transform(jnp.stack([m, -m]) + q), 1, 0)
    energy = weights * (c * c_seen + s * s_seen + 2 * s * c_turned)
    partial_wave = jnp.any(q != 0)  # else the sum over k has it all
    energy = jnp.moveaxis(energy, 0, 1)
    return jnp.where(partial_wave, energy.reshape(len(cell), -1).sum(-1), 0)


def _shifted(positions, weights, q, cell, box):
    """Cosine and sine sums at k + q and -k + q, [2, 2, n_graphs, 4, nx, ny, nz]."""
    inverse = jnp.linalg.inv(cell)
    angle = 2 * jnp.pi * jnp.einsum("gna,gab,b->gn", positions, inverse, q, precision=HIGHEST)
    f = fractions(positions, cell)
    both = jnp.stack([weights * jnp.cos(angle), weights * jnp.sin(angle)])
    c, s = signed(jax.vmap(lambda w: octants(f, w, box))(both))
    cosines = jnp.stack([c[0] - s[1], c[0] + s[1]])
    sines = jnp.stack([c[1] + s[0], c[1] - s[0]])
    return jnp.stack([cosines, sines])
