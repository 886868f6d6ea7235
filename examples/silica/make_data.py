"""Frames of a crystal with energies, forces, stress, polarisation, Born charges, polarisability.

    python examples/silica/make_data.py --source SiO2.extxyz.xz --out data/silica
    python examples/silica/make_data.py --source BaTiO3.extxyz.xz --out data/barium_titanate

The data are those of Falletta et al., Nature Communications 2025 (10.1038/s41467-025-59304-1), MIT
licence (github.com/mir-group/allegro-pol), quartz and barium titanate, each gathered in one
extended XYZ file. Every fifth frame or so is held out, one in twenty validates: a SHA-256 of its
positions decides, so that the split does not depend on the order of the file.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
from ase.io import write

from jaxmlip.interfaces.extxyz import read_frames

LABELS = {  # key in the source: key here; the layout of the Born charges is turned as well
    "REF_energy": "REF_energy",
    "REF_forces": "REF_forces",
    "REF_stress": "REF_stress",
    "REF_polarization": "REF_dipole",
    "REF_polarizability": "REF_polarizability",
    "REF_bec": "REF_born_charges",
}


def part_of(atoms) -> str:
    """'test' for a fifth of all frames, 'valid' for a twentieth, else 'train'."""
    text = np.round(atoms.positions, 4).astype("<f8").tobytes()
    draw = int(hashlib.sha256(text).hexdigest(), 16) % 40
    return "test" if draw < 8 else "valid" if draw < 10 else "train"


def labelled(source):
    """A copy with our keys alone; Born charges [atom, of the atom, of the field] as rows of 9."""
    atoms = source.copy()
    atoms.info.clear()
    for theirs, ours in LABELS.items():
        if theirs in source.arrays:
            del atoms.arrays[theirs]
            atoms.arrays[ours] = source.arrays[theirs]
        else:
            atoms.info[ours] = np.asarray(source.info[theirs])
    for name in [n for n in atoms.arrays if n.startswith("PUB_")]:
        del atoms.arrays[name]
    born = source.arrays["REF_bec"].reshape(-1, 3, 3).swapaxes(1, 2)
    atoms.arrays["REF_born_charges"] = born.reshape(-1, 9)
    return atoms


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="the extended XYZ file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    args = parser.parse_args()
    frames = read_frames(args.source)
    parts = [part_of(atoms) for atoms in frames]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        chosen = [labelled(a) for a, part in zip(frames, parts, strict=True) if part == name]
        write(args.out / f"{name}.extxyz", chosen, format="extxyz")
    print(json.dumps(Counter(parts)))


if __name__ == "__main__":
    main()
