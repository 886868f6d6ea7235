"""What does a band path to a known accuracy cost, and what does a supercell's truncation do to it?

    python -m benchmarks.phonons bands    --model lj|FILE --crystal si|mgo|diamond|skewed ...
                                          [--repeats 2 3 4] [--tolerance 0.02] [--calls 100]
                                          [--passes 1] [--dtype float64] [--output FILE]
    python -m benchmarks.phonons aliasing --model lj|FILE --crystal si ... [--repeats 2 3 4 5]

bands: the path from exact D(q) at chosen points (`certified_points`), then from finite differences
through phonopy (central differences of 0.01 Å) in supercells of the given repeats until one has the
error that was certified; both beside exact D(q) at `--checks` points of the path. Symmetry leaves
out columns of D(q) as it leaves out displacements. Seconds are those of calls after compilation,
which is told apart, and the least of `--passes`. Where finite differences ask for more than
`--calls` force evaluations, so many are timed, the rest is counted in proportion (`estimated`), and
the error of that supercell is the one of exact D(q) on its grid, which leaves out what the step of
the differences adds. Host arithmetic runs in as many threads as BLAS is told: OMP_NUM_THREADS=1
where others use the machine.

aliasing: force constants of an n x n x n supercell are D(q) of an n x n x n grid, Fourier
transformed; so exact matrices alone tell what is lost between the points of the grid, whatever the
supercell would cost. The error at `--checks` points in general position, in THz.

`skewed` is eight atoms of rock salt (or diamond), strained and shaken, without any symmetry and not
relaxed: forces do not vanish, but D(q) and its interpolation are as well defined. One line of JSON
a measurement; ratios belong to one run.
"""

import argparse
import json
from dataclasses import replace

import jax
import numpy as np
from ase.build import bulk

import jaxmlip
from benchmarks import timing
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.phonons.symmetry import symmetry
from jaxmlip.md.cell import relax_cell
from jaxmlip.models.pair import LennardJones
from jaxmlip.vibrations.phonons.bands import standard_path
from jaxmlip.vibrations.phonons.certified import certified_points, generic, remembered
from jaxmlip.vibrations.phonons.dispersion import crystal, frequencies_THz
from jaxmlip.vibrations.phonons.grids import q_grid
from jaxmlip.vibrations.phonons.interpolation import from_grid
from jaxmlip.vibrations.phonons.velocities import model_matrices


def skewed(atoms):
    rng = np.random.default_rng(0)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.02, 0.02, (3, 3))), True)
    atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
    return atoms


CRYSTALS = {
    "si": lambda: bulk("Si", "diamond", a=5.43),
    "al": lambda: bulk("Al", "fcc", a=4.04),
    "mgo": lambda: bulk("MgO", "rocksalt", a=4.212),
    "nacl": lambda: bulk("NaCl", "rocksalt", a=5.69),
    "argon": lambda: bulk("Ar", "fcc", a=5.28),
    "diamond": lambda: bulk("C", "diamond", a=3.46),
    "skewed": lambda: skewed(bulk("NaCl", "rocksalt", a=5.69, cubic=True)),
    "skewed-diamond": lambda: skewed(bulk("C", "diamond", a=3.46, cubic=True)),
}


