"""What does D(q) at one q cost on the primitive cell, beside the columns of supercells?

    python -m benchmarks.bloch [--model FILE] [--crystal si|mgo|diamond] [--repeats 2 3]
                               [--channels 128] [--cutoff 5] [--dtype float64]
                               [--planned 6 8] [--room 2000] [--output FILE]

A published potential (FILE), or an untrained MACE of the published size (2 layers), on a two-atom
cell: compile time, time and temporary memory (what the compiler allocates) of D(q) at a zone
boundary, then of the 6 rows of force constants of n x n x n supercells. These hold every D(q)
commensurate with them: where n is even the two are compared at the same q (`error`: the largest
deviation over the largest element). Between such points supercells interpolate: `max_error_thz`
and `mean_error_thz` compare their frequencies with the exact ones at 24 random q (with --model
only: an untrained potential has none that mean anything). Of the `--planned` repeats one column
alone is compiled, and D(q) with one column at a time beside it ("lean"). Its memory is the least
with which a supercell of this size can do; it runs once, where it needs less than `--room` MB, and
the error is that of exact D(q) on the grid of the supercell, which is its Fourier sum. One line of
JSON a measurement; ratios belong to one run.
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
from jaxmlip.vibrations.phonons.dispersion import crystal
from jaxmlip.vibrations.phonons.force_constants import (
    _supercell,
    _unfolded,
    displacements,
    fourier_sum,
)
from jaxmlip.vibrations.phonons.grids import q_grid
from jaxmlip.vibrations.phonons.interpolation import from_grid

CRYSTALS = {
    "si": ("Si", "diamond", 5.43),
    "mgo": ("MgO", "rocksalt", 4.212),
    "diamond": ("C", "diamond", 3.46),
}
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
    if options.planned:  # against one column of a supercell, one column at a time
        lean = jax.jit(dynamical_matrix(potential.apply, memory=1))
        _, figures = measured(lean, params, system, jax.numpy.asarray(BOUNDARY, options.dtype))
        report(head | {"what": "bloch, lean", "atoms": system.n_atoms} | figures, options.output)
    for n in options.repeats:
        constants, large = _supercell(system, (n, n, n), potential.cutoff, masses)
        rows, figures = measured(
            jax.jit(jaxmlip.hessian(potential.apply, atoms=[0, 1])), params, large
        )
        interpolated = fourier_sum(whole(constants, rows))
        if n % 2 == 0:
            figures["error"] = deviation(exact, interpolated(BOUNDARY))
        if options.model:
            figures |= errors(frequencies(interpolated(waves), masses), exact_waves)
        report(head | {"what": "supercell", "atoms": large.n_atoms} | figures, options.output)
    for n in options.planned:
        _, large = _supercell(system, (n, n, n), potential.cutoff, masses)
        figures = one_column(potential.apply, params, large, options.room)
        if options.model:
            D = lambda q: np.concatenate([matrices(params, system, x[None]) for x in q])
            lattice = crystal(atoms_of(options))
            grid = q_grid(lattice, (n, n, n))
            figures["n_irreducible_q"] = len(grid.q)
            at_waves = from_grid(lattice, grid, D(grid.q.astype(options.dtype)))(waves)
            figures |= errors(frequencies(at_waves, masses), exact_waves)
        report(head | {"what": "one column", "atoms": large.n_atoms} | figures, options.output)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="file of a published potential, instead of MACE")
    parser.add_argument("--crystal", choices=CRYSTALS, default="si")
    parser.add_argument("--repeats", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--planned", type=int, nargs="*", default=[], help="by one column alone")
    parser.add_argument("--room", type=float, default=2000.0, help="MB that a column may use")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--output", help="append the lines to this file")
    return parser.parse_args()


def atoms_of(options):
    symbol, lattice, a = CRYSTALS[options.crystal]
    return bulk(symbol, lattice, a=a)


def model(options):
    atoms = atoms_of(options)
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


def one_column(apply, params, system, room):
    """Memory of one Hessian-vector product, and its time, if there is room."""
    product = jax.jit(jaxmlip.hessian_vector_product(apply))
    vector = np.zeros(system.positions.shape, system.positions.dtype)
    vector[0, 0] = 1
    watch = timing.Stopwatch()
    compiled = product.lower(params, system, vector).compile()
    figures = {"compile_cpu_s": watch.cpu()}
    figures["memory_mb"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    if figures["memory_mb"] < room:
        one = timing.once(lambda: jax.block_until_ready(compiled(params, system, vector)))
        figures |= {"column_cpu_ms": 1e3 * one["cpu"]}
    return figures


def errors(found, right):
    difference = np.abs(found - right)
    return {"max_error_thz": float(difference.max()), "mean_error_thz": float(difference.mean())}


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
