"""From a system with edges to the same system in domains, and results back (host, numpy).

Arrays of atoms become [n_domains * capacity, ...], domain after domain; receivers, senders and
rows to send count inside their domain, senders beyond its capacity are ghosts. Nothing is searched
or wrapped: the edges of the given system are dealt out, so every edge is computed on one device.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.parallel.domains import choose_grid, domains_of
from jaxmlip.parallel.ghosts import link, padded, rank_in_group
from jaxmlip.potential import PER_ATOM
from jaxmlip.system import Edges, System


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """A system spread over domains, and how its atoms got there."""

    system: System  # atoms in domains; its edges carry a `Halo`
    rows: np.ndarray  # [n_atoms of the original] where in `system` each atom is, -1 for padding
    atoms: np.ndarray  # [n_domains] real atoms
    edges: np.ndarray  # [n_domains] real edges
    ghosts: np.ndarray  # [n_rounds, n_domains] atoms that each domain receives, without padding


def decompose(
    system: System, n_domains: int, *, grid=None, owner=None, like: Decomposition | None = None
) -> Decomposition:
    """The system in `n_domains` domains, one for each device.

    grid: domains along the axes of the cell (default `choose_grid`); owner: the domain of each
    atom, [n_atoms] (default `domains_of`; it decides about speed, never about results). like: an
    earlier decomposition whose padded sizes are kept where they suffice, so that nothing is
    compiled anew. Raises `UsageError` for a system without edges, or fewer atoms than domains.
    """
    _check(system, n_domains, like)
    grid = _grid(system, n_domains, grid, like)
    owner = _owner(system, grid, owner)
    atoms = np.bincount(owner[owner >= 0], minlength=n_domains)
    capacity = padded(atoms, like.system.n_atoms // n_domains if like else 0)
    local = rank_in_group(owner)
    rows = np.where(owner >= 0, owner * capacity + local, -1)
    senders, receivers = _real_pairs(system.edges)
    kept = like.system.edges.halo if like else None
    halo, index, ghosts = link(
        owner, local, senders, receivers, grid=grid, capacity=capacity, kept=kept
    )
    deal = _deal_rows if system.edges.receivers is None else _deal_flat
    edges = replace(deal(system.edges, owner, local, index, capacity, n_domains, like), halo=halo)
    return Decomposition(
        system=replace(_deal_atoms(system, rows, n_domains * capacity), edges=edges),
        rows=rows,
        atoms=atoms,
        edges=np.bincount(owner[receivers], minlength=n_domains),
        ghosts=ghosts,
    )


def restore(parts: Decomposition, prediction: dict) -> dict:
    """A prediction for `parts.system` in the order of the original atoms; padding gets 0.

    For other arrays there is `from_domains`, which reorders the first axis.
    """
    return {
        name: from_domains(parts, value) if name in PER_ATOM else value
        for name, value in prediction.items()
    }


def from_domains(parts: Decomposition, values):
    """Values of the atoms in domains -> in the order of the original atoms; padding gets 0."""
    mask = (parts.rows >= 0).reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(mask, jnp.asarray(values)[np.maximum(parts.rows, 0)], 0)


def to_domains(parts: Decomposition, values):
    """Values of the original atoms [n_atoms, ...] -> in domains; padding gets 0."""
    real = parts.rows >= 0
    out = jnp.zeros((parts.system.n_atoms, *values.shape[1:]), values.dtype)
    return out.at[parts.rows[real]].set(jnp.asarray(values)[real])


def _grid(system, n_domains, grid, like):
    if grid is None:
        grid = like.system.edges.halo.grid if like else choose_grid(system, n_domains)
    grid = tuple(int(n) for n in grid)
    if len(grid) != 3 or int(np.prod(grid)) != n_domains:
        raise UsageError(f"a grid of {grid} has not {n_domains} domains", where="decompose")
    return grid


def _owner(system, grid, owner):
    """[n_atoms] domain of each atom, -1 for padding."""
    if owner is None:
        return domains_of(system, grid)
    owner, n_domains = np.asarray(owner), int(np.prod(grid))
    real = np.asarray(system.numbers) > 0
    if owner.shape != real.shape or ((owner < 0) | (owner >= n_domains))[real].any():
        raise UsageError(
            f"owner must give each of {len(real)} atoms a domain from 0 to {n_domains - 1}",
            where="decompose",
        )
    return np.where(real, owner, -1)


def _real_pairs(edges):
    mask = np.asarray(edges.mask)
    first = np.nonzero(mask)[0] if edges.receivers is None else np.asarray(edges.receivers)[mask]
    return np.asarray(edges.senders)[mask], first


def _deal_atoms(system, rows, total):
    real = rows >= 0

    def dealt(values, fill):
        values = np.asarray(values)
        out = np.full((total, *values.shape[1:]), fill, values.dtype)
        out[rows[real]] = values[real]
        return out

    return replace(
        system,
        positions=dealt(system.positions, 0),
        numbers=dealt(system.numbers, 0),
        graph=dealt(system.graph, system.n_graphs - 1),
    )


def _deal_rows(edges, owner, local, index, capacity, n_domains, like):
    mask, total = np.asarray(edges.mask), n_domains * capacity
    width = max(mask.shape[1], like.system.edges.senders.shape[1] if like else 0)
    receiver, column = np.nonzero(mask)
    at = owner[receiver] * capacity + local[receiver], column
    out = Edges(
        senders=np.zeros((total, width), np.int32),
        receivers=None,
        shifts=np.zeros((total, width, 3), np.asarray(edges.shifts).dtype),
        mask=np.zeros((total, width), bool),
    )
    out.senders[at] = index
    out.shifts[at] = np.asarray(edges.shifts)[mask]
    out.mask[at] = True
    return out


def _deal_flat(edges, owner, local, index, capacity, n_domains, like):
    """Edges of each domain in their old order: atoms kept theirs, so receivers stay sorted."""
    mask = np.asarray(edges.mask)
    receivers = np.asarray(edges.receivers)[mask]
    domain = owner[receivers]
    size = padded(np.bincount(domain), len(like.system.edges.senders) // n_domains if like else 0)
    at = domain * size + rank_in_group(domain)

    def dealt(values, fill):
        out = np.full((n_domains * size, *values.shape[1:]), fill, values.dtype)
        out[at] = values
        return out

    return Edges(
        senders=dealt(index, capacity - 1),
        receivers=dealt(local[receivers].astype(np.int32), capacity - 1),
        shifts=dealt(np.asarray(edges.shifts)[mask], 0),
        mask=dealt(np.ones(len(receivers), bool), False),
    )


def balance(parts: Decomposition) -> dict:
    """How even the domains are, and what they exchange: counts of one domain, mean and largest.

    `ghost_slots` are the rows that each domain receives in one exchange, padding included.
    """
    n_domains = len(parts.atoms)
    counts = {"atoms": parts.atoms, "edges": parts.edges, "ghosts": parts.ghosts.sum(0)}
    slots = sum(len(table) for table in parts.system.edges.halo.send) // n_domains
    return {
        "grid": parts.system.edges.halo.grid,
        "rounds": len(parts.ghosts),
        "atom_slots": parts.system.n_atoms // n_domains,
        "ghost_slots": slots,
        **{f"{name}_mean": float(n.mean()) for name, n in counts.items()},
        **{f"{name}_max": int(n.max()) for name, n in counts.items()},
    }


def _check(system, n_domains, like):
    n_atoms = int((np.asarray(system.numbers) > 0).sum())
    if not 1 <= n_domains <= n_atoms:
        raise UsageError(
            f"{n_atoms} atoms cannot be spread over {n_domains} devices",
            where="decompose",
            fix="1 <= n_domains <= number of atoms (far fewer is faster)",
        )
    if system.edges is None:
        raise UsageError(
            "the system has no edges, so its domains have no neighbours",
            where="decompose",
            fix="find edges first: jaxmlip.from_ase(atoms, potential.cutoff)",
        )
    if system.edges.halo is not None:
        raise UsageError("the system is already decomposed", where="decompose")
    flat = lambda edges: edges.receivers is not None
    if like and flat(like.system.edges) != flat(system.edges):
        raise UsageError("`like` has edges in the other layout", where="decompose")
