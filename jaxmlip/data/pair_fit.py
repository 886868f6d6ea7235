"""Do energies, forces and stresses belong together? Two rulers, neither of which is a model.

A pair potential, linear in its coefficients, is fitted to the forces alone; what it says of
energies and stresses, which it has not seen, is compared with their labels: the slope is 1 where
the labels are consistent, -1 where a sign is flipped, 27.2 or 51.4 where a unit is wrong. Frames of
one structure that lie near each other need no potential: E(b) - E(a) is the trapezoid
-(F(a) + F(b)) . (r(b) - r(a)) / 2, exactly so for harmonic forces. Everything is host numpy.
"""

from dataclasses import dataclass

import numpy as np

N_RADIAL = 14
MOST_PAIRS = 45  # pair types with coefficients of their own; the rarest share one
MOST_STRUCTURES = 20  # of which near frames are sought
MOST_ATOMS, FEWEST = 50_000, 8  # of all frames of one structure; frames of it
SHORTEST = 0.6  # Å
VOIGT = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
FULL = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]


@dataclass(frozen=True)
class Slope:
    """label = slope x what the ruler says + a constant."""

    value: float
    error: float  # standard error of the slope
    correlation: float
    n: int  # observations

    @property
    def significance(self) -> float:
        """How many standard errors the slope is from zero; 0 where it is not determined."""
        sound = np.isfinite(self.error) and self.error > 0
        return abs(self.value) / self.error if sound else 0.0


@dataclass(frozen=True)
class PairFit:
    """What the pair potential fitted to the forces says of each frame."""

    energies: np.ndarray  # [n_frames] eV, if the forces are eV/Å
    virials: np.ndarray  # [n_frames, 3, 3] dE/dstrain, eV
    stiffness: dict[int, float]  # {atomic number: mean Laplacian of the energy, eV/Å²}
    explained: float  # share of the squared forces, 0 to 1


def fit_pairs(frames, *, cutoff: float) -> PairFit | None:
    """A pair potential fitted to the forces of [(System with edges, labels)], ridge regression.

    cutoff: of the potential, Å; at most that of the edges. None where there are no forces or pairs.
    """
    known = [i for i, (s, labels) in enumerate(frames) if _has(labels, "forces") and s.n_atoms > 1]
    types = _pair_types([frames[i][0] for i in known])
    if not known or not types:
        return None
    size = N_RADIAL * (max(types.values()) + 1)
    left, right = np.zeros((size, size)), np.zeros(size)
    described = [_describe(system, types, cutoff) for system, _ in frames]
    for i in known:
        design = described[i].forces.reshape(-1, size)
        forces = np.asarray(frames[i][1]["forces"], np.float64).ravel()
        left += design.T @ design
        right += design.T @ forces
    ridge = 1e-6 * np.trace(left) / size
    if not ridge > 0:
        return None
    weights = np.linalg.solve(left + ridge * np.eye(size), right)
    total = sum(float(np.square(frames[i][1]["forces"]).sum()) for i in known)
    explained = (2 * weights @ right - weights @ left @ weights) / max(total, 1e-300)
    return PairFit(
        energies=np.array([d.energy @ weights for d in described]),
        virials=np.array([d.virial @ weights for d in described]),
        stiffness=_stiffness(frames, described, weights),
        explained=float(np.clip(explained, 0, 1)),
    )


def _has(labels, name):
    return name in labels and bool(np.isfinite(labels[name]).all())


def _stiffness(frames, described, weights):
    """Mean over the atoms of an element of the Laplacian with respect to the atom."""
    total, count = {}, {}
    for (system, _), d in zip(frames, described, strict=True):
        laplacian, numbers = d.laplacian @ weights, np.asarray(system.numbers)
        for z in np.unique(numbers):
            total[int(z)] = total.get(int(z), 0.0) + laplacian[numbers == z].sum()
            count[int(z)] = count.get(int(z), 0) + int((numbers == z).sum())
    return {z: total[z] / count[z] for z in total}


@dataclass(frozen=True)
class _Description:
    energy: np.ndarray  # [size]
    forces: np.ndarray  # [n_atoms, 3, size]
    virial: np.ndarray  # [3, 3, size]
    laplacian: np.ndarray  # [n_atoms, size]


def _pair_types(systems) -> dict[tuple[int, int], int]:
    """{(z, z'): index}, the commonest first; the rarest share the last index."""
    counts: dict[int, int] = {}
    for s in systems:
        zi, zj = _ends(s)[:2]
        for code, n in zip(*np.unique(_code(zi, zj), return_counts=True), strict=True):
            counts[int(code)] = counts.get(int(code), 0) + int(n)
    order = sorted(counts, key=lambda code: (-counts[code], code))
    return {code: min(i, MOST_PAIRS - 1) for i, code in enumerate(order)}


