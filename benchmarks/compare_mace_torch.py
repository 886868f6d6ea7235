"""Do our MACE and mace-torch give the same energy, forces and stress from the same file?

Two halves, since the two codes need not share an environment; between them lie model files as
mace-torch saves them, and what it predicts with them, as plain numpy. First, where mace-torch is
(pip install torch mace-torch; CPU is enough):

    python compare_mace_torch.py --export FOLDER                    # every variant, random weights
    python compare_mace_torch.py --export FOLDER --variant density  # one of them
    python compare_mace_torch.py --export FOLDER --model FILE       # unpickles FILE: trust it first

then, where jaxmlip is (torch is not needed):

    python compare_mace_torch.py FOLDER/*.npz

Each comparison is one JSON line; exit status 1 if an energy differs by more than 1e-6 eV, a force
by more than 1e-6 eV/Å, and so on (LIMITS). All in float64.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

LIMITS = {  # eV, eV/Å, eV/Å³, eV/Å², e Å, e²Å²/eV
    "energy": 1e-6,
    "forces": 1e-6,
    "stress": 1e-7,
    "hessian": 1e-5,
    "dipole": 1e-6,
    "polarizability": 1e-6,
}
DEBYE = 0.20819434  # e Å; the unit of dipoles in mace-torch, but for AtomicDielectricMACE


def structures(elements, cutoff):
    """A molecule, a crystal smaller than the cutoff, a slab, and a box of all elements."""
    from ase import Atoms
    from ase.build import diamond100, molecule

    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=1)
    water = molecule("H2O")
    cell = 0.75 * cutoff * np.array([[1.0, 0.1, 0.0], [0.2, 0.9, 0.1], [-0.1, 0.15, 1.1]])
    ice = Atoms(water.numbers, water.positions + 0.3, cell=cell, pbc=True)
    ice.rattle(0.05, seed=2)
    slab = diamond100("C", size=(1, 1, 4), vacuum=6.0)
    slab.rattle(0.05, seed=3)
    return {"ethanol": ethanol, "ice": ice, "slab": slab, "crowd": _crowd(elements)}


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

SMALL = {"hidden_irreps": "4x0e+4x1o", "max_ell": 2, "radial_MLP": [8], "correlation": 2}
CATEGORIES = {
    "total_charge": {
        "type": "categorical",
        "per": "graph",
        "num_classes": 11,
        "offset": 5,
        "emb_dim": 3,
    },
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 6, "emb_dim": 4},
}
NUMBERS = {
    "total_charge": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 3},
    "total_spin": {
        "type": "continuous",
        "per": "graph",
        "in_dim": 1,
        "emb_dim": 4,
        "use_bias": False,
    },
}
NONLINEAR = {
    "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
    "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
}
DENSITY = {
    "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
}
PLAIN = "RealAgnosticInteractionBlock"
VARIANTS = {
    "large": {"hidden_irreps": "8x0e+8x1o+8x2e", "max_ell": 3, "num_interactions": 3},
    "plain_first": {**SMALL, "interaction_cls_first": PLAIN, "correlation": 3},
    "all_plain": {**SMALL, "interaction_cls_first": PLAIN, "interaction_cls": PLAIN},
    "invariant": {**SMALL, "hidden_irreps": "4x0e"},
    "one_layer": {**SMALL, "num_interactions": 1},
    "unscaled": {**SMALL, "model": "MACE"},
    "heads": {**SMALL, "heads": ["pt_head", "Default", "other"]},
    "density": {**SMALL, **DENSITY},
    "foundation": {
        **SMALL,
        **DENSITY,
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
        "heads": ["one", "two"],
    },
    "soft": {**SMALL, "pair_repulsion": True, "distance_transform": "Soft"},
    "pair_unscaled": {**SMALL, "pair_repulsion": True, "model": "MACE"},
    "weights_cut": {**SMALL, "apply_cutoff": False},
    "density_cut": {**SMALL, **DENSITY, "apply_cutoff": False},
    "nonlinear": {**SMALL, **NONLINEAR, "apply_cutoff": False, "correlation": 3},
    "omnibus": {
        **SMALL,
        **NONLINEAR,
        "apply_cutoff": False,
        "edge_irreps": "3x0e+2x1o",
        "use_agnostic_product": True,
        "use_last_readout_only": True,
        "keep_last_layer_irreps": True,
        "readout_cls": "NonLinearBiasReadoutBlock",
        "heads": ["one", "two"],
        "embedding_specs": CATEGORIES,
        "use_embedding_readout": True,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
    "narrow_edges": {
        **SMALL,
        **NONLINEAR,
        "hidden_irreps": "4x0e+4x1o+4x2e",
        "edge_irreps": "3x0e+2x1o",
        "use_edge_irreps_first": True,
        "num_interactions": 3,
    },
    "wide_edges": {**SMALL, "edge_irreps": "4x0e+4x1o+2x2e"},
    "agnostic": {**SMALL, "use_agnostic_product": True},
    "last_readout": {**SMALL, "use_last_readout_only": True, "num_interactions": 3},
    "bias_readout": {**SMALL, "readout_cls": "NonLinearBiasReadoutBlock"},
    "charge_spin": {**SMALL, "embedding_specs": CATEGORIES, "use_embedding_readout": True},
    "charge_spin_numbers": {**SMALL, "embedding_specs": NUMBERS},
    "gate_tanh": {**SMALL, "gate": "tanh"},
    "gate_abs": {**SMALL, "gate": "abs"},
    "gate_none": {**SMALL, "gate": None},
    "gaussian": {**SMALL, "radial_type": "gaussian", "num_bessel": 12},
    "chebyshev": {**SMALL, "radial_type": "chebyshev", "distance_transform": "Agnesi"},
    "trained_bessel": {**SMALL, "trained_bessel": True},
    "single_precision": {**SMALL, "dtype": "float32"},
    "dipoles": {**SMALL, "model": "AtomicDipolesMACE", "MLP_irreps": "5x1o"},
    "energy_dipoles": {**SMALL, "model": "EnergyDipolesMACE", "MLP_irreps": "5x0e+5x1o"},
    "dielectric": {
        **SMALL,
        "hidden_irreps": "4x0e+4x1o+4x2e",
        "model": "AtomicDielectricMACE",
        "MLP_irreps": "5x0e+5x1o+5x2e",
    },
    "dielectric_without_l2": {
        **SMALL,
        "model": "AtomicDielectricMACE",
        "MLP_irreps": "5x0e+5x1o",
    },
}
WITH_HESSIAN = ("plain_first", "foundation", "nonlinear")
CHARGED = {"total_charge": 1.0, "total_spin": 2.0}


def export(folder, variants, model_file=None, slim=False):
    """Writes NAME.model and NAME.npz (predictions of mace-torch in float64).

    slim: without the compiled code in the .model files, as the tests of jaxmlip keep them.
    """
    import mace  # noqa: F401  before e3nn: it sets how constants are loaded
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if model_file:
        target = folder / (Path(model_file).stem + ".model")
        shutil.copyfile(model_file, target)
        _predict_all(target)
        return
    for name in variants:
        torch.manual_seed(sum(map(ord, name)))
        model = _random_model(**VARIANTS[name])
        torch.save(model, folder / f"{name}.model")
        _predict_all(folder / f"{name}.model", hessian=name in WITH_HESSIAN)
        if slim:
            torch.save(_without_code(model), folder / f"{name}.model")
        print(json.dumps({"written": name}), flush=True)


def _random_model(*, model="ScaleShiftMACE", dtype="float64", trained_bessel=False, **given):
    import torch
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(getattr(torch, dtype))
    gates = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs, None: None}
    settings = {
        "r_max": 5.0,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 3,
        "interaction_cls": "RealAgnosticResidualInteractionBlock",
        "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
        "num_interactions": 2,
        "num_elements": 4,
        "hidden_irreps": "16x0e+16x1o",
        "MLP_irreps": "16x0e",
        "avg_num_neighbors": 12.3,
        "atomic_numbers": [1, 6, 7, 8],
        "correlation": 3,
        "gate": "silu",
        "radial_MLP": [64, 64, 64],
    } | given
    for key in ("interaction_cls", "interaction_cls_first"):
        settings[key] = modules.interaction_classes[settings[key]]
    for key in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        if settings.get(key):
            settings[key] = o3.Irreps(settings[key])
    if "readout_cls" in settings:
        settings["readout_cls"] = modules.readout_classes[settings["readout_cls"]]
    settings["gate"] = gates[settings["gate"]]
    n_heads = len(settings.get("heads") or [0])
    settings["atomic_energies"] = None
    if model not in ("AtomicDipolesMACE", "AtomicDielectricMACE"):
        atomic = np.array([-13.6, -1029.2, -1484.9, -2042.0])
        settings["atomic_energies"] = atomic + np.arange(n_heads)[:, None]
    if model == "ScaleShiftMACE":
        one = n_heads == 1
        settings["atomic_inter_scale"] = 1.7 if one else [1.7 + 0.2 * h for h in range(n_heads)]
        settings["atomic_inter_shift"] = 0.25 if one else [0.25 - h for h in range(n_heads)]
    built = getattr(modules, model)(**settings)
    _shake(built, trained_bessel)
    return built


def _shake(model, trained_bessel):
    """Random numbers where a new model has zeros or almost: biases, embeddings, norms."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if "contractions" not in name and (p.abs().max() < 0.01 or p.std() == 0 or p.ndim < 2):
                p.add_(0.3 * torch.randn_like(p))
        if trained_bessel:
            weights = model.radial_embedding.bessel_fn.bessel_weights
            weights.mul_(1 + 0.05 * torch.randn_like(weights))


