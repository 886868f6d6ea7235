"""Dynamical matrices of crystals at any wavevector, from the primitive cell alone.

D(q) is the response of the gradient in one cell to a displacement wave through all cells. The
gradient is linearised once with the phases of the wave at the doors of `System` (`wave`), and
that linear map is applied to the 3 n unit displacements: 3 n Hessian-vector products with complex
vectors, exact at every q, with the atoms and edges of one primitive cell. No supercell, no
Fourier interpolation, no truncation (for pairs and one layer of messages this is the ordinary
dynamical matrix; for more layers the chain of phases does what a supercell of the whole
receptive field would do).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxmlip.derivatives.bloch.wave import PART, SEND, Wave, door
from jaxmlip.derivatives.second.hessian import chunk_memory, gradient_at, in_chunks, rows_at_once
from jaxmlip.errors import UsageError
from jaxmlip.system import strain

__all__ = ["Wave", "dynamical_matrix", "dynamical_matrix_slopes", "dynamical_matrix_strains"]


def dynamical_matrix(apply, *, memory: float | None = None):
    """(params, system, q) -> D(q), [n_q, 3n, 3n] complex, eV/Å², without masses.

    D_ab(q) = sum over lattice vectors R of d²E/(dr_a0 dr_bR) exp(2 pi i q.R): the phase is that of
    the cell, not of the atom (C-type). q [n_q, 3]: fractions of the reciprocal cell. system: one
    structure, any cell (smaller than the cutoff, skewed), edges in either layout; atoms of padding
    have zeros. Not symmetrised: how far D is from Hermitian is a check.

    Outside of a trace one compiled program serves any number of q; inside (`jit`, `grad` ...) they
    are a loop. Every derivative of it is one of D: with respect to params, q, or `strain`.
    memory: bytes that the columns of one chunk may use (2e8 on CPU, 2e9 elsewhere).

    Exact if what atoms learn of one another passes the doors of `System`, which holds for all
    models of this package; `door_error` measures it for any other, and
    `dynamical_matrix_supercell` does without.
    """
    return _each(_matrix(apply, memory))


def dynamical_matrix_slopes(apply, *, memory: float | None = None):
    """(params, system, q) -> D [n_q, 3n, 3n] and dD/dq [n_q, 3, 3n, 3n], eV/Å² and eV/Å.

    Cartesian q in 1/Å without 2 pi, as for a phase exp(2 pi i q.R).
    """
    matrix = _matrix(apply, memory)

    def slopes(params, system, q):
        along = lambda dq: jax.jvp(lambda q: matrix(params, system, q), (q,), (dq,))
        values, out = jax.lax.map(along, jnp.asarray(system.cell, q.dtype)[0].T)
        return values[0], out

    return _each(slopes)


def dynamical_matrix_strains(apply, *, internal=None, memory: float | None = None):
    """(params, system, q) -> D [n_q, 3n, 3n] and dD/dstrain [n_q, 3, 3, 3n, 3n], eV/Å².

    At fixed fractions q; strains are symmetric. internal [n_atoms, 3, 3, 3] Å: how atoms move
    beside the homogeneous strain, d r / d strain; None: they do not (clamped).
    """
    matrix = _matrix(apply, memory)
    i, j = jnp.triu_indices(3)

    def strains(params, system, q):
        def strained(epsilon):
            moved = strain(system, epsilon[None])
            if internal is not None:
                shift = jnp.einsum("naij,ij->na", jnp.asarray(internal, q.dtype), epsilon)
                moved = replace(moved, positions=moved.positions + shift)
            return matrix(params, moved, q)

        units = jnp.zeros((6, 3, 3), q.dtype).at[jnp.arange(6), i, j].add(0.5)
        units = units + units.swapaxes(1, 2)
        zero = jnp.zeros((3, 3), q.dtype)
        values, six = jax.lax.map(lambda e: jax.jvp(strained, (zero,), (e,)), units)
        place = jnp.zeros((3, 3), int).at[i, j].set(jnp.arange(6)).at[j, i].set(jnp.arange(6))
        return values[0], six[place]

    return _each(strains)


# --- one wavevector ------------------------------------------------------------------------------


def bloch_product(apply):
    """(params, system, q [3], vectors [m, n_atoms, 3], real) -> D(q) u, complex, same shape."""
    return _response(apply, None)


def bloch_columns(apply):
    """(params, system, q [3], vectors [m, n_atoms, 3], real, count) -> D(q) u, [m, n_atoms, 3].

    Of the first `count` vectors, one after the other; zero for the rest. One program for any count.
    """

    def columns(params, system, q, vectors, count):
        def some(gradient, r, vectors):  # the compiler takes what does not change out of the loop
            along = lambda v: jax.jvp(gradient, (r,), (v,))[1]
            take = lambda i, out: out.at[i].set(along(vectors[i]))
            return jax.lax.fori_loop(0, count, take, jnp.zeros_like(vectors))

        return _along(apply, params, system, q, vectors, lambda still: some)

    return columns


def _matrix(apply, memory):
    """(params, system, q [3]) -> D(q), [3n, 3n] complex."""
    response = _response(apply, memory)

    def matrix(params, system, q):
        shape, size = system.positions.shape, system.positions.size
        units = jnp.eye(size, dtype=q.dtype).reshape(size, *shape)
        return response(params, system, q, units).reshape(size, size).T

    return matrix


def _response(apply, memory):
    """(params, system, q [3], vectors [m, n_atoms, 3]) -> D(q) u, [m, n_atoms, 3] complex."""
    memory = chunk_memory() if memory is None else memory

    def response(params, system, q, vectors):
        def chunks(still):
            r = jnp.asarray(system.positions)
            chunk = rows_at_once(still, r, memory / 2, len(vectors))  # a vector has two parts
            linear = lambda gradient, r: jax.linearize(gradient, r)[1]
            return lambda gradient, r, vectors: in_chunks(linear(gradient, r), vectors, chunk)

        return _along(apply, params, system, q, vectors, chunks)

    return response


def _along(apply, params, system, q, vectors, way):
    """D(q) u of vectors; way(gradient without a wave) -> (gradient, r, vectors) -> slopes along."""
    r = jnp.asarray(system.positions)

    def gradient(r, marker):
        wave = Wave(q=q, marker=marker)
        return gradient_at(apply, params, replace(system, wave=wave))(r)

    program = jax.make_jaxpr(gradient)(r, r[0, 0])
    _check_doors(program.jaxpr)
    mapped = way(lambda r: jaxpr_as_fun(program)(r, r[0, 0]))

    # inside the vmap: what does not depend on the vectors is not repeated
    along = lambda vectors: mapped(lambda r: gradient(r, r[0, 0]), r, vectors)
    parts = jnp.stack([vectors, jnp.zeros_like(vectors)])
    real, imaginary = jax.vmap(along, axis_name=PART)(parts)
    return real + 1j * imaginary


def _check_doors(jaxpr):
    if not _has_door(jaxpr):
        raise UsageError(
            "the energy asks the doors of `System` for no neighbour (an exported program, or "
            "gathers of its own): its edges would carry no phase",
            where="dynamical_matrix",
            fix="dynamical_matrix_supercell, or take values of neighbours from to_edges",
        )


def _has_door(jaxpr) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive is door and equation.params["kind"] == SEND:
            return True
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=callable)
        inner = [getattr(v, "jaxpr", v) for v in inner]
        if any(_has_door(v) for v in inner if hasattr(v, "eqns")):
            return True
    return False


def _each(function):
    """function(params, system, q [3]) for each of q [n_q, 3], compiled once for any number."""
    one = jax.jit(function)

    def every(params, system, q):
        q = checked(system, q)
        if _traced(params, system, q):
            return jax.lax.map(lambda q: one(params, system, q), q)
        done = [one(params, system, x) for x in np.asarray(q)]
        # on the host: jnp would compile a stack for every number of q
        return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *done)

    return every


def _traced(*arguments) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments))


def checked(system, q):
    where = "dynamical_matrix"
    if system.n_graphs != 1:
        raise UsageError(f"takes one structure, got a batch of {system.n_graphs}", where=where)
    if system.edges is None or system.edges.halo is not None:
        state = "has no edges" if system.edges is None else "is spread over devices"
        raise UsageError(f"the system {state}", where=where, fix="jaxmlip.from_ase(atoms, cutoff)")
    q = jnp.asarray(q, jnp.result_type(system.positions))
    if q.ndim != 2 or q.shape[1] != 3 or not len(q):
        raise UsageError(f"q has shape {q.shape}, expected [n_q, 3]", where=where)
    return q
