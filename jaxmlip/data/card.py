"""The data card: what the files of one set (its splits) hold, and what is wrong with them."""

from collections import Counter

import numpy as np

from jaxmlip.data.duplicates import SAME, same_structures
from jaxmlip.data.faults import Finding, find_faults
from jaxmlip.data.free_atoms import names_free_atom
from jaxmlip.data.rulers import is_symmetric
from jaxmlip.data.statistics import ReferenceEnergies, reference_energies
from jaxmlip.data.survey import COLUMNS, Survey
from jaxmlip.errors import DataError

SIGMAS, SMALL = 50.0, 10.0  # standard deviations and eV/Å; a force longer than both: an outlier
LARGE = 100.0  # eV/Å; longer forces are rare even in collisions
FAR_ENERGY = 50.0, 1.0  # robust standard deviations and eV/atom from the median
NET = 0.1  # of the sum of lengths; forces of a closed system sum to zero
SHOWN = 8  # frames named in a message
PAIR_CUTOFF = 4.5  # Å, of the pair potential of the statistical tests
PERIODIC = {0: "molecule", 7: "crystal"}


def describe(one: Survey) -> dict:
    """Plain numbers of one file, unit-suffixed."""
    sizes, energy = one["n_atoms"], one["energy"]
    pbc = Counter(PERIODIC.get(int(p), "slab or wire") for p in one["pbc"])
    spread = lambda column: float(np.sqrt(np.nanmean(column))) if _any(column) else None
    largest = lambda name: float(np.nanmax(one[name])) if _any(one[name]) else None
    return {
        "file": one.name,
        "n_frames": len(one),
        "n_atoms": int(sizes.sum()),
        "atoms_per_frame_min": int(sizes.min()),
        "atoms_per_frame_median": float(np.median(sizes)),
        "atoms_per_frame_max": int(sizes.max()),
        "elements": one.elements,
        "n_compositions": len({c[0] for c in one.compositions}),
        "periodicity": dict(pbc),
        "n_isolated_atoms": int(one["free"].sum()),
        "config_types": {k: n for k, n in one.kinds.items() if k},
        "n_constrained": one.constrained,
        "keys": dict(one.keys.most_common()),
        "labels": one.labels,
        "keys_used": {label: dict(keys) for label, keys in one.used.items()},
        "energy_mean_eV_per_atom": float(np.nanmean(energy / sizes)) if _any(energy) else None,
        "forces_rms_eV_per_A": spread(one["force_square"]),
        "force_max_eV_per_A": largest("force_max"),
        "stress_max_eV_per_A3": largest("stress_max"),
    }


def _any(column):
    return bool(np.isfinite(column).any())


def atom_energies(surveys, *, given=None) -> ReferenceEnergies | None:
    """Reference energies of the first file (the training set) and the isolated atoms of all.

    None where it has no energies. Raises `DataError`: see `reference_energies`.
    """
    if not _any(surveys[0]["energy"]):
        return None
    rows = [s["free"] > (0 if i else -1) for i, s in enumerate(surveys)]
    elements = surveys[0].elements
    pairs = list(zip(surveys, rows, strict=True))
    stack = lambda column: np.concatenate([column(s)[r] for s, r in pairs])
    counts = stack(lambda s: s.counts(elements))
    whole = counts.sum(axis=1) == stack(lambda s: s["n_atoms"])  # other elements are left out
    energies, free = stack(lambda s: s["energy"]), stack(lambda s: s["free"]) > 0
    return reference_energies(
        elements, counts[whole], energies[whole], free=free[whole], given=given
    )


def inspect(surveys, *, given=None) -> tuple[list[Finding], ReferenceEnergies | None]:
    """(everything found in the files, worst first; the reference energies).

    surveys: of one set, the training file first. given: reference energies, {atomic number: eV}.
    """
    found, reference = [], None
    try:
        reference = atom_energies(surveys, given=given)
    except DataError as error:
        found.append(
            Finding(name="reference_energies", fault=True, label="energy", text=error.what)
        )
    for one in surveys:
        where = f"{one.name}: " if len(surveys) > 1 else ""
        for f in [*of_frames(one, reference), *find_faults(one.sample, cutoff=PAIR_CUTOFF)]:
            found.append(_placed(f, where))
    found += [*same_in_several(surveys), *_reference_notes(reference)]
    return sorted(found, key=lambda f: not f.fault), reference


