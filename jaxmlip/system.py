"""The one thing that flows: a batch of structures, and the doors between atoms and edges.

A `System` is always a batch (one structure is a batch of one) and a pytree without static
fields, so `jit` recompiles only when a padded shape changes. Every potential reaches its
neighbours through three doors, and no other way: `edge_vectors` (positions to edges), `to_edges`
(node values to edges) and `sum_edges` (edges to nodes). There padding is made safe, strain and
cell derivatives enter, and Bloch phases can be attached.

Conventions: Å, eV, e; cell rows are lattice vectors; an edge vector points from its sender to its
receiver, `positions[receivers] + shifts @ cell - positions[senders]`; messages sum at receivers.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.contractions import gather_rows

Array = jax.Array | np.ndarray
FAR = 100.0  # Å; where padded edges point: beyond any cutoff, so that envelopes and slopes are zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Edges:
    """Directed neighbour pairs, in one of two layouts told by the number of axes of `senders`.

    Per receiver: row i lists the senders of atom i, and sums over edges are reshapes. Flat: one
    row an edge, sorted by receiver; better when neighbour counts are very uneven.
    """

    senders: Array  # [n_atoms, k] or [n_edges] where a message starts
    receivers: Array | None  # None (the row) or [n_edges], sorted: where it is summed
    shifts: Array  # [..., 3] whole lattice vectors added to the receiver
    mask: Array  # [n_atoms, k] or [n_edges], False for padding
    halo: Any = None  # a `jaxmlip.parallel.Halo` where other devices own some of the senders
    images: Any = None  # `jaxmlip.images.Images` of the same pairs; who changes the pairs drops it


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class System:
    """A batch of structures. Padding atoms have number 0 and feel and exert nothing."""

    positions: Array  # [n_atoms, 3] Å, never wrapped inside a run
    numbers: Array  # [n_atoms] atomic number, 0 = padding
    graph: Array  # [n_atoms] index of the structure, sorted
    cell: Array  # [n_graphs, 3, 3] Å, rows are lattice vectors; missing ones are unit normals
    pbc: Array  # [n_graphs, 3] bool
    charge: Array  # [n_graphs] e
    spin: Array  # [n_graphs] multiplicity 2S+1
    field: Array  # [n_graphs, 3] external electric field, V/Å
    edges: Edges | None = None
    wave: Any = None  # a `jaxmlip.derivatives.bloch.matrix.Wave` while displacements carry phases

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[-2]

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[-3]

    @property
    def atom_mask(self) -> Array:
        """[n_atoms] True for real atoms."""
        return self.numbers > 0


# --- the three doors ---------------------------------------------------------------------------


def _receivers(system: System) -> Array:
    edges = system.edges
    if edges.receivers is not None:
        return edges.receivers
    return jnp.arange(edges.senders.shape[0])[:, None]


def _halo(system: System):
    return None if system.edges is None else system.edges.halo


def with_ghosts(system: System, nodes):
    """Node values [n_atoms, ...] (an array or a pytree), and after them those of the ghosts.

    Ghosts are the senders that another device owns; without a `halo` there are none. A program
    that reads the same values many times (blocks of atoms) calls this once, before its loop.
    """
    halo = _halo(system)
    return nodes if halo is None else halo.with_ghosts(nodes)


def edge_vectors(system: System) -> jax.Array:
    """Vectors from senders to receivers, [n_atoms, k, 3] or [n_edges, 3], Å.

    Padded edges are (FAR, FAR, FAR): the norm of a zero vector has a NaN gradient that no later
    mask can remove.
    """
    # jnp: a numpy array indexed by a traced one fails
    system = jax.tree.map(jnp.asarray, system)
    edges, receivers = system.edges, _receivers(system)
    shifts = _shift_vectors(system, receivers)
    flat = edges.receivers is not None
    starts, ends = (
        with_ghosts(system, system.positions),
        system.positions[receivers] if flat else system.positions[:, None],
    )
    vectors = ends + shifts - _sent(system, starts)
    return jnp.where(edges.mask[..., None], vectors, jnp.asarray(FAR, vectors.dtype))


def _shift_vectors(system, receivers):
    """The lattice vectors that the shifts of the edges are, [edge, 3]."""
    shifts = system.edges.shifts.astype(system.cell.dtype)
    if system.n_graphs == 1:  # without a copy of the cell for each atom: less to compile
        return jnp.matmul(shifts, system.cell[0], precision=jax.lax.Precision.HIGHEST)
    # a sum of three: small matrix products, one for each atom, are slow on CPU
    cell = system.cell[system.graph[receivers]]
    return sum(shifts[..., i, None] * cell[..., i, :] for i in range(3))


def to_edges(system: System, nodes):
    """Values of the sending atoms, [n_atoms, ...] -> [n_atoms, k, ...] or [n_edges, ...].

    Also for a pytree of values, which several devices then exchange in one message.
    """
    return jax.tree.map(lambda x: _sent(system, x), with_ghosts(system, nodes))


def _sent(system, x):
    x = jnp.asarray(x)
    return x[system.edges.senders] if system.wave is None else system.wave.sent(x, system.edges)


def at_receivers(system: System, nodes: Array) -> jax.Array:
    """Values of the receiving atoms, [n_atoms, ...] -> shape that broadcasts over edges.

    For what labels an atom (its species, its parameters), not for what its neighbours send.
    """
    return jnp.asarray(nodes)[_receivers(system)]


def mask_edges(system: System, values: Array) -> jax.Array:
    """Edge values with zeros for padded edges."""
    mask = system.edges.mask
    return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, 0)


def sum_edges(
    system: System, values: Array, factors: Array | None = None, *, masked: bool = False
) -> jax.Array:
    """Sum of edge values at their receivers, -> [n_atoms, ...]; padded edges count as zero.

    With `factors` a product is summed: values [edge, q, c] and factors [edge, q, m] give the sum
    over edges and q of c x m, [n_atoms, m, c]. Per receiver that is one batched matrix product,
    and c x m is never stored for all edges; flat edges do store it. masked: the factors, or the
    values if there are none, of padded edges are zero already.
    """
    edges, mask = system.edges, (lambda _, x: x) if masked else mask_edges
    if factors is not None:
        factors = mask(system, factors)
        if edges.receivers is None:
            rows = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])

            return gather_rows(rows(factors), rows(values))
        values = jnp.einsum("eqc,eqm->emc", values, factors)
    else:
        values = mask(system, values)
    if edges.receivers is None:
        return values.sum(1)
    return jax.ops.segment_sum(values, edges.receivers, system.n_atoms, indices_are_sorted=True)


# --- sums over the atoms of a structure ----------------------------------------------------------


def sum_atoms(system: System, values: Array) -> jax.Array:
    """Sum over the real atoms of each structure, [n_atoms, ...] -> [n_graphs, ...].

    No contended scatter (slow on GPU): a plain sum for one structure, a sum over the members of
    each while that is small. Where n_graphs times the numbers in `values` is beyond 2**24 (energies
    of 530 structures of 30 atoms) it is a sorted segment sum, and the atoms of a structure contend.
    A value that is not finite spoils its own structure and no other, and so does a slope that is
    not finite, backwards. Atoms of all devices are summed where the system is spread over several.
    """
    total = _sum_devices(system, _sum_own_atoms(system, values))
    return total if system.wave is None else system.wave.sum(total)


def _sum_devices(system, value):
    halo = _halo(system)
    return value if halo is None else halo.sum(value)


def _sum_own_atoms(system, values):
    mask = system.atom_mask.reshape(-1, *(1,) * (values.ndim - 1))
    values = jnp.where(mask, values, 0)
    n = system.n_graphs
    if n == 1:
        return values.sum(0, keepdims=True)
    if n * values.size > 2**24:
        return jax.ops.segment_sum(values, system.graph, n, indices_are_sorted=True)
    # a choice, not a product with the membership matrix: 0 x NaN is NaN, in the derivative too
    member = system.graph[None, :] == jnp.arange(n)[:, None]
    member = member.reshape(*member.shape, *(1,) * (values.ndim - 1))
    return jnp.where(member, values, 0).sum(1)


def sum_energies(system: System, energies: Array) -> jax.Array:
    """Sum of per-atom energies, [n_atoms] -> [n_graphs], safe for many atoms in float32.

    In float64 where JAX has it; else the summands are split at a common power of two, so that
    the leading parts add without rounding.
    """
    if jax.config.jax_enable_x64:
        return sum_atoms(system, energies.astype(jnp.float64))
    energies = jnp.where(system.atom_mask, energies, 0)
    sizes = jnp.where(jnp.isfinite(energies), jnp.abs(energies), 0)
    bound = _sum_devices(system, jax.lax.stop_gradient(sizes.max()) * system.n_atoms)
    largest = jnp.maximum(bound, 1e-30)
    # the power of two next to it
    quantum = jax.lax.reduce_precision(largest, exponent_bits=8, mantissa_bits=0) * 2.0**-22
    leading = jax.lax.stop_gradient(jnp.round(energies / quantum) * quantum)
    return sum_atoms(system, jnp.stack([leading, energies - leading], -1)).sum(-1)


# --- new systems from old ------------------------------------------------------------------------


def strain(system: System, epsilon: Array) -> System:
    """The system under a homogeneous strain [n_graphs, 3, 3]: r -> r (1 + epsilon), cell alike."""
    product = lambda x, y: jnp.einsum("...a,...ab->...b", x, y, precision=jax.lax.Precision.HIGHEST)
    of_atoms = epsilon[0] if system.n_graphs == 1 else epsilon[system.graph]
    moved = system.positions + product(system.positions, of_atoms)
    cell = system.cell + product(system.cell, epsilon[:, None])
    return replace(system, positions=moved, cell=cell)


def cast(tree, dtype):
    """Every floating leaf of a pytree (params, system) in another precision.

    Asking for float64 without jax_enable_x64 raises `PrecisionError`: JAX would truncate silently.
    """
    from jaxmlip.errors import check_dtype

    check_dtype(dtype)

    def convert(x):
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, dtype) if floating else x

    return jax.tree.map(convert, tree)


def ladder(n: int) -> int:
    """The smallest size >= n of a geometric ladder (about x 1.25): few sizes, few compilations."""
    size = 1
    while size < n:
        size = max(size + 1, -(-size * 5 // 4))
    return size


def concatenate(systems) -> System:
    """One batch of several systems (host, numpy); per-receiver edges are padded to the widest."""
    systems = [jax.tree.map(np.asarray, s) for s in systems]
    atoms = np.cumsum([0] + [s.n_atoms for s in systems[:-1]])
    graphs = np.cumsum([0] + [s.n_graphs for s in systems[:-1]])
    joined = {
        name: np.concatenate([getattr(s, name) for s in systems])
        for name in ("positions", "numbers", "cell", "pbc", "charge", "spin", "field")
    }
    graph = np.concatenate([s.graph + g for s, g in zip(systems, graphs, strict=True)])
    return System(
        **joined,
        graph=graph.astype(np.int32),
        edges=_concatenate_edges([s.edges for s in systems], atoms),
    )


def _concatenate_edges(edges, offsets):
    if any(e is None for e in edges):
        return None
    _check_whole(*edges)
    edges = [replace(e, images=None) for e in edges]
    if edges[0].receivers is None:
        width = max(e.senders.shape[1] for e in edges)
        edges = [_widen(e, width) for e in edges]
    moved = [
        replace(
            e,
            senders=np.where(e.mask, e.senders + o, o),
            receivers=None if e.receivers is None else e.receivers + o,
        )
        for e, o in zip(edges, offsets, strict=True)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *moved)


def _check_whole(*edges):
    if any(e.halo is not None for e in edges):
        raise ValueError("the system is spread over devices: pad or join it before decompose()")


def _widen(edges: Edges, width: int) -> Edges:
    extra = width - edges.senders.shape[1]
    fill = lambda x: np.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
    return jax.tree.map(fill, edges)


def pad(system: System, *, n_atoms=None, n_graphs=None, n_neighbors=None, n_edges=None) -> System:
    """The system in larger arrays (host, numpy); what is added feels and exerts nothing.

    Added atoms have number 0 and belong to the last structure (an added, empty one if `n_graphs`
    grows). `n_neighbors` widens per-receiver edges, `n_edges` lengthens flat ones. Sizes smaller
    than what is there raise `ValueError`: nothing is ever cut.
    """
    system = jax.tree.map(np.asarray, system)
    atoms = (n_atoms or system.n_atoms) - system.n_atoms
    graphs = (n_graphs or system.n_graphs) - system.n_graphs
    if min(atoms, graphs) < 0:
        raise ValueError(
            f"cannot pad {system.n_atoms} atoms in {system.n_graphs} structures "
            f"to {n_atoms} atoms in {n_graphs}"
        )
    grow = lambda x, n: np.pad(x, [(0, n)] + [(0, 0)] * (x.ndim - 1))
    eye = np.broadcast_to(np.eye(3, dtype=system.cell.dtype), (graphs, 3, 3))
    last = system.n_graphs + graphs - 1
    return System(
        positions=grow(system.positions, atoms),
        numbers=grow(system.numbers, atoms),
        graph=np.concatenate([system.graph, np.full(atoms, last, system.graph.dtype)]),
        cell=np.concatenate([system.cell, eye]),
        pbc=grow(system.pbc, graphs),
        charge=grow(system.charge, graphs),
        spin=np.concatenate([system.spin, np.ones(graphs, system.spin.dtype)]),
        field=grow(system.field, graphs),
        edges=_pad_edges(system.edges, atoms, system.n_atoms + atoms, n_neighbors, n_edges),
    )


def _pad_edges(edges, atoms, total, n_neighbors, n_edges):
    if edges is None:
        return None
    _check_whole(edges)
    edges = replace(edges, images=None)
    size, wanted = edges.senders.shape[-1], n_edges
    if edges.receivers is None:
        wanted = n_neighbors
    if wanted is not None and wanted < size:
        raise ValueError(f"cannot pad edges of size {size} to {wanted}")
    if edges.receivers is None:
        rows = lambda x: np.pad(x, [(0, atoms)] + [(0, 0)] * (x.ndim - 1))
        return _widen(jax.tree.map(rows, edges), wanted or size)
    extra = (wanted or size) - size
    grow = lambda x, v=0: np.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1), constant_values=v)
    return Edges(
        senders=grow(edges.senders, total - 1),
        receivers=grow(edges.receivers, total - 1),
        shifts=grow(edges.shifts),
        mask=grow(edges.mask),
    )


def supercell(system: System, repeats) -> System:
    """A repeats[0] x repeats[1] x repeats[2] copy of one structure, without edges (host, numpy).

    Atoms run fastest inside a copy; charge is multiplied by the number of copies.
    """
    if system.n_graphs != 1:
        raise ValueError(f"supercell takes one structure, got a batch of {system.n_graphs}")
    repeats = np.asarray(repeats, int)
    periodic = np.asarray(system.pbc)[0]
    if (repeats < 1).any() or (repeats[~periodic] > 1).any():
        raise ValueError(
            f"repeats must be >= 1, and 1 along open axes: got {repeats.tolist()} "
            f"for pbc {periodic.tolist()}"
        )
    copies = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    cell = np.asarray(system.cell)[0]
    positions = (np.asarray(system.positions)[None] + (copies @ cell)[:, None]).reshape(-1, 3)
    n = len(copies)
    return replace(
        system,
        positions=positions.astype(cell.dtype),
        numbers=np.tile(system.numbers, n),
        graph=np.zeros(n * system.n_atoms, np.int32),
        charge=np.asarray(system.charge) * n,
        cell=(cell * repeats[:, None])[None].astype(cell.dtype),
        edges=None,
    )