def _without_code(model):
    """The model with all its weights and settings, unable to run: compiled parts are left out."""
    for module in model.modules():
        if hasattr(module, "__codegen__"):
            module.__codegen__ = []
        for name in list(module._modules):
            if name.startswith(("graph_opt", "contractions_", "_compiled")):
                del module._modules[name]
    return model


def _predict_all(path, hessian=False):
    import torch

    torch.set_default_dtype(torch.float64)
    model = torch.load(path, map_location="cpu", weights_only=False).double().eval()
    heads = list(getattr(model, "heads", None) or ["Default"])
    arrays = {"heads": np.array(heads)}
    elements = [int(z) for z in model.atomic_numbers]
    for name, atoms in structures(elements, float(model.r_max)).items():
        if not set(atoms.numbers) <= set(elements):
            continue
        arrays |= {
            f"{name}|positions": atoms.positions,
            f"{name}|numbers": atoms.numbers,
            f"{name}|cell": np.asarray(atoms.cell),
            f"{name}|pbc": np.asarray(atoms.pbc),
        }
        arrays |= {f"{name}|{k}": np.array([v]) for k, v in CHARGED.items() if name == "ethanol"}
        for h, head in enumerate(heads):
            out = _evaluate(model, atoms, h, name == "ethanol", hessian and name == "ethanol")
            arrays |= {f"{name}|{head}|{k}": v for k, v in out.items()}
    np.savez_compressed(path.with_suffix(".npz"), **arrays)


