"""What does D(q) at one q cost on the primitive cell, beside the columns of supercells?

    python -m benchmarks.bloch [--model FILE] [--crystal si|mgo] [--repeats 2 3] [--channels 128]
                               [--cutoff 5] [--dtype float64] [--output FILE]

A published potential (FILE), or an untrained MACE of the published size (2 layers), on a two-atom
cell: compile time, time and temporary memory (what the compiler allocates) of D(q) at a zone
boundary, then of the 6 rows of force constants of n x n x n supercells. These hold every D(q)
commensurate with them: where n is even the two are compared at the same q (`error`: the largest
deviation over the largest element). Between such points supercells interpolate: `max_error_thz`
and `mean_error_thz` compare their frequencies with the exact ones at 24 random q (with --model
only: an untrained potential has none that mean anything). One line of JSON a measurement; ratios
belong to one run.
"""

import argparse
import json
from dataclasses import replace

import jax
import numpy as np
from ase.build import bulk

import jaxmlip
from benchmarks import timing
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix
from jaxmlip.derivatives.bloch.modes import phonon_frequencies
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models.mace import MACE
from jaxmlip.system import cast
from jaxmlip.vibrations.phonons.force_constants import (
    _supercell,
    _unfolded,
    displacements,
    fourier_sum,
)

CRYSTALS = {"si": ("Si", "diamond", 5.43), "mgo": ("MgO", "rocksalt", 4.212)}
BOUNDARY = np.array([[0.5, 0.5, 0.0]])  # X of both lattices


def main():
    options = arguments()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    potential, params, system, masses = model(options)
    matrices = jax.jit(dynamical_matrix(potential.apply))
    head = {
        "crystal": options.crystal,
        "dtype": options.dtype,
        "edges": int(system.edges.mask.sum()),
    }
    head |= {"model": options.model} if options.model else {"channels": options.channels}
    exact, figures = measured(matrices, params, system, jax.numpy.asarray(BOUNDARY, options.dtype))
    if options.model:
        figures["frequencies_thz"] = frequencies(exact, masses)[0].tolist()
        waves = np.random.default_rng(0).uniform(-0.5, 0.5, (24, 3))
        at = [matrices(params, system, np.asarray(q[None], options.dtype)) for q in waves]
        exact_waves = frequencies(np.concatenate(at), masses)
    report(head | {"what": "bloch", "atoms": system.n_atoms} | figures, options.output)
    for n in options.repeats:
        constants, large = _supercell(system, (n, n, n), potential.cutoff, masses)
        rows, figures = measured(
            jax.jit(jaxmlip.hessian(potential.apply, atoms=[0, 1])), params, large
        )
        interpolated = fourier_sum(whole(constants, rows))
        if n % 2 == 0:
            figures["error"] = deviation(exact, interpolated(BOUNDARY))
        if options.model:
            errors = np.abs(frequencies(interpolated(waves), masses) - exact_waves)
            figures |= {
                "max_error_thz": float(errors.max()),
                "mean_error_thz": float(errors.mean()),
            }
        report(head | {"what": "supercell", "atoms": large.n_atoms} | figures, options.output)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="file of a published potential, instead of MACE")
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
    elements = tuple(sorted({int(z) for z in atoms.numbers}))
    if options.model:
        potential, params = jaxmlip.load(options.model, elements=list(elements))
        params = cast(params, options.dtype)
        return (
            potential,
            params,
            from_ase(atoms, potential.cutoff, dtype=options.dtype),
            atoms.get_masses(),
        )
    potential = MACE(
        elements=elements,
        cutoff=options.cutoff,
        channels=options.channels,
        avg_num_neighbors=30.0,
    )
    system = from_ase(atoms, potential.cutoff, dtype=options.dtype)
    params = jax.jit(potential.init)(jax.random.key(0), system)
    return potential, params, system, atoms.get_masses()


def measured(function, *inputs):
    """The result, and seconds to compile, of one call, and MB of temporary memory."""
    watch = timing.Stopwatch()
    compiled = function.lower(*inputs).compile()
    figures = {"compile_cpu_s": watch.cpu()}
    result = []
    call = lambda: result.append(np.asarray(compiled(*inputs)))
    figures |= timing.measure(call, least=3)
    return result[0], figures | {"memory_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20}


def whole(constants, rows):
    """Force constants of a supercell from the rows [2, 3, N, 3] of the atoms of one cell."""
    atoms, vectors = displacements(2)
    columns = np.asarray(rows, np.float64).reshape(6, -1, 3)
    return replace(
        constants, values=_unfolded(constants, None, atoms, vectors, columns).swapaxes(-1, -2)
    )


def frequencies(matrices, masses):
    """THz, [n_q, 6]."""
    return np.asarray(phonon_frequencies(jax.numpy.asarray(matrices), masses))


def deviation(exact, other):
    return float(np.abs(exact - other).max() / np.abs(exact).max())


def report(line, output):
    text = json.dumps(timing.rounded(line))
    print(text, flush=True)
    if output:
        with open(output, "a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
