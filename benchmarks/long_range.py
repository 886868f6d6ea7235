"""What does a long-range term give a trained model: LO-TO splitting of NaCl, charged dimers apart?

    python -m benchmarks.long_range nacl     --data DIR [--local] [--epochs 40] [--output FILE]
    python -m benchmarks.long_range nacl_pbe --data DIR [--local] [--epochs 40]
    python -m benchmarks.long_range dimers   --data DIR [--local] [--near 8] [--cutoff 3] ...

DIR holds `phonons/NaCl_rd` (supercells of 64 and of 512 atoms with forces, Born charge and
dielectric constant in cells_nac.json), `phonons/NaCl` (phonopy's example) and `charged_dimers`
(energies of pairs of organic ions at 13 distances each). Models are small MACE, the same with and
without (`--local`) the long-range term, trained here by the same steps in float32; one line of JSON
is printed. Needs phonopy and symfc.

nacl: charges of Z*/sqrt(eps_infinity) in an Ewald sum (the screened interaction of the crystal)
beside a MACE of one layer, trained as `jaxmlip train` does on 80 supercells. Frequencies at Gamma
are those of D(q) of the primitive cell at q -> 0, along the wave (LO) and across it (TO). They are
compared with force constants that phonopy fits to all 100 supercells, with Z* and eps_infinity as
the non-analytic term.
nacl_pbe: the same, trained on the forces of the two supercells of phonopy's example.
dimers: see `charged_dimers`.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from ase import Atoms
from ase.io import write

import jaxmlip
from benchmarks.charged_dimers import dimers, rms
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.extxyz import read_frames
from jaxmlip.potential import bind
from jaxmlip.train import evaluate_model, train
from jaxmlip.vibrations.phonons.dispersion import frequencies_THz


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--local", action="store_true", help="without the long-range term")
    parser.add_argument("--ions", action="store_true", help="dimers: each ion keeps its charge")
    parser.add_argument("--epochs", type=int, default=40, help="of a salt")
    parser.add_argument("--steps", type=int, default=800, help="dimers")
    parser.add_argument("--near", type=int, default=8, help="dimers: distances trained on")
    parser.add_argument("--cutoff", type=float, default=3.0, help="dimers: Å")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    begun = time.process_time()
    found = TASKS[arguments.task](arguments)
    found["cpu_s"] = round(time.process_time() - begun)
    line = json.dumps(vars(arguments) | found, default=str)
    print(line)
    if arguments.output:
        with open(arguments.output, "a") as file:
            file.write(line + "\n")


# --- rock salt ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Salt:
    """Frames to learn from and to be judged by, and the phonopy fit of the same data."""

    train: list
    test: list
    fit: object  # phonopy.Phonopy with force constants and the non-analytic term
    energy: float  # weight of energies in the loss
    scale: float | None = None  # eV, of the model's energies; None: the size of forces
    large: Path | None = None  # frames of a larger supercell

    @property
    def charge(self) -> float:
        """Z*/sqrt(eps_infinity), e: what the ions of a crystal feel of each other far away."""
        born, fast = (self.fit.nac_params[k] for k in ("born", "dielectric"))
        return float(born[0, 0, 0] / np.sqrt(fast[0, 0]))


def salt_at_random(folder) -> Salt:
    """NaCl_rd: 100 supercells, all atoms displaced by 0.03 Å, PBEsol."""
    from phonopy import Phonopy

    crystal = json.loads((folder / "cells_nac.json").read_text())
    frames = read_frames(folder / "displaced64.extxyz.xz")
    cell, nac = crystal["unit_cell"], crystal["nac"]
    unit = Atoms(
        [p["symbol"] for p in cell["points"]],
        scaled_positions=[p["coordinates"] for p in cell["points"]],
        cell=cell["lattice"],
    )
    axes = crystal["primitive_matrix"]
    fit = Phonopy(phonopy_atoms(unit), crystal["supercell_matrix"], primitive_matrix=axes)
    displacements, forces = _sorted(fit.supercell, frames)
    fit.dataset = {"displacements": displacements, "forces": forces}
    fit.produce_force_constants(fc_calculator="symfc")
    fit.nac_params = {
        "born": np.array(nac["born_effective_charge"]),
        "dielectric": np.array(nac["dielectric_constant"]),
        "factor": nac["unit_conversion_factor"],
    }
    large = folder / "displaced512.extxyz.xz"
    return Salt(train=frames[:80], test=frames[80:], fit=fit, energy=100.0, large=large)


def salt_at_rest(folder) -> Salt:
    """NaCl: two supercells with one atom displaced by 0.01 Å, PBE; nothing is held out."""
    import phonopy

    files = {"force_sets_filename": folder / "FORCE_SETS", "born_filename": folder / "BORN"}
    fit = phonopy.load(folder / "phonopy_disp.yaml", **files, log_level=0)
    moved, frames = fit.supercells_with_displacements, []
    for atoms, one in zip(moved, fit.dataset["first_atoms"], strict=True):
        frame = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)
        frame.arrays["REF_forces"] = np.asarray(one["forces"])
        frames.append(frame)
    often = 40 * frames  # 80 steps an epoch
    return Salt(train=often, test=frames, fit=fit, energy=0.0, scale=0.5)


def phonopy_atoms(atoms):
    from phonopy.structure.atoms import PhonopyAtoms

    return PhonopyAtoms(symbols=list(atoms.symbols), cell=atoms.cell[:], positions=atoms.positions)


def _sorted(supercell, frames):
    """Displacements and forces [n_frames, n_atoms, 3] in the order of the supercell's atoms."""
    out = []
    for atoms in frames:
        shift = (atoms.positions[:, None] - supercell.positions) @ np.linalg.inv(supercell.cell)
        shift = (shift - np.round(shift)) @ supercell.cell
        mine = np.linalg.norm(shift, axis=-1).argmin(0)
        assert len({*mine}) == len(mine)
        out.append((shift[mine, np.arange(len(mine))], atoms.arrays["REF_forces"][mine]))
    return (np.array(x) for x in zip(*out, strict=True))


