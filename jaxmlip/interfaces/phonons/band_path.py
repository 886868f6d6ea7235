"""The door to seekpath: lines through the Brillouin zone along which bands are drawn."""

import warnings
from dataclasses import dataclass

import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.interfaces.phonons.symmetry import closed_cell


@dataclass(frozen=True, kw_only=True)
class BandPath:
    """Points along the lines between special points of the Brillouin zone."""

    q: np.ndarray  # [n_q, 3] fractions of the reciprocal cell of the structure that was given
    distance: np.ndarray  # [n_q] 1/Å, with the factor 2 pi, along the path; jumps have no length
    segments: tuple  # of (first, last + 1): the points of each unbroken line
    labels: tuple  # of (index into q, name) of the special points; 'Γ' is the centre
    bravais: str  # lattice as seekpath names it, e.g. 'cF2'


def band_path(atoms, spacing: float = 0.05, *, tolerance: float = 1e-5) -> BandPath:
    """The band path of Hinuma et al. (10.1016/j.commatsci.2016.10.015) for this very cell.

    spacing: about the distance of points, 1/Å (with the factor 2 pi). The path is told in
    fractions of the reciprocal vectors of the given cell, whatever its basis, orientation or size,
    so that q . R is right for its own lattice vectors. Along open axes q stays zero.
    """
    if not spacing > 0:
        raise UsageError(f"spacing is {spacing}, needs to be positive (1/Å)", where="band_path")
    if not atoms.pbc.any():
        return BandPath(
            q=np.zeros((1, 3)), distance=np.zeros(1), segments=((0, 1),), labels=((0, "Γ"),),
            bravais="",
        )  # fmt: skip
    import seekpath

    cell, x = closed_cell(atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cells that are not primitive: meant
        found = seekpath.get_path_orig_cell((cell, x, atoms.numbers), symprec=tolerance)
    points = {name: np.asarray(q) for name, q in found["point_coords"].items()}
    in_plane = lambda name: np.allclose(points[name][~atoms.pbc], 0, atol=1e-8)
    lines = [line for line in found["path"] if all(map(in_plane, line))]
    return _sampled(lines, points, 2 * np.pi * np.linalg.inv(cell).T, spacing, found)


def _sampled(lines, points, reciprocal, spacing, found) -> BandPath:
    q, distance, segments, labels, travelled, last = [], [], [], [], 0.0, None
    for start, end in lines:
        length = np.linalg.norm((points[end] - points[start]) @ reciprocal)
        steps = max(1, round(length / spacing))
        first = len(q) - 1 if start == last else len(q)
        for i in range(int(start == last), steps + 1):
            q.append(points[start] + (points[end] - points[start]) * i / steps)
            distance.append(travelled + length * i / steps)
            if i in (0, steps):
                labels.append((len(q) - 1, _readable((start, end)[i == steps])))
        segments.append((first, len(q)))
        travelled, last = travelled + length, end
    return BandPath(
        q=np.array(q),
        distance=np.array(distance),
        segments=tuple(segments),
        labels=tuple(labels),
        bravais=found["bravais_lattice_extended"],
    )


def _readable(name: str) -> str:
    return name.replace("GAMMA", "Γ").replace("SIGMA", "Σ").replace("DELTA", "Δ").replace("_0", "₀")
