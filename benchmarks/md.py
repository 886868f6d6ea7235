"""How many steps a second does a trajectory make, beside the peers, and what do its lists cost?

    python -m benchmarks.md lj --cores 1            # 4000 argon atoms: ours, jax-md, ASE
    python -m benchmarks.md scaling --cores 1       # time of an atom and step, 1000 to 64 000 atoms
    python -m benchmarks.md lists --cores 1         # one neighbour search, to 100 000 atoms
    python -m benchmarks.md model --cores 1         # MACE in water: the step and the bare call

Argon at the reduced density 0.8442 and temperature 0.722 that a rattled crystal melts to, cutoff
2.5 sigma, skin 0.3 sigma, time step 0.002: the liquid of the LAMMPS benchmark, velocity Verlet with
the list inside. One line of JSON a measurement, each in a process of its own; times are CPU time of
one step, the least of the repeats. `drift` is that of the energy, eV per atom and step.
"""

import argparse
import json
import os
import subprocess
import sys

from benchmarks import timing

SIGMA, EPSILON, MASS = 3.4, 0.0104, 39.948  # Å, eV, amu
DENSITY, TEMPERATURE, CUTOFF, SKIN = 0.8442, 1.44, 2.5, 0.3  # reduced
DT = 4.3  # fs, 0.002 in reduced time
SIZES = [1372, 4000, 8788, 19652, 62500]  # 4 n³
LIST_SIZES = [1372, 10976, 97556]
WATER = {"channels": 32, "hidden_l": 1, "l_max": 3, "correlation": 3, "cutoff": 5.0}


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.md", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["lj", "scaling", "lists", "model"])
    parser.add_argument("--atoms", type=int, nargs="*", help="argon: 4 x a cube, water: 3 x any")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument("--skin", type=float, default=SKIN, help="sigma")
    parser.add_argument("--steps", type=int, default=100, help="of one repeat")
    parser.add_argument("--cores", type=int, help="pin to so many cores (Linux)")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of repeats")
    parser.add_argument("--output", help="append the lines to this file, too")
    given = parser.parse_args()
    for task in tasks(given):
        task |= {"cores": given.cores, "budget": given.budget, "steps": given.steps}
        line = in_a_process(task)
        print(line, flush=True)
        if given.output:
            with open(given.output, "a") as file:
                file.write(line + "\n")


def tasks(given):
    """One task a measurement."""
    for dtype in given.dtypes:
        base = {"what": given.what, "dtype": dtype, "skin": given.skin}
        if given.what == "lj":
            for n in given.atoms or [4000]:
                for code in ("jaxmlip", "Dense", "Sparse", "OrderedSparse", "ase"):
                    yield base | {"code": code, "n_atoms": n}
        elif given.what == "scaling":
            for n in given.atoms or SIZES:
                yield base | {"code": "jaxmlip", "n_atoms": n}
        elif given.what == "lists":
            for n in given.atoms or LIST_SIZES:
                for code in ("jaxmlip", "Dense", "Sparse", "vesin"):
                    yield base | {"code": code, "n_atoms": n}
        else:
            for n in given.atoms or [192]:
                yield base | {"code": "jaxmlip", "n_atoms": n}


