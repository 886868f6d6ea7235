"""Does So3krates here give what the original code of SO3LR gives from the same weights?

Two halves, since the codes do not share an environment; the file between them is plain numpy.
First where the original runs (Python 3.12; pip install "jax[cpu]==0.5.3" "flax==0.10.6" ase e3x
"setuptools<81"; a checkout of github.com/kabylda/mlff, branch v1.0):

    python compare_so3lr.py --mlff CHECKOUT --export trained.npz --weights FOLDER
    python compare_so3lr.py --mlff CHECKOUT --export random.npz      # a tiny model, random weights

--weights: a folder with params.pkl (unpickled there: trust it first) and hyperparameters.json.
Then where jaxmlip is:

    python compare_so3lr.py trained.npz random.npz

Each comparison is one JSON line; exit status 1 if a difference is beyond LIMITS. --dtype float32
compares that precision with the exported numbers. What is evaluated is what the published
calculator evaluates (long-range cutoff 12 Å, dispersion switched off over the last 2 Å, each pair
listed twice); lists hold every periodic image, where the published one needs a cell of 24 Å.
"""

import argparse
import json
import pickle
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CUTOFF, TAIL = 12.0, 2.0  # Å
LIMITS = {  # eV, eV/Å, eV/Å³, e, e Å, eV/Å²
    "float64": dict(
        energy=1e-8, forces=1e-9, stress=1e-10, charges=1e-9, dipole=1e-9, hessian=1e-7
    ),
    "float32": dict(energy=2e-3, forces=1e-4, stress=1e-5, charges=1e-4, dipole=1e-3, hessian=1e-2),
}
TINY = dict(num_features=16, num_heads=2, num_layers=2, num_radial_basis_fn=8, cutoff=3.5)


def structures(elements):
    """Molecules of several charges and spins, and a crystal whose cell is below both cutoffs."""
    from ase import Atoms
    from ase.build import molecule

    def rattled(atoms, seed, **info):
        atoms.rattle(0.08, seed=seed)
        atoms.info.update(info)
        return atoms

    water = molecule("H2O")
    dimer = water + Atoms(water.numbers, water.positions[:, [1, 2, 0]] + [2.9, 0.3, 0.2])
    apart = molecule("CH3OH") + Atoms(water.numbers, water.positions + [6.0, 5.0, 6.5])
    acetate = molecule("CH3COOH")
    del acetate[4]  # the proton
    cell = [[4.1, 0.3, 0.0], [0.5, 3.8, 0.2], [-0.3, 0.4, 4.4]]
    ice = Atoms(water.numbers, water.positions + 0.3, cell=cell, pbc=True)
    halves = Atoms("PSClF", [[0, 0, 0], [2.0, 0.2, 0], [-0.4, 2.0, 0.3], [-0.5, -0.7, 1.4]])
    found = {
        "ethanol": rattled(molecule("CH3CH2OH"), 1),
        "dimer": rattled(dimer, 2),
        "apart": rattled(apart, 3),
        "acetate": rattled(acetate, 4, charge=-1),
        "ammonium": rattled(Atoms("NH4", _tetrahedron()), 5, charge=1),
        "hydroxyl": rattled(molecule("OH"), 6, spin=2),
        "others": rattled(halves, 7, charge=1, spin=3),
        "ice": rattled(ice, 8),
    }
    return {k: v for k, v in found.items() if set(v.numbers) <= set(elements)}


def _tetrahedron():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    return np.concatenate([np.zeros((1, 3)), 1.03 * corners])


# --- the half with the original -------------------------------------------------------------------


def export(path, mlff, weights):
    import jax

    jax.config.update("jax_enable_x64", True)
    make = _original(Path(mlff) / "mlff")
    settings = _settings(weights)
    net = make(
        **settings["model"] | dict(cutoff_lr=CUTOFF, dispersion_energy_cutoff_lr_damping=TAIL),
        avg_num_neighbors=settings["data"]["avg_num_neighbors"],
        output_intermediate_quantities=["partial_charges"],
    )
    net.reset_input_convention("displacements")
    if weights:
        params = pickle.loads((Path(weights) / "params.pkl").read_bytes())
    else:
        params = _random_params(net)
    scales = np.asarray(params["params"]["observables_0"]["atomic_scales"])
    flat = _flat(params)
    arrays = {
        "shapes": json.dumps({k: np.shape(v) for k, v in flat.items()}),
        "params": np.concatenate([np.ravel(v) for v in flat.values()]),
    }
    params = jax.tree.map(lambda x: np.asarray(x, float), params)
    for name, atoms in structures(np.nonzero(scales != 1)[0]).items():
        found = _evaluate(net, params, atoms, settings["model"]["cutoff"])
        arrays |= {f"{name}|{k}": v for k, v in found.items()}
    np.savez_compressed(path, settings=json.dumps(settings), **arrays)


