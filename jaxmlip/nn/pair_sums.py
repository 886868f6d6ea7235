"""Energies of pair potentials and their slopes, in one pass over blocks of atoms that fit a cache.

Autodiff would make an array for all pairs of each step of the arithmetic, and XLA for CPU would
compute lengths and slopes again in every loop that reads them; both take several times as long as
the pairs themselves. So energies and first derivatives are written out here. Derivatives of these
are those of the plain way, by autodiff with `nn.mutual`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxmlip.images import placed
from jaxmlip.nn.blocks import in_blocks
from jaxmlip.nn.mutual import mutual_differences
from jaxmlip.system import FAR, Array, System

BLOCK = 2**20  # bytes that are done at once on a CPU


def pair_energies(system: System, function, tables) -> Array:
    """[n_atoms] energies whose sum over a structure is right in every derivative, those of single
    atoms only in value. For edges per receiver, all atoms at hand.

    function: (squared lengths, tables) -> energy of a directed edge, elementwise; it vanishes for
    padded edges (of length FAR). tables: pytree of [n_atoms, k] or numbers, constants: there is no
    derivative by them.
    """
    system = jax.tree.map(jnp.asarray, system)
    cells = system.cell if system.n_graphs == 1 else system.cell[system.graph]
    return _energies(function, system.positions, cells, (system.edges, tables))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _energies(function, positions, cells, fixed):
    return _slopes(function, positions, cells, fixed)[0]


@_energies.defjvp
def _energies_jvp(function, primals, tangents):
    energies, forces, virials = _slopes(function, *primals)
    dx, dcells, _ = tangents
    return energies, (forces * dx).sum(-1) + (virials * dcells).sum((-1, -2))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slopes(function, positions, cells, fixed):
    """Energies [n], their slopes with positions [n, 3] and with the cells of atoms [n, 3, 3].

    cells: [n, 3, 3], or [1, 3, 3] if they are all one.
    """
    edges, tables = fixed
    columns, build = _numbers_apart(tables)
    ends, arrays = (_by_shifts if edges.images is None else _by_images)(edges, positions, cells)
    of_rows = lambda rows: _of_rows(function, *ends(rows[0]), build(rows[1]))
    size = _rows(*edges.senders.shape, positions.dtype.itemsize)
    return in_blocks(of_rows, (arrays, columns), rows=size)


def _rows(n, k, itemsize):
    """Rows of a block; all at once where sizes are not known, or not on a CPU."""
    if jax.default_backend() != "cpu" or not (isinstance(n, int) and isinstance(k, int)):
        return n
    a_row = 8 * max(k, 1) * itemsize  # what is made for each pair
    return min(n, max(1, BLOCK // a_row))


def _numbers_apart(tables):
    """The leaves of tables that differ from pair to pair, and what makes the tables of them."""
    leaves, structure = jax.tree.flatten(tables)
    columns = {i: x for i, x in enumerate(leaves) if jnp.ndim(x)}
    build = lambda columns: structure.unflatten([columns.get(i, x) for i, x in enumerate(leaves)])
    return columns, build


def _by_shifts(edges, positions, cells):
    """(rows -> (vectors, squared lengths, whole lattice vectors along axis i, integers), the rows
    of all atoms). Vectors are three arrays [rows, k], anything finite for padding.
    """
    axes = positions.T

    def ends(rows):
        own, cells, senders, shifts, mask = rows
        differences = [own[:, None, i] - x[senders] for i, x in enumerate(axes)]
        vectors = _vectors(differences, cells, shifts, mask)
        return vectors, _squared(vectors), lambda i: shifts[..., i], senders

    cells = _of_atoms(cells, positions)
    return ends, (positions, cells, edges.senders, edges.shifts, edges.mask)


def _of_atoms(cells, positions):
    return jnp.broadcast_to(cells, (len(positions), 3, 3))


def _by_images(edges, positions, cells):
    """The same with the periodic images placed once, before the pairs."""
    images = edges.images
    own, there = placed(images, positions, cells)

    def ends(rows):
        own, home, index = rows
        vectors = [own[:, None, i] - x[index] for i, x in enumerate(there)]
        squares = jnp.where(index > 0, _squared(vectors), 3 * FAR**2)
        shift = lambda i: home[:, None, i] - images.shifts[:, i][index]
        return vectors, squares, shift, index

    return ends, (own, images.home, images.index)


def _squared(vectors):
    return sum(v**2 for v in vectors)


def _of_rows(function, vectors, squares, shift, integers, tables):
    once = partial(_once, integers=integers)
    squares = once(squares)
    energies, slope = jax.vjp(lambda x: function(x, tables), squares)
    (slopes,) = slope(jnp.ones_like(squares))
    slopes = 2 * once(slopes)
    along = [slopes * v for v in vectors]
    virials = [[(a * shift(i)).sum(1) for a in along] for i in range(3)]
    virials = jnp.stack([jnp.stack(v, -1) for v in virials], 1)
    return energies.sum(1), 2 * jnp.stack([a.sum(1) for a in along], -1), virials


def _vectors(differences, cells, shifts, mask):
    """Axes of the vectors of edges, [rows, k] each."""
    cells = cells[:, None]
    moved = lambda axis: sum(
        shifts[..., i].astype(cells.dtype) * cells[..., i, axis] for i in range(3)
    )
    far = jnp.asarray(FAR, cells.dtype)
    return [jnp.where(mask, d + moved(axis), far) for axis, d in enumerate(differences)]


def _once(x, integers):
    """x, computed once and kept. XLA for CPU would do so in each fused loop that reads it; it looks
    through a loop only if it knows the number of turns. No index is negative: there is none.
    """
    if jax.default_backend() != "cpu" or integers.size == 0:
        return x
    turns = lambda state: state[1] < 0
    return jax.lax.while_loop(turns, lambda s: (-s[0], s[1] + 1), (x, integers[0, 0]))[0]


@_slopes.defjvp
def _slopes_jvp(function, primals, tangents):
    positions, cells, fixed = primals
    plain = jax.value_and_grad(partial(_plain, function, fixed), argnums=(0, 1), has_aux=True)

    def slopes(positions, cells):
        (_, energies), (forces, virials) = plain(positions, _of_atoms(cells, positions))
        return energies, forces, virials

    return jax.jvp(slopes, (positions, cells), tuple(tangents[:2]))


def _plain(function, fixed, positions, cells):
    """The sum of energies, all pairs at once; and the energies."""
    edges, tables = fixed
    differences = [mutual_differences(x, edges.senders) for x in positions.T]
    vectors = _vectors(differences, cells, edges.shifts, edges.mask)
    energies = function(_squared(vectors), tables).sum(1)
    return energies.sum(), energies
