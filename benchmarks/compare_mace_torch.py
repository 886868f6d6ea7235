"""Do our MACE and mace-torch give the same energy, forces and stress from the same weights?

Two halves, since the two codes need not share an environment; the file between them is plain
numpy. First, where mace-torch is (pip install torch mace-torch; CPU is enough):

    python compare_mace_torch.py --export random.npz                # random weights, residual first
    python compare_mace_torch.py --export plain.npz --plain-first   # RealAgnosticInteractionBlock
    python compare_mace_torch.py --export trained.npz --model FILE  # unpickles FILE: trust it first

then, where jaxmlip is:

    python compare_mace_torch.py random.npz plain.npz trained.npz

Each comparison is one JSON line; exit status 1 if an energy differs by more than 1e-6 eV, a force
by more than 1e-6 eV/Å or a stress by more than 1e-7 eV/Å³. All in float64.
"""

import argparse
import json
import sys
import time

import numpy as np

LIMITS = {"energy": 1e-6, "forces": 1e-6, "stress": 1e-7}  # eV, eV/Å, eV/Å³


def structures(elements, cutoff):
    """Rattled ethanol, and a triclinic crystal of water whose cell is smaller than the cutoff."""
    from ase import Atoms
    from ase.build import molecule

    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=1)
    water = molecule("H2O")
    cell = 0.75 * cutoff * np.array([[1.0, 0.1, 0.0], [0.2, 0.9, 0.1], [-0.1, 0.15, 1.1]])
    ice = Atoms(water.numbers, water.positions + 0.3, cell=cell, pbc=True)
    ice.rattle(0.05, seed=2)
    return {"ethanol": ethanol, "ice": ice, "crowd": _crowd(elements)}


def _crowd(elements):
    """A periodic box with every element of the model at random places 1.3 Å apart or more."""
    from ase import Atoms

    rng, length, positions = np.random.default_rng(3), 6.0, []
    while len(positions) < 12:
        x = rng.uniform(0, length, 3)
        d = (np.array([*positions, x + length / 2]) - x + length / 2) % length - length / 2
        if np.linalg.norm(d, axis=1).min() > 1.3:
            positions.append(x)
    numbers = np.resize(elements, len(positions))
    return Atoms(numbers, positions, cell=length * np.eye(3), pbc=True)


# --- the half with mace-torch ---------------------------------------------------------------------


def export(path, *, model_file=None, **random_model):
    import mace  # noqa: F401  before e3nn: it sets how constants are loaded
    import torch

    torch.set_default_dtype(torch.float64)
    if model_file:
        model = torch.load(model_file, map_location="cpu", weights_only=False).double()
    else:
        model = _random_model(**random_model)
    blocks = [type(b).__name__ for b in model.interactions]
    settings = {
        "avg_num_neighbors": float(model.interactions[0].avg_num_neighbors),
        "interactions": blocks,
        "gate": "silu",
    }  # another gate would show in the comparison
    arrays = {f"state|{k}": v.detach().cpu().numpy() for k, v in model.state_dict().items()}
    elements = [int(z) for z in model.atomic_numbers]
    for name, atoms in structures(elements, float(model.r_max)).items():
        if set(atoms.numbers) <= set(elements):
            arrays |= {f"{name}|{k}": v for k, v in _evaluate(model, atoms).items()}
    np.savez_compressed(path, settings=json.dumps(settings), **arrays)


def _random_model(plain_first, hidden, max_ell, correlation, radial):
    import torch
    from e3nn import o3
    from mace import modules

    residual = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    plain = modules.interaction_classes["RealAgnosticInteractionBlock"]
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=max_ell,
        interaction_cls=residual,
        interaction_cls_first=plain if plain_first else residual,
        num_interactions=2,
        num_elements=4,
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.array([-13.6, -1029.2, -1484.9, -2042.0]),
        avg_num_neighbors=12.3,
        atomic_numbers=[1, 6, 7, 8],
        correlation=correlation,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.7,
        atomic_inter_shift=0.25,
        radial_MLP=radial,
    )