def _code(a, b):
    return np.minimum(a, b) * 1000 + np.maximum(a, b)


def _ends(system):
    """Numbers of both ends, receivers, senders and shifts of the edges that are real."""
    mask = np.asarray(system.edges.mask)
    receivers, column = np.nonzero(mask)
    senders = np.asarray(system.edges.senders)[receivers, column]
    numbers = np.asarray(system.numbers)
    shifts = np.asarray(system.edges.shifts)[receivers, column]
    return numbers[receivers], numbers[senders], receivers, senders, shifts


def _describe(system, types, cutoff) -> _Description:
    zi, zj, receivers, senders, shifts = _ends(system)
    positions = np.asarray(system.positions, np.float64)
    vectors = positions[receivers] + shifts @ np.asarray(system.cell[0], np.float64)
    vectors -= positions[senders]
    r = np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)
    near = r < cutoff
    r, vectors, receivers = r[near], vectors[near], receivers[near]
    last = max(types.values())
    kind = np.array([types.get(c, last) for c in _code(zi, zj)[near].tolist()], int)
    phi, slope_, bend = _radial(r, cutoff)
    pull, stretch = -vectors / r[:, None], vectors[:, VOIGT[0]] * vectors[:, VOIGT[1]]
    stretch = stretch / (2 * r[:, None])
    values = [phi[:, None] / 2, (bend + 2 * slope_ / r[:, None])[:, None]]
    values += [pull[:, :, None] * slope_[:, None], stretch[:, :, None] * slope_[:, None]]
    sums = _by_kind(receivers, kind, np.concatenate(values, axis=1), system.n_atoms, last + 1)
    return _Description(
        energy=sums[:, 0].sum(axis=0),
        laplacian=sums[:, 1].copy(),  # views would keep all of the sums
        forces=sums[:, 2:5].copy(),
        virial=sums[:, 5:].sum(axis=0)[FULL],
    )


def _by_kind(rows, kind, values, n_rows, n_kinds):
    """Sums of values [n_edges, m, k] -> [n_rows, m, n_kinds * k]."""
    _, m, k = values.shape
    out = np.zeros((n_rows * n_kinds, m, k))
    index = rows * n_kinds + kind
    if len(index):
        order = np.argsort(index, kind="stable")
        index = index[order]
        starts = np.flatnonzero(np.diff(index, prepend=-1))
        out[index[starts]] = np.add.reduceat(values[order], starts, axis=0)
    return out.reshape(n_rows, n_kinds, m, k).swapaxes(1, 2).reshape(n_rows, m, n_kinds * k)


def _radial(r, cutoff):
    """Gaussians of ln r that vanish at the cutoff, their first and second derivatives [n, k]."""
    centres = np.linspace(np.log(SHORTEST), np.log(cutoff), N_RADIAL)
    width, r = centres[1] - centres[0], r[:, None]
    x = (np.log(r) - centres) / width
    bell = np.exp(-0.5 * x**2)
    bell1 = -bell * x / (width * r)
    bell2 = bell * (x**2 - 1 + width * x) / (width * r) ** 2
    inside = np.maximum(1 - (r / cutoff) ** 2, 0)
    end, end1 = inside**2, -4 * r / cutoff**2 * inside
    end2 = (12 * r**2 / cutoff**4 - 4 / cutoff**2) * (inside > 0)
    first = bell1 * end + bell * end1
    return bell * end, first, bell2 * end + 2 * bell1 * end1 + bell * end2


# --- slopes --------------------------------------------------------------------------------------


