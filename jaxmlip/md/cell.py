"""Relaxation of cell and atoms together, to a pressure, with symmetry kept exactly when asked.

The minimiser moves [n_atoms + 3, 3] numbers: atoms in the frame of the cell that was given, and a
symmetric logarithmic strain U, so that r = x exp(U) and cell = cell0 exp(U). Atoms follow the cell
(no rotation, no coupling by mere translation), the trace of U is the logarithm of the volume, and
rows of U are scaled to lengths for which a cell is about as stiff as an atom.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import DataError, UsageError
from jaxmlip.md.relax import Aim, Coordinates, check_single, held_atoms, minimise
from jaxmlip.md.symmetry import Operations, operations_of, symmetrized
from jaxmlip.system import Array, strain


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CellData:
    """What the coordinates of cell and atoms need."""

    cell: Array  # [3, 3] Å, at U = 0
    scale: Array  # Å, length of a unit of U
    free: Array  # [3, 3, 3, 3] projector on the strains that are free
    pressure: Array  # eV/Å³
    operations: Operations


# --- which strains are free ----------------------------------------------------------------------


def hydrostatic(epsilon):
    """The part of a strain [3, 3] that keeps the shape."""
    return np.trace(epsilon) / 3 * np.eye(3)


def fixed_volume(epsilon):
    """The part of a strain [3, 3] that keeps the volume."""
    return epsilon - hydrostatic(epsilon)


def fixed_cell(epsilon):
    """No strain: atoms alone, for what else `relax_cell` gives."""
    return np.zeros((3, 3))


def free_strains(*projections) -> np.ndarray:
    """Projector [3, 3, 3, 3] on the symmetric strains that all of the linear maps keep (host)."""
    units = np.eye(9).reshape(9, 3, 3)
    transpose = lambda e: (e + e.T) / 2
    maps = [
        np.stack([np.reshape(f(e), 9) for e in units], axis=1) for f in (transpose, *projections)
    ]
    loss = sum((np.eye(9) - m).T @ (np.eye(9) - m) for m in maps)  # zero for what all maps keep
    values, vectors = np.linalg.eigh(loss)
    kept = vectors[:, values < 1e-9]
    return (kept @ kept.T).reshape(3, 3, 3, 3)


def _periodic_strain(system):
    """Strains only within the space spanned by the periodic vectors."""
    periodic = np.asarray(system.cell, float)[0][np.asarray(system.pbc)[0]]
    if not len(periodic):
        raise DataError(
            "the structure has no periodic axis, so no cell to relax",
            where="relax_cell",
            fix="relax, which moves atoms alone; or set pbc",
        )
    space = np.linalg.pinv(periodic) @ periodic
    return lambda epsilon: space @ epsilon @ space


def as_function(free):
    if free is None or callable(free):
        return free or (lambda epsilon: epsilon)
    mask = np.asarray(free, float)
    if mask.shape != (3, 3) or not np.array_equal(mask, mask.T):
        raise UsageError(
            f"free has shape {mask.shape}; expected a symmetric [3, 3] of booleans, or a function",
            where="relax_cell",
        )
    return lambda epsilon: mask * epsilon


# --- the relaxation ------------------------------------------------------------------------------


def relax_cell(
    potential,
    params,
    system,
    *,
    pressure: float = 0.0,
    fmax: float = 1e-5,
    stress: float = 1e-6,
    free=None,
    symmetry=None,
    fixed=None,
    steps: int = 2000,
    method=None,
    report=None,
    neighbors=None,
    skin: float = 0.5,
    block: int = 50,
    patience: int = 60,
):
    """Cell and atoms at the minimum of the enthalpy E + pV: (system, `RelaxInfo`).

    pressure: eV/Å³ (`units.GPa`), positive under compression; the stress ends at -pressure.
    fmax: eV/Å. stress: eV/Å³, largest component of stress + pressure that may be left in the free
    strains. free: [3, 3] of booleans or a linear function of a strain that returns its free part
    (`hydrostatic`, `fixed_volume`); it acts on the logarithmic strain, along Cartesian axes.
    Open axes are never strained. symmetry: (rotations [n, 3, 3], translations [n, 3]), space-group
    operations on column vectors of fractional coordinates, x' = W x + w; the start is brought to
    exact symmetry and every step keeps it. fixed: [n_atoms] True for atoms that keep their
    fractional coordinates. Other arguments, failures and edges as in `relax`; pairs are complete
    at every step because a block ends before strain and motion together could use up the skin.
    Raises `DataError` where no axis is periodic, `UsageError` for operations that do not fit.
    """
    check_single(system)
    strains = [as_function(free), _periodic_strain(system)]
    held, operations = held_atoms(system, fixed), operations_of(system, symmetry)
    system = symmetrized(system, operations)
    _check_held(held, operations)
    cell, dtype = np.asarray(system.cell, float)[0], np.asarray(system.positions).dtype
    n_real = int(np.asarray(system.atom_mask).sum())
    data = CellData(
        cell=cell.astype(dtype),
        scale=np.asarray(stiffness_length(cell, n_real), dtype),
        free=free_strains(*strains, operations.strain_mean).astype(dtype),
        pressure=np.asarray(pressure, dtype),
        operations=operations.astype(dtype),
    )
    number = lambda x: np.asarray(x, dtype)
    aim = Aim(
        fmax=number(fmax),
        stress=number(stress),
        patience=patience,
        cutoff=number(potential.cutoff),
        skin=number(skin),
        held=held,
        data=data,
    )
    trial = jnp.concatenate([jnp.asarray(system.positions), jnp.zeros((3, 3), dtype)])
    return minimise(
        potential,
        params,
        system,
        trial,
        CELL,
        aim,
        steps=steps,
        method=method,
        report=report,
        neighbors=neighbors,
        block=block,
    )


def stiffness_length(cell, n_atoms):
    """Å per unit strain for which V C / length² is like the curvature of an atom.

    With springs along bonds of length d ~ (V/n)^(1/3), V C is about n k d² times 0.1 to 0.3.
    """
    return np.sqrt(n_atoms) * 0.5 * np.cbrt(abs(np.linalg.det(cell)) / n_atoms)


def _check_held(held, operations):
    if not np.array_equal(held, held[operations.images].all(0)):
        raise UsageError(
            "fixed holds some of the atoms that the symmetry makes equivalent",
            where="relax_cell",
            fix="hold all atoms of an orbit, or give fewer operations",
        )


# --- coordinates ---------------------------------------------------------------------------------


def exponential(matrix):
    """exp of [3, 3], by its series at 1/16 of the argument and squaring; smooth everywhere."""
    x = matrix / 16
    term = total = jnp.eye(3, dtype=matrix.dtype)
    for k in range(1, 13):
        term = _dot(term, x) / k
        total = total + term
    for _ in range(4):
        total = _dot(total, total)
    return total


def _dot(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _log_strain(trial, data):
    return _project(data.free, trial[-3:] / data.scale)


def _project(free, epsilon):
    return jnp.einsum("ijkl,kl->ij", free, epsilon, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _geometry(trial, data):
    """(positions, cell) at trial."""
    stretch = exponential(_log_strain(trial, data))
    return _dot(trial[:-3], stretch), _dot(jnp.asarray(data.cell), stretch)[None]


def _place(system, trial, aim):
    positions, cell = jax.tree.map(np.asarray, _geometry(trial, aim.data))
    return replace(system, positions=positions, cell=cell)


def _evaluate(apply, params, system, trial, aim):
    """Enthalpy, its forces on trial, and forces and stress as they are at the moved structure."""
    data = aim.data

    def enthalpy(trial, epsilon):
        positions, cell = _geometry(trial, data)
        moved = replace(system, positions=positions, cell=cell)
        moved = strain(moved, (epsilon + epsilon.T)[None] / 2)
        volume = jnp.abs(jnp.linalg.det(moved.cell[0]))
        return apply(params, moved)["energy"].sum() + data.pressure * volume, volume

    zero = jnp.zeros((3, 3), trial.dtype)
    (energy, volume), slopes = jax.value_and_grad(enthalpy, (0, 1), has_aux=True)(trial, zero)
    forces = jnp.where(aim.held[:, None], 0, data.operations.force_mean(-slopes[0][:-3]))
    actual = _dot(forces, exponential(-_log_strain(trial, data)))
    stress = _project(data.free, slopes[1]) / volume
    rows = jnp.concatenate([forces, -slopes[0][-3:]])
    return energy, rows, jnp.linalg.norm(actual, axis=-1).max(), jnp.abs(stress).max()


def _slack(trial, start, aim):
    """Å left before a pair that is not listed could be within the cutoff.

    With A = exp(-U0) exp(U), such a pair is at least (1 - |A - 1|) (cutoff + skin) minus twice
    the farthest own motion of an atom apart.
    """
    inverse = exponential(-_log_strain(start, aim.data))
    now = exponential(_log_strain(trial, aim.data))
    change = jnp.linalg.norm(_dot(inverse, now) - jnp.eye(3, dtype=trial.dtype))
    motion = jnp.linalg.norm(_dot((trial - start)[:-3], now), axis=-1).max()
    reach = aim.cutoff + aim.skin
    # equal to skin at the start, free of rounding there
    return aim.skin - jnp.where((trial == start).all(), 0, change * reach + 2 * motion)


CELL = Coordinates(_evaluate, _slack, _place)
