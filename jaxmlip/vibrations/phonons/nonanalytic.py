"""D(q) of a polar crystal: force constants that end, and the field of dipoles that does not.

Displaced ions of charges Z* in a medium of dielectric tensor ε make dipoles whose interaction falls
off as 1/r³ and is not analytic at q = 0 (Gonze and Lee, 10.1103/PhysRevB.55.10355). Its reciprocal
sum is taken out of the force constants of the supercell at its own q, what is left is short-ranged
and interpolated by Fourier sums, and the sum for the very q is put back. Conventions of the split
(only its smooth part, in reciprocal space) and its defaults are phonopy's, so that both agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.interfaces.phonons.phonopy_files import ForceConstants, Polar
from jaxmlip.vibrations.phonons.dispersion import Crystal
from jaxmlip.vibrations.phonons.force_constants import fourier_sum
from jaxmlip.vibrations.phonons.grids import q_grid
from jaxmlip.vibrations.phonons.interpolation import FourierSum, from_grid
from jaxmlip.vibrations.phonons.velocities import slopes

N_RECIPROCAL = 300  # about how many reciprocal vectors are within the default cutoff
SMALLEST = 1e-10  # of the Gaussian at that cutoff
ZERO = 1e-5  # 1/Å (no 2 pi), below which q is the centre of the zone
ROOM = 2**24  # complex numbers in one block of points


@dataclass(frozen=True, kw_only=True)
class DipoleSum:
    """The smooth part of the interaction of dipoles; call it with q [n_q, 3] -> [n_q, 3n, 3n].

    With K = q + G: 4 pi k/V sum over K of (K.Z_a)(K.Z_b) / (K.ε.K) exp(-K.ε.K / 4 Λ²)
    exp(2 pi i K.(r_a - r_b)), minus what makes rigid translations free; eV/Å².
    """

    vectors: np.ndarray  # [n_G, 3] integers
    reciprocal: np.ndarray  # [3, 3] rows, 1/Å without 2 pi
    positions: np.ndarray  # [n, 3] Å
    born_charges: np.ndarray  # [n, cartesian of atom, cartesian of field] e
    dielectric: np.ndarray  # [3, 3]
    strength: float  # 4 pi k / V, eV/(e² Å²)
    width: float  # Λ, 1/Å without 2 pi
    drift: np.ndarray  # [n, 3, 3] the sums over atoms at q = 0, taken off the diagonal

    def __call__(self, q, direction=None) -> np.ndarray:
        """direction: fractions of the reciprocal cell, from where q = 0 is approached.

        Without one the term K = 0 is left out at q = 0 (transverse everywhere).
        """
        return self._blocks(q, lambda part: self._sum(part, direction))

    def gradient(self, q, cell=None) -> np.ndarray:
        """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi; not defined at q = 0."""
        return self._blocks(q, self._slope)

    def _blocks(self, q, function):
        q = np.asarray(q, np.float64).reshape(-1, 3)
        step = max(1, ROOM // (len(self.vectors) * 3 * len(self.positions)))
        return np.concatenate([function(part) for part in np.split(q, range(step, len(q), step))])

    def _waves(self, q, direction):
        """K [q, G, 3], weights [q, G] and dipoles [q, G, n, 3] of every K = q + G."""
        k = (q - np.rint(q))[:, None] + self.vectors
        nearest = np.linalg.norm(k @ self.reciprocal, axis=-1).argmin(1)
        # from the first Brillouin zone, where the same ball of G serves every q best
        k = (k[np.arange(len(q)), nearest][:, None] + self.vectors) @ self.reciprocal
        centre = np.linalg.norm(k, axis=-1) < ZERO
        if direction is None:
            towards, there = np.array([1.0, 0, 0]), 0.0
        else:
            towards, there = _unit(direction @ self.reciprocal), 1.0
        at = np.where(centre[..., None], towards, k)
        square = np.einsum("qgi,ij,qgj->qg", at, self.dielectric, at, optimize=True)
        damping = np.where(centre, there, np.exp(-square / (4 * self.width**2)))
        charges = np.tensordot(at, self.born_charges, (2, 2))
        phase = np.exp(2j * np.pi * np.where(centre[..., None], 0, k) @ self.positions.T)
        return at, self.strength * damping / square, charges * phase[..., None]

    def _sum(self, q, direction):
        _, weights, dipoles = self._waves(q, direction)
        rows = dipoles.reshape(*weights.shape, -1)
        return _products(rows * weights[..., None], rows) - _on_diagonal(self.drift)

    def _slope(self, q):
        k, weights, dipoles = self._waves(q, None)
        square = np.einsum("qgi,ij,qgj->qg", k, self.dielectric, k, optimize=True)
        steep = -2 * (k @ self.dielectric) * (1 / square + 0.25 / self.width**2)[..., None]
        rows = dipoles.reshape(*weights.shape, -1)
        phase = np.exp(2j * np.pi * k @ self.positions.T)
        out = []
        for axis in range(3):
            turned = dipoles * (2j * np.pi * self.positions[:, axis, None])
            turned = turned + self.born_charges[:, :, axis] * phase[..., None]
            half = _products(turned.reshape(rows.shape) * weights[..., None], rows)
            even = _products(rows * (weights * steep[..., axis])[..., None], rows)
            out.append(half + half.conj().swapaxes(1, 2) + even)
        return np.stack(out, 1)


@dataclass(frozen=True, kw_only=True)
class PolarSum:
    """D(q) of a polar crystal: call it with q [n_q, 3], and a direction for q = 0."""

    short: FourierSum
    dipoles: DipoleSum

    def __call__(self, q, direction=None) -> np.ndarray:
        return self.short(q) + self.dipoles(q, direction)

    def gradient(self, q, cell) -> np.ndarray:
        """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi; not defined at q = 0."""
        return self.short.gradient(q, cell) + self.dipoles.gradient(q)


def dipole_sum(constants: ForceConstants, polar: Polar) -> DipoleSum:
    """The dipoles of a crystal; where `polar` gives no cutoff and width, phonopy's defaults.

    The mean of the charges is taken off, as phonopy does: a crystal that is charged on paper would
    have acoustic modes with a gap. Its size is `charge_sum(polar)`.
    """
    n = len(constants.values)
    if np.shape(polar.born_charges) != (n, 3, 3) or np.shape(polar.dielectric) != (3, 3):
        raise UsageError(
            f"born_charges have shape {np.shape(polar.born_charges)} and dielectric "
            f"{np.shape(polar.dielectric)}, expected ({n}, 3, 3) and (3, 3)",
            where="dipole_sum",
        )
    volume = abs(np.linalg.det(constants.cell))
    cutoff = polar.cutoff or (3 * N_RECIPROCAL / (4 * np.pi) / volume) ** (1 / 3)
    mean = np.trace(polar.dielectric) / 3
    width = polar.width or cutoff * np.sqrt(-mean / (4 * np.log(SMALLEST)))
    reciprocal = np.linalg.inv(constants.cell).T
    out = DipoleSum(
        vectors=_within(reciprocal, cutoff),
        reciprocal=reciprocal,
        positions=constants.positions,
        born_charges=polar.born_charges - np.mean(polar.born_charges, axis=0),
        dielectric=np.asarray(polar.dielectric, np.float64),
        strength=4 * np.pi * polar.coulomb / volume,
        width=width,
        drift=np.zeros((n, 3, 3)),
    )
    at_centre = out(np.zeros((1, 3)))[0].reshape(n, 3, n, 3).sum(2).real
    return replace(out, drift=(at_centre + at_centre.swapaxes(1, 2)) / 2)


def charge_sum(polar: Polar) -> float:
    """max |sum of the Born charges over atoms|, e: zero by translation."""
    return float(np.abs(np.sum(polar.born_charges, axis=0)).max())


def polar_sum(constants: ForceConstants, polar: Polar) -> PolarSum:
    """D(q) of force constants with Born charges: exact at q of the supercell away from Γ."""
    dipoles = dipole_sum(constants, polar)
    q = commensurate(constants.matrix)
    n = len(constants.values)
    cells, which = np.unique(constants.shifts, axis=0, return_inverse=True)
    phase = np.exp(-2j * np.pi * cells @ q.T) / len(q)
    folded = (phase @ dipoles(q).reshape(len(q), -1)).real.reshape(-1, n, 3, n, 3)
    long = folded[which.reshape(-1), :, :, constants.atoms].transpose(1, 0, 2, 3)
    short = replace(constants, values=constants.values - long)
    return PolarSum(short=fourier_sum(short), dipoles=dipoles)


def beyond_supercell(nonanalytic: Callable, lattice: Crystal, width: float) -> Callable:
    """What a non-analytic D has beyond its interpolation from a supercell of `width` Å.

    To be added to D of a potential without long range, whose own D is analytic: nothing at the q
    of that supercell but Gamma, the splitting of longitudinal and transverse modes about Gamma.
    The wider the supercell, the narrower the region; it is phonopy's result for that supercell.
    """
    shape = np.maximum(1, np.ceil(width * np.linalg.norm(lattice.reciprocal, axis=1) - 1e-6))
    grid = q_grid(lattice, shape)
    inside = from_grid(lattice, grid, nonanalytic(grid.q))
    return Beyond(nonanalytic=nonanalytic, inside=inside)


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """The difference of a non-analytic D and its interpolation; call it with q [n_q, 3]."""

    nonanalytic: Callable
    inside: FourierSum

    def __call__(self, q, direction=None) -> np.ndarray:
        return self.nonanalytic(q, direction) - self.inside(q)

    def gradient(self, q, cell) -> np.ndarray:
        """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi."""
        return slopes(self.nonanalytic, q, cell) - self.inside.gradient(q, cell)


def commensurate(matrix) -> np.ndarray:
    """[n_cells, 3] the q that a supercell (integer rows [3, 3]) holds, fractions in (-1/2, 1/2]."""
    size = round(abs(np.linalg.det(matrix)))
    steps = np.rint(np.linalg.inv(matrix).T * size).astype(int) % size
    found = np.zeros((1, 3), int)
    for step in steps:
        multiples = np.arange(size)[:, None] * step
        found = np.unique((found[:, None] + multiples).reshape(-1, 3) % size, axis=0)
    q = found / size
    return q - np.ceil(q - 0.5)


def _within(reciprocal, cutoff):
    """The integer vectors G with |G| < cutoff."""
    most = np.floor(cutoff * np.linalg.norm(np.linalg.inv(reciprocal), axis=0)).astype(int)
    axes = [np.arange(-m, m + 1) for m in most]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return grid[np.linalg.norm(grid @ reciprocal, axis=1) < cutoff]


def _products(left, right):
    """Sum over K of left x right^*, [q, K, m] each -> [q, m, m]."""
    if left.shape[-1] < 64:  # starting the threads of BLAS for each q costs more than the product
        return np.einsum("qki,qkj->qij", left, right.conj())
    return np.ascontiguousarray(left.swapaxes(1, 2)) @ right.conj()


def _unit(vector):
    size = np.linalg.norm(vector)
    if not size > 0:
        raise UsageError("a direction has no length", where="dipole_sum")
    return vector / size


def _on_diagonal(blocks):
    n = len(blocks)
    out = np.zeros((n, 3, n, 3))
    out[np.arange(n), :, np.arange(n)] = blocks
    return out.reshape(3 * n, 3 * n)