def nacl(arguments):
    return salt(arguments, salt_at_random(arguments.data / "phonons" / "NaCl_rd"))


def nacl_pbe(arguments):
    return salt(arguments, salt_at_rest(arguments.data / "phonons" / "NaCl"))


def salt(arguments, data: Salt):
    """Trains the model and asks it for what it was not told."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        write(scratch / "train.extxyz", data.train)
        write(scratch / "test.extxyz", data.test)
        recipe = scratch / "train.yaml"
        recipe.write_text(json.dumps(_recipe(arguments, data)))
        model = train(recipe)
        found = evaluate_model(model, scratch / "test.extxyz", batch_atoms=64)
        if data.large:
            large = evaluate_model(model, data.large, labels=["forces"])
            found["forces_rmse_512_atoms_meV_per_A"] = large["forces_rmse_meV_per_A"]
        potential, params = jaxmlip.load(model)
    return {
        "charge_e": data.charge,
        **{k: v for k, v in found.items() if "rmse" in k},
        "forces_rms_meV_per_A": 1e3 * rms([a.arrays["REF_forces"] for a in data.test]),
        **gamma(potential, params, data.fit.primitive),
        **of_the_data(data.fit),
    }


def _recipe(arguments, data):
    fields = {
        "cutoff": 5.0, "channels": 16, "hidden_l": 0, "l_max": 2, "correlation": 2, "n_layers": 1,
        "radial_widths": [16, 16], "smoothness": 3,
    }  # fmt: skip
    fields |= {"scale": data.scale} if data.scale else {}
    charges = [data.charge, -data.charge]
    far = {"dipole": True, "atomic_dipoles": False, "formal_charges": charges}
    card = {"electrostatics": {"method": "ewald", "tolerance": 1e-4}}
    return {
        "model": {"fields": fields if arguments.local else fields | far},
        "data": {"train": "train.extxyz", "valid": "test.extxyz"},
        "loss": {"energy": data.energy, "forces": 1000.0},
        "optimizer": {"learning_rate": arguments.rate, "warmup_steps": 100, "amsgrad": False},
        "epochs": arguments.epochs,
        "batch_atoms": 64,
        "buckets": 1,
        "seed": arguments.seed,
        "output": "run",
        "card": {} if arguments.local else card,
    }


def gamma(potential, params, primitive):
    """Frequencies next to Gamma, THz: across the wave (TO) and along it (LO)."""
    atoms = Atoms(primitive.symbols, positions=primitive.positions, cell=primitive.cell, pbc=True)
    system = from_ase(atoms, potential.cutoff)
    potential, params = bind(potential, system), jaxmlip.cast(params, np.float64)
    direction = 1e-4 * atoms.cell[:] @ [1.0, 0, 0]  # along a cube axis, in reciprocal vectors
    matrix = jaxmlip.dynamical_matrix(potential.apply)
    thz = frequencies_THz(np.asarray(matrix(params, system, direction[None])), primitive.masses)[0]
    optical = dict(zip(("to_thz", "to_thz_2", "lo_thz"), thz[3:].tolist(), strict=True))
    return optical | {"acoustic_thz": thz[:3].tolist()}


def of_the_data(fit):
    """The same by the force constants of the data."""
    thz = fit.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 0, 0]).frequencies[0]
    return {"data_to_thz": float(thz[3]), "data_lo_thz": float(thz[5])}


TASKS = {"nacl": nacl, "nacl_pbe": nacl_pbe, "dimers": dimers}

if __name__ == "__main__":
    main()