def slope(x, y, *, beside=None) -> Slope:
    """Least squares of y = slope x + beside @ c; x, y [n], beside [n, m] (default a constant).

    A twentieth of the points that lie farthest off is left out, once.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    beside = np.ones((len(x), 1)) if beside is None else np.asarray(beside, np.float64)
    found, off = _least_squares(x, y, beside)
    if len(x) >= 20 and off is not None:
        keep = off <= np.quantile(off, 0.95)
        found, _ = _least_squares(x[keep], y[keep], beside[keep])
    return found


def _least_squares(x, y, beside):
    rest = lambda v: v - beside @ np.linalg.lstsq(beside, v, rcond=None)[0]
    n = len(x) - np.linalg.matrix_rank(beside) if len(x) else 0
    if n < 3:
        return Slope(0.0, np.inf, 0.0, len(x)), None
    u, v = rest(x), rest(y)
    uu, uv, vv = u @ u, u @ v, v @ v
    if uu <= 1e-20 * max(x @ x, 1e-300) or vv <= 1e-24 * max(y @ y, 1e-300):
        return Slope(0.0, np.inf, 0.0, len(x)), None
    value = uv / uu
    off = np.abs(v - value * u)
    error = np.sqrt(max(off @ off, 1e-24 * vv) / max(n - 1, 1) / uu)
    return Slope(float(value), float(error), float(uv / np.sqrt(uu * vv)), len(x)), off


# --- frames near each other ----------------------------------------------------------------------


def trapezoids(frames, *, most: int = 250, farthest: float = 0.6):
    """(work [n], energy differences [n]) of frames of one structure that lie near each other.

    work: -(F(a) + F(b)) . (r(b) - r(a)) / 2, of molecules after the best rotation, of crystals in
    one cell by nearest images; eV if the forces are eV/Å. farthest: root mean square displacement
    of an atom, Å. At most `most` frames of each structure are compared, with two neighbours each;
    of the pairs, the nearer half is kept, in which the trapezoid is best.
    """
    found = []
    for members in list(_same_structure(frames).values())[:MOST_STRUCTURES]:
        if len(members) > 1:
            room = max(FEWEST, min(most, MOST_ATOMS // frames[members[0]][0].n_atoms))
            chosen = [frames[i] for i in members[:: -(-len(members) // room)]]
            pairs = _near_pairs([s for s, _ in chosen], farthest)
            found += [_trapezoid(chosen[a], chosen[b]) for a, b in pairs]
    if not found:
        return np.zeros(0), np.zeros(0)
    found = np.array(found)
    near = found[:, 2] <= np.median(found[:, 2])
    return found[near, 0], found[near, 1]


def _same_structure(frames):
    groups = {}
    for i, (s, labels) in enumerate(frames):
        if _has(labels, "energy") and _has(labels, "forces") and s.n_atoms > 1:
            pbc = np.asarray(s.pbc[0])
            cell = np.round(np.asarray(s.cell[0], np.float64), 4).tobytes() if pbc.any() else b""
            groups.setdefault((np.asarray(s.numbers).tobytes(), pbc.tobytes(), cell), []).append(i)
    return groups


def _near_pairs(systems, farthest):
    """Pairs (a < b): each frame with the two nearest to it."""
    distances = (_by_images if np.any(systems[0].pbc) else _by_rotation)(systems)
    np.fill_diagonal(distances, np.inf)
    pairs = set()
    for a, row in enumerate(distances):
        for b in np.argsort(row)[:2].tolist():
            if 1e-4 < row[b] < farthest:
                pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def _by_rotation(systems):
    """Root mean square distances [n, n] of molecules after the best rotation (Kabsch, 1976)."""
    p = np.array([np.asarray(s.positions, np.float64) for s in systems])
    p -= p.mean(axis=1, keepdims=True)
    overlap = np.einsum("ani,bnj->abij", p, p, optimize=True)
    values = np.linalg.svd(overlap, compute_uv=False)
    values[..., 2] *= np.sign(np.linalg.det(overlap))
    size = (p**2).sum(axis=(1, 2))
    square = size[:, None] + size - 2 * values.sum(axis=-1)
    return np.sqrt(np.maximum(square, 0) / p.shape[1])


def _by_images(systems):
    """Root mean square distances [n, n] of crystals in one cell, atom by atom."""
    first = systems[0]
    cell, pbc = np.asarray(first.cell[0], np.float64), np.asarray(first.pbc[0])
    p = np.array([np.asarray(s.positions, np.float64) for s in systems]) @ np.linalg.inv(cell)
    out = np.zeros((len(p), len(p)))
    for a in range(len(p)):
        step = p[a:] - p[a]
        step -= np.round(step) * pbc
        step -= step.mean(axis=1, keepdims=True)
        out[a, a:] = out[a:, a] = np.sqrt(((step @ cell) ** 2).sum(axis=2).mean(axis=1))
    return out


def _displacement(a, b):
    """(r(b) - r(a) [n_atoms, 3], the rotation of b [3, 3])."""
    p, q = np.asarray(a.positions, np.float64), np.asarray(b.positions, np.float64)
    pbc = np.asarray(a.pbc[0])
    if pbc.any():
        cell = np.asarray(a.cell[0], np.float64)
        step = (q - p) @ np.linalg.inv(cell)
        step -= np.round(step) * pbc
        step -= step.mean(axis=0)
        return step @ cell, np.eye(3)
    p, q = p - p.mean(axis=0), q - q.mean(axis=0)
    u, _, vt = np.linalg.svd(q.T @ p)
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return q @ (u @ vt) - p, u @ vt


def _trapezoid(a, b):
    step, rotation = _displacement(a[0], b[0])
    first = np.asarray(a[1]["forces"], np.float64)
    second = np.asarray(b[1]["forces"], np.float64) @ rotation
    rise = float(np.ravel(b[1]["energy"])[0] - np.ravel(a[1]["energy"])[0])
    return -0.5 * float(((first + second) * step).sum()), rise, float((step**2).sum())
