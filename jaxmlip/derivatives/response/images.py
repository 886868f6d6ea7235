"""Does the dipole of a cell depend on which images of its atoms it is summed over?

An atom may be listed at any of its images: energies do not change, nor do dipoles that are sums
over atoms or bonds. A sum of charges times positions does, by q times a lattice vector; where q
depends on positions, so do its derivatives. All functions here are pure and cheap: no derivative
of the model but -dE/dfield, which for a dipole is its own forward pass. `check_field` asks on the
host, before anything is computed in a field.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.system import System, sum_atoms

SHAKE = 0.05  # Å; charges that are zero by symmetry must not be taken for none


def is_traced(tree) -> bool:
    """Whether there are values of a pytree of which nothing is known."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def point_charges(apply, params, system) -> bool:
    """Whether `apply` predicts charges at all."""
    return "charges" in jax.eval_shape(apply, params, system)


def other_images(system: System) -> tuple[System, jax.Array]:
    """The same structure with its atoms at other images, and how far each went, [n_atoms, 3] Å."""
    whole = np.random.default_rng(0).integers(-2, 3, (system.n_atoms, 3))
    whole = jnp.where(jnp.asarray(system.pbc)[system.graph], whole, 0)
    cell = jnp.asarray(system.cell)
    moves = jnp.einsum("na,nab->nb", whole.astype(cell.dtype), cell[system.graph])
    edges = system.edges
    if edges is not None:
        receivers = edges.receivers
        if receivers is None:
            receivers = jnp.arange(system.n_atoms)[:, None]
        shifts = edges.shifts + (whole[edges.senders] - whole[receivers]).astype(edges.shifts.dtype)
        shifts = jnp.where(edges.mask[..., None], shifts, edges.shifts)
        edges = replace(edges, shifts=shifts, images=None)
    return replace(system, positions=jnp.asarray(system.positions) + moves, edges=edges), moves


def shaken(system: System) -> System:
    """The structure with its atoms moved by random `SHAKE` Å, its edges kept."""
    noise = SHAKE * np.random.default_rng(1).normal(size=(system.n_atoms, 3))
    r = jnp.asarray(system.positions)
    return replace(system, positions=r + jnp.asarray(noise, r.dtype))


def image_dependence(apply):
    """(params, system) -> change of the dipole when its atoms are listed at other images.

    [n_graphs, 3], e Å. Zero: the dipole is a sum over atoms or bonds, and every derivative of the
    energy in a field is that of a crystal, forces and stress in a finite field among them. Else it
    holds point charges, as `sum_atoms(system, charges * moves)` does: only if those are constants
    are such derivatives right as they are. Open axes have no images.
    """

    def change(params, system):
        return _change(apply, params, system)[0]

    return change


def check_field(
    apply, params, system: System, fields=None, *, strained: bool = False, where: str = ""
) -> None:
    """Raises `UsageError` JM110 where forces in a field depend on the images of atoms (host).

    fields: [n, n_graphs, 3] V/Å, those that act in turn; default that of the system, whose edges
    are needed. strained: stress or a cell that moves are meant, too. Only a field along a periodic
    axis is looked at, for open axes have no images, and without one nothing is computed. Forces of
    charges that are constant are those of a field; their stress is not, nor are forces of charges
    that follow the atoms (as `shaken`).
    """
    fields = np.asarray(system.field if fields is None else fields, float)
    along = along_cell(system, fields)[..., None]
    fields = np.where(along, fields, 0).reshape(-1, system.n_graphs, 3)
    if not fields.any():
        return
    (change, _), (rate, _), size = _jitted_rates(apply, params, shaken(system))
    limit = 1e3 * np.finfo(change.dtype).eps * np.asarray(size) * np.linalg.norm(fields, axis=-1)
    work = lambda x: np.abs(np.einsum("sga,ga->sg", fields, np.asarray(x, float)))
    if (work(change if strained else rate) <= limit).all():
        return
    raise UsageError(
        "the field lies along a periodic axis, and the work that it does on point charges depends "
        f"on the images at which atoms are listed: {'stress' if strained else 'forces'} in it "
        "would, too",
        where=where,
        code="JM110",
        fix="a field along open axes alone, or a potential whose dipole is a sum over atoms or "
        "bonds; Born charges and spectra take no field",
    )


def along_cell(system, fields):
    """Whether fields [..., n_graphs, 3] have a component along a periodic lattice vector (host)."""
    cell = np.where(np.asarray(system.pbc)[..., None], np.asarray(system.cell, float), 0)
    work = np.abs(np.einsum("...ga,gba->...gb", fields, cell))
    sizes = np.linalg.norm(fields, axis=-1)[..., None] * np.linalg.norm(cell, axis=-1)
    return (work > 1e-6 * sizes).any(-1)


def share_of_charges(apply, params, system):
    """How much of the dipole is sum of charges x positions, [n_graphs]: 0, 1, or NaN (neither).

    What has constant charges instead (formal ones, say) counts modulo a lattice vector, and does
    not matter: its change between images does not follow the atoms. As `shaken`, for those atoms
    that symmetry leaves no freedom.
    """
    (change, expected), rate, size = _rates(apply, params, shaken(system))
    tolerance = 1e3 * jnp.finfo(change.dtype).eps * size
    none = lambda x: jnp.abs(x).max(-1) <= tolerance
    found = none(change), none(change - expected), none(rate[0]), none(rate[0] - rate[1])
    return jnp.select(found, [jnp.full_like(size, share) for share in (0, 1, 0, 1)], jnp.nan)


def _rates(apply, params, system):
    """((change of the dipole, that of the charges), both in a random motion of atoms, size)."""
    v = np.random.default_rng(2).normal(size=(system.n_atoms, 3))

    def changes(r):
        change, expected, size = _change(apply, params, replace(system, positions=r))
        return (change, expected), size

    r = system.positions
    return jax.jvp(changes, (r,), (jnp.asarray(v, r.dtype),), has_aux=True)


_jitted_rates = jax.jit(_rates, static_argnums=0)


def _change(apply, params, system):
    """(change of the dipole, that of the predicted charges, size of the summands)."""
    moved, moves = other_images(system)

    def both(system):
        def energy(field):
            out = apply(params, replace(system, field=field))
            return out["energy"].sum(), out.get("charges")

        gradient, charges = jax.grad(energy, has_aux=True)(jnp.asarray(system.field))
        return -gradient, charges

    (before, charges), (after, _) = both(system), both(moved)
    charges = jnp.zeros_like(moves[:, 0]) if charges is None else charges
    size = jnp.linalg.norm(jnp.asarray(moved.positions), axis=-1)
    size = sum_atoms(system, (1 + jnp.abs(charges)) * (1 + size))
    return after - before, sum_atoms(system, charges[:, None] * moves), size
