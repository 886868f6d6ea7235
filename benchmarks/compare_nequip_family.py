"""Do imported Nequix and SevenNet weights give the energy, forces and stress of their own codes?

Two halves, since the codes need not share an environment; the file between them is plain numpy.
First, where nequix (0.4.5, on jax 0.10.1) or sevenn (0.13.0, on torch 2.13.0) is:

    python compare_nequip_family.py --export nequix.npz --model nequix-mp-1.nqx
    python compare_nequip_family.py --export sevennet.npz --model checkpoint_sevennet_0.pth
    python compare_nequip_family.py --export mf.npz --model checkpoint_sevennet_mf_0.pth --head PBE

then, where jaxmlip is:

    python compare_nequip_family.py nequix.npz --model nequix-mp-1.nqx --float64

Each structure is one JSON line; exit status 1 if a force differs by more than 1e-4 eV/Å, an energy
by more than 1e-5 eV per atom or a stress by more than 1e-6 eV/Å³ (the codes run in float32). A
`--random` KIND (nequix, sevennet_old, sevennet_new) writes a small model to `--model` first: that
is how the files in tests/data were made.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if Path(sys.path[0]) == Path(__file__).parent:
    del sys.path[0]  # profile.py beside this file would hide Python's own, which torch imports

import numpy as np  # noqa: E402

LIMITS = {"energy_eV_per_atom": 1e-5, "forces_eV_per_A": 1e-4, "stress_eV_per_A3": 1e-6}
ELEMENTS = (8, 1, 6)  # of the random models, not in the order of the periodic table


def structures(metals: bool):
    """A molecule, a crystal whose cell is smaller than the cutoff, a slab ...; all rattled.

    The slab is periodic along its normal too: nequix 0.4.5 leaves out all images where one
    direction is open.
    """
    from ase import Atoms
    from ase.build import add_adsorbate, bulk, fcc111, graphene, molecule

    ethanol = molecule("CH3CH2OH")
    water = molecule("H2O")
    cell = 3.8 * np.array([[1.0, 0.1, 0.0], [0.2, 0.9, 0.1], [-0.1, 0.15, 1.1]])
    ice = Atoms(water.numbers, water.positions + 0.3, cell=cell, pbc=True)
    out = {"ethanol": ethanol, "ice": ice}
    if metals:
        slab = fcc111("Cu", (2, 2, 3), vacuum=7.0)
        add_adsorbate(slab, molecule("CO"), 2.0, "ontop", mol_index=1)
        slab.positions -= slab.positions[-1]  # float32 of 13 Å is 1e-4 eV/Å in the bond of CO
        slab.pbc = True
        salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        salt.set_cell(salt.cell @ (np.eye(3) + 0.02 * np.ones((3, 3))), scale_atoms=True)
        out |= {"slab": slab, "salt": salt, "silicon": bulk("Si", cubic=True)}
    else:
        out["slab"] = graphene(size=(2, 1, 1), vacuum=5.0)
        out["slab"].pbc = True
    for i, atoms in enumerate(out.values()):
        atoms.rattle(0.08, seed=i)
    return out


# --- the half with the other codes ----------------------------------------------------------------


def export(path, model, head, metals):
    calculator = nequix(model) if model.endswith(".nqx") else sevennet(model, head)
    content = {"head": head or ""}
    for name, atoms in structures(metals).items():
        atoms.calc = calculator
        for key in ("positions", "numbers", "pbc"):
            content[f"{name}|{key}"] = getattr(atoms, key)
        content[f"{name}|cell"] = np.asarray(atoms.cell)
        content[f"{name}|energy"] = atoms.get_potential_energy()
        content[f"{name}|forces"] = np.asarray(atoms.get_forces())
        if atoms.pbc.all():
            content[f"{name}|stress"] = atoms.get_stress(voigt=False)
    np.savez_compressed(path, **content)


def nequix(model):
    from nequix.calculator import NequixCalculator

    return NequixCalculator(model_path=model, backend="jax", use_kernel=False)


def sevennet(model, head):
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(model, device="cpu", **({"modal": head} if head else {}))


def random_nequix(path):
    """Small, with another number of channels for each degree, and affine norms."""
    import equinox as eqx
    import jax
    from nequix.model import Nequix, save_model

    settings = {
        "hidden_irreps": "4x0e + 3x1o + 2x2e",
        "lmax": 2,
        "cutoff": 4.5,
        "n_layers": 3,
        "radial_basis_size": 6,
        "radial_mlp_size": 8,
        "radial_mlp_layers": 2,
        "radial_polynomial_p": 6.0,
        "mlp_init_scale": 4.0,
        "index_weights": False,
        "layer_norm": True,
        "shift": 0.3,
        "scale": 0.7,
        "avg_n_neighbors": 11.0,
    }
    energies = [-4.5, -1.1, -3.2]
    model = Nequix(jax.random.key(1), n_species=3, atom_energies=energies, **settings)
    keys = iter(jax.random.split(jax.random.key(2), 100))
    shaken = lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape)
    model = jax.tree.map(lambda x: shaken(x) if eqx.is_array(x) else x, model)
    save_model(path, model, {**settings, "atomic_numbers": sorted(ELEMENTS)})


SEVENNET = {
    "_type_map": {z: i for i, z in enumerate(ELEMENTS)},
    "_number_of_species": len(ELEMENTS),
    "chemical_species": ["O", "H", "C"],
    "channel": 4,
    "lmax": 2,
    "cutoff": 4.5,
    "num_convolution_layer": 3,
    "weight_nn_hidden_neurons": [8],
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 6},
    "shift": [-4.5, -1.1, -3.2],
    "scale": 0.7,
    "conv_denominator": [5.0, 4.0, 6.0],
}
SEVENNET_OLD = SEVENNET | {
    "version": "0.9.2",
    "is_parity": False,
    "irreps_manual": ["4x0e", "4x0e+3x1e+2x2e", "4x0e+3x1e+2x2e", "4x0e"],
    "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.7},
    "self_connection_type": "linear",
    "_normalize_sph": False,
}
SEVENNET_NEW = SEVENNET | {
    "version": "0.13.0",
    "is_parity": True,
    "lmax": 1,
    "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 5},
    "self_connection_type": "nequip",
    "use_bias_in_linear": True,
    "use_modality": True,
    "_number_of_modalities": 2,
    "_modal_map": {"first": 0, "second": 1},
    "default_modal": "second",
    "use_modal_node_embedding": True,
    "use_modal_self_inter_intro": True,
    "use_modal_self_inter_outro": True,
    "use_modal_output_block": True,
    "use_modal_wise_shift": True,
    "use_modal_wise_scale": False,
    "shift": [[-4.5, -1.1, -3.2], [-4.0, -1.0, -3.0]],
}


def random_sevennet(path, settings):
    import torch
    from sevenn._const import model_defaults
    from sevenn.model_build import build_E3_equivariant_model

    torch.manual_seed(3)
    settings = {**model_defaults(settings), **settings}
    model = build_E3_equivariant_model(settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith(("rescale", "edge")) and "denominator" not in name:
                weight.copy_(torch.randn_like(weight))
            if name.endswith("coeffs"):
                weight.mul_(1 + 0.02 * torch.randn_like(weight))
    content = {"model_state_dict": model.state_dict(), "config": settings, "epoch": 0}
    torch.save({**content, "time": "", "hash": ""}, path)


RANDOM = {
    "nequix": random_nequix,
    "sevennet_old": lambda path: random_sevennet(path, SEVENNET_OLD),
    "sevennet_new": lambda path: random_sevennet(path, SEVENNET_NEW),
}


# --- the half with jaxmlip ------------------------------------------------------------------------


def compare(path, model, float64):
    """One line a structure; True if all differences are within the limits."""
    import jax

    jax.config.update("jax_enable_x64", float64)
    import jaxmlip
    from jaxmlip.interfaces import weights
    from jaxmlip.models.checkpoint import potential_of
    from jaxmlip.system import cast

    file = np.load(path)
    card, params = weights.read(model, head=str(file["head"]) or None)
    potential = potential_of(card)
    params = cast(jax.tree.map(jax.numpy.asarray, params), "float64" if float64 else "float32")
    predict, good = jax.jit(jaxmlip.predict(potential.apply)), True
    for name, (of, n, system) in systems(file, potential.cutoff).items():
        start = time.perf_counter()
        out = jax.device_get(predict(params, system))
        seconds = round(time.perf_counter() - start, 2)
        errors = differences(out, of, n)
        good &= all(error <= LIMITS[key] for key, error in errors.items())
        line = {"file": str(path), "structure": name, "n_atoms": n, "float64": float64}
        print(json.dumps({**line, **errors, "seconds": seconds}), flush=True)
    return good


def systems(file, cutoff):
    """{name: (what the other code says, number of atoms, system)}, padded to one shape."""
    from ase import Atoms

    import jaxmlip
    from jaxmlip.system import pad

    out = {}
    for name in dict.fromkeys(k.split("|")[0] for k in file if "|" in k):
        of = {k.split("|")[1]: file[k] for k in file if k.startswith(name + "|")}
        atoms = Atoms(**{k: of[k] for k in ("positions", "numbers", "cell", "pbc")})
        out[name] = of, len(atoms), jaxmlip.from_ase(atoms, cutoff)
    sizes = [system.edges.senders.shape for *_, system in out.values()]
    n_atoms, n_neighbors = map(max, zip(*sizes, strict=True))
    widen = lambda system: pad(system, n_atoms=n_atoms, n_neighbors=n_neighbors)
    return {name: (of, n, widen(system)) for name, (of, n, system) in out.items()}


def differences(out, of, n):
    largest = lambda x, y: float(np.abs(np.asarray(x, float) - y).max())
    errors = {
        "energy_eV_per_atom": largest(out["energy"][0], of["energy"]) / n,
        "forces_eV_per_A": largest(out["forces"][:n], of["forces"]),
    }
    if "stress" in of:
        errors["stress_eV_per_A3"] = largest(out["stress"][0], of["stress"])
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="written by --export, to be compared")
    parser.add_argument("--model", required=True, help="the file of weights")
    parser.add_argument("--head", help="data set of a SevenNet model of several")
    parser.add_argument("--export", metavar="FILE.npz", help="write what the other code predicts")
    parser.add_argument("--random", choices=RANDOM, help="first write random weights to --model")
    parser.add_argument("--float64", action="store_true", help="our half in float64")
    options = parser.parse_args()
    if options.random:
        RANDOM[options.random](options.model)
    if options.export:
        export(options.export, options.model, options.head, metals=not options.random)
        return 0
    return 0 if all([compare(f, options.model, options.float64) for f in options.files]) else 1


if __name__ == "__main__":
    sys.exit(main())
