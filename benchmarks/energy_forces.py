"""How long do energy and forces (and stress), a Hessian or a training step take, beside the peers?

    python -m benchmarks.energy_forces --environments PEERS --cores 1 --output results.jsonl
    python -m benchmarks.energy_forces --systems aspirin --hessian
    python -m benchmarks.energy_forces --systems aspirin --train

Same structures, hyperparameters, precision and cores for all; random weights. One line of JSON a
measurement: times of a call and of the first call (with compilation), memory, numbers of atoms,
edges and parameters, versions. Set-up of the peers: benchmarks/README.md.
"""

import argparse

from benchmarks import drive

SYSTEMS = ("ethanol", "aspirin", "si64", "si216", "si512", "cu108", "water192")

HYPERPARAMETERS = {
    "channels": int,
    "l_max": int,
    "correlation": int,
    "n_layers": int,
    "cutoff": float,
}


def main():
    parser = argparse.ArgumentParser(
        prog="benchmarks.energy_forces", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, metavar="NAME")
    parser.add_argument("--models", nargs="+", default=["mace"], choices=drive.MODELS)
    for name, kind in HYPERPARAMETERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="if not the model's own")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--hessian", dest="task", action="store_const", const="hessian")
    task.add_argument("--train", dest="task", action="store_const", const="training")
    parser.set_defaults(task="energy")
    drive.add_options(parser)
    given = parser.parse_args()
    for name in given.models:
        model = {"model": name, **drive.MODELS[name]}
        model |= {k: getattr(given, k) for k in HYPERPARAMETERS if getattr(given, k) is not None}
        for dtype in given.dtypes:
            for system in given.systems:
                task = {"task": given.task, "system": system, "dtype": dtype, **model}
                compare(task, given)


def compare(task, given):
    """All codes on one task, one after the other; a different number of edges is reported."""
    sizes = {}
    for allocator in given.allocators:
        for peer in given.peers:
            result = drive.measured(peer, task, given, allocator=allocator)
            if "n_edges" in result:
                sizes[peer] = result["n_edges"]
    if len(set(sizes.values())) > 1:
        raise SystemExit(f"{task['system']}: not the same edges: {sizes}")


if __name__ == "__main__":
    main()