def _placed(f, where):
    return Finding(**(vars(f) | {"text": where + f.text}))


def of_frames(one: Survey, reference=None) -> list[Finding]:
    """What single frames show: outliers, forces that are zero or do not sum to zero, repetition."""
    return [
        *_missing(one),
        *_force_findings(one),
        *_energy_findings(one, reference),
        *_repeated(one),
        *_misnamed(one),
    ]


def _missing(one):
    n, free = len(one), one["free"] > 0
    out = []
    for label, count in one.labels.items():
        known = one["energy"] if label == "energy" else one["force_square"]
        real = int((~np.isfinite(known) & ~free).sum()) if label in ("energy", "forces") else 0
        if real:
            text = f"{real} of {n} frames have no {label}: {_frames(~np.isfinite(known) & ~free)}"
            out.append(Finding(name=f"{label}_missing", label=label, text=text))
        elif count < n and label not in ("energy", "forces"):
            text = f"{n - count} of {n} frames have no {label}"
            out.append(Finding(name=f"{label}_missing", label=label, text=text))
    for label in ("energy", "forces"):
        if label not in one.labels:
            text = f"no frame has {label}"
            out.append(Finding(name=f"{label}_missing", label=label, text=text))
    return out


def _frames(mask):
    rows = np.flatnonzero(mask)
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"frame{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN]))}{more}"


def _force_findings(one):
    square, longest = one["force_square"], one["force_max"]
    real = np.isfinite(square) & (one["n_atoms"] > 1)
    if not real.any():
        return []
    out, fault = [], dict(fault=True, label="forces")
    if not square[real].any():
        by_symmetry = all(map(is_symmetric, (s for s, _ in one.sample if s.n_atoms > 1)))
        text = "all forces are zero in all frames" + ", by symmetry" * by_symmetry
        return [Finding(name="forces_zero", label="forces", fault=not by_symmetry, text=text)]
    kept = np.sort(square[real])[: max(1, int(0.95 * real.sum()))]
    sigma = float(np.sqrt(kept.mean()))
    limit = max(SIGMAS * sigma, SMALL)
    if sigma > 0 and (far := real & (longest > limit)).any():
        text = f"{far.sum()} frames have forces beyond {SIGMAS:g} standard deviations "
        text += f"({limit:.3g} eV/Å; longest {longest[far].max():.3g}): {_frames(far)}"
        out.append(Finding(name="force_outliers", text=text, **fault))
    if (large := real & (longest > LARGE)).any():
        text = f"{large.sum()} frames have forces longer than {LARGE:g} eV/Å: {_frames(large)}"
        out.append(Finding(name="forces_large", label="forces", text=text))
    return out + _net_findings(one, real)


def _net_findings(one, real):
    net = real & (one["net_force"] > NET * one["force_sum"]) & (one["net_force"] > NET)
    zeroed = net & (one["zero_forces"] > 0) & (one["zero_forces"] < one["n_atoms"])
    if zeroed.sum() > 0.1 * real.sum():
        text = "forces of some atoms are exactly zero and the rest do not sum to zero in "
        text += f"{zeroed.sum()} frames: set to zero by constraints? {_frames(zeroed)}"
        return [Finding(name="forces_constrained", fault=True, label="forces", text=text)]
    if net.any():
        text = f"forces do not sum to zero in {net.sum()} of {real.sum()} frames "
        text += f"(median {np.median(one['net_force'][net]):.3g} eV/Å): {_frames(net)}"
        return [Finding(name="net_force", label="forces", text=text)]
    return []


