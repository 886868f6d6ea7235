"""What do supercell force constants cost with and without the symmetry of the crystal?

    python -m benchmarks.force_constants [--crystal quartz|si|mgo] [--repeats 2 2 2]
                                         [--channels 8] [--output FILE]

A MACE potential (2 layers, untrained, l_max 1) in float64: columns, time of a call after the first
(edges and rotations on the host included), and the largest deviation of the reduced force constants
over the largest element. Two lines of JSON; ratios belong to one run.
"""

import argparse
import json

import jax
import numpy as np
from ase.build import bulk
from ase.spacegroup import crystal

from benchmarks import timing
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons.symmetry import symmetry
from jaxmlip.models.mace import MACE
from jaxmlip.vibrations.phonons.force_constants import compatible, displacements, force_constants


def quartz():
    cell = [4.916, 4.916, 5.405, 90, 90, 120]
    basis = [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)]
    return crystal(["Si", "O"], basis, spacegroup=154, cellpar=cell)


CRYSTALS = {
    "quartz": quartz,
    "si": lambda: bulk("Si"),
    "mgo": lambda: bulk("MgO", "rocksalt", a=4.212),
}


def main():
    options = arguments()
    jax.config.update("jax_enable_x64", True)
    atoms = CRYSTALS[options.crystal]()
    potential = MACE(
        elements=tuple(sorted({int(z) for z in atoms.numbers})),
        cutoff=4.0,
        channels=options.channels,
        l_max=1,
        avg_num_neighbors=20.0,
    )
    system = from_ase(atoms, potential.cutoff)
    params = jax.jit(potential.init)(jax.random.key(0), system)
    reference = None
    for group in (None, symmetry(atoms)):
        make = force_constants(
            potential.apply, potential.cutoff, repeats=options.repeats, group=group
        )
        found = make(params, system)
        reference = found if reference is None else reference
        reduced = None if group is None else compatible(group, found.matrix)
        difference = np.abs(found.values - reference.values).max()
        line = {
            "crystal": options.crystal,
            "atoms": found.values.shape[1],
            "columns": len(displacements(len(atoms), reduced)[0]),
            "error": float(difference / np.abs(reference.values).max()),
        }
        line |= timing.measure(lambda make=make: make(params, system), least=3)
        report(line, options.output)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystal", choices=CRYSTALS, default="quartz")
    parser.add_argument("--repeats", type=int, nargs=3, default=[2, 2, 2])
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--output", help="append the lines to this file")
    return parser.parse_args()


def report(line, path):
    text = json.dumps(timing.rounded(line))
    print(text, flush=True)
    if path:
        with open(path, "a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