def main():
    options = arguments()
    jax.config.update("jax_enable_x64", True)
    timing.pin(options.cores)
    atoms = CRYSTALS[options.crystal]()
    potential, params = model(options, atoms)
    if not options.crystal.startswith("skewed"):
        atoms = relaxed(atoms, potential, params)
    params = jaxmlip.cast(params, options.dtype)
    system = from_ase(atoms, potential.cutoff, dtype=options.dtype)
    group = symmetry(atoms)
    head = {"what": options.what, "crystal": options.crystal, "model": options.model}
    head |= {"atoms": len(atoms), "operations": group.n_ops}
    head |= {"cutoff_A": potential.cutoff, "edges": int(system.edges.mask.sum())}
    watch = timing.Stopwatch()
    D = model_matrices(potential.apply, params, system, group=group)
    D(np.array([[0.1, 0.2, 0.3]]))
    compiling = watch.wall()
    one = timing.measure(lambda: D(np.array([[0.3, 0.1, 0.2]])), budget=3.0, least=2)
    head |= {"compile_s": compiling, "exact_q_s": one["wall_ms"] / 1000}
    task = {"bands": bands, "aliasing": aliasing}[options.what]
    for line in task(options, atoms, potential, params, D):
        report(head | line, options.output)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bands", "aliasing"])
    parser.add_argument("--model", default="lj", help="lj, or what jaxmlip.load takes")
    parser.add_argument("--crystal", choices=CRYSTALS, default="argon")
    parser.add_argument("--repeats", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--tolerance", type=float, default=0.02, help="THz")
    parser.add_argument("--checks", type=int, default=12, help="exact points of comparison")
    parser.add_argument("--largest", type=int, default=1000, help="atoms of a supercell at most")
    parser.add_argument("--calls", type=int, default=100, help="most force evaluations to run")
    parser.add_argument("--passes", type=int, default=1, help="times to repeat each method")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--cores", type=int)
    parser.add_argument("--output", help="append the lines to this file")
    return parser.parse_args()


def model(options, atoms):
    elements = tuple(sorted({int(z) for z in atoms.numbers}))
    if options.model == "lj":  # argon, whatever the elements are called
        potential = LennardJones(elements=elements, epsilon=0.0103, sigma=3.4, cutoff=8.5)
        return potential, {}
    potential, params = jaxmlip.load(options.model, elements=elements)
    return potential, jaxmlip.cast(params, "float64")


def relaxed(atoms, potential, params):
    group = symmetry(atoms)
    system, info = relax_cell(
        potential,
        params,
        from_ase(atoms, potential.cutoff + 0.5),
        symmetry=(group.rotations, group.translations),
    )
    assert info.converged, info.reason
    atoms = atoms.copy()
    atoms.set_cell(np.asarray(system.cell)[0])
    atoms.positions = np.asarray(system.positions)
    return atoms


def report(line, output):
    text = json.dumps(timing.rounded(line))
    print(text, flush=True)
    if output:
        with open(output, "a") as file:
            file.write(text + "\n")


# --- bands ---------------------------------------------------------------------------------------


def bands(options, atoms, potential, params, D):
    """One line for the certified path, one for each supercell."""
    lattice, path = crystal(atoms), standard_path(atoms)
    exact, _ = remembered(D)
    path_of = lambda: certified_points(
        remembered(D)[0], lattice, path.q, tolerance=options.tolerance
    )
    found, seconds = fastest(path_of, options.passes)
    ours = frequencies_THz(found.D(path.q), lattice.masses)
    at = np.linspace(0, len(path.q) - 1, options.checks).round().astype(int)
    right = frequencies_THz(exact(path.q[at]), lattice.masses)
    yield {
        "method": "exact D(q), certified",
        **seconds,
        "n_exact": found.n_exact,
        "n_path": len(path.q),
        "measured_error_THz": found.error_THz,
        "certified": found.certified,
        **errors(ours[at], right),
    }
    for n in options.repeats:
        if n**3 * len(atoms) > options.largest:
            return
        line, constants = finite_differences(n, atoms, potential, params, path.q[at], options)
        if constants is None:
            constants = frequencies_of_grid(lattice, exact, n, path.q[at])
        line |= errors(constants, right) | {"speed_up": line["cpu_s"] / seconds["cpu_s"]}
        yield line
        if line["max_error_THz"] <= options.tolerance:
            return


def fastest(call, passes):
    """(result, seconds of the pass that took least CPU time)."""
    runs = []
    for _ in range(passes):
        watch = timing.Stopwatch()
        result = call()
        runs.append({"s": watch.wall(), "cpu_s": watch.cpu()})
    return result, min(runs, key=lambda run: run["cpu_s"])


def errors(found, right):
    difference = np.abs(found - right)
    return {"max_error_THz": difference.max(), "mean_error_THz": difference.mean()}


def frequencies_of_grid(lattice, exact, n, q):
    """What the exact force constants of n x n x n cells give at q."""
    grid = q_grid(lattice, (n, n, n))
    return frequencies_THz(from_grid(lattice, grid, exact(grid.q))(q), lattice.masses)


def finite_differences(n, atoms, potential, params, q, options):
    """phonopy's displacements in n x n x n cells, forces of the same potential.

    (facts, frequencies at q or None where there were more displacements than calls to run)
    """
    from phonopy import Phonopy

    from jaxmlip.interfaces.phonons.phonopy_files import from_phonopy_atoms, to_phonopy_atoms

    phonon = Phonopy(to_phonopy_atoms(atoms), np.eye(3, dtype=int) * n, primitive_matrix=np.eye(3))
    phonon.generate_displacements(distance=0.01, is_plusminus="auto")
    moved = phonon.supercells_with_displacements
    skin = 0.05  # Å, more than any displacement: one list and one program for all
    whole = from_phonopy_atoms(phonon.supercell)
    system = from_ase(whole, potential.cutoff + skin, dtype=options.dtype)
    start, shift = phonon.supercell.positions, [m.positions for m in moved[: options.calls]]
    watch = timing.Stopwatch()
    forces = jax.jit(jaxmlip.forces(potential.apply)).lower(params, system).compile()
    force = lambda r: np.asarray(forces(params, replace(system, positions=r.astype(options.dtype))))
    force(start)
    compiling, whole_set = watch.wall(), len(shift) == len(moved)

    def displaced():
        phonon.forces = [force(r) for r in shift]
        phonon.produce_force_constants(show_drift=False)
        phonon.run_qpoints(q)
        return phonon.qpoints.frequencies

    run = displaced if whole_set else lambda: [force(r) for r in shift] and None
    found, seconds = fastest(run, options.passes)
    seconds = {k: v * len(moved) / len(shift) for k, v in seconds.items()}
    facts = {
        "method": "finite differences, phonopy",
        **seconds,
        "estimated": not whole_set,
        "fd_compile_s": compiling,
        "repeats": n,
        "supercell_atoms": len(start),
        "n_displacements": len(moved),
        "n_calls": len(shift),
    }
    return facts, found


# --- aliasing ------------------------------------------------------------------------------------


def aliasing(options, atoms, potential, params, D):
    """One line for each supercell: what its force constants miss between its own points."""
    lattice, (exact, _) = crystal(atoms), remembered(D)
    q = generic(options.checks)
    right = frequencies_THz(exact(q), lattice.masses)
    for n in options.repeats:
        watch = timing.Stopwatch()
        found = frequencies_of_grid(lattice, exact, n, q)
        yield {
            "repeats": n,
            "supercell_atoms": n**3 * len(atoms),
            "supercell_length_A": n * float(np.cbrt(atoms.get_volume())),
            "n_irreducible_q": len(q_grid(lattice, (n, n, n)).q),
            "s": watch.wall(),
            "n_checks": len(q),
            "highest_THz": right.max(),
            **errors(found, right),
        }


if __name__ == "__main__":
    main()
