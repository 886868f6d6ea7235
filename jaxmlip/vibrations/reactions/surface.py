"""The potential energy over the free atoms, for host loops that take few and large steps.

Searches for saddle points and paths of reaction spend their time in a handful of exact
derivatives; the algebra between them is small and stays on the host. Here the derivatives are
compiled, once for a potential and a shape, and neighbours are renewed when atoms have moved.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.first import total_energy
from jaxmlip.derivatives.second.hessian import hessian, hessian_vector_product
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.neighbors import edges_within
from jaxmlip.system import System
from jaxmlip.vibrations.rigid import checked_masses, rigid_motions


@dataclass(frozen=True, kw_only=True)
class Surface:
    """E of the free atoms of one structure; vectors are [3 n_free], host float64."""

    apply: Callable
    params: object
    system: System  # with all edges within cutoff + skin of where it stands
    positions: np.ndarray  # [n_atoms, 3] Å, where it is looked at: within skin / 2 of the system
    masses: np.ndarray  # [n_atoms] amu
    free: np.ndarray  # indices of the atoms that move
    project: bool  # whether rigid motions cost nothing
    cutoff: float  # Å, of the potential
    skin: float  # Å

    @property
    def root_masses(self) -> np.ndarray:
        """[3 n_free] sqrt(amu)."""
        return np.repeat(np.sqrt(self.masses[self.free]), 3)

    @property
    def fixed(self) -> np.ndarray:
        """[n_atoms] True for atoms that are held."""
        held = np.ones(len(self.masses), bool)
        held[self.free] = False
        return held


def surface(potential, params, system: System, masses, *, fixed=None, project=True, skin=0.5):
    """The `Surface` of one structure; padding is left out.

    masses: [n_atoms] amu. fixed: [n_atoms] True for atoms that are held. project: False where
    the potential is not blind to translations and rotations. skin: Å, see `moved`.
    """
    if system.n_graphs != 1:
        raise UsageError(f"one structure is taken, got a batch of {system.n_graphs}")
    real = np.asarray(system.atom_mask)
    n = int(real.sum())
    fixed = np.zeros(n, bool) if fixed is None else np.asarray(fixed, bool)[:n]
    if fixed.all():
        raise DataError("all atoms are held: there is nothing to move", fix="leave some free")
    bare = replace(
        system,
        positions=np.asarray(system.positions)[:n],
        numbers=np.asarray(system.numbers)[:n],
        graph=np.asarray(system.graph)[:n],
        edges=None,
    )
    made = Surface(
        apply=potential.apply,
        params=params,
        system=bare,
        positions=np.asarray(bare.positions, np.float64),
        masses=checked_masses(np.asarray(masses)[:n], n),
        free=np.flatnonzero(~fixed),
        project=project,
        cutoff=potential.cutoff,
        skin=skin,
    )
    return replace(made, system=_with_edges(made))


def moved(at: Surface, step) -> Surface:
    """The surface looked at `step` [3 n_free] (Å) farther on; neighbours renewed where needed."""
    positions = at.positions.copy()
    positions[at.free] += np.reshape(step, (-1, 3))
    there = replace(at, positions=positions)
    gone = np.linalg.norm(positions - np.asarray(at.system.positions, np.float64), axis=1).max()
    return there if gone <= at.skin / 2 else replace(there, system=_with_edges(there))


def slope(at: Surface) -> tuple[float, np.ndarray]:
    """Energy (eV) and its gradient (eV/Å); raises `NumericalError` where they are not finite."""
    energy, gradient = _slope(at.params, standing(at), apply=at.apply)
    gradient = np.asarray(gradient, np.float64)
    if not (np.isfinite(energy) and np.isfinite(gradient).all()):
        raise NumericalError(
            "the energy or a force is not finite",
            where="search on the energy surface",
            fix="a smaller trust radius or step; look for atoms on top of each other",
        )
    return float(energy), gradient[at.free].reshape(-1)


def curvature(at: Surface) -> np.ndarray:
    """The Hessian of the free atoms, [n_free, 3, n_atoms, 3], eV/Å²."""
    rows = _rows(at.params, standing(at), apply=at.apply, atoms=tuple(map(int, at.free)))
    return np.asarray(rows, np.float64)


def flat_curvature(at: Surface) -> np.ndarray:
    """The symmetric Hessian of the free atoms among themselves, [3 n_free, 3 n_free], eV/Å²."""
    size = 3 * len(at.free)
    block = curvature(at)[:, :, at.free].reshape(size, size)
    return (block + block.T) / 2


def product(at: Surface, vector) -> np.ndarray:
    """Hessian times `vector` [3 n_free], eV/Å² times its unit."""
    whole = np.zeros_like(at.positions)
    whole[at.free] = np.reshape(vector, (-1, 3))
    dtype = np.asarray(at.system.positions).dtype
    out = _product(at.params, standing(at), whole.astype(dtype), apply=at.apply)
    return np.asarray(out, np.float64)[at.free].reshape(-1)


def inner_motions(at: Surface, *, weighted: bool = False) -> np.ndarray:
    """Orthonormal motions of the free atoms that are not rigid, [3 n_free, n_inner].

    weighted: in mass-weighted coordinates, otherwise in cartesian ones.
    """
    masses = at.masses if weighted else np.ones(len(at.masses))
    rigid = rigid_motions(
        at.positions,
        masses,
        rotations=not np.any(at.system.pbc),
        fixed=at.fixed,
    )
    rigid = rigid[:, at.free].reshape(len(rigid), 3 * len(at.free))
    rigid = rigid[: None if at.project else 0].T
    return np.linalg.qr(rigid, mode="complete")[0][:, rigid.shape[1] :]


def largest_force(at: Surface, gradient) -> float:
    """Largest norm of the force on a free atom, eV/Å."""
    return float(np.linalg.norm(np.reshape(gradient, (-1, 3)), axis=1).max())


def standing(at: Surface) -> System:
    """The system with its atoms where the surface is looked at."""
    dtype = np.asarray(at.system.positions).dtype
    return replace(at.system, positions=at.positions.astype(dtype))


def _with_edges(at: Surface) -> System:
    return edges_within(standing(at), cutoff=at.cutoff + at.skin)


@partial(jax.jit, static_argnames="apply")
def _slope(params, system, *, apply):
    with jax.default_matmul_precision("highest"):
        return jax.value_and_grad(total_energy(apply))(
            jnp.asarray(system.positions), params, system
        )


@partial(jax.jit, static_argnames=("apply", "atoms"))
def _rows(params, system, *, apply, atoms):
    return hessian(apply, atoms=np.asarray(atoms))(params, system)


@partial(jax.jit, static_argnames="apply")
def _product(params, system, vector, *, apply):
    return hessian_vector_product(apply)(params, system, vector)
