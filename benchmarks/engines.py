"""How many steps a second does a whole engine make with a message-passing potential?

    python -m benchmarks.engines --environments PEERS --cores 1 --models mace-inv32

Langevin dynamics at 300 K in steps of 0.5 fs, each code with its own engine: jaxmlip's compiled
loop, mlip's JAX-MD engine, ASE with mace-torch's calculator. Integrator, thermostat and neighbour
lists are those of the engine; the compiled ones record a frame every ten steps. Same structure,
hyperparameters, precision and cores. Weights are random, and energies are scaled so that no atom
feels more than 0.1 eV/Å at first: forces without sense would heat the water, and lists would be
searched more often than in real water. A call is --steps steps.
"""

import argparse

from benchmarks import drive
from benchmarks.systems import EVERY

PEERS = ("jaxmlip", "mlip", "mace-torch")


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", default=["water192"], metavar="NAME")
    parser.add_argument("--models", nargs="+", default=["mace"], choices=drive.MODELS)
    parser.add_argument("--steps", type=int, default=20, help="of one call; tens")
    drive.add_options(parser)
    parser.set_defaults(peers=list(PEERS), least=2)
    given = parser.parse_args()
    if given.steps < EVERY or given.steps % EVERY:
        parser.error(f"--steps {given.steps}: a multiple of {EVERY}, for a frame is recorded then")
    for name in given.models:
        for dtype in given.dtypes:
            for system in given.systems:
                task = {"task": "engine", "system": system, "dtype": dtype, "steps": given.steps}
                compare(task | {"model": name, **drive.MODELS[name]}, given)


def compare(task, given):
    """All engines on one task; how many times as fast as each peer ours is."""
    found = {}
    for peer in given.peers:
        result = drive.measured(peer, task, given)
        if "cpu_ms" in result:
            found[peer] = 1e3 * task["steps"] / result["cpu_ms"]
    for peer, speed in found.items():
        line = {"peer": peer, "model": task["model"], "system": task["system"]}
        line |= {"steps_per_cpu_s": speed, "ours_is_faster": found.get("jaxmlip", 0) / speed}
        drive.keep(line, given.output)


if __name__ == "__main__":
    main()
