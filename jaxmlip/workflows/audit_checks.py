"""The measurements of an audit, one law a function: Subject -> what was found, as dicts.

Each dict has quantity, value (zero for a sound potential), limit, unit, note. The asymmetry of the
Jacobian and the work along closed loops are those of Bigi, Langer and Ceriotti, 2024,
arXiv:2412.11569.
"""

from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np

from jaxmlip import units
from jaxmlip.neighbors import neighbor_pairs
from jaxmlip.system import supercell
from jaxmlip.workflows.audit_structures import (
    at_positions,
    dimer,
    molecule,
    random_rotation,
    rotated,
    strained,
    twice,
)

STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # first derivative, error h⁴
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "dipole": "e Å"}
FARTHEST = 14.0  # Å; a potential that reaches farther has no cutoff to be looked at
APART = 40.0  # Å between two molecules that should not feel each other


def rotation(subject):
    """Rotated structures: energy the same, forces, stress and dipole turn with them."""
    rng, found = subject.rng(), []
    known = subject.evaluate(subject.system)
    for kind, sign in (("turned", 1), ("mirrored", -1)):
        worst = {}
        for _ in range(3):
            Q = random_rotation(rng) * sign
            out = subject.evaluate(rotated(subject.system, Q))
            expected = {"energy": known["energy"], "forces": known["forces"] @ Q.T}
            if "stress" in known:
                expected["stress"] = Q @ known["stress"] @ Q.T
            if "dipole" in known:
                expected["dipole"] = Q @ known["dipole"]
            _worst(worst, out, expected, subject.system.n_atoms)
        found += _judged(worst, subject, f", {kind}")
    return found


def translation(subject):
    """Shifted structures, atoms moved to other images; and the sum of the forces."""
    rng, system = subject.rng(), subject.system
    known = subject.evaluate(system)
    shift = 5 * rng.normal(size=3)
    images = rng.integers(-1, 2, (system.n_atoms, 3)) * system.pbc[0]
    moved = replace(system, positions=system.positions + shift + images @ system.cell[0])
    worst = {}
    names = ("energy", "forces", "stress")  # the dipole of an ion depends on the origin
    expected = {name: known[name] for name in names if name in known}
    _worst(worst, subject.evaluate(moved), expected, system.n_atoms)
    net = np.linalg.norm(known["forces"].sum(0))
    limit = subject.limits["forces"] * system.n_atoms
    return [*_judged(worst, subject), _found("net force", net, limit, "eV/Å")]


def permutation(subject):
    """The same atoms in another order."""
    system, worst = subject.system, {}
    known, order = subject.evaluate(system), subject.rng().permutation(subject.system.n_atoms)
    out = subject.evaluate(
        replace(system, positions=system.positions[order], numbers=system.numbers[order])
    )
    expected = {**known, "forces": known["forces"][order]}
    _worst(worst, out, expected, system.n_atoms)
    return _judged(worst, subject)


def derivative(subject):
    """Forces against differences of energies, and stress against those of strained structures."""
    system, rng, h = subject.system, subject.rng(), subject.step
    known, errors = subject.evaluate(system), []
    energy = lambda s: subject.evaluate(s)["energy"]
    for _ in range(6):
        v = rng.normal(size=system.positions.shape)
        v /= np.sqrt((v**2).sum(1).mean())
        slope = (
            sum(w * energy(at_positions(system, system.positions + k * h * v)) for k, w in STENCIL)
            / h
        )
        errors.append(abs(slope + (known["forces"] * v).sum()) / np.linalg.norm(v))
    limit = subject.limits["difference"]
    found = [_found("forces against energies", max(errors), limit, "eV/Å")]
    if "stress" in known:
        volume, errors = abs(np.linalg.det(system.cell[0])), []
        for _ in range(3):
            e = rng.normal(size=(3, 3))
            e = (e + e.T) / np.linalg.norm(e + e.T)
            slope = sum(w * energy(strained(system, k * h * e)) for k, w in STENCIL) / h
            errors.append(abs(slope / volume - (known["stress"] * e).sum()))
        found.append(_found("stress against energies", max(errors), limit / 10, "eV/Å³"))
    return found


def loop(subject):
    """Work of the forces along a closed path, a circle on which every atom moves about 0.05 Å."""
    system, rng, n, radius = subject.system, subject.rng(), 32, 0.05
    u, v = (rng.normal(size=system.positions.shape) / np.sqrt(3) for _ in range(2))
    work, length = 0.0, 0.0
    for angle in 2 * np.pi * np.arange(n) / n:
        here = system.positions + radius * (np.cos(angle) * u + np.sin(angle) * v)
        step = radius * (np.cos(angle) * v - np.sin(angle) * u) * 2 * np.pi / n
        work += (subject.evaluate(at_positions(system, here))["forces"] * step).sum()
        length += np.linalg.norm(step)
    limit = subject.limits["difference"]
    note = f"{work:.2e} eV in {length:.2f} Å"
    return [_found("mean force along a loop", abs(work) / length, limit, "eV/Å", note)]


