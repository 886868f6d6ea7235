"""Liquid water: energies and forces from one set, dipoles and polarisabilities from another.

    python examples/water/make_data.py --forces train.extxyz.xz valid.extxyz.xz \\
        --responses bulk32_1000.extxyz.xz --out data/water

forces: 64 molecules, PBE0-TS, 330 K (the example of deepmd-kit: 320 frames to train on, and 80 of
another trajectory, all held out). responses: 32 molecules (Kapil et al., Faraday Discuss. 2024,
10.1039/D3FD00113J, MIT licence), of which a SHA-256 of the positions holds out a tenth. The two are
joined in one file, where a frame has the labels that it has. Polarisabilities stay in Å^3, as
`train.yaml` says.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from ase.io import write

from jaxmlip.interfaces.extxyz import read_frames

KEEP = {"REF_energy", "REF_forces", "REF_dipole", "REF_polarizability"}
VALIDATION = 12  # frames of each kind that choose the best epoch, taken from those to train on


def bare(source):
    """A copy with nothing but the labels."""
    atoms = source.copy()
    atoms.info = {k: v for k, v in source.info.items() if k in KEEP}
    for name in set(atoms.arrays) - KEEP - {"numbers", "positions"}:
        del atoms.arrays[name]
    return atoms


def draw(atoms) -> int:
    """0 to 99, from the positions."""
    text = np.round(atoms.positions, 4).astype("<f8").tobytes()
    return int(hashlib.sha256(text).hexdigest(), 16) % 100


def spread(frames, n):
    """(n frames spread over the list, the others)."""
    chosen = set(np.linspace(0, len(frames) - 1, n).round().astype(int).tolist())
    return [frames[i] for i in sorted(chosen)], [a for i, a in enumerate(frames) if i not in chosen]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forces", type=Path, nargs=2, required=True)
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--train-responses", type=int, default=240, help="frames, of about 890")
    parser.add_argument("--out", type=Path, default=Path("data/water"))
    args = parser.parse_args()
    known, unseen = ([bare(a) for a in read_frames(path)] for path in args.forces)
    responses = [bare(a) for a in read_frames(args.responses)]
    to_train, _ = spread([a for a in responses if draw(a) >= 10], args.train_responses)
    valid, train = zip(spread(known, VALIDATION), spread(to_train, VALIDATION), strict=True)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": sum(train, []),
        "valid": sum(valid, []),
        "test_forces": unseen,
        "test_responses": [a for a in responses if draw(a) < 10],
    }
    for name, frames in parts.items():
        write(args.out / f"{name}.extxyz", frames, format="extxyz")
        print(name, len(frames))


if __name__ == "__main__":
    main()