def _evaluate(model, atoms, head, charged, hessian):
    import torch
    from mace import data, tools
    from mace.tools import torch_geometric

    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    graph = data.AtomicData.from_config(
        data.config_from_atoms(atoms), z_table=table, cutoff=float(model.r_max)
    )
    loader = torch_geometric.dataloader.DataLoader([graph], batch_size=1)
    batch = next(iter(loader)).to_dict()
    batch["head"] = torch.tensor([head])
    if charged:
        batch |= {k: torch.tensor([v]) for k, v in CHARGED.items()}
    kind, periodic = type(model).__name__, bool(atoms.pbc.any())
    if kind in ("AtomicDipolesMACE", "AtomicDielectricMACE"):
        options = {}
    elif kind == "EnergyDipolesMACE":
        options = {"compute_stress": periodic}
    else:
        options = {"compute_stress": periodic, "compute_hessian": hessian}
    options["compute_force"] = "energy" in kind.lower() or not kind.startswith("Atomic")
    out = model(batch, **options)
    wanted = [k for k in LIMITS if out.get(k) is not None and (periodic or k != "stress")]
    if type(model.radial_embedding.bessel_fn).__name__ == "ChebychevBasis":
        wanted = ["energy"]  # torch does not differentiate these polynomials: its forces lack them
    result = {k: out[k].detach().numpy() for k in wanted}
    if "dipole" in result and kind != "AtomicDielectricMACE":
        result["dipole"] = result["dipole"] * DEBYE
    if "stress" in result:  # mace-torch makes the cell of a slab longer
        volume = abs(float(torch.det(batch["cell"].reshape(3, 3))))
        result["stress"] = result["stress"] * volume / atoms.get_volume()
    if "hessian" in result:
        result["hessian"] = result["hessian"].reshape(len(atoms), 3, len(atoms), 3)
    return result