def jacobian(subject, *, most=24):
    """Asymmetry of dF/dr, ||J - J^T|| / (2 ||J||), seen along random orthogonal directions."""
    system, size = subject.system, 3 * subject.system.n_atoms
    h = subject.step * np.sqrt(system.n_atoms)  # every atom then moves about a step
    n = min(size, most)
    V = np.linalg.qr(subject.rng().normal(size=(size, n)))[0]
    forces = lambda x: subject.evaluate(at_positions(system, x))["forces"].ravel()
    columns = []
    for v in V.T.reshape(n, -1, 3):
        ahead, behind = (forces(system.positions + s * h * v) for s in (1, -1))
        columns.append((ahead - behind) / (2 * h))
    J = V.T @ np.array(columns).T
    value = np.linalg.norm(J - J.T) / (2 * np.linalg.norm(J)) if np.any(J) else 0.0
    limit = subject.limits["asymmetry"]
    return [_found("asymmetry of the force Jacobian", value, limit, "", f"{n} directions")]


def smooth_cutoff(subject, *, beside=1e-4):
    """Steps of energy and forces where a neighbour comes into the cutoff, alone and in company."""
    found, limit = [], subject.limits["jump"]
    pairs = [*combinations_with_replacement(np.unique(subject.system.numbers), 2)]
    for pair in pairs:
        radius = subject.cutoff or interaction_range(subject, pair)
        name = "-".join(map(str, pair))
        if radius is None:
            note = f"no end within {FARTHEST} Å"
            return [_found("range of interactions", FARTHEST, None, "Å", note)]
        at = lambda r, pair=pair: subject.evaluate(dimer(subject.system, pair, r))
        jumps = _jumps(at, radius, beside)
        found.append((jumps, f"atomic numbers {name} at {radius:.4f} Å"))
    if subject.cutoff:
        found += _jumps_in_structure(subject, beside)
    out = []
    for k, unit in enumerate(("eV", "eV/Å")):
        jumps, note = max(found, key=lambda f, k=k: f[0][k])
        what = ("energy", "forces")[k]
        out.append(_found(f"step of {what} at the cutoff", jumps[k], limit, unit, note))
    return out


def extensivity(subject):
    """Two cells, or two molecules far apart, are twice one."""
    system, n = subject.system, subject.system.n_atoms
    one = subject.evaluate(system)
    limit = subject.limits["energy"]
    if system.pbc.any():
        repeats = np.where(np.arange(3) == np.argmax(system.pbc[0]), 2, 1)
        two = subject.evaluate(supercell(system, repeats))
        forces = np.abs(two["forces"] - np.tile(one["forces"], (2, 1))).max()
        return [
            _found(
                "energy of two cells", abs(two["energy"] / 2 - one["energy"]) / n, limit, "eV/atom"
            ),
            _found("forces of two cells", forces, subject.limits["forces"], "eV/Å"),
        ]
    size = np.ptp(system.positions[:, 0])
    excess = [
        abs(subject.evaluate(twice(system, size + r))["energy"] - 2 * one["energy"]) / n
        for r in (APART, 2 * APART)
    ]
    note = f"{excess[1]:.1e} at {2 * APART:.0f} Å"
    falls = excess[1] < excess[0] / 3  # charges and dipoles that feel each other are no fault
    judged = None if excess[0] > limit and falls else limit
    return [
        _found(f"energy of two molecules, {APART:.0f} Å apart", excess[0], judged, "eV/atom", note)
    ]


def free_atoms(subject):
    """Atoms alone: a finite energy and no force."""
    worst, notes = 0.0, []
    for z in np.unique(subject.system.numbers):
        out = subject.evaluate(molecule(subject.system, [z], np.zeros((1, 3))))
        worst = max(worst, np.abs(out["forces"]).max())
        notes.append(f"{z}: {out['energy']:.4f} eV")
    return [_found("force", worst, subject.limits["forces"], "eV/Å", "; ".join(notes[:6]))]


def dimers(subject):
    """Pairs of atoms from 0.4 Å on: finite everywhere; what falls where it should repel is told."""
    reach = min(subject.cutoff or 6.0, 6.0)
    r, found = np.arange(0.4, reach, 0.1), []
    for pair in combinations_with_replacement(np.unique(subject.system.numbers), 2):
        out = [subject.evaluate(dimer(subject.system, pair, x)) for x in r]
        energies = np.array([o["energy"] for o in out])
        depth, where = hole(r, energies)
        note = f"atomic numbers {'-'.join(map(str, pair))}"
        if depth:
            note += f": falls below {where:.1f} Å"
        found.append((depth, note))
    depth, note = max(found)
    return [_found("hole in the repulsion of a pair", depth, None, "eV", note)]


