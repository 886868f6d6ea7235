"""What does D(q) at one q cost on the primitive cell, beside the columns of supercells?

    python -m benchmarks.bloch [--crystal si|mgo] [--repeats 2 3] [--channels 128] [--cutoff 5]
                               [--dtype float64] [--output FILE]

A MACE potential of the published size (2 layers, untrained) on a two-atom cell: compile time, time
and temporary memory (what the compiler allocates) of D(q) at a zone boundary, then of the 6 rows
of force constants of n x n x n supercells, which hold every D(q) commensurate with them. Where n is
even the two are compared at the same q: `error` is the largest deviation over the largest element.
One line of JSON a measurement; ratios belong to one run.
"""

import argparse
import json

import jax
import numpy as np
from ase.build import bulk

import jaxmlip
from benchmarks import timing
from jaxmlip.derivatives.bloch import dynamical_matrix
from jaxmlip.derivatives.bloch_supercell import _copies, repeated
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models.mace import MACE

CRYSTALS = {"si": ("Si", "diamond", 5.43), "mgo": ("MgO", "rocksalt", 4.212)}
BOUNDARY = np.array([[0.5, 0.5, 0.0]])  # X of both lattices


def main():
    options = arguments()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    potential, params, system = model(options)
    head = {"crystal": options.crystal, "dtype": options.dtype, "channels": options.channels}
    head |= {"cutoff": options.cutoff, "edges": int(system.edges.mask.sum())}
    q = jax.numpy.asarray(BOUNDARY, options.dtype)
    exact, figures = measured(dynamical_matrix(potential.apply), params, system, q)
    report(head | {"what": "bloch", "atoms": system.n_atoms} | figures, options.output)
    for n in options.repeats:
        large = repeated(system, (n, n, n))
        rows, figures = measured(jaxmlip.hessian(potential.apply, atoms=[0, 1]), params, large)
        if n % 2 == 0:
            figures["error"] = deviation(exact, rows, n)
        report(head | {"what": "supercell", "atoms": large.n_atoms} | figures, options.output)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystal", choices=CRYSTALS, default="si")
    parser.add_argument("--repeats", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--output", help="append the lines to this file")
    return parser.parse_args()


def model(options):
    symbol, lattice, a = CRYSTALS[options.crystal]
    atoms = bulk(symbol, lattice, a=a)
    potential = MACE(
        elements=tuple(sorted({int(z) for z in atoms.numbers})),
        cutoff=options.cutoff,
        channels=options.channels,
        avg_num_neighbors=30.0,
    )
    system = from_ase(atoms, potential.cutoff)
    return potential, jax.jit(potential.init)(jax.random.key(0), system), system


def measured(function, *inputs):
    """The result, and seconds to compile, of one call, and MB of temporary memory."""
    watch = timing.Stopwatch()
    compiled = jax.jit(function).lower(*inputs).compile()
    figures = {"compile_cpu_s": watch.cpu()}
    result = np.asarray(compiled(*inputs))
    figures |= timing.measure(lambda: jax.block_until_ready(compiled(*inputs)), least=3)
    return result, figures | {"memory_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20}


def deviation(exact, rows, n):
    """Of D(q) from the Fourier sum of rows [2, 3, 2 n³, 3]."""
    phases = np.exp(2j * np.pi * _copies((n, n, n)) @ BOUNDARY[0])
    expected = np.einsum("acb,c->ab", rows.reshape(6, len(phases), 6), phases)
    return float(np.abs(exact[0] - expected).max() / np.abs(expected).max())


def report(line, output):
    text = json.dumps(timing.rounded(line))
    print(text, flush=True)
    if output:
        with open(output, "a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
