"""Write the training data of the `organic` potential: small H, C, N, O molecules with GFN2-xTB.

Usage: python examples/organic/make_data.py --out data/organic --workers 2

One file per molecule under OUT/parts makes a stopped run resumable; the three splits are
put together from whatever parts are there.
"""

import argparse
import hashlib
import json
import os
import time
from collections import Counter
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from gfn2 import Gfn2, force_error, hessian, labelled
from molecules import PARTNERS, all_molecules, canonical, split_of, with_hydrogens
from rdkit.Chem import AllChem
from sampling import jittered, mode_displacement, normal_modes, paired, sound, stretched, turned

CONFORMERS, MODES, JITTERS, STRETCHES, TURNS = 2, 11, 3, 2, 1
DIMER_PARTS, DIMERS_PER_PART = 50, 4
MAX_ENERGY = 6.0


def generator(name):
    """Random numbers that depend on the molecule and on nothing else."""
    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))


def embedded(mol):
    """RDKit's starting geometries."""
    AllChem.EmbedMultipleConfs(mol, CONFORMERS, randomSeed=7)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    return [Atoms(numbers, conformer.GetPositions()) for conformer in mol.GetConformers()]


def relaxed(start, fmax=0.005, steps=300):
    """The way down, from the start to the minimum."""
    atoms, path = start.copy(), []
    atoms.calc = Gfn2()
    with BFGS(atoms, logfile=None) as optimiser:
        for _ in optimiser.irun(fmax=fmax, steps=steps):
            path.append(Atoms(atoms.numbers, atoms.positions))
    return path