def _original(folder):
    """The function that makes the network, with only those parts of mlff imported that it needs."""
    import importlib
    import types

    for name in ("mlff", "mlff.utils"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = [str(folder / name[5:])]
    for name in ("cutoff_fn", "radial_basis_fn"):
        setattr(sys.modules["mlff.utils"], name, importlib.import_module(f"mlff.utils.{name}"))
    return importlib.import_module("mlff.nn.representation.so3krates_sparse").init_so3krates_sparse


def _settings(weights):
    if weights:
        return json.loads((Path(weights) / "hyperparameters.json").read_text())
    model = dict(
        activation_fn="silu",
        cutoff_fn="phys",
        degrees=[1, 2, 3, 4],
        dispersion_energy_bool=True,
        dispersion_energy_scale=1.2,
        electrostatic_energy_bool=True,
        electrostatic_energy_scale=4.0,
        energy_activation_fn="silu",
        energy_learn_atomic_type_scales=True,
        energy_learn_atomic_type_shifts=True,
        energy_regression_dim=12,
        layer_normalization_1=True,
        layer_normalization_2=True,
        message_normalization="avg_num_neighbors",
        output_is_zero_at_init=False,
        qk_non_linearity="identity",
        radial_basis_fn="bernstein",
        residual_mlp_1=True,
        residual_mlp_2=False,
        use_charge_embed=True,
        use_spin_embed=True,
        zbl_repulsion_bool=True,
    )
    return {"model": model | TINY, "data": {"avg_num_neighbors": 6.5}}


def _random_params(net):
    """Every array random, in float32; the rows of elements other than H, C and O as untrained."""
    import jax

    inputs = _inputs(structures([6, 1, 8])["ethanol"], 4.0)
    params = jax.device_get(net.init(jax.random.key(0), inputs))
    rng = np.random.default_rng(0)
    noisy = lambda x: (x + 0.2 * rng.normal(size=np.shape(x))).astype(np.float32)
    params = jax.tree.map(noisy, params)
    for name, value in _flat(params).items():
        if value.shape[:1] in ((119,), (100,)):
            others = np.setdiff1d(np.arange(len(value)), [1, 6, 8])
            value[others] = 1.0 if name.endswith("atomic_scales") else 0.0
    return params


def _flat(tree, prefix=""):
    return {
        k: v
        for name, x in tree.items()
        for k, v in (
            _flat(x, f"{prefix}{name}/").items() if isinstance(x, dict) else [(prefix + name, x)]
        )
    }


def _inputs(atoms, cutoff, positions=None, strain=None):
    import jax.numpy as jnp
    from ase.neighborlist import primitive_neighbor_list

    cell = np.asarray(atoms.cell.complete())
    positions = atoms.positions if positions is None else positions
    if strain is not None:
        positions, cell = positions + positions @ strain, cell + cell @ strain
    out = {"positions": jnp.asarray(positions)}
    for suffix, reach in (("", cutoff), ("_lr", CUTOFF)):
        i, j, shifts = primitive_neighbor_list(
            "ijS", atoms.pbc, np.asarray(atoms.cell.complete()), atoms.positions, reach
        )
        out[f"displacements{suffix}"] = out["positions"][j] - out["positions"][i] + shifts @ cell
        out |= {f"idx_i{suffix}": jnp.asarray(i), f"idx_j{suffix}": jnp.asarray(j)}
    n = len(atoms)
    return out | dict(
        atomic_numbers=jnp.asarray(atoms.numbers),
        total_charge=jnp.array([float(atoms.info.get("charge", 0))]),
        num_unpaired_electrons=jnp.array([atoms.info.get("spin", 1) - 1.0]),
        batch_segments=jnp.zeros(n, int),
        node_mask=jnp.ones(n, bool),
        graph_mask=jnp.ones(1, bool),
    )


def _evaluate(net, params, atoms, cutoff):
    import jax

    def energy(positions, strain):
        out = net.apply(params, _inputs(atoms, cutoff, positions, strain))
        return out["energy"].sum(), out

    at = atoms.positions, np.zeros((3, 3))
    (value, out), (slope, virial) = jax.jit(
        jax.value_and_grad(energy, argnums=(0, 1), has_aux=True)
    )(*at)
    found = {
        "energy": value,
        "forces": -slope,
        "charges": out["partial_charges"],
        "dipole": out["dipole_vec"][0],
    }
    if atoms.pbc.any():
        found["stress"] = virial / atoms.cell.volume
    if len(atoms) == 6:  # the water dimer; compilation takes minutes
        found["hessian"] = jax.jit(jax.hessian(lambda x: energy(x, at[1])[0]))(at[0])
    state = [atoms.info.get("charge", 0), atoms.info.get("spin", 1)]
    return {k: np.asarray(v) for k, v in found.items()} | {
        "positions": atoms.positions,
        "numbers": atoms.numbers,
        "cell": np.asarray(atoms.cell),
        "pbc": np.asarray(atoms.pbc),
        "charge_spin": np.array(state),
    }


# --- the half with jaxmlip ------------------------------------------------------------------------


def write_weights(file, folder):
    """params.pkl and hyperparameters.json as the publisher writes them, from an exported file."""
    tree, values = {}, file["params"]
    for name, shape in json.loads(str(file["shapes"])).items():
        *branches, leaf = name.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        size = int(np.prod(shape))
        node[leaf], values = values[:size].reshape(shape), values[size:]
    path = Path(folder) / "params.pkl"
    path.write_bytes(pickle.dumps(tree))
    path.with_name("hyperparameters.json").write_text(str(file["settings"]))
    return path


def compare(path, dtype) -> bool:
    """Prints the largest differences of one exported file; True if all are within LIMITS."""
    import jax

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    import jaxmlip
    from jaxmlip.interfaces.weights.so3lr import read
    from jaxmlip.models.checkpoint import potential_of
    from jaxmlip.system import cast

    file = np.load(path)
    with tempfile.TemporaryDirectory() as folder:
        card, params = read(write_weights(file, folder))
    potential, params = potential_of(card), cast(params, dtype)
    functions = [jax.jit(f(potential.apply)) for f in (jaxmlip.predict, jaxmlip.hessian)]
    fine = [
        _compare_one(path, name, functions, params, potential.cutoff, file, dtype)
        for name in [k[:-10] for k in file if k.endswith("|positions")]
    ]
    return all(fine)


def _compare_one(path, name, functions, params, cutoff, file, dtype):
    import jax

    reference = {k.split("|")[1]: file[k] for k in file if k.startswith(f"{name}|")}
    system = jaxmlip_system(reference, cutoff)
    start = time.perf_counter()
    out = dict(jax.block_until_ready(functions[0](params, system)))
    first = time.perf_counter() - start
    if "hessian" in reference:
        out["hessian"] = functions[1](params, system)
    errors = {
        k: float(np.abs(np.asarray(out[k]) - reference[k]).max())
        for k in LIMITS[dtype]
        if k in reference
    }
    print(
        json.dumps(
            {
                "file": Path(path).name,
                "structure": name,
                "n_atoms": len(reference["numbers"]),
                "dtype": dtype,
                "largest_force_eV_per_A": float(abs(reference["forces"]).max()),
                **{f"{k}_difference": v for k, v in errors.items()},
                "first_call_s": round(first, 1),
                "jax": jax.__version__,
            }
        ),
        flush=True,
    )
    return all(v <= LIMITS[dtype][k] for k, v in errors.items())


def jaxmlip_system(reference, cutoff):
    """The `System` of one exported structure."""
    from ase import Atoms

    import jaxmlip

    charge, spin = map(int, reference["charge_spin"])
    keys = ("positions", "numbers", "cell", "pbc")
    atoms = Atoms(**{k: reference[k] for k in keys}, info={"charge": charge, "spin": spin})
    return jaxmlip.from_ase(atoms, cutoff)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="exported files to compare (jaxmlip half)")
    parser.add_argument("--export", metavar="NPZ", help="write this file (original's half)")
    parser.add_argument("--mlff", help="checkout of the original")
    parser.add_argument("--weights", help="folder of trained weights instead of random ones")
    parser.add_argument("--dtype", choices=LIMITS, default="float64")
    given = parser.parse_args()
    if given.export:
        export(given.export, given.mlff, given.weights)
        return 0
    return 0 if all([compare(f, given.dtype) for f in given.files]) else 1


if __name__ == "__main__":
    sys.exit(main())
