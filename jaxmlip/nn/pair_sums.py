"""Energies of pair potentials and their slopes, in one pass over blocks of atoms that fit a cache.

Autodiff would make an array for all pairs of each step of the arithmetic, and XLA for CPU would
compute lengths and slopes again in every loop that reads them; both take several times as long as
the pairs themselves. So energies and first derivatives are written out here. Derivatives of these
are those of the plain way, by autodiff with `nn.mutual`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxmlip.nn.blocks import in_blocks
from jaxmlip.nn.mutual import mutual_differences
from jaxmlip.system import FAR, Array, System

WHOLE, BLOCK = 2**25, 2**20  # bytes that are done at once, and of a block where there are more


def pair_energies(system: System, function, tables) -> Array:
    """[n_atoms] energies whose sum over a structure is right in every derivative, those of single
    atoms only in value. For edges per receiver, all atoms at hand.

    function: (squared lengths, tables) -> energy of a directed edge, elementwise; it vanishes for
    padded edges (of length FAR). tables: pytree of [n_atoms, k] or numbers, constants: there is no
    derivative by them.
    """
    system = jax.tree.map(jnp.asarray, system)
    edges, cells = system.edges, system.cell[system.graph]
    fixed = edges.senders, edges.shifts, edges.mask, tables
    return _energies(function, system.positions, cells, fixed)


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
    """Energies [n], their slopes with positions [n, 3] and with the cells of atoms [n, 3, 3]."""
    columns, build = _numbers_apart(fixed[3])
    of_rows = lambda rows: _of_rows(function, positions, (*rows[:-1], build(rows[-1])))
    arrays = (positions, cells, *fixed[:3], columns)
    return in_blocks(of_rows, arrays, rows=_rows(*fixed[0].shape, positions.dtype.itemsize))


def _rows(n, k, itemsize):
    """Rows of a block; all at once where sizes are not known, or not on a CPU."""
    if jax.default_backend() != "cpu" or not (isinstance(n, int) and isinstance(k, int)):
        return n
    a_row = 8 * max(k, 1) * itemsize  # what is made for each pair
    return n if n * a_row <= WHOLE else max(1, BLOCK // a_row)


def _numbers_apart(tables):
    """The leaves of tables that differ from pair to pair, and what makes the tables of them."""
    leaves, structure = jax.tree.flatten(tables)
    columns = {i: x for i, x in enumerate(leaves) if jnp.ndim(x)}
    build = lambda columns: structure.unflatten([columns.get(i, x) for i, x in enumerate(leaves)])
    return columns, build


def _of_rows(function, positions, rows):
    own, cells, senders, shifts, mask, tables = rows
    differences = [own[:, None, axis] - positions[:, axis][senders] for axis in range(3)]
    vectors = _vectors(differences, cells, shifts, mask)
    once = partial(_once, senders=senders)
    squares = once(sum(v**2 for v in vectors))
    energies, slope = jax.vjp(lambda x: function(x, tables), squares)
    (slopes,) = slope(jnp.ones_like(squares))
    slopes = 2 * once(slopes)
    along = [slopes * v for v in vectors]
    virials = [[(a * shifts[..., i]).sum(1) for a in along] for i in range(3)]
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


def _once(x, senders):
    """x, computed once and kept. XLA for CPU would do so in each fused loop that reads it; it looks
    through a loop only if it knows the number of turns. No index is negative: there is none.
    """
    if jax.default_backend() != "cpu" or senders.size == 0:
        return x
    turns = lambda state: state[1] < 0
    return jax.lax.while_loop(turns, lambda s: (-s[0], s[1] + 1), (x, senders[0, 0]))[0]


@_slopes.defjvp
def _slopes_jvp(function, primals, tangents):
    positions, cells, fixed = primals
    plain = jax.value_and_grad(partial(_plain, function, fixed), argnums=(0, 1), has_aux=True)

    def slopes(positions, cells):
        (_, energies), (forces, virials) = plain(positions, cells)
        return energies, forces, virials

    return jax.jvp(slopes, (positions, cells), tuple(tangents[:2]))


def _plain(function, fixed, positions, cells):
    """The sum of energies, all pairs at once; and the energies."""
    senders, shifts, mask, tables = fixed
    differences = [mutual_differences(positions[:, axis], senders) for axis in range(3)]
    vectors = _vectors(differences, cells, shifts, mask)
    energies = function(sum(v**2 for v in vectors), tables).sum(1)
    return energies.sum(), energies