def same_bonds(atoms, mol):
    """True where relaxation kept the molecule it started from."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2, H=0.42))
    found = {(i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True) if i < j}
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
    return found == {(min(pair), max(pair)) for pair in ends}


def is_new(frame, others):
    """Different in energy or in its sorted distances from every conformer already kept."""
    shape = np.sort(frame.get_all_distances(), axis=None)
    for other in others:
        close = abs(frame.info["REF_energy"] - other.info["REF_energy"]) < 0.002
        if close and abs(shape - np.sort(other.get_all_distances(), axis=None)).max() < 0.1:
            return False
    return True


def minima_and_paths(mol, name, rng):
    """Distinct relaxed conformers, lowest first, and one frame from each way down."""
    minima, paths = [], []
    for start in embedded(mol):
        path = relaxed(start)
        minimum = labelled(path[-1], "minimum", name)
        if minimum is None or not same_bonds(minimum, mol):
            continue
        paths.append(labelled(path[rng.integers(len(path) // 3 + 1)], "path", name))
        if is_new(minimum, minima):
            minima.append(minimum)
    return sorted(minima, key=lambda frame: frame.info["REF_energy"]), paths


def accepted(atoms, kind, name, lowest):
    """The labelled frame where it is a sane geometry not far above the minimum, else None."""
    if atoms is None or not sound(atoms):
        return None
    frame = labelled(atoms, kind, name)
    fine = frame is not None and frame.info["REF_energy"] < lowest + MAX_ENERGY
    return frame if fine else None


def collect(count, draw, kind, name, lowest):
    """Up to `count` accepted frames from at most four times as many draws."""
    frames = []
    for _ in range(4 * count):
        frame = accepted(draw(), kind, name, lowest)
        frames += [] if frame is None else [frame]
        if len(frames) == count:
            break
    return frames


def vibrated(minimum, modes, rng):
    new = minimum.copy()
    new.positions += mode_displacement(minimum, modes, rng)
    return new


def molecule_frames(name):
    """Everything about one molecule."""
    rng, mol = generator(name), with_hydrogens(name)
    minima, paths = minima_and_paths(mol, name, rng)
    if not minima:
        return []
    lowest, modes = minima[0].info["REF_energy"], [normal_modes(m, hessian(m)) for m in minima]

    def some():
        return minima[rng.integers(len(minima))]

    def vibration():
        which = rng.integers(len(minima))
        return vibrated(minima[which], modes[which], rng)

    frames = minima + [frame for frame in paths if frame is not None]
    frames += collect(MODES, vibration, "modes", name, lowest)
    frames += collect(JITTERS, lambda: jittered(some(), rng), "random", name, lowest)
    frames += collect(STRETCHES, lambda: stretched(some(), mol, rng), "scan", name, lowest)
    return frames + collect(TURNS, lambda: turned(some(), mol, rng), "scan", name, lowest)


def partner(parts, name):
    """The minimum of a molecule that is already done."""
    return read(part_file(parts, name), index=0)


def dimer_frames(task, parts):
    """Some pairs at random contacts, and what a short relaxation makes of them."""
    rng, frames = generator(task), []
    for _ in range(DIMERS_PER_PART):
        names = [canonical(PARTNERS[i]) for i in rng.integers(len(PARTNERS), size=2)]
        pair = [jittered(partner(parts, name), rng, 0.005, 0.03) for name in names]
        near, far = (paired(*pair, rng.uniform(*span), rng) for span in ((2.0, 2.6), (2.4, 4.5)))
        settled = relaxed(near, fmax=0.02, steps=int(rng.integers(8, 30)))[-1]
        frames += [labelled(atoms, "dimer", ".".join(names)) for atoms in (near, far, settled)]
    return [frame for frame in frames if frame is not None]


def part_file(parts, name):
    return parts / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.extxyz"


def write_whole(path, frames):
    """Write under another name first, so that a file that exists is complete."""
    draft = path.with_suffix(".draft")
    write(draft, frames, format="extxyz") if frames else draft.touch()
    draft.replace(path)


def do_part(job):
    """One molecule or one batch of dimers, unless its file is already there."""
    name, parts = job
    path = part_file(parts, name)
    if not path.exists():
        frames = dimer_frames(name, parts) if is_dimer(name) else molecule_frames(name)
        write_whole(path, frames)
    return name


def is_dimer(name):
    return name.startswith("dimers-")


def run(names, parts, workers):
    """All parts of one kind, with a line of progress now and then."""
    start = time.time()
    with get_context("spawn").Pool(workers) as pool:
        jobs = pool.imap_unordered(do_part, [(name, parts) for name in names])
        for count, name in enumerate(jobs, 1):
            if count % 10 == 0 or count == len(names):
                print(f"{count}/{len(names)} {time.time() - start:.0f} s {name}", flush=True)


def describe(frames):
    """What summary.json says of one split."""
    return {
        "structures": len(frames),
        "atoms": sum(map(len, frames)),
        "config_types": Counter(frame.info["config_type"] for frame in frames),
        "atoms_by_element": Counter(s for frame in frames for s in frame.symbols),
        "molecules": sorted({f.info["name"] for f in frames if f.info["config_type"] != "dimer"}),
    }


def combine(out, names):
    """Join the parts into the three splits; the order of the list is the order of the files."""
    splits, missing = {"train": [], "val": [], "test": []}, []
    for name in names:
        path = part_file(out / "parts", name)
        frames = read(path, index=":") if path.exists() and path.stat().st_size else []
        missing += [] if frames else [name]
        splits["train" if is_dimer(name) else split_of(name)] += frames
    for split, frames in splits.items():
        write_whole(out / f"{split}.extxyz", frames)
    summary = {"level": "GFN2-xTB", "splits": {s: describe(f) for s, f in splits.items()}}
    summary["without_structures"] = missing
    summary["versions"] = {name: version(name) for name in ("tblite", "ase", "rdkit", "numpy")}
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    print({split: len(frames) for split, frames in splits.items()}, "missing:", missing)


def check_forces(parts):
    """Forces against energies once, on a displaced structure."""
    atoms = jittered(partner(parts, canonical("CC(N)=O")), generator("check"))
    print(f"largest force error, acetamide: {force_error(atoms):.1e} eV/Å")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--combine-only", action="store_true", help="join the parts there are")
    return parser.parse_args()


def main():
    options = arguments()
    parts = options.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    names = all_molecules()
    dimers = [f"dimers-{i:03d}" for i in range(DIMER_PARTS)]
    if not options.combine_only:
        run(names, parts, options.workers)
        check_forces(parts)
        run(dimers, parts, options.workers)
    combine(options.out, names + dimers)


if __name__ == "__main__":
    main()
