"""Dynamical matrices between the points where they are known: Fourier sums over lattice vectors.

Two ways to the same sum. From a regular grid: force constants by the inverse Fourier transform,
each given to its nearest images (Wigner-Seitz), which is what a supercell of that shape would
have. From any points: the force constants of least norm, under a norm in which far pairs are
expensive, that give D at all of them; points where it is least certain are told, too.
"""

from dataclasses import dataclass

import numpy as np

from jaxmlip.interfaces.phonons.phonopy_files import ForceConstants
from jaxmlip.vibrations.phonons.dispersion import Crystal
from jaxmlip.vibrations.phonons.grids import Grid, first_of_each, keys, unfolded

ROOM = 2**25  # complex numbers that one table of phases may hold


@dataclass(frozen=True, kw_only=True)
class FourierSum:
    """D(q) = sum over R of blocks(R) exp(2 pi i q.R); call it with q [n_q, 3]."""

    lattice: np.ndarray  # [n_R, 3] integers
    blocks: np.ndarray  # [n_R, 3n, 3n] eV/Å², of atoms in cell 0 (rows) and cell R (columns)

    def __call__(self, q) -> np.ndarray:
        return self._sum(q, self.blocks)

    def gradient(self, q, cell) -> np.ndarray:
        """dD/dk [n_q, 3, 3n, 3n], eV/Å, k cartesian in 1/Å without 2 pi."""
        vectors = 2j * np.pi * (self.lattice @ cell)
        return np.stack([self._sum(q, self.blocks * v[:, None, None]) for v in vectors.T], 1)

    def _sum(self, q, blocks):
        q = np.asarray(q, np.float64).reshape(-1, 3)
        size = blocks.shape[-1]
        flat = blocks.reshape(len(blocks), -1)
        step = max(1, ROOM // max(len(self.lattice), size**2))
        parts = [
            phases(part, self.lattice) @ flat for part in np.split(q, range(step, len(q), step))
        ]
        return np.concatenate(parts).reshape(-1, size, size)


def phases(q, lattice) -> np.ndarray:
    """exp(2 pi i q.R) [n_q, n_R] for integer R: products of powers, few exponentials."""
    out = 1
    for x, steps in zip(np.transpose(q), lattice.T, strict=True):
        most = np.abs(steps).max(initial=0)
        powers = np.exp(2j * np.pi * np.outer(np.arange(-most, most + 1), x))
        out = out * powers[steps + most]
    return out.T


# --- from a regular grid -------------------------------------------------------------------------


def from_grid(crystal: Crystal, grid: Grid, matrices) -> FourierSum:
    """The Wigner-Seitz Fourier sum that equals D [n_irreducible, 3n, 3n] at the grid's points."""
    n, shape = crystal.n_atoms, tuple(grid.shape)
    everywhere = unfolded(crystal, grid, matrices).reshape(*shape, n, 3, n, 3)
    constants = np.fft.fftn(everywhere, axes=(0, 1, 2)).real / np.prod(shape)
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    values = constants.transpose(3, 0, 1, 2, 5, 4, 6).reshape(n, -1, 3, 3)
    x = crystal.scaled_positions
    vectors = [((cells[:, None] + x - x[a]) @ crystal.cell).reshape(-1, 3) for a in range(n)]
    return from_supercell(
        values,
        vectors,
        np.tile(np.arange(n), len(cells)),
        np.repeat(cells, n, axis=0),
        np.diag(grid.shape),
        crystal.cell,
        tolerance=10 * crystal.group.tolerance,
    )


# --- from a supercell ----------------------------------------------------------------------------


def from_supercell(values, vectors, atoms, shifts, matrix, cell, *, tolerance: float) -> FourierSum:
    """Force constants [n, n_columns, 3, 3] of a supercell, each shared by its nearest images.

    A column stands for all images of atom atoms[k] at the lattice vector shifts[k] under
    translations of the supercell (integer rows `matrix`); only those nearest to the atom of the row
    count. vectors [n, n_columns, 3]: Å from the atom of the row.
    """
    n = len(values)
    near = [nearest_images(v, matrix @ cell, tolerance=tolerance) for v in vectors]
    ends = [shifts[column] + moved @ matrix for column, moved, _ in near]
    lattice, where = np.unique(np.concatenate(ends), axis=0, return_inverse=True)
    parts = np.split(where.reshape(-1), np.cumsum([len(r) for r in ends])[:-1])
    blocks = np.zeros((len(lattice), n, 3, n, 3))
    for a, ((column, _, share), at) in enumerate(zip(near, parts, strict=True)):
        np.add.at(
            blocks,
            (at, a, slice(None), atoms[column]),
            values[a, column] * share[:, None, None],
        )
    return FourierSum(lattice=lattice, blocks=blocks.reshape(-1, 3 * n, 3 * n))


def nearest_images(vectors, supercell, *, tolerance: float):
    """(which vector [n], integer translations of the supercell [n, 3], shares [n]).

    The images of vectors [m, 3] that are shortest, all of them within `tolerance` Å.
    """
    x = vectors @ np.linalg.inv(supercell)
    whole = -np.rint(x).astype(int)
    longest = np.linalg.norm((x + whole) @ supercell, axis=1).max()
    height = 1 / np.linalg.norm(np.linalg.inv(supercell), axis=0)
    axes = [np.arange(-m, m + 1) for m in np.floor(0.5 + longest / height + 1e-9).astype(int)]
    around = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    step = max(1, ROOM // (8 * len(around)))
    parts = []
    for start in range(0, len(x), step):
        part = (x + whole)[start : start + step, None] + around
        length = np.linalg.norm(part @ supercell, axis=-1)
        which, image = np.nonzero(length < length.min(1, keepdims=True) + tolerance)
        parts.append((which + start, whole[which + start] + around[image]))
    which, moved = (np.concatenate(p) for p in zip(*parts, strict=True))
    return which, moved, 1 / np.bincount(which)[which]


def in_supercell(crystal: Crystal, numbers, D: FourierSum, shape) -> ForceConstants:
    """The force constants of a supercell of `shape` that a Fourier sum amounts to.

    Those of one that came from a grid of this shape are given back unchanged at its q.
    """
    shape, n = np.asarray(shape), crystal.n_atoms
    home = np.ravel_multi_index((D.lattice % shape).T, shape)
    blocks = np.zeros((int(np.prod(shape)), 3 * n, 3 * n))
    np.add.at(blocks, home, D.blocks)
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    values = blocks.reshape(-1, n, 3, n, 3).transpose(1, 0, 3, 2, 4)
    return ForceConstants(
        values=values.reshape(n, -1, 3, 3),
        cell=crystal.cell,
        positions=crystal.scaled_positions @ crystal.cell,
        numbers=np.asarray(numbers),
        masses=crystal.masses,
        matrix=np.diag(shape),
        atoms=np.tile(np.arange(n), len(cells)),
        shifts=np.repeat(cells, n, axis=0),
    )


# --- from any points -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is expected of force constants before any is known: they fall off with distance."""

    lattice: np.ndarray  # [n_R, 3] integers
    variance: np.ndarray  # [n_pairs, n_R] for each kind of pair of atoms, largest one
    pairs: np.ndarray  # [n, n] which kind of pair two atoms are


NOISE = 1e-13  # of the variance of D: what rounding leaves of it
MANY = 600  # lattice vectors: more than there will be points to fit


def prior(crystal: Crystal, *, length: float, power: int) -> Prior:
    """Variances (1 + (r / length)²)^-power of pairs at distance r; length in Å.

    Tails must not be thin: the far pairs are what makes the sum meet every point that is known.
    """
    n, x = crystal.n_atoms, crystal.scaled_positions
    reach = (0.75 / np.pi * MANY * abs(np.linalg.det(crystal.cell))) ** (1 / 3)
    most = np.ceil(reach * np.linalg.norm(crystal.reciprocal, axis=1)).astype(int) + 1
    axes = [np.arange(-m, m + 1) for m in most]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    offsets = (x[None] - x[:, None]).reshape(-1, 3)
    apart = np.linalg.norm((lattice + offsets[:, None]) @ crystal.cell, axis=-1)
    variance = np.where(apart <= reach, (1 + (apart / length) ** 2.0) ** -power, 0)
    used = (apart <= reach).any(0)
    kinds, which = np.unique(np.round(offsets, 6), axis=0, return_inverse=True)
    first = [np.flatnonzero(which.reshape(-1) == k)[0] for k in range(len(kinds))]
    return Prior(
        lattice=lattice[used],
        variance=variance[np.ix_(first, np.flatnonzero(used))],
        pairs=which.reshape(n, n),
    )


def from_points(known: Prior, q, matrices) -> FourierSum:
    """The force constants of least norm that give D [n_q, 3n, 3n] at q [n_q, 3].

    q must hold every point together with its images under symmetry (one of each sign is enough),
    so that the sum has the symmetry of the crystal.
    """
    first = _one_of_each_sign(q)
    q, data, n = q[first], np.asarray(matrices)[first], len(known.pairs)
    data = (data + data.conj().swapaxes(1, 2)) / 2  # else rounding grows between the points
    waves, mirror = _waves(known, q), _mirror(known.lattice)
    blocks = np.zeros((len(known.lattice), n, 3, n, 3))
    for variance, a, b, dual in _duals(known, waves, data):
        found = (variance[:, None] * (waves.T @ dual)).reshape(len(blocks), -1, 3, 3)
        blocks[:, b, :, a] = found[mirror].transpose(1, 0, 3, 2)
        blocks[:, a, :, b] = found.swapaxes(0, 1)
    blocks = blocks.reshape(-1, 3 * n, 3 * n)
    home = np.flatnonzero(~known.lattice.any(1))[0]
    for i in np.flatnonzero(np.abs(q - np.rint(q)).max(1) < 1e-9)[:1]:  # soft modes start there
        blocks[home] += data[i].real - blocks.sum(0)
    return FourierSum(lattice=known.lattice, blocks=blocks)


def best_prior(priors, q, matrices, new_q, new_matrices) -> Prior:
    """The one from which D at q tells most of D at new_q; q as for `from_points`, none in both."""
    waves, new = _waves(priors[0], q), _waves(priors[0], new_q)
    right = _parts(priors[0], new_matrices)

    def misfit(known):
        duals = _duals(known, waves, matrices)
        return sum(
            np.square(
                (new * variance) @ (waves.T @ dual) - right[:, a, b].reshape(len(new), -1)
            ).sum()
            for variance, a, b, dual in duals
        )

    return min(priors, key=misfit)


def _one_of_each_sign(q):
    """Indices; the other says the same."""
    return first_of_each(keys(q)[0])


def _waves(known, q):
    """[2 n_q, n_R] real, as force constants are: the waves' cosines, then their sines."""
    waves = phases(q, known.lattice)
    return np.concatenate([waves.real, waves.imag])


def _parts(known, matrices):
    """[2 n_q, n, n, 3, 3] real parts, then imaginary ones, by pairs of atoms."""
    n = len(known.pairs)
    blocks = np.reshape(matrices, (len(matrices), n, 3, n, 3)).swapaxes(2, 3)
    return np.concatenate([blocks.real, blocks.imag])


def _mirror(lattice):
    """[n_R] where -R stands."""
    where = {tuple(r): i for i, r in enumerate(lattice.tolist())}
    return np.array([where[tuple(r)] for r in (-lattice).tolist()])


def _duals(known, waves, matrices):
    """(variance [n_R], atoms a, atoms b, multipliers [2 n_q, n_pairs 9]) of each kind of pair.

    One of (a, b) and (b, a), which is its mirror image. Those of an atom and its own images are
    their own: cosines and sines have nothing in common.
    """
    parts, half = _parts(known, matrices), len(waves) // 2
    for kind, variance in enumerate(known.variance):
        a, b = np.nonzero(known.pairs == kind)
        other = known.pairs[b[0], a[0]]
        if other < kind:
            continue
        right = parts[:, a, b].reshape(len(parts), -1)
        scaled = waves * np.sqrt(variance)
        sets = (slice(half), slice(half, None)) if other == kind else (slice(None),)
        noise = NOISE * variance.sum() / 2
        dual = [_solve(scaled[rows] @ scaled[rows].T, right[rows], noise) for rows in sets]
        yield variance, a, b, np.concatenate(dual)


def _solve(kernel, right, noise):
    return np.linalg.solve(kernel + noise * np.eye(len(kernel)), right)


def least_certain(known: Prior, q, candidates, count: int, *, star, weights=1.0):
    """Indices of the `count` candidates [n_c, 3] that, one after the other, say most beyond q.

    The largest variance that is left goes first, times `weights` [n_c]; star: q [3] -> [n, 3], the
    points that are known as soon as q is.
    """
    root = np.sqrt(known.variance.mean(0))  # even in R: cosines and sines do not mix
    rows = lambda q: np.split(_waves(known, q) * root, 2)
    once = lambda q: rows(q[_one_of_each_sign(q)])
    bases, chosen = [_span(r) for r in once(q)], []
    rest = [_without(r, b) for r, b in zip(rows(candidates), bases, strict=True)]
    for _ in range(min(count, len(candidates))):
        left = sum((r**2).sum(1) for r in rest) * weights
        left[chosen] = -1
        chosen.append(int(left.argmax()))
        images = once(star(candidates[chosen[-1]]))
        new = [_span(_without(r, b)) for r, b in zip(images, bases, strict=True)]
        bases = [np.concatenate(pair, 1) for pair in zip(bases, new, strict=True)]
        rest = [_without(r, b) for r, b in zip(rest, new, strict=True)]
    return np.array(chosen, int)


def _span(rows):
    """Orthonormal columns that span the rows; rows of nothing (sines at q = -q) are left out."""
    length = np.linalg.norm(rows, axis=1)
    return np.linalg.qr(rows[length > 1e-10].T)[0]


def _without(rows, basis):
    """Rows with their part along the columns of `basis` taken away."""
    return rows - (rows @ basis) @ basis.T
