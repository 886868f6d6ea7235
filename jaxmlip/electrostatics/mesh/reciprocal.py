"""The smooth part on a mesh: E = 1/(2V) sum over k of G(k) |rho_k|², rho spread by B-splines.

One quadratic form, so derivatives are one more transform and a gather, and energy is conserved
exactly; momentum is to the accuracy of the mesh. (Smooth PME, Essmann et al. 1995,
10.1063/1.470117; P3M, Hockney and Eastwood 1988: they differ in the factors alone.)
"""

from math import pi, prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlip.electrostatics.mesh.splines import below, frequencies, weights
from jaxmlip.system import System

BLOCK = 2**18  # mesh contributions (atoms x order³) held at once: a few MB, within the cache
EDGE = 8  # mesh points along an edge of the boxes by which atoms are sorted


def reciprocal_cell(cell):
    """Rows b_i with a_i . b_j = 1 for i = j, else 0, and the volume; any handedness."""
    a, b, c = cell[..., 0, :], cell[..., 1, :], cell[..., 2, :]
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], -2)
    volume = (a * rows[..., 0, :]).sum(-1)
    return rows / volume[..., None, None], jnp.abs(volume)


def mesh_energy(plan, system: System, charges, dipoles=None) -> jax.Array:
    """Energy of the smooth part, with all charges with themselves, [n_graphs]."""
    reciprocal, volume = reciprocal_cell(system.cell)
    density = spread(plan, system, reciprocal, charges, dipoles)
    waves = jnp.fft.rfftn(density, axes=(1, 2, 3))
    power = waves.real**2 + waves.imag**2
    return 0.5 * _sum(influence(plan, reciprocal) * power) / volume


def _sum(values):
    """[n_graphs, ...] -> [n_graphs]; short sums round less."""
    wide = jnp.float64 if jax.config.jax_enable_x64 else values.dtype
    return values.sum(-1).sum(-1).astype(wide).sum(-1)


def influence(plan, reciprocal):
    """G(k): 4 pi/k² of the smooth part, what undoes the spreading, and the other half of k."""
    nx, ny, nz = plan.shape
    axes = [frequencies(nx), frequencies(ny), np.arange(nz // 2 + 1.0)]
    factors = [plan.factors(n, plan.order) for n in plan.shape]
    factors[2] = factors[2][: nz // 2 + 1] * _both_halves(nz)
    wide = lambda x, axis: np.expand_dims(x, [i for i in range(3) if i != axis])
    m = [jnp.asarray(wide(x, i), reciprocal.dtype) for i, x in enumerate(axes)]
    k = [
        2 * pi * sum(m[i] * reciprocal[:, i, b, None, None, None] for i in range(3))
        for b in range(3)
    ]
    k2 = sum(x * x for x in k)
    zero = (m[0] == 0) & (m[1] == 0) & (m[2] == 0)
    k2 = jnp.where(zero, 1.0, k2)
    value = jnp.where(zero, 0.0, 4 * pi * plan.split.transform(k2) / k2)
    for i, factor in enumerate(factors):
        value = value * jnp.asarray(wide(factor, i), value.dtype)
    return value


def _both_halves(n):
    often = np.full(n // 2 + 1, 2.0)
    often[0] = 1.0
    if n % 2 == 0:
        often[-1] = 1.0
    return often


# --- from atoms to the mesh ----------------------------------------------------------------------


def spread(plan, system: System, reciprocal, charges, dipoles=None) -> jax.Array:
    """Charges (and dipoles) on the mesh of each structure, [n_graphs, nx, ny, nz].

    A dipole is the derivative of a unit charge along it.
    """
    axes = reciprocal[system.graph]
    at = lambda positions, q: _spread(plan, system, _fractions(axes, positions), q)
    density = at(system.positions, charges)
    if dipoles is not None:
        unit = lambda positions: at(positions, jnp.ones_like(charges))
        density = density + jax.jvp(unit, (system.positions,), (dipoles,))[1]
    return density


def _fractions(axes, positions):
    return jnp.einsum("nia,na->ni", axes, positions, precision=lax.Precision.HIGHEST)


def _spread(plan, system, fractions, charges):
    """In blocks of neighbouring atoms: they and their part of the mesh then stay in the cache."""
    n, block = len(charges), max(1, BLOCK // plan.order**3)
    padded = plan.shape[:2] + (plan.shape[2] + plan.order - 1,)
    empty = jnp.zeros(system.n_graphs * prod(padded), fractions.dtype)
    atoms = fractions, charges, system.graph
    if n <= block:
        return _fold(plan, _deposit(plan, empty, *atoms))
    order = _by_boxes(plan, system, fractions)
    atoms = [x.at[order].get(unique_indices=True, mode="promise_in_bounds") for x in atoms]
    count = -(-n // block)
    size = -(-n // count)
    extra = count * size - n
    grow = lambda x: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))
    blocks = [grow(x).reshape(count, size, *x.shape[1:]) for x in atoms]
    step = jax.checkpoint(lambda mesh, atoms: (_deposit(plan, mesh, *atoms), None))
    return _fold(plan, lax.scan(step, empty, blocks)[0])


def _by_boxes(plan, system, fractions):
    """Indices of the atoms, box by box of the mesh, [n_atoms]: one sort of box x n + index."""
    n, edge = len(fractions), EDGE
    boxes = lambda: [-(-points // edge) for points in plan.shape]
    while prod(boxes()) * system.n_graphs * n >= 2**32 and edge < max(plan.shape):
        edge *= 2
    if system.n_graphs * n >= 2**32:
        return jnp.arange(n)
    inside = lax.stop_gradient(fractions - jnp.floor(fractions))
    inside = jnp.where(inside < 1, inside, 0)  # NaN has no box, and every atom must have one
    size = jnp.asarray(boxes(), fractions.dtype)
    place = jnp.minimum(jnp.floor(inside * size), size - 1).astype(jnp.uint32)
    box = system.graph.astype(jnp.uint32)
    for axis, count in enumerate(boxes()):
        box = box * np.uint32(count) + place[:, axis]
    return (jnp.sort(box * np.uint32(n) + jnp.arange(n, dtype=jnp.uint32)) % n).astype(jnp.int32)


def _deposit(plan, mesh, fractions, charges, graph):
    """mesh [all points] plus charges; rows along z are contiguous and end in order - 1 extra."""
    nx, ny, nz = plan.shape
    first, offset = below(fractions * jnp.asarray(plan.shape, fractions.dtype))
    x, y, z = jnp.moveaxis(weights(offset, plan.order), 1, 0)
    support = jnp.arange(plan.order, dtype=jnp.int32)
    ix = (first[:, 0, None] + support) % nx
    iy = (first[:, 1, None] + support) % ny
    column = (graph[:, None] * nx + ix)[:, :, None] * ny + iy[:, None, :]
    start = column * (nz + plan.order - 1) + (first[:, 2] % nz)[:, None, None]
    values = (charges[:, None] * x)[:, :, None, None] * (y[:, :, None] * z[:, None, :])[:, None]
    return lax.scatter_add(
        mesh,
        start.reshape(-1, 1),
        values.reshape(-1, plan.order),
        lax.ScatterDimensionNumbers((1,), (), (0,)),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def _fold(plan, mesh):
    """[all points] -> [n_graphs, nx, ny, nz], what lies beyond the end of z added to its start."""
    nx, ny, nz = plan.shape
    mesh = mesh.reshape(-1, nx, ny, nz + plan.order - 1)
    beyond = plan.order - 1
    return mesh[..., :nz].at[..., :beyond].add(mesh[..., nz:])
