"""What errors do forces on a mesh have, of charges and of dipoles? The tables of the planner.

    python -m benchmarks.mesh_calibration --split prolate --order 6 [--factors optimal] [--search]

400 random charges of either sign (and as many random dipoles) in a periodic cube of length 1, a
mesh of 24³, forces against a converged Ewald sum, all in numpy. One line of JSON for each ratio of
cutoff to spacing: the width (that of the table, or with `--search` the one of the least error of
charges), the error that others make in units of q² (density / cutoff)^(1/2), that of an atom's own
image in units of q² / cutoff², and the same two of dipoles in units where q² is mu² / (3 cutoff²).
"""

import argparse
import json

import numpy as np
from scipy.special import erfc

from jaxmlip.electrostatics.mesh import calibration, splines, splits

N, MESH, ALPHA, WAVES = 400, 24, 13.0, 28
FACTORS = {"optimal": splines.optimal_factors, "smooth": splines.smooth_factors}
STEPS = {"prolate": 0.5, "gaussian": 0.1}
ALONE = 16  # places and directions of an atom by itself


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=STEPS, default="prolate")
    parser.add_argument("--order", type=int, choices=(4, 6, 8), default=6)
    parser.add_argument("--factors", choices=FACTORS, default="optimal")
    parser.add_argument("--search", action="store_true", help="the best width, from 1 upwards")
    arguments = parser.parse_args()
    split, factors = getattr(splits, arguments.split), FACTORS[arguments.factors]
    sites = random_sites()
    meshes = [Mesh(s, arguments.order, factors) for s in (*sites, *alone())]
    exact = [ewald_forces(s) for s in sites]
    ratios, widths, *_ = calibration.TABLES[split, arguments.order]
    width = None
    for ratio, known in zip(ratios, widths, strict=True):
        measured = lambda c, x=ratio: errors(split(c, x / MESH, accuracy=1e-11), meshes, exact)
        width = best(measured, width, STEPS[arguments.split]) if arguments.search else known
        print(json.dumps({"ratio": ratio, "width": width} | measured(width)), flush=True)


def best(measured, start, step):
    """The width with the least error of charges, up from a little below the one before."""
    width = 1.0 if start is None else start - step
    found = {}
    while not found or measured_pair(found, width - step) <= 1.25 * min(found.values()):
        found[width] = measured(width)["pair"]
        width = round(width + step, 6)
    return min(found, key=found.get)


def measured_pair(found, width):
    return found.get(round(width, 6), min(found.values()))


def errors(split, meshes, exact):
    """{"pair", "self", "pair_dipoles", "self_dipoles"} in the units of the tables."""
    cutoff, out = split.cutoff, {}
    many, single = meshes[:2], (meshes[2 : 2 + ALONE], meshes[2 + ALONE :])
    for name, mesh, reference, alone_, unit in zip(
        ("", "_dipoles"), many, exact, single, (1.0, 3 * cutoff**2), strict=True
    ):
        difference = short_forces(split, mesh.sites) + mesh.forces(split) - reference
        own = np.sqrt(np.mean([(m.forces(split) ** 2).sum() for m in alone_]))
        pair = np.sqrt(max((difference**2).sum(1).mean() - own**2, 0)) / np.sqrt(N / cutoff)
        out |= {f"pair{name}": float(unit * pair), f"self{name}": float(unit * own * cutoff**2)}
    return out


# --- sites: positions [n, 3], charges [n], dipoles [n, 3] ----------------------------------------


def random_sites():
    """Charges alone, and dipoles of length one alone."""
    rng = np.random.default_rng(1)
    r, q = rng.random((N, 3)), np.where(np.arange(N) % 2, 1.0, -1.0)
    return (r, q, np.zeros((N, 3))), (r, np.zeros(N), directions(rng, N))


def directions(rng, n):
    mu = rng.normal(size=(n, 3))
    return mu / np.linalg.norm(mu, axis=1)[:, None]


def alone():
    """One atom at many places: its charge, then its dipole."""
    rng = np.random.default_rng(2)
    r, mu = rng.random((ALONE, 1, 3)), directions(rng, ALONE)[:, None]
    yield from ((x, np.ones(1), np.zeros((1, 3))) for x in r)
    yield from ((x, np.zeros(1), m) for x, m in zip(r, mu, strict=True))


# --- forces by pairs and by waves ----------------------------------------------------------------


def pair_forces(sites, kernels, reach):
    """Forces on sites whose pairs interact by kernels(r²): f, f1 = -2 df/d(r²), f2, f3."""
    r, q, mu = sites
    v = r[:, None] - r[None]
    v -= np.round(v)
    r2 = (v**2).sum(-1)
    first, second = np.nonzero((r2 < reach**2) & ~np.eye(len(r), dtype=bool))
    v, (_, f1, f2, f3) = v[first, second], (f[:, None] for f in kernels(r2[first, second]))
    q1, q2, mu1, mu2 = q[first, None], q[second, None], mu[first], mu[second]
    a1, a2 = (mu1 * v).sum(1)[:, None], (mu2 * v).sum(1)[:, None]
    both = (mu1 * mu2).sum(1)[:, None]
    force = v * (f1 * q1 * q2 + f2 * (q1 * a2 - q2 * a1 + both) - f3 * a1 * a2)
    force += f1 * (q2 * mu1 - q1 * mu2) + f2 * (mu1 * a2 + mu2 * a1)
    out = np.zeros_like(r)
    np.add.at(out, first, force)
    return out


