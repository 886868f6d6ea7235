"""How long a fresh process takes to its first forces, measured in processes of their own.

Twice with the same new cache of compiled programs: the first finds it empty, the second filled.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

LIMIT = 300  # seconds that one process may take
CODE = (
    "import time; begun = time.perf_counter(); import sys, jax, jaxmlip; "
    "imported = time.perf_counter() - begun; from jaxmlip.cli import cold_start; "
    "cold_start.report(imported, sys.argv[1], hessian=len(sys.argv) > 2)"
)


def measure(path, *, hessian: bool = False) -> tuple[dict, dict]:
    """(empty cache, filled cache) of a model file: seconds of import, load, first and second call.

    hessian: also those of the Hessian. Raises `subprocess.SubprocessError` if a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="jaxmlip-cold-") as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
        command = [sys.executable, "-P", "-c", CODE, str(path), *(["hessian"] if hessian else [])]
        runs = [
            subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=True
            )
            for _ in range(2)
        ]
    empty, filled = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    return empty, filled


def report(imported: float, path: str, *, hessian: bool) -> None:
    """Runs in the process that is measured; prints JSON."""
    import jax

    import jaxmlip
    from jaxmlip.cli import session
    from jaxmlip.derivatives.first import with_forces
    from jaxmlip.models import checkpoint

    session.start(x64=True)
    begun = time.perf_counter()
    potential, params, card = checkpoint.load(path)
    params = jaxmlip.cast(params, "float64")
    system = jaxmlip.from_ase(structure(card), potential.cutoff, dtype="float64")
    found = {"import_s": imported, "load_s": time.perf_counter() - begun}
    functions = {"forces": with_forces(potential.apply)}
    if hessian:
        functions["hessian"] = jaxmlip.hessian(potential.apply)
    for name, function in functions.items():
        first, second, compiling = _timed(jax.jit(function), params, system)
        found |= {f"{name}_first_s": first, f"{name}_second_s": second}
        found[f"{name}_compile_s"] = compiling
    print(json.dumps(found | {"n_atoms": system.n_atoms}))


def _timed(function, *arguments):
    """Seconds of the first call, of the second, and of the compiler in the first."""
    import jax

    spent = []

    def listen(event, seconds, **more):
        if event.endswith("backend_compile_duration"):
            spent.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begun)
    return *times, sum(spent)


def structure(card):
    """Ethanol, or three atoms of the first element where a model does not know it."""
    from ase import Atoms

    from jaxmlip.interfaces.read import read_structure

    atoms = read_structure("ethanol")
    if not set(atoms.numbers) <= set(card["elements"]):
        number = card["elements"][0]
        atoms = Atoms([number] * 3, [[0, 0, 0], [2.3, 0.1, 0], [0.2, 0.3, 2.4]])
    atoms.rattle(0.02, seed=0)
    return atoms
