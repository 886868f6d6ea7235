"""Space-group operations given as arrays, as means over which structures and slopes are exact."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.system import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations of one structure; without symmetry the identity alone."""

    rotations: Array  # [n_ops, 3, 3] on Cartesian row vectors: r' = r R
    images: Array  # [n_ops, n_atoms] the atom that lands on atom i
    offsets: Array  # [n_ops, n_atoms, 3] fractional part to add there: W x[images] + offset = x
    fractional: Array  # [n_ops, 3, 3] W, on columns of fractional coordinates

    def astype(self, dtype):
        change = lambda x: np.asarray(x, dtype)
        return replace(self, rotations=change(self.rotations), offsets=change(self.offsets))

    def force_mean(self, forces):
        """The symmetric part of vectors on atoms, [n_atoms, 3]."""

        forces = jnp.asarray(forces)

        def one(total, operation):
            rotation, images = operation
            turned = jnp.matmul(forces[images], rotation, precision=jax.lax.Precision.HIGHEST)
            return total + turned, None

        total, _ = jax.lax.scan(one, jnp.zeros_like(forces), (self.rotations, self.images))
        return total / len(self.rotations)

    def strain_mean(self, epsilon):
        """The symmetric part of a tensor [3, 3] (host)."""
        r = self.rotations
        return np.einsum("kia,ij,kjb->ab", r, epsilon, r) / len(r)


def operations_of(system, symmetry, *, tolerance: float = 0.05) -> Operations:
    """Maps of atoms to atoms for (rotations [n, 3, 3], translations [n, 3]) of x' = W x + w.

    None is the identity. tolerance: Å, how far an image may be from the atom it lands on. Raises
    `UsageError` where an operation lands beside every atom of the element, or strains the cell.
    """
    rotations, translations = _identity() if symmetry is None else symmetry
    rotations = np.rint(np.asarray(rotations, float)).reshape(-1, 3, 3)
    translations = np.asarray(translations, float).reshape(-1, 3)
    if len(rotations) != len(translations):
        raise UsageError(
            f"{len(rotations)} rotations but {len(translations)} translations", where="symmetry"
        )
    real = np.asarray(system.atom_mask)
    cell = np.asarray(system.cell, float)[0]
    places = np.asarray(system.positions, float) @ np.linalg.inv(cell)
    numbers = np.asarray(system.numbers)
    pairs = [
        _landing(places, numbers, real, cell, w, t, tolerance)
        for w, t in zip(rotations, translations, strict=True)
    ]
    exact = _symmetric_cell(cell, rotations, tolerance)
    return Operations(
        rotations=np.linalg.inv(exact) @ rotations.swapaxes(1, 2) @ exact,
        images=np.stack([p[0] for p in pairs]).astype(np.int32),
        offsets=np.stack([p[1] for p in pairs]),
        fractional=rotations,
    )


def symmetrized(system, operations: Operations):
    """The structure with exact symmetry: means of cell metric and fractional coordinates (host)."""
    if len(operations.rotations) == 1:
        return system
    cell, dtype = np.asarray(system.cell, float)[0], np.asarray(system.positions).dtype
    places = np.asarray(system.positions, float) @ np.linalg.inv(cell)
    turned = np.einsum("kab,knb->kna", operations.fractional, places[operations.images])
    mean = (turned + operations.offsets).mean(0)
    exact = _symmetric_cell(cell, operations.fractional, np.inf)
    return replace(system, positions=(mean @ exact).astype(dtype), cell=exact[None].astype(dtype))


def _identity():
    return np.eye(3)[None], np.zeros((1, 3))


def _landing(places, numbers, real, cell, rotation, translation, tolerance):
    """(images, offsets): which atom lands on each, and what makes it land there."""
    moved = places @ rotation.T + translation
    difference = places[:, None] - moved[None]  # [lands on, comes from]
    whole = np.rint(difference)
    distance = np.linalg.norm((difference - whole) @ cell, axis=-1)
    distance[numbers[:, None] != numbers[None]] = np.inf
    images = np.where(real, distance.argmin(1), np.arange(len(places)))
    rows = np.arange(len(places))
    worst = distance[rows, images][real].max(initial=0)
    if worst > tolerance or len(set(images.tolist())) < len(images):
        raise UsageError(
            f"an operation takes an atom {worst:.3g} Å away from all others of its element",
            where="symmetry",
            fix="operations of this very cell and origin, as spglib gives for it",
        )
    offsets = np.where(real[:, None], whole[rows, images] + translation, 0)
    return images, offsets


def _symmetric_cell(cell, rotations, tolerance):
    """The nearest cell whose metric all operations keep, turned by nothing."""
    metric = cell @ cell.T
    mean = np.einsum("kia,ij,kjb->ab", rotations, metric, rotations) / len(rotations)
    inverse = np.linalg.inv(cell)
    values, vectors = np.linalg.eigh(inverse @ mean @ inverse.T)
    exact = cell @ (vectors * np.sqrt(values)) @ vectors.T
    if np.linalg.norm(exact - cell) > tolerance:
        raise UsageError(
            f"the operations would change the cell by {np.linalg.norm(exact - cell):.3g} Å",
            where="symmetry",
            fix="operations of this very cell, as spglib gives for it",
        )
    return exact