def in_a_process(task):
    command = [sys.executable, "-m", "benchmarks.md", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else json.dumps(task | {"failed": done.stderr[-500:]})


def run(task):
    timing.pin(task["cores"])
    import jax

    jax.config.update("jax_enable_x64", task["dtype"] == "float64")
    watch = timing.Stopwatch()
    if task["what"] == "lists":
        call, facts, per = listed(task)
    elif task["what"] == "model":
        call, facts, per = water(task)
    elif task["code"] == "jaxmlip":
        call, facts, per = ours(task)
    elif task["code"] == "ase":
        call, facts, per = of_ase(task)
    else:
        call, facts, per = of_jax_md(task)
    setup = watch.cpu()
    call()
    found = timing.measure(call, budget=task["budget"], least=3)
    one = found["cpu_ms"] / per
    out = task | {"ms": one, "us_per_atom": 1e3 * one / task["n_atoms"], "per_s": 1e3 / one}
    out |= {"wall_ms": found["wall_ms"] / per, "setup_cpu_s": setup, "repeats": found["repeats"]}
    out |= {k: v() if callable(v) else v for k, v in facts.items()} | timing.memory_mb()
    return out | {"jax": jax.__version__, "load": os.getloadavg()[0]}


# --- the liquid ----------------------------------------------------------------------------------


def liquid(n_atoms):
    """ASE atoms of argon."""
    from ase.build import bulk

    n = round((n_atoms / 4) ** (1 / 3))
    if 4 * n**3 != n_atoms:
        raise SystemExit(f"{n_atoms} atoms: four times a cube is needed, 4000 ...")
    atoms = bulk("Ar", "fcc", (4 / DENSITY) ** (1 / 3) * SIGMA, cubic=True).repeat(n)
    atoms.rattle(0.02 * SIGMA, seed=0)
    return atoms


def lennard_jones():
    from jaxmlip.models import LennardJones

    return LennardJones(elements=(18,), epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF * SIGMA)


def kelvin():
    from jaxmlip import units

    return TEMPERATURE * EPSILON / units.kB


def moving(potential, params, system, masses, task, *, integrator, temperature, **options):
    """(call, facts, steps of a call): blocks of a trajectory that goes on from call to call."""
    import jax
    import numpy as np

    from jaxmlip.md import prepare, thermal_motion, trajectory

    run = prepare(potential, params, system, integrator, masses=masses, **options)
    motion = thermal_motion(system, run.bodies, jax.random.key(0), temperature=temperature)
    state, steps, seen = {"run": run, "motion": motion}, task["steps"], []

    def call():
        for block in trajectory(
            state["run"], state["motion"], steps=steps, block=steps, record=steps
        ):
            state["run"], state["motion"] = block.run, block.motion
            seen.append((block.searches, float(block.records["conserved_energy"][-1].sum())))

    call()  # melts and widens lists
    call()
    energies = lambda: np.array([energy for _, energy in seen])
    drift = lambda: float(np.diff(energies()[1:]).mean() / steps / system.n_atoms)
    return call, {"searches": lambda: seen[-1][0], "drift": drift}, steps


def ours(task):
    import numpy as np

    from jaxmlip import from_ase
    from jaxmlip.md import nve

    system = from_ase(liquid(task["n_atoms"]), 1.0, dtype=task["dtype"])
    masses = np.full(system.n_atoms, MASS)
    options = {"skin": task["skin"] * SIGMA, "narrow": False}
    options |= {"integrator": nve(dt=DT), "temperature": kelvin()}
    return moving(lennard_jones(), {}, system, masses, task, **options)


def of_jax_md(task):
    """Its own pair potential, list and integrator; one compiled loop of steps."""
    import jax
    import jax.numpy as jnp
    from jax_md import energy, partition, simulate, space

    from jaxmlip import units

    atoms, steps = liquid(task["n_atoms"]), task["steps"]
    box = float(atoms.cell[0, 0])
    displacement, shift = space.periodic(box)
    make, potential = energy.lennard_jones_neighbor_list(
        displacement,
        box,
        sigma=SIGMA,
        epsilon=EPSILON,
        r_onset=0.8 * CUTOFF,
        r_cutoff=CUTOFF,
        dr_threshold=task["skin"] * SIGMA,
        format=getattr(partition, task["code"]),
    )
    positions = jnp.asarray(atoms.positions % box, task["dtype"])
    neighbors = make.allocate(positions, extra_capacity=8)
    init, step = simulate.nve(potential, shift, DT * units.fs)
    kT = TEMPERATURE * EPSILON
    state = init(jax.random.PRNGKey(0), positions, kT=kT, mass=MASS, neighbor=neighbors)

    def body(_, carry):
        state, neighbors = carry
        neighbors = neighbors.update(state.position)
        return step(state, neighbor=neighbors), neighbors

    loop = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, body, carry))
    kept = {"carry": (state, neighbors)}

    def call():
        kept["carry"] = jax.block_until_ready(loop(kept["carry"]))

    call()  # melts
    state = kept["carry"][0]
    kept["carry"] = state, make.allocate(state.position)  # room for the liquid and no more
    call()
    return call, {"overflow": lambda: bool(kept["carry"][1].did_buffer_overflow)}, steps