def short_forces(split, sites):
    scale = 2 / split.cutoff**2

    def kernels(r2):
        y, inner, bare = scale * r2 - 1, np.array(split.smooth), 1 / np.sqrt(r2)
        out = []
        for k in range(4):
            out.append(bare - np.polyval(inner, y))
            bare, inner = bare * (2 * k + 1) / r2, -2 * scale * np.polyder(inner)
        return out

    return pair_forces(sites, kernels, split.cutoff)


def ewald_forces(sites):
    """Exact forces, to rounding."""

    def kernels(r2):
        out, wide = [erfc(ALPHA * np.sqrt(r2)) / np.sqrt(r2)], 2 * ALPHA / np.sqrt(np.pi)
        for k in range(3):
            rest = (2 * ALPHA**2) ** k * wide * np.exp(-(ALPHA**2) * r2)
            out.append(((2 * k + 1) * out[-1] + rest) / r2)
        return out

    return pair_forces(sites, kernels, 0.5) + wave_forces(sites)


def wave_forces(sites):
    r, q, mu = sites
    m = np.arange(-WAVES, WAVES + 1)
    x, y, z = (np.exp(2j * np.pi * r[:, a, None] * m) for a in range(3))
    k = 2 * np.pi * m
    structure = sum(
        np.einsum("nx,ny,nz->xyz", c[:, None] * a, b, d, optimize=True)
        for c, (a, b, d) in zip(
            (q, *(1j * mu.T)), ((x, y, z), (k * x, y, z), (x, k * y, z), (x, y, k * z)), strict=True
        )
    )
    k2 = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2
    k2[WAVES, WAVES, WAVES] = 1
    green = 4 * np.pi * np.exp(-k2 / (4 * ALPHA**2)) / k2
    green[WAVES, WAVES, WAVES] = 0
    seen = green * structure.conj()
    along = lambda n: 1j * k.reshape([-1 if a == n else 1 for a in range(3)])
    at = lambda field: np.einsum("nxy,nx,ny->n", np.tensordot(z, field, (1, 2)), x, y).real
    out = []
    for b in range(3):
        slope = along(b) * seen
        moments = sum(mu[:, a] * at(along(a) * slope) for a in range(3)) if mu.any() else 0
        out.append(-q * at(slope) - moments)
    return np.stack(out, 1)


# --- the mesh ------------------------------------------------------------------------------------


class Mesh:
    """What some sites put on the mesh, and the forces of the smooth part of a split on them."""

    def __init__(self, sites, order, factors):
        self.sites, self.order, (r, q, mu) = sites, order, sites
        base = np.floor(r * MESH)
        shares = [spline_slopes(r * MESH - base, order, n) * MESH**n for n in range(3)]
        index = (base[:, :, None].astype(int) - (order - 1) + np.arange(order)) % MESH
        x, y, z = (index[:, a].reshape(len(r), *s) for a, s in enumerate(shapes(order)))
        self.points = (x * MESH + y) * MESH + z
        self.at = lambda n: np.prod(
            np.broadcast_arrays(
                *(shares[n[a]][:, a].reshape(len(r), *s) for a, s in enumerate(shapes(order)))
            ),
            axis=0,
        )
        weight = wide(q) * self.at((0, 0, 0)) + sum(
            wide(mu[:, a]) * self.at(tuple(np.eye(3, dtype=int)[a])) for a in range(3)
        )
        density = np.bincount(self.points.ravel(), weight.ravel(), MESH**3)
        f = factors(MESH, order)
        self.waves = np.fft.rfftn(density.reshape(MESH, MESH, MESH))
        self.factors = f[:, None, None] * f[:, None] * f[: MESH // 2 + 1]

    def forces(self, split):
        k = 2 * np.pi * splines.frequencies(MESH)
        k2 = k[:, None, None] ** 2 + k[:, None] ** 2 + k[: MESH // 2 + 1] ** 2
        k2[0, 0, 0] = 1
        y = np.minimum(2 * k2 / split.k_max**2 - 1, 1)
        value = np.polynomial.chebyshev.chebval(y, split.spectrum) * (k2 <= split.k_max**2)
        green = 4 * np.pi * value / k2 * self.factors
        green[0, 0, 0] = 0
        shape = (MESH,) * 3
        potential = np.fft.irfftn(green * self.waves, s=shape, axes=(0, 1, 2)) * MESH**3
        seen, (_, q, mu), axes = potential.ravel()[self.points], self.sites, np.eye(3, dtype=int)
        out = np.zeros_like(mu)
        for b in range(3):
            out[:, b] = -q * (seen * self.at(tuple(axes[b]))).sum((1, 2, 3))
            for a in range(3) if mu.any() else ():
                moment = (seen * self.at(tuple(axes[a] + axes[b]))).sum((1, 2, 3))
                out[:, b] -= mu[:, a] * moment
        return out


def shapes(order):
    return ((order, 1, 1), (1, order, 1), (1, 1, order))


def wide(x):
    return x[:, None, None, None]


def spline_slopes(offset, order, n):
    """The n-th derivative of the shares, [..., order], by differences of lower splines."""
    if n == 0:
        return np.asarray(splines.weights(offset, order))
    lower = spline_slopes(offset, order - 1, n - 1)
    zero = np.zeros((*lower.shape[:-1], 1))
    return np.concatenate([zero, lower], -1) - np.concatenate([lower, zero], -1)


if __name__ == "__main__":
    main()
