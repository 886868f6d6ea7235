"""How good is `water`? On held-out liquid, a molecule and a dimer, and in molecular dynamics.

    python examples/water/compare.py --model water --data data/water --picoseconds 2

Errors of energies and forces on another trajectory, of dipoles and polarisabilities on frames held
out by hash; harmonic frequencies and infrared intensities of a molecule and of a dimer, which are
extrapolation for a model of the liquid; then constant-energy dynamics of 32 molecules that start
at 330 K, with the drift of the energy and what became of the molecules.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

import jaxmlip
from jaxmlip.md.relax import relax
from jaxmlip.pretrained import card, path_of
from jaxmlip.train import evaluate_model
from jaxmlip.vibrations.infrared import intensities
from jaxmlip.vibrations.modes import normal_modes

STEP = 0.5  # fs
BONDED = 1.4  # Å: no O-H bond of a whole molecule is as long


def dimer():
    """Two molecules in the hydrogen-bonded shape, O-O 2.9 Å; relaxed later."""
    donor, acceptor = molecule("H2O"), molecule("H2O")
    for atoms in (donor, acceptor):
        atoms.positions -= atoms.positions[0]
    donor.rotate(donor.positions[1], "x")
    acceptor.rotate(acceptor.positions[1:].sum(0), "x")
    acceptor.rotate(90, "x")
    acceptor.positions += [2.9, 0, 0]
    return donor + acceptor


def harmonic(model, atoms, name) -> dict:
    """Frequencies and intensities at the model's own minimum, float64."""
    with jax.enable_x64(True):
        potential, params = jaxmlip.load(model)
        params = jaxmlip.cast(params, np.float64)
        system = jaxmlip.from_ase(atoms, potential.cutoff, dtype=np.float64)
        system, info = relax(potential, params, system, fmax=1e-4)
        hessian = np.asarray(jax.jit(jaxmlip.hessian(potential.apply))(params, system))
        born = np.asarray(jax.jit(jaxmlip.born_charges(potential.apply))(params, system))
        moment = np.asarray(jax.jit(jaxmlip.dipole(potential.apply))(params, system))[0]
    modes = normal_modes(hessian, atoms.get_masses(), np.asarray(system.positions))
    text = lambda values: ", ".join(f"{v:.0f}" for v in values)
    return {
        f"{name}_relaxed": bool(info.converged),
        f"{name}_frequencies_cm1": text(modes.frequencies_cm1),
        f"{name}_intensities_km_mol": text(intensities(born, modes)),
        f"{name}_dipole_debye": float(np.linalg.norm(moment) / jaxmlip.units.debye),
    }


def dynamics(model, atoms, picoseconds) -> dict:
    """Constant-energy dynamics after a tenth of the time with a thermostat at 330 K."""
    atoms = atoms.copy()
    atoms.calc = jaxmlip.Calculator(model)
    rng = np.random.default_rng(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=330, rng=rng)
    Stationary(atoms)
    steps = round(1000 * picoseconds / STEP)
    warm = Langevin(atoms, STEP * units.fs, temperature_K=330, friction=0.02 / units.fs, rng=rng)
    warm.run(steps // 10)
    record = []
    free = VelocityVerlet(atoms, STEP * units.fs)
    free.attach(
        lambda: record.append(
            (atoms.get_total_energy() / len(atoms), atoms.get_temperature(), *whole(atoms))
        ),
        interval=10,
    )
    free.run(steps)
    energy, temperature, broken, nearest = np.array(record).T
    time = np.arange(len(energy)) * 10 * STEP / 1000
    return {
        "picoseconds": float(picoseconds),
        "energy_drift_meV_per_atom_per_ps": float(1e3 * np.polyfit(time, energy, 1)[0]),
        "energy_fluctuation_meV_per_atom": float(1e3 * energy.std()),
        "mean_temperature_K": float(temperature.mean()),
        "highest_temperature_K": float(temperature.max()),
        "hydrogens_that_left": int(broken.max()),
        "shortest_distance_A": float(nearest.min()),
    }


def whole(atoms):
    """(hydrogens farther than BONDED from every oxygen, shortest distance)."""
    d = atoms.get_all_distances(mic=True)
    np.fill_diagonal(d, np.inf)
    h, o = atoms.numbers == 1, atoms.numbers == 8
    return (d[h][:, o].min(1) > BONDED).sum(), d.min()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="water", help="packaged name or path")
    parser.add_argument("--data", type=Path, default=Path("data/water"))
    parser.add_argument("--picoseconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, default=Path("water_accuracy.json"))
    args = parser.parse_args()
    path, units_of = path_of(args.model), {"polarizability": "A3"}
    responses = args.data / "test_responses.extxyz"
    out = {
        "Energies and forces of another trajectory": evaluate_model(
            path, args.data / "test_forces.extxyz", batch_atoms=192
        ),
        "Dipoles and polarisabilities of 32 molecules, held out": evaluate_model(
            path, responses, units=units_of, batch_atoms=192
        ),
        "A molecule and a dimer": harmonic(args.model, molecule("H2O"), "monomer")
        | harmonic(args.model, dimer(), "dimer"),
    }
    if args.picoseconds:
        title = "Constant-energy dynamics of 32 molecules from 330 K"
        out[title] = dynamics(args.model, read(responses, 0), args.picoseconds)
    for figures in out.values():
        for key, value in figures.items():
            print(f"{key:36s} {value:.4g}" if isinstance(value, float) else f"{key:36s} {value}")
    digest = card(args.model)["sha256"]
    args.json.write_text(json.dumps({"model_sha256": digest} | out, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
