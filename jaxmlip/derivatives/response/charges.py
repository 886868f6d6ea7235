"""Born charges, of crystals whose dipole is made of point charges q_i(R) too.

When atom b moves, charges around it change, in its own cell and in others, however far the model
reaches; the dipole that this makes is the sum over all of them of dq times their true positions.
With the cells told apart by a phase, as a displacement wave does (`bloch.wave`), that sum is a
derivative in the wavevector at k = 0 of the charge induced in one cell, S(k) = sum of dq_j(k):

    Z*_b = [d(sum over the cell of q r)/dr_b at k = 0]  +  i dS_b/dk.

It is the continuity equation, i k.P = -(induced charge density), to first order in k: no minimum
image, no supercell, no condition on the receptive field. It needs charges that are conserved where
they move: S(0) = 0. Charges that are brought to their sum by a shift of all atoms of a structure
alike (`conserve_charge`), or by one chemical potential, flow at once to everywhere; a crystal has
no dipole for that, and none is invented.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.bloch.wave import PART, Wave
from jaxmlip.derivatives.response.field import by_field
from jaxmlip.derivatives.response.images import is_traced, point_charges, share_of_charges
from jaxmlip.errors import UsageError
from jaxmlip.system import sum_atoms

NEARLY = 1e-30  # a wavevector next to zero: sums over a structure do not follow a wave any more


def born_charges(apply):
    """-d²E/dr dfield, [n_atoms, 3 (of the atom), 3 (of the field)], e.

    Equals d(dipole)/dr; the sum over atoms is the total charge times the unit matrix.

    In a crystal a dipole of point charges q(R) that depend on positions changes with the images of
    atoms that it is summed over, and so does that derivative. There, with charges among the
    predictions, the exact response of the infinite crystal is taken (`periodic_born_charges`),
    whatever the cell and the reach of the model; dipoles that are sums over atoms or bonds need no
    such care. `UsageError` JM110 where a dipole has no such derivative. Inside of a trace (`jit`)
    nobody knows what is periodic: crystals of a model with charges are then NaN, and
    `periodic_born_charges` is what is to be called.
    """
    gradient = by_field(apply)

    def ordinary(params, system):
        return _rows(gradient, params, system)

    checked, pure = _checked(apply, ordinary), periodic_born_charges(apply)

    def born_charges_of(params, system):
        if is_traced(system):
            out = ordinary(params, system)
            if not point_charges(apply, params, system):
                return out
            unknown = jnp.any(system.pbc, axis=-1)[system.graph]
            return jnp.where(unknown[:, None, None], jnp.nan, out)
        if not np.any(system.pbc):
            return ordinary(params, system)
        return (pure if is_traced(params) else checked)(params, system)

    return born_charges_of


def periodic_born_charges(apply):
    """(params, system) -> Born charges [n_atoms, 3, 3], e, of crystals; pure, fit for `jit`.

    As `born_charges`, which calls it where it is needed. The exact answer for dipoles of point
    charges, of bonds and of atoms, and any sum of them. NaN for structures where there is none:
    charges that are not conserved locally, or a dipole that depends on the images of atoms neither
    as the predicted `charges` do nor by a constant (as formal charges beside bonds do).
    """
    gradient = by_field(apply)

    def charges_of(params, system):
        ordinary = _rows(gradient, params, system)
        flow, spilt, share = _flow(apply, params, system)
        atoms = lambda x: x[system.graph][:, None, None]
        share = jnp.where(spilt & (share > 0), jnp.nan, share)
        return ordinary + jnp.where(atoms(share) == 0, 0, atoms(share) * flow)

    return charges_of


def _checked(apply, ordinary):
    """(params, system), both concrete -> Born charges; JM110 in place of NaN."""
    flow = jax.jit(lambda params, system: _flow(apply, params, system))
    plain = jax.jit(ordinary)

    def charges_of(params, system):
        found, spilt, share = jax.device_get(flow(params, system))
        _check(np.asarray(spilt), np.asarray(share), np.any(system.pbc, axis=-1))
        out = plain(params, system)
        return out + jnp.asarray(share[np.asarray(system.graph)][:, None, None] * found, out.dtype)

    return charges_of


def current(apply):
    """(params, system, velocities [n_atoms, 3]) -> d(dipole)/dt [n_graphs, 3], e Å per time unit.

    The sum of Born charges times velocities from one forward pass, without the Born charges: the
    dipole of a trajectory without its jumps from branch to branch is the integral of this. Crystals
    as in `periodic_born_charges`; NaN where those are.
    """
    gradient = by_field(apply)

    def current_of(params, system, velocities):
        r, v = jnp.asarray(system.positions), jnp.asarray(velocities)
        at = lambda r: -gradient(jnp.asarray(system.field), r, params, system)
        out = jax.jvp(at, (r,), (v.astype(r.dtype),))[1]
        if not point_charges(apply, params, system):
            return out
        periodic = jnp.any(jnp.asarray(system.pbc), axis=-1)
        flow, spilt, share = _flow(apply, params, system)
        share = jnp.where(periodic, jnp.where(spilt & (share > 0), jnp.nan, share), 0)[:, None]
        more = sum_atoms(system, jnp.einsum("na,nab->nb", v, flow))
        return out + jnp.where(share == 0, 0, share * more)

    return current_of


def _rows(gradient, params, system):
    """-d²E/dr dfield by three backward passes."""
    positions = jnp.asarray(system.positions)
    along = lambda r: gradient(jnp.asarray(system.field), r, params, system)
    _, back = jax.vjp(along, positions)
    axes = jnp.broadcast_to(jnp.eye(3, dtype=positions.dtype)[:, None], (3, system.n_graphs, 3))
    rows = jax.vmap(lambda axis: back(axis)[0])(axes)  # [field, n_atoms, 3]
    return -jnp.moveaxis(rows, 0, -1)


def _check(spilt, share, periodic):
    where, fix = "born_charges", "a potential whose dipole is a sum over atoms or bonds"
    if np.isnan(share[periodic]).any():
        raise UsageError(
            "the dipole depends on the images at which atoms are listed, neither by a constant nor "
            "as the charges that are predicted do: in a crystal it has no derivative",
            where=where,
            fix=fix,
            code="JM110",
        )
    if (spilt & (share > 0) & periodic).any():
        raise UsageError(
            "moving an atom changes the charge around it, and all atoms alike make up for that: "
            "in a crystal, where those are infinitely many, this has no dipole",
            where=where,
            fix=fix + ", or charges that are transferred along bonds; for a molecule in a box "
            "set pbc to False",
            code="JM110",
        )


def _flow(apply, params, system):
    """i dS/dk [n_atoms, 3, 3] e, whether S(0) is not zero [n_graphs], the share of charges."""
    share = jnp.where(jnp.any(system.pbc, -1), share_of_charges(apply, params, system), 0)
    if not point_charges(apply, params, system):
        zero = jnp.zeros((system.n_atoms, 3, 3), jnp.asarray(system.positions).dtype)
        return zero, jnp.zeros(system.n_graphs, bool), share
    r = jnp.asarray(system.positions)
    q = jnp.full(3, NEARLY, r.dtype)
    # S is linear in displacements: its gradient by those is d(charge of the cell)/dr_b at k
    induced = lambda q: jax.grad(lambda u: _induced(apply, params, system, q, u))(_still(r))
    net, slopes = jax.vmap(lambda dq: jax.jvp(induced, (q,), (dq,)), out_axes=(None, 0))(
        jnp.eye(3, dtype=r.dtype)
    )
    cell = jnp.asarray(system.cell)[system.graph]
    # Re S of an imaginary displacement is -Im S of a real one
    flow = jnp.einsum("qna,nqb->nab", slopes[:, 1], cell) / (2 * jnp.pi)
    largest = jnp.abs(net[0]).max(-1)
    rows = jnp.zeros(system.n_graphs, r.dtype).at[system.graph].max(largest)
    rounding = 10 * jnp.finfo(r.dtype).eps ** 0.5  # e/Å of net charge that a displacement makes
    return flow, rows > rounding * (1 + jnp.abs(flow).max()), share


def _still(r):
    return jnp.zeros((2, *r.shape), r.dtype)


def _induced(apply, params, system, q, parts):
    """Re S(q): the charge of all cells of the batch that displacements (Re, Im) u e^(ik.R) make."""
    r = jnp.asarray(system.positions)

    def charges(r, marker):
        wave = Wave(q=q, marker=marker, only_charges=True)
        return apply(params, replace(system, positions=r, wave=wave))["charges"]

    def along(u):
        with jax.default_matmul_precision("highest"):
            return jax.jvp(lambda r: charges(r, r[0, 0]), (r,), (u,))[1]

    changes = jax.vmap(along, axis_name=PART)(parts)[0]
    return jnp.where(system.atom_mask, changes, 0).sum()
