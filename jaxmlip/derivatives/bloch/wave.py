"""First-order waves on the primitive cell: derivatives that carry a phase from cell to cell.

When atom b of every lattice cell R moves by u exp(2 pi i q.R), whatever follows to first order in u
repeats from cell to cell with the same phase. So the derivative along a wave needs the edges of
one cell alone, if the tangent of a value that an edge brings from cell R is multiplied by the
phase of R, and so is what the gradient carries back. Values themselves know nothing of the wave.

The doors of `System` (`edge_vectors`, `to_edges`, sums over a structure) ask `system.wave` for
both. They are one linear operation with two faces: for every derivative but one it is the ordinary
operation; for the one derivative whose variable `marker` depends on, its tangent is turned.
Complex tangents are two real ones, the members of a `vmap` with the axis `PART`.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmlip.system import Array, Edges

PART = "real and imaginary part"
SEND, COLLECT, TOTAL, SEEN, SEEN_BACK = "send", "collect", "total", "seen", "seen back"
TRANSPOSED = {SEND: COLLECT, COLLECT: SEND, TOTAL: TOTAL, SEEN: SEEN_BACK, SEEN_BACK: SEEN}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Wave:
    """The wavevector of first-order displacements, and the mark of the derivative along them."""

    q: Array  # [3] fractions of the reciprocal cell
    marker: Array  # scalar that depends on the variable of that derivative, and on no other
    # True: energies are not asked for, and a sum that cannot follow a wave may give NaN for one
    only_charges: bool = field(default=False, metadata={"static": True})

    def sent(self, x, edges: Edges):
        """x of the senders, [n_atoms, ...] -> [n_atoms, k, ...] or [n_edges, ...]."""
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x[jnp.asarray(edges.senders)]
        # the receiver is in cell 0, so its sender is in cell -shift
        angle = -2 * jnp.pi * (edges.shifts.astype(self.q.dtype) @ self.q)
        phases = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
        senders = jnp.asarray(edges.senders)
        return door.bind(x, senders, *phases, self.marker, kind=SEND, n_atoms=len(x))

    def sum(self, total):
        """A sum over all atoms of the crystal: a wave does not change it, unless q is whole."""
        if not jnp.issubdtype(total.dtype, jnp.inexact):
            return total
        share = jnp.all(self.q == jnp.round(self.q)).astype(total.dtype)
        none = jnp.zeros((), int)
        return door.bind(total, none, share, share, self.marker, kind=TOTAL, n_atoms=0)

    def seen(self, x, *, turned: bool = False):
        """Zero, with the derivative of x (or i times that) along the wave, and no other."""
        cos, sin = (jnp.asarray(v, x.dtype) for v in ((0, 1) if turned else (1, 0)))
        return door.bind(x, jnp.zeros((), int), cos, sin, self.marker, kind=SEEN, n_atoms=0)


# --- the operation of all doors: (x, senders, cos, sin, marker) -> values, linear in x -----------

door = Primitive("bloch_door")


def _plain(x, senders, *_, kind, n_atoms):
    if kind == SEND:
        return x[senders]
    if kind == COLLECT:
        return jnp.zeros((n_atoms, *x.shape[senders.ndim :]), x.dtype).at[senders].add(x)
    return x if kind == TOTAL else jnp.zeros_like(x)


def _turned(x, senders, cos, sin, _, *, kind, n_atoms):
    """`_plain` of a tangent along the wave; what is collected goes back against the phase."""
    if kind == TOTAL:
        return x * cos
    if kind in (SEEN, SEEN_BACK):
        return _turn(x, cos, sin if kind == SEEN else -sin)
    if kind == COLLECT:
        x = _turn(x, cos, -sin)
    x = _plain(x, senders, kind=kind, n_atoms=n_atoms)
    return _turn(x, cos, sin) if kind == SEND else x


def _turn(x, cos, sin):
    """(cos + i sin) x for x whose real and imaginary parts are the two members of `PART`."""
    other = jax.lax.ppermute(x, PART, [(0, 1), (1, 0)])
    sign = jnp.where(jax.lax.axis_index(PART) == 0, -1, 1).astype(x.dtype)
    wide = lambda phase: phase.reshape(phase.shape + (1,) * (x.ndim - phase.ndim))
    return wide(cos) * x + wide(sign * sin) * other


def _jvp(primals, tangents, *, kind, n_atoms):
    (x, *rest), dx, along_wave = primals, tangents[0], not _is_zero(tangents[-1])
    options = {"kind": kind, "n_atoms": n_atoms}
    # beyond the marked derivative nothing is turned any more
    apply = _plain if along_wave else door.bind
    out = apply(x, *rest, **options)
    if _is_zero(dx):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, (_turned if along_wave else door.bind)(dx, *rest, **options)


def _is_zero(tangent):
    return isinstance(tangent, ad.Zero)


def _transpose(cotangent, x, *rest, kind, n_atoms):
    if _is_zero(cotangent):
        return (ad.Zero(x.aval), *[None] * len(rest))
    back = door.bind(cotangent, *rest, kind=TRANSPOSED[kind], n_atoms=n_atoms)
    return (back, *[None] * len(rest))


def _batch(arguments, axes, *, kind, n_atoms):
    """A `vmap` inside the potential: a last axis of x, or all members as one longer list."""
    (x, *rest), n = arguments, n_atoms
    if all(axis is None for axis in axes[1:]):
        out = door.bind(jnp.moveaxis(x, axes[0], -1), *rest, kind=kind, n_atoms=n)
        return out, out.ndim - 1
    size = next(a.shape[i] for a, i in zip(arguments, axes, strict=True) if i is not None)
    first = lambda a, i: (
        jnp.broadcast_to(a, (size, *a.shape)) if i is None else jnp.moveaxis(a, i, 0)
    )
    x, senders, cos, sin, marker = (first(a, i) for a, i in zip(arguments, axes, strict=True))
    if kind not in (SEND, COLLECT):
        cos, sin = (p.reshape(size, *[1] * (x.ndim - 1)) for p in (cos, sin))
        return door.bind(x, senders[0], cos, sin, marker[0], kind=kind, n_atoms=n), 0
    n = n if kind == COLLECT else x.shape[1]
    senders = senders + n * jnp.arange(size).reshape(size, *[1] * (senders.ndim - 1))
    x = x if kind == COLLECT else x.reshape(size * n, *x.shape[2:])
    out = door.bind(x, senders, cos, sin, marker[0], kind=kind, n_atoms=size * n)
    return (out.reshape(size, n, *out.shape[1:]) if kind == COLLECT else out), 0


def _abstract(x, senders, *rest, kind, n_atoms):
    shape = jax.eval_shape(
        lambda x, s: _plain(x, s, kind=kind, n_atoms=n_atoms),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct(senders.shape, senders.dtype),
    )
    return x.update(shape=shape.shape)


door.def_impl(_plain)
door.def_abstract_eval(_abstract)
ad.primitive_jvps[door] = _jvp
ad.primitive_transposes[door] = _transpose
batching.primitive_batchers[door] = _batch
mlir.register_lowering(door, mlir.lower_fun(_plain, multiple_results=False))