def of_ase(task):
    from ase import units
    from ase.calculators.lj import LennardJones
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms, reach = liquid(task["n_atoms"]), CUTOFF * SIGMA
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=reach, ro=0.8 * reach, smooth=True)
    MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin())
    dynamics = VelocityVerlet(atoms, DT * units.fs)
    return lambda: dynamics.run(2), {}, 2


# --- lists alone ---------------------------------------------------------------------------------


def listed(task):
    """One search for all pairs within 2.8 sigma."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    atoms, reach = liquid(task["n_atoms"]), (CUTOFF + task["skin"]) * SIGMA
    if task["code"] == "vesin":
        from jaxmlip.neighbors import neighbor_pairs

        cell = np.asarray(atoms.cell)
        call = lambda: neighbor_pairs(atoms.positions, cell, atoms.pbc, reach)
        return call, {"pairs": lambda: len(call()[0])}, 1
    if task["code"] == "jaxmlip":
        from jaxmlip import from_ase
        from jaxmlip.cell_list import plan_list, search

        system = jax.tree.map(jnp.asarray, from_ase(atoms, 1.0, dtype=task["dtype"]))
        plan = plan_list(system, reach, room=1.1)
        find = jax.jit(lambda system: search(plan, system))
        call = lambda: jax.block_until_ready(find(system))
        return call, {"pairs": lambda: int(call().edges.mask.sum())}, 1
    from jax_md import partition, space

    box = float(atoms.cell[0, 0])
    positions = jnp.asarray(atoms.positions % box, task["dtype"])
    make = partition.neighbor_list(
        space.periodic(box)[0],
        box,
        r_cutoff=reach,
        dr_threshold=0.0,
        capacity_multiplier=1.1,
        format=getattr(partition, task["code"]),
    )
    neighbors = make.allocate(positions)
    update = jax.jit(lambda r, neighbors: neighbors.update(r))
    call = lambda: jax.block_until_ready(update(positions + 1e-3, neighbors))
    ends = lambda: call().idx if task["code"] == "Dense" else call().idx[0]
    pairs = lambda: int((ends() < len(atoms)).sum())
    return call, {"pairs": pairs, "overflow": lambda: bool(call().did_buffer_overflow)}, 1


# --- a message-passing potential -----------------------------------------------------------------


def water(task):
    """Steps of MACE in thermostatted water, and its bare energy and forces with a fresh list.

    Weights are random: energies are so small that atoms fly as the temperature says, for forces
    without sense would heat them, and a list would be searched every third step.
    """
    import jax
    import jax.numpy as jnp

    from benchmarks.systems import ELEMENTS, structure
    from jaxmlip import from_ase
    from jaxmlip.derivatives.first import with_forces
    from jaxmlip.md import csvr
    from jaxmlip.models import MACE
    from jaxmlip.potential import scale

    atoms = structure(f"water{task['n_atoms']}")
    model = scale(MACE(elements=tuple(ELEMENTS), **WATER), 1e-4)
    system = jax.tree.map(jnp.asarray, from_ase(atoms, model.cutoff, dtype=task["dtype"]))
    params = model.init(jax.random.key(0), system)
    bare = jax.jit(lambda params, system: with_forces(model.apply)(params, system)["forces"])
    again = lambda: jax.block_until_ready(bare(params, system))
    again()
    single = timing.measure(again, budget=task["budget"], least=3)["cpu_ms"]
    bath = csvr(dt=0.5, temperature=300.0)
    call, facts, per = moving(
        model, params, system, atoms.get_masses(), task, integrator=bath, temperature=300.0
    )
    return call, facts | {"bare_call_ms": single}, per


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(timing.rounded(run(json.loads(sys.argv[1])))))
    else:
        main()
