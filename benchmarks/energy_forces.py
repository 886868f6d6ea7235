"""How long do energy and forces (and stress) of a MACE take, and how long does mace-torch need?

    python benchmarks/energy_forces.py
    python benchmarks/energy_forces.py --peer-python /path/to/python/with/mace-torch

Random weights at equal hyperparameters, by default those of the published small models. One JSON
line a system: wall and CPU time of a call (median), time of the first call, largest error of a
force against float64. The peer runs in a process of its own, right after ours on each system.
On a busy machine trust the CPU times, and ratios more than times.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time

import numpy as np

ELEMENTS = [1, 6, 8, 14]


def ethanol():
    from ase.build import molecule

    return molecule("CH3CH2OH")


def pair21():
    """Benzene and ethanol, stacked: 21 atoms, as many as aspirin has."""
    from ase.build import molecule

    atoms, guest = molecule("C6H6"), ethanol()
    guest.positions += [0.0, 0.0, 3.6] - guest.positions.mean(0)
    return atoms + guest


def si64():
    from ase.build import bulk

    return bulk("Si", "diamond", a=5.43, cubic=True).repeat(2)


SYSTEMS = {f.__name__: f for f in (ethanol, pair21, si64)}


def structure(name):
    atoms = SYSTEMS[name]()
    atoms.rattle(0.05, seed=0)
    return atoms


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def timed(call, repeats):
    """{first_s, run_ms, cpu_ms} of a function that returns when its work is done."""
    begun = time.perf_counter()
    call()
    first = time.perf_counter() - begun
    for _ in range(3):  # TorchScript, too, has compiled by then
        call()
    wall, cpu = [], []
    for _ in range(max(repeats, 5)):
        w, c = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return {
        "first_s": round(first, 2),
        "run_ms": round(1e3 * float(np.median(wall)), 2),
        "cpu_ms": round(1e3 * float(np.median(cpu)), 2),
    }


# --- ours ----------------------------------------------------------------------------------------


def ours(name, given) -> dict:
    import jax

    import jaxmlip
    from jaxmlip.models import MACE

    atoms = structure(name)
    system = jaxmlip.from_ase(atoms, given.r_max, dtype="float32")
    neighbors = system.edges.mask.sum()
    model = MACE(
        elements=tuple(ELEMENTS),
        cutoff=given.r_max,
        channels=given.channels,
        hidden_l=given.hidden_l,
        l_max=given.l_max,
        correlation=given.correlation,
        n_layers=given.n_layers,
        avg_num_neighbors=float(neighbors / len(atoms)),
    )
    shapes, random = jax.eval_shape(model.init, jax.random.key(0), system), np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)

    def computed(dtype):
        with jax.enable_x64(dtype == "float64"):
            at = jax.device_put(jaxmlip.cast((params, system), dtype))
            function = jax.jit(_function(model, bool(atoms.pbc.any())))
            call = lambda: jax.block_until_ready(function(*at))
            times = timed(call, given.repeats) if dtype == given.dtype else {}
            return times, np.asarray(call()["forces"], np.float64)

    exact = computed("float64")
    times, forces = exact if given.dtype == "float64" else computed(given.dtype)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": cores(),
        "jax": jax.__version__,
        "jaxmlip": jaxmlip.__version__,
        "n_atoms": len(atoms),
        "n_edges": int(neighbors),
        "n_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "compile_s": round(times["first_s"] - times["run_ms"] / 1e3, 2),
        "run_ms": times["run_ms"],
        "cpu_ms": times["cpu_ms"],
        "largest_force_eV_per_A": float(np.abs(exact[1]).max()),
        "forces_error_eV_per_A": float(np.abs(forces - exact[1]).max()),
    }


def _function(model, periodic):
    """Energy and forces, with stress for a crystal: one forward and one backward pass."""
    import jax

    import jaxmlip
    from jaxmlip.derivatives.first import total_energy

    if periodic:
        return jaxmlip.predict(model.apply)
    slope = jax.value_and_grad(total_energy(model.apply))

    def energy_and_forces(params, system):
        energy, gradient = slope(system.positions, params, system)
        return {"energy": energy, "forces": -gradient}

    return energy_and_forces


# --- mace-torch ----------------------------------------------------------------------------------


def peer(name, given) -> dict:
    """The same for mace-torch, in a process of its own; {} where it cannot be imported."""
    if given.peer_python is None and importlib.util.find_spec("mace") is None:
        return {}
    arguments = [given.peer_python or sys.executable, os.path.abspath(__file__), "--worker", name]
    for option in (
        "channels",
        "hidden_l",
        "l_max",
        "correlation",
        "n_layers",
        "r_max",
        "repeats",
        "dtype",
    ):
        arguments += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        return {"peer_error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def worker(name, given) -> dict:
    import warnings

    warnings.filterwarnings("ignore")
    import mace  # before e3nn: it sets how constants are loaded
    import torch
    from e3nn import o3
    from mace import data, modules, tools
    from mace.tools import torch_geometric

    torch.set_num_threads(cores())  # by default it counts cores that it may not use
    torch.set_default_dtype(getattr(torch, given.dtype))
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    irreps = "+".join(f"{given.channels}x{l}{'eo'[l % 2]}" for l in range(given.hidden_l + 1))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=given.r_max,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=given.l_max,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=given.n_layers,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=10.0,
        atomic_numbers=ELEMENTS,
        correlation=given.correlation,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    ).to(device)
    for parameter in model.parameters():
        parameter.requires_grad = False
    atoms = structure(name)
    graph = data.AtomicData.from_config(
        data.config_from_atoms(atoms), z_table=tools.AtomicNumberTable(ELEMENTS), cutoff=given.r_max
    )
    batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1)))
    batch = batch.to(device).to_dict()

    def call():
        model(batch, compute_force=True, compute_stress=bool(atoms.pbc.any()))
        if device == "cuda":
            torch.cuda.synchronize()

    times = timed(call, given.repeats)
    return {
        "peer": f"mace-torch {getattr(mace, '__version__', '')}".strip(),
        "peer_device": device,
        "torch": torch.__version__,
        "peer_threads": torch.get_num_threads(),
        "peer_parameters": sum(p.numel() for p in model.parameters()),
        **{f"peer_{k}": v for k, v in times.items()},
    }


# --- the comparison ------------------------------------------------------------------------------


def measured(name, given) -> dict:
    out = {
        "question": "energy and forces of MACE",
        "system": name,
        "dtype": given.dtype,
        "channels": given.channels,
        "hidden_l": given.hidden_l,
        "l_max": given.l_max,
        "correlation": given.correlation,
        "n_layers": given.n_layers,
        "r_max_A": given.r_max,
        **ours(name, given),
        **peer(name, given),
    }
    for clock in ("run_ms", "cpu_ms"):
        if f"peer_{clock}" in out:
            out[f"peer_over_ours_{clock}"] = round(out[f"peer_{clock}"] / out[clock], 2)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--hidden-l", type=int, default=1)
    parser.add_argument("--l-max", type=int, default=3)
    parser.add_argument("--correlation", type=int, default=3)
    parser.add_argument("--n-layers", type=int, default=2)
    parser.add_argument("--r-max", type=float, default=5.0, help="cutoff, Å")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--repeats", type=int, default=11, help="at least 5")
    parser.add_argument("--cores", type=int, help="cores for both (Linux); default all")
    parser.add_argument("--peer-python", help="python of an environment with mace-torch")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    if given.worker:
        print(json.dumps(worker(given.worker, given)))
        return
    for name in given.systems:
        print(json.dumps(measured(name, given)), flush=True)


if __name__ == "__main__":
    main()