def _energy_findings(one, reference):
    energy, size = one["energy"], one["n_atoms"]
    real = np.isfinite(energy) & (one["free"] == 0)
    if real.sum() < 5:
        return []
    if np.ptp(energy[real]) == 0 and np.ptp(one["wave0"][real]) > SAME:
        text = "all energies are the same though the structures differ"
        return [Finding(name="energies_identical", fault=True, label="energy", text=text)]
    elements = one.elements
    if reference is None or not set(elements) <= set(reference.values):
        return []
    rest = energy - one.counts(elements) @ [reference.values[z] for z in elements]
    rest = rest / size
    middle = np.median(rest[real])
    sigma = 1.4826 * np.median(np.abs(rest[real] - middle))
    far = real & (np.abs(rest - middle) > max(FAR_ENERGY[0] * sigma, FAR_ENERGY[1]))
    if not far.any():
        return []
    text = f"{far.sum()} frames have energies far from the rest (up to "
    text += f"{np.abs(rest - middle)[far].max():.3g} eV/atom, median deviation {sigma:.3g}): "
    return [Finding(name="energy_outliers", label="energy", text=text + _frames(far))]


def _prints(one):
    """Fingerprints, and sizes of the forces: they tell small displacements of different atoms."""
    first = COLUMNS.index("wave0")
    sizes = np.sqrt(one["force_square"]), one["force_max"]
    return np.column_stack([one.table[:, first:], *sizes])


def _repeated(one):
    real = np.flatnonzero(one["free"] == 0)
    groups = same_structures(one["composition"][real], _prints(one)[real])
    repeated = sum(len(g) - 1 for g in groups)
    if not repeated:
        return []
    shown = "; ".join(" = ".join(str(real[i]) for i in g[:4]) for g in groups[:SHOWN])
    everything = repeated == len(real) - 1 and len(real) > 1
    text = f"{repeated} of {len(one)} frames repeat another (frames {shown})"
    name = "identical_frames" if everything else "duplicates"
    return [Finding(name=name, fault=everything, text=text)]


def _misnamed(one):
    """Named isolated atoms that are none are caught as frames: more than one atom."""
    named = sum(n for kind, n in one.kinds.items() if names_free_atom(kind))
    single = int((one["n_atoms"] == 1).sum())
    if named > single:
        text = f"{named} frames are named isolated atoms, {single} have one atom"
        return [Finding(name="isolated_atoms", fault=True, text=text)]
    return []


def same_in_several(surveys) -> list[Finding]:
    """Structures of one file that are in another, too: what is tested on was trained on."""
    out = []
    for b, second in enumerate(surveys):
        for first in surveys[:b]:
            count, pairs = _shared(first, second)
            if count:
                shown = ", ".join(f"{i} = {j}" for i, j in pairs[:SHOWN])
                text = f"{count} of {len(second)} frames of {second.name} are in {first.name}, too "
                out.append(Finding(name="leakage", fault=True, text=text + f"(frames {shown})"))
    return out


def _shared(first, second):
    kinds = {c: i for i, c in enumerate(dict.fromkeys(first.compositions + second.compositions))}
    rows = [np.flatnonzero(s["free"] == 0) for s in (first, second)]
    kind = [
        np.array([kinds[c] for c in s.compositions])[s["composition"][r].astype(int)]
        for s, r in zip((first, second), rows, strict=True)
    ]
    prints = [_prints(s)[r] for s, r in zip((first, second), rows, strict=True)]
    n, count, pairs = len(rows[0]), 0, []
    for group in same_structures(np.concatenate(kind), np.concatenate(prints)):
        here, there = [i for i in group if i < n], [i - n for i in group if i >= n]
        if here and there:
            count += len(there)
            pairs += [(int(rows[0][here[0]]), int(rows[1][j])) for j in there]
    return count, pairs


def _reference_notes(reference):
    if reference is None or not np.isinf(reference.condition):
        return []
    return [
        Finding(
            name="reference_energies_undetermined",
            label="energy",
            text="compositions do not determine the reference energies of single elements, only "
            "their sums: the smallest that fit are taken; isolated atoms or a table would tell",
        )
    ]