def hole(r, energies, *, real=0.05):
    """(how far the energy falls on the way in from the outermost minimum, Å where that begins).

    r [n] rising; energies [n]; real: eV that a minimum is deep at least.
    """
    inner = np.arange(1, len(r) - 1)
    lowest = (energies[inner] <= energies[inner - 1]) & (energies[inner] < energies[inner + 1])
    deep = [i for i in inner[lowest] if energies[i:].max() - energies[i] > real]
    start = max(deep, default=len(r) - 1)
    inward = energies[: start + 1][::-1]
    fall = np.maximum.accumulate(inward) - inward
    k = int(fall.argmax())
    top = int(inward[: k + 1].argmax())
    return float(fall[k]), float(r[start - top])


def dynamics(subject, *, dt=0.5, steps=200, temperature=300.0):
    """Drift of the total energy in a short run without a bath (velocity Verlet, fs, K)."""
    if subject.masses is None:
        return []
    system, m = subject.system, subject.masses[:, None]
    v = subject.rng().normal(size=system.positions.shape)
    v *= np.sqrt(units.kB * temperature / m)
    v -= (m * v).sum(0) / m.sum()
    x, h = system.positions, dt * units.fs
    out, totals = subject.evaluate(system), []
    for _ in range(steps):
        v = v + 0.5 * h * out["forces"] / m
        x = x + h * v
        out = subject.evaluate(at_positions(system, x))
        v = v + 0.5 * h * out["forces"] / m
        totals.append(out["energy"] + 0.5 * (m * v**2).sum())
    per_ps = 1e3 * dt * 1e-3 * np.arange(steps) / 1e3  # of meV
    slope = np.polyfit(per_ps, np.array(totals) / system.n_atoms, 1)[0]
    note = (
        f"{steps} steps of {dt} fs from {temperature:.0f} K; range {1e3 * np.ptp(totals):.2f} meV"
    )
    return [_found("drift of the energy", abs(slope), subject.limits["drift"], "meV/atom/ps", note)]


def precision(subject):
    """float32 against float64."""
    if subject.other is None:
        return []
    low, high = subject.other(subject.system), subject.evaluate(subject.system)
    limit = subject.limits["float32"]
    energy = abs(low["energy"] - high["energy"]) / subject.system.n_atoms
    forces = np.abs(low["forces"] - high["forces"]).max()
    return [
        _found("energy in float32", energy, limit, "eV/atom"),
        _found("forces in float32", forces, limit, "eV/Å"),
    ]


# --- pairs of atoms ------------------------------------------------------------------------------


def interaction_range(subject, pair) -> float | None:
    """The distance from which on the energy of two atoms is constant, Å; None if there is none."""
    energy = lambda r: subject.evaluate(dimer(subject.system, pair, r))["energy"]
    last = energy(FARTHEST)
    differs = lambda r: abs(energy(r) - last) > 1e-12 * max(1.0, abs(last))
    low, high = 1.0, FARTHEST - 0.1
    if differs(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if differs(middle) else (low, middle)
    return high


def _jumps(at, radius, beside):
    """(eV, eV/Å): what is between the values extrapolated to `radius` from either side."""
    sides = []
    for sign in (-1, 1):
        near, far = (at(radius + sign * k * beside) for k in (1, 2))
        sides.append({name: 2 * near[name] - far[name] for name in ("energy", "forces")})
    step = {k: np.abs(sides[0][k] - sides[1][k]).max() for k in sides[0]}
    return float(step["energy"]), float(step["forces"])


def _jumps_in_structure(subject, beside, *, most=3):
    """The same for pairs of the structure, those whose distance is nearest to the cutoff."""
    system = subject.system
    cell = system.cell[0]
    pairs = neighbor_pairs(system.positions, cell, system.pbc[0], subject.cutoff + 0.5)
    vectors = [
        (i, j, system.positions[j] + shift @ cell - system.positions[i])
        for i, j, shift in zip(*pairs, strict=True)
        if i != j
    ]
    miss = lambda pair: abs(np.linalg.norm(pair[2]) - subject.cutoff)
    found = []
    for i, j, d in sorted(vectors, key=miss)[:most]:
        r, moved = np.linalg.norm(d), np.arange(system.n_atoms)[:, None] == j

        def at(target, r=r, d=d, moved=moved):
            shift = moved * (target - r) * d / r
            return subject.evaluate(at_positions(system, system.positions + shift))

        if abs(r - subject.cutoff) < 0.5:
            found.append((_jumps(at, subject.cutoff, beside), f"atoms {i} and {j}"))
    return found


# --- findings ------------------------------------------------------------------------------------


def _found(quantity, value, limit, unit, note=""):
    return {
        "quantity": quantity,
        "value": float(value),
        "limit": limit,
        "unit": unit,
        "note": note,
    }


def _worst(worst, out, expected, n_atoms):
    for name, known in expected.items():
        if name not in out:
            continue
        error = np.abs(np.asarray(out[name]) - known).max()
        error = error / n_atoms if name == "energy" else error
        worst[name] = max(worst.get(name, 0.0), float(error))


def _judged(worst, subject, more=""):
    return [_found(k + more, v, subject.limits[k], UNITS[k]) for k, v in worst.items()]
