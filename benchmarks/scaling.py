"""How do time and memory of our model grow with atoms, edges and channels?

    python -m benchmarks.scaling --cores 1 --output results.jsonl
    python -m benchmarks.scaling --atoms 64 512 --cutoffs --channels --peers jaxmlip mlip

Energy, forces and stress of MACE on rattled silicon: cells of 64 to 100 000 atoms, cutoffs from 4
to 7 Å (12 to 86 neighbours) and 16 to 256 channels, one after another from the reference of 512
atoms, 5 Å and 128 channels. One line of JSON a measurement, each in a process of its own; what
would need more than --memory-gb of temporary memory is compiled, reported and not run.
"""

import argparse

from benchmarks import drive

ATOMS = [64, 216, 512, 1000, 4096, 8000, 32768, 100000]
CUTOFFS = [4.0, 5.0, 6.0, 7.0]
CHANNELS = [16, 32, 64, 128, 256]
REFERENCE = 512


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", nargs="*", type=int, default=ATOMS, help="multiples of 8")
    parser.add_argument("--cutoffs", nargs="*", type=float, default=CUTOFFS, help="Å")
    parser.add_argument("--channels", nargs="*", type=int, default=CHANNELS)
    parser.add_argument("--reference", type=int, default=REFERENCE, help="atoms of the other two")
    drive.add_options(parser)
    parser.set_defaults(peers=["jaxmlip"], least=3)
    given = parser.parse_args()
    for task in tasks(given):
        for dtype in given.dtypes:
            for allocator in given.allocators:
                for peer in given.peers:
                    drive.measured(peer, task | {"dtype": dtype}, given, allocator=allocator)


def tasks(given):
    """One task a point; `against` names what is varied."""
    base = {"task": "energy", "model": "mace", **drive.MODELS["mace"]}
    box = f"si{given.reference}"
    for n in given.atoms:
        yield base | {"against": "atoms", "system": f"si{n}"}
    for r in given.cutoffs:
        yield base | {"against": "edges", "system": box, "cutoff": r}
    for c in given.channels:
        yield base | {"against": "channels", "system": box, "channels": c}


if __name__ == "__main__":
    main()
