"""What does a spatial decomposition over several devices cost, and how far does it scale?

    python benchmarks/decomposition.py --cells 4 --domains 1 2 4 8          strong and weak scaling
    python benchmarks/decomposition.py --project 1000000 --domains 8 64 --channels 128 --atom-us 100
                                                                            a model of large systems

One JSON line a row. Measured: counts of atoms, edges and ghosts (from the decomposition itself);
memory and bytes exchanged of one device (from its program); time of a call where host devices stand
in for the real ones. Host devices share this machine's cores, so their times show the work that
decomposing adds (the ideal is a ratio of 1), not a speed-up. Modelled: all of `--project` but bytes
of a ghost, and what starts with `model_`, from counts, the time of an atom, and a link:

    exchange = messages x latency + bytes / bandwidth
    efficiency = compute / (compute + exchange)

Nothing is assumed to overlap, each device sends one message at a time, and compute grows with the
slots of atoms. `model_break_even_us` is the time of one atom at which the efficiency is 0.9.
"""

import argparse
import json
import os
import re
import sys
import time
from itertools import combinations
from math import pi

import numpy as np

LATTICE = 5.43  # Å, silicon: 8 atoms a cube
BYTES = {"f32": 4, "f64": 8, "i32": 4, "i1": 1}


def silicon(repeats, cutoff):
    """A rattled crystal with edges."""
    from ase.build import bulk

    import jaxmlip

    atoms = bulk("Si", "diamond", a=LATTICE, cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return jaxmlip.from_ase(atoms, cutoff, dtype="float32")


def potential(given):
    from jaxmlip.models import MACE

    return MACE(
        elements=(14,),
        cutoff=given.cutoff,
        channels=given.channels,
        hidden_l=given.hidden_l,
        l_max=given.l_max,
        n_layers=given.n_layers,
        avg_num_neighbors=28.0,
    )


def parameters(model, system):
    import jax

    shapes, random = jax.eval_shape(model.init, jax.random.key(0), system), np.random.default_rng(0)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


# --- measured -------------------------------------------------------------------------------------


def decomposed(system, n):
    from jaxmlip.parallel import balance, decompose

    begun = time.perf_counter()
    parts = decompose(system, n)
    seconds = time.perf_counter() - begun
    largest = int(parts.ghosts.max(initial=0))
    return parts, {
        **balance(parts),
        "decompose_s": round(seconds, 3),
        # the alternative, one all-to-all: every pair of domains has room for the largest
        "all_to_all_slots": largest * (n - 1),
    }


def lowered(parts, model, system):
    """The program of energy and forces, its arguments, and the messages of one device."""
    import jax

    from jaxmlip.derivatives.first import with_forces
    from jaxmlip.parallel import device_mesh, distributed, place

    mesh = device_mesh(len(parts.atoms))
    arguments = parameters(model, system), place(parts.system, mesh)
    program = jax.jit(with_forces(distributed(model.apply, mesh))).lower(*arguments)
    return program, arguments, traffic(program.as_text())


def compiled(program, arguments):
    """A call of the compiled program, and the memory that it takes on each device."""
    import jax

    begun = time.perf_counter()
    program = program.compile()
    memory = program.memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return (lambda: jax.block_until_ready(program(*arguments))), {
        "compile_s": round(time.perf_counter() - begun, 2),
        "device_memory_MB": round(used / 2**20, 2),
    }


def traffic(text):
    """Messages that one device sends in a program, and their bytes."""
    pattern = r'collective_permute"?\(.*-> tensor<((?:\d+x)+)(\w+)>'
    sizes = [
        BYTES[kind] * int(np.prod([int(n) for n in shape.split("x")[:-1]]))
        for shape, kind in re.findall(pattern, text)
    ]
    return {"device_messages": len(sizes), "device_sent_bytes": sum(sizes)}


def timed(call, repeats):
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        w, c = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {"wall_ms": round(1e3 * min(wall), 2), "cpu_ms": round(1e3 * min(cpu), 2)}


def scaling(kind, given):
    """Strong: one crystal over more devices. Weak: a crystal that grows with the devices."""
    model = potential(given)
    base, forces = None, None
    for n in given.domains:
        repeats = np.full(3, given.cells)
        for _ in range(n.bit_length() - 1 if kind == "weak" else 0):
            repeats[np.argmin(repeats)] *= 2
        system = silicon(repeats.tolist(), given.cutoff)
        parts, row = decomposed(system, n)
        program, arguments, sent = lowered(parts, model, system)
        call, costs = compiled(program, arguments)
        row |= sent | costs | timed(call, given.repeats)
        row["cpu_us_per_atom"] = round(1e3 * row["cpu_ms"] / system.n_atoms, 2)
        base = base or row["cpu_us_per_atom"]
        row["work_ratio"] = round(row["cpu_us_per_atom"] / base, 3)
        if kind == "strong":
            forces = compared(parts, call(), forces, row)
        row |= model_of(row, row["atom_slots"], given, given.atom_us or base)
        report(kind, n, system.n_atoms, given, row)


def compared(parts, out, expected, row):
    from jaxmlip.parallel import restore

    found = np.asarray(restore(parts, out)["forces"], float)
    if expected is not None:
        row["forces_error_over_largest"] = float(
            np.abs(found - expected).max() / np.abs(expected).max()
        )
    return found if expected is None else expected


# --- modelled -------------------------------------------------------------------------------------


def model_of(row, atoms, given, atom_us):
    """Time of one call on a device with the given link, µs."""
    compute = atoms * atom_us
    latency = row["device_messages"] * given.latency_us
    exchange = latency + row["device_sent_bytes"] / (given.bandwidth * 1e3)
    return {
        "model_atom_us": round(atom_us, 3),
        "model_compute_us": round(compute, 1),
        "model_exchange_us": round(exchange, 1),
        "model_exchange_over_compute": float(f"{exchange / compute:.3g}"),
        "model_efficiency": round(compute / (compute + exchange), 4),
        "model_break_even_us": float(f"{9 * exchange / atoms:.3g}"),
    }


def shell(box, grid, reach):
    """Volume within `reach` of one domain of a periodic box, outside of it (Steiner's formula).

    Nothing lies outside along an axis that is not cut.
    """
    sides = [length / n for length, n in zip(box, grid, strict=True) if n > 1]
    whole = np.prod([length for length, n in zip(box, grid, strict=True) if n == 1])
    pairs = sum(a * b for a, b in combinations(sides, 2))
    ball = {
        0: 0.0,
        1: 2 * reach,
        2: 2 * sum(sides) * reach + pi * reach**2,
        3: 2 * pairs * reach + pi * sum(sides) * reach**2 + 4 / 3 * pi * reach**3,
    }
    return whole * ball[len(sides)]


def project(given):
    """Halos of a large cubic crystal from geometry, after a check of that on crystals made here.

    Geometry counts all atoms within the cutoff of the box, an upper bound: a ghost must be within
    the cutoff of an atom in it.
    """
    from jaxmlip.parallel import balance, decompose
    from jaxmlip.parallel.domains import choose_grid

    model, density = potential(given), 8 / LATTICE**3
    system = silicon(given.cells, given.cutoff)
    parts = decompose(system, 8)
    _, _, costs = lowered(parts, model, system)
    slots = balance(parts)["ghost_slots"]
    bytes_per_ghost = costs["device_sent_bytes"] / slots
    exchanges = costs["device_messages"] / len(parts.ghosts)
    checks, spacing = [], density ** (-1 / 3)
    for cells in given.check_cells:
        system = silicon(cells, given.cutoff)
        for n in (8, 64):
            row = balance(decompose(system, n))
            volume = shell([cells * LATTICE] * 3, row["grid"], given.cutoff)
            checks.append(
                {
                    "grid": row["grid"],
                    "atoms_of_a_domain": row["atoms_max"],
                    "ghosts": row["ghosts_max"],
                    "from_geometry": round(density * volume),
                    "slots_over_ghosts": round(row["ghost_slots"] / row["ghosts_mean"], 3),
                }
            )
    print(json.dumps({"question": "ghosts by geometry", "checks": checks}), flush=True)
    padding = np.mean([check["slots_over_ghosts"] for check in checks])
    box = [spacing * given.project ** (1 / 3)] * 3
    for n in given.domains:
        grid = choose_grid(system, n)
        ghosts, atoms = density * shell(box, grid, given.cutoff), given.project / n
        rounds = int(np.prod([min(g, 3) for g in grid])) - 1
        redundant = np.mean([shell(box, grid, given.cutoff * i) for i in range(given.n_layers)])
        row = {
            "grid": grid,
            "rounds": rounds,
            "atoms_of_a_domain": round(atoms),
            "ghosts": round(ghosts),
            "ghosts_over_atoms": round(ghosts / atoms, 3),
            "bytes_per_ghost_measured": round(bytes_per_ghost, 1),
            "device_messages": round(rounds * exchanges),
            "device_sent_bytes": round(ghosts * padding * bytes_per_ghost),
            # the alternative: no exchange inside a call, each domain computes all that its atoms
            # see; mean over layers of the atoms that are then computed twice
            "redundant_over_atoms": round(density * redundant / atoms, 3),
        }
        row |= model_of(row, atoms, given, given.atom_us)
        report("project", n, given.project, given, row)


def report(question, n, n_atoms, given, row):
    import jax

    settings = ("channels", "hidden_l", "l_max", "n_layers", "cutoff", "bandwidth", "latency_us")
    about = {"question": question, "domains": n, "n_atoms": n_atoms, "jax": jax.__version__}
    print(json.dumps({**about, **{k: getattr(given, k) for k in settings}, **row}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=4, help="cubes of 8 Si atoms along each axis")
    parser.add_argument("--domains", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--kinds", nargs="*", default=["strong", "weak"])
    parser.add_argument("--project", type=int, help="atoms of a system to model, not to run")
    parser.add_argument("--check-cells", type=int, nargs="*", default=[10, 16])
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--hidden-l", type=int, default=1)
    parser.add_argument("--l-max", type=int, default=3)
    parser.add_argument("--n-layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, default=50.0, help="GB/s of a device's link")
    parser.add_argument("--latency-us", type=float, default=20.0, help="of one message")
    parser.add_argument("--atom-us", type=float, help="energy and forces of one atom on one device")
    given = parser.parse_args()
    if given.project and not given.atom_us:
        sys.exit("--project needs --atom-us, the time of one atom on the device in question")
    count = max(8, *given.domains) if not given.project else 8
    flag = f" --xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if given.project:
        return project(given)
    for kind in given.kinds:
        scaling(kind, given)


if __name__ == "__main__":
    main()
