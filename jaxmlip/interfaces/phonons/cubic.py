"""Cubic force constants of a supercell, from its space group and few slopes of the Hessian.

Derivatives of the Hessian by displacements of the symmetry-irreducible atoms of the primitive cell
are automatic ones; the space group of the supercell gives all others.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.third import hessian_slope
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.phonons.symmetry import Symmetry, displacement_directions


def cubic_force_constants(apply, rows, group: Symmetry, *, memory=None, report=None):
    """(params, supercell) -> d³E/dr_i dr_j dr_k, [n_rows, n, n, 3, 3, 3], eV/Å³, i in `rows`.

    group: of the supercell. report: called with (slopes of the Hessian that are done, how many
    there are), one for each direction of `irreducible_displacements`. Slopes for u at atom a become
    those for R u at its image under every operation; any three of them that span space give the
    slopes along x, y and z.
    """
    atoms, directions = irreducible_displacements(group, rows)

    def constants(params, system):
        n = system.n_atoms
        slope = hessian_slope(apply, memory=memory)

        @jax.jit
        def along(params, system, atom, direction):
            return slope(params, system, jnp.zeros((n, 3)).at[atom].set(direction))

        found = []
        for a, u in zip(atoms, directions, strict=True):
            found.append(np.asarray(along(params, system, a, u), float).transpose(0, 2, 1, 3))
            if report is not None:
                report(len(found), len(atoms))
        out = np.zeros((len(rows), n, n, 3, 3, 3))  # there once: it is most of the memory
        for place, row in zip(out, rows, strict=True):
            _add_turned(place, group, row, atoms, directions, found)
        return out

    return constants


def irreducible_displacements(group: Symmetry, rows):
    """(atoms [n], unit vectors [n, 3]): displacements whose slopes give those of all `rows`."""
    first = np.unique(group.equivalent[np.asarray(rows)])
    each = [displacement_directions(group, a) for a in first]
    return np.repeat(first, [len(d) for d in each]), np.concatenate(each)


def _add_turned(out, group, row, atoms, directions, found):
    """Into out [n, n, 3, 3, 3], slopes of the Hessian by atom `row`, from the irreducible ones."""
    turned, sources = [], []
    for k in np.flatnonzero(atoms == group.equivalent[row]):
        operations = np.flatnonzero(group.permutations[:, atoms[k]] == row)
        turned += list(group.cartesian[operations] @ directions[k])
        sources += [(k, o) for o in operations]
    chosen = _spanning(np.array(turned))
    inverse = np.linalg.inv(np.array(turned)[chosen])
    for weights, (k, operation) in zip(inverse.T, [sources[i] for i in chosen], strict=True):
        slope = _moved(group, operation, found[k])
        for axis in range(3):
            out[:, :, axis] += weights[axis] * slope


def _spanning(vectors):
    """Three vectors that span space, chosen one after the other, each farthest from the others."""
    chosen, rest = [], vectors.copy()
    for _ in range(3):
        lengths = np.linalg.norm(rest, axis=1)
        best = int(lengths.argmax())
        if lengths[best] < 1e-3:
            raise UsageError("the displacements do not span space", where="cubic_force_constants")
        axis = rest[best] / lengths[best]
        chosen.append(best)
        rest = rest - np.outer(rest @ axis, axis)
    return chosen


def _moved(group, operation, slope):
    """A tensor [n, n, 3, 3] under an operation: atom j goes to permutation[j], axes turn."""
    r, places = group.cartesian[operation], group.permutations[operation]
    out = np.empty_like(slope)
    out[np.ix_(places, places)] = r @ slope @ r.T
    return out