# --- the half with jaxmlip ------------------------------------------------------------------------


def compare(path) -> bool:
    """Prints the largest differences of one exported file; True if all are within LIMITS."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from jaxmlip.interfaces.weights import mace_torch
    from jaxmlip.models.checkpoint import potential_of

    path, file = Path(path), np.load(path)
    good = True
    for head in map(str, file["heads"]):
        card, params = mace_torch.read(path.with_suffix(".model"), head=head)
        potential = potential_of(card)
        systems = _systems(file, potential.cutoff)
        predict = {k: f(potential.apply) for k, f in _predictions(card).items()}
        for name, system in systems.items():
            reference = {k.split("|")[2]: file[k] for k in file if k.startswith(f"{name}|{head}|")}
            good &= _compare_one(path.stem, head, name, predict, params, system, reference)
    return good


def _predictions(card):
    import jax

    import jaxmlip

    compiled = lambda transform: lambda apply: jax.jit(transform(apply))
    return {"first": compiled(jaxmlip.predict), "hessian": compiled(jaxmlip.hessian)}


def _systems(file, cutoff):
    """The structures as systems of one padded shape, so that one compilation serves them all."""
    from dataclasses import replace

    from ase import Atoms

    import jaxmlip
    from jaxmlip.system import pad

    systems = {}
    for name in sorted({k.split("|")[0] for k in file if "|" in k}):
        keys = ("positions", "numbers", "cell", "pbc")
        atoms = Atoms(**{k: file[f"{name}|{k}"] for k in keys})
        system = jaxmlip.from_ase(atoms, cutoff)
        if f"{name}|total_charge" in file:
            charge, spin = (file[f"{name}|{k}"] for k in CHARGED)
            system = replace(system, charge=charge, spin=spin)
        systems[name] = system
    n_atoms = max(s.n_atoms for s in systems.values())
    width = max(s.edges.senders.shape[1] for s in systems.values())
    return {k: pad(s, n_atoms=n_atoms, n_neighbors=width) for k, s in systems.items()}


def _compare_one(file, head, name, predict, params, system, reference):
    import jax

    start = time.perf_counter()
    out = dict(jax.block_until_ready(predict["first"](params, system)))
    first = time.perf_counter() - start
    n = int(np.sum(np.asarray(system.numbers) > 0))
    out["forces"] = out["forces"][:n]
    if "hessian" in reference:
        out["hessian"] = predict["hessian"](params, system)[:n, :, :n]
    errors = {k: float(np.abs(np.asarray(out[k]) - v).max()) for k, v in reference.items()}
    largest = {k: float(np.abs(v).max()) for k, v in reference.items()}
    print(
        json.dumps(
            {
                "file": file,
                "head": head,
                "structure": name,
                "n_atoms": n,
                "dtype": "float64",
                "differences": {k: float(f"{v:.1e}") for k, v in errors.items()},
                "largest": {k: round(v, 3) for k, v in largest.items()},
                "first_call_s": round(first, 1),
                "jax": jax.__version__,
                "device": jax.default_backend(),
            }
        ),
        flush=True,
    )
    return all(v <= LIMITS[k] for k, v in errors.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="exported .npz files to compare (jaxmlip half)")
    parser.add_argument("--export", metavar="FOLDER", help="write files (mace-torch half)")
    parser.add_argument("--model", help="a trained model instead of random weights")
    parser.add_argument("--slim", action="store_true", help="leave compiled code out of the files")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    if given.export:
        export(given.export, given.variant, given.model, given.slim)
        return 0
    return 0 if all([compare(f) for f in given.files]) else 1


if __name__ == "__main__":
    sys.exit(main())