def _evaluate(model, atoms):
    from mace import data, tools
    from mace.tools import torch_geometric

    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    config = data.config_from_atoms(atoms)
    graph = data.AtomicData.from_config(config, z_table=table, cutoff=float(model.r_max))
    batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1)))
    out = model(batch.to_dict(), compute_stress=bool(atoms.pbc.any()))
    result = {"energy": out["energy"].detach().numpy(), "forces": out["forces"].detach().numpy()}
    if atoms.pbc.any():
        result["stress"] = out["stress"].detach().numpy()
    return result | {
        "positions": atoms.positions,
        "numbers": atoms.numbers,
        "cell": np.asarray(atoms.cell),
        "pbc": np.asarray(atoms.pbc),
    }


# --- the half with jaxmlip ------------------------------------------------------------------------


def compare(path) -> bool:
    """Prints the largest differences of one exported file; True if all are within LIMITS."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jaxmlip
    from jaxmlip.interfaces.weights.mace_torch import convert
    from jaxmlip.models.checkpoint import potential_of

    file = np.load(path)
    state = {k[6:]: file[k] for k in file if k.startswith("state|")}
    card, params = convert(state, json.loads(str(file["settings"])))
    potential = potential_of(card)
    predict = jax.jit(jaxmlip.predict(potential.apply))
    names = [k[:-10] for k in file if k.endswith("|positions")]
    references = {
        name: {k.split("|")[1]: file[k] for k in file if k.startswith(f"{name}|")} for name in names
    }
    systems = _systems(references, potential.cutoff)
    return all(
        [
            _compare_one(path, name, predict, params, systems[name], references[name])
            for name in names
        ]
    )


def _systems(references, cutoff):
    """The structures as systems of one padded shape, so that one compilation serves them all."""
    from ase import Atoms

    import jaxmlip
    from jaxmlip.system import pad

    keys = ("positions", "numbers", "cell", "pbc")
    systems = {
        name: jaxmlip.from_ase(Atoms(**{k: r[k] for k in keys}), cutoff)
        for name, r in references.items()
    }
    n_atoms = max(s.n_atoms for s in systems.values())
    width = max(s.edges.senders.shape[1] for s in systems.values())
    return {k: pad(s, n_atoms=n_atoms, n_neighbors=width) for k, s in systems.items()}


def _compare_one(path, name, predict, params, system, reference):
    import ase
    import jax

    start = time.perf_counter()
    out = jax.block_until_ready(predict(params, system))
    first = time.perf_counter() - start
    n = len(reference["numbers"])
    out = {**out, "forces": out["forces"][:n]}
    errors = {
        k: float(np.abs(np.asarray(out[k]) - reference[k]).max()) for k in LIMITS if k in reference
    }
    print(
        json.dumps(
            {
                "file": str(path),
                "structure": name,
                "n_atoms": n,
                "dtype": "float64",
                "energy_eV": float(out["energy"][0]),
                "largest_force_eV_per_A": float(abs(reference["forces"]).max()),
                **{f"{k}_difference": v for k, v in errors.items()},
                "first_call_s": round(first, 1),
                "jax": jax.__version__,
                "ase": ase.__version__,
                "device": jax.default_backend(),
            }
        )
    )
    return all(v <= LIMITS[k] for k, v in errors.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="exported files to compare (jaxmlip half)")
    parser.add_argument("--export", metavar="NPZ", help="write this file (mace-torch half)")
    parser.add_argument("--model", help="a trained model instead of random weights")
    parser.add_argument("--plain-first", action="store_true", help="RealAgnosticInteractionBlock")
    parser.add_argument("--hidden", default="16x0e+16x1o")
    parser.add_argument("--max-ell", type=int, default=3)
    parser.add_argument("--correlation", type=int, default=3)
    parser.add_argument("--radial", type=int, nargs="+", default=[64, 64, 64])
    given = parser.parse_args()
    if given.export:
        export(
            given.export,
            model_file=given.model,
            plain_first=given.plain_first,
            hidden=given.hidden,
            max_ell=given.max_ell,
            correlation=given.correlation,
            radial=given.radial,
        )
        return 0
    return 0 if all([compare(f) for f in given.files]) else 1


if __name__ == "__main__":
    sys.exit(main())
