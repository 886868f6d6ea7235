"""What does a long-range term give a trained model: charged dimers apart, LO-TO splitting of NaCl?

    python -m benchmarks.long_range nacl   --data DIR [--steps 400] [--seed 0] [--output FILE]
    python -m benchmarks.long_range dimers --data DIR [--steps 300] [--near 8] [--local]

DIR holds `phonons/NaCl_rd` (supercells of 64 atoms with energies and forces, Born charge and
dielectric constant in cells_nac.json) and `charged_dimers` (energies of pairs of organic ions at
13 distances each). Models are small MACE, the same with and without the long-range term, trained
here by the same steps; what is printed is one line of JSON each.

nacl: charges of Z*/sqrt(eps_infinity) in an Ewald sum (the screened interaction of the crystal)
beside a MACE of one layer; frequencies at Gamma from D(q) of the primitive cell at q -> 0, along
the wave (LO) and across it (TO); published PBEsol: 4.616 and 7.396 THz.
dimers: trained on the `near` shortest distances of each dimer, asked for the others. Charges are
those of the ions that the data tell (the sum of each ion is a label). "tail": the slope of the
energy in the distance of the last two points over that of the reference, which a local
model cannot have.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlip
from jaxmlip import models, units
from jaxmlip.derivatives.first import with_forces
from jaxmlip.electrostatics import coulomb, ewald
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.extxyz import read_frames
from jaxmlip.potential import add_electrostatics
from jaxmlip.system import concatenate, pad

REFERENCE = {"to_thz": 4.616, "lo_thz": 7.396}
BONDED = 1.8  # Å, within an ion


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("nacl", "dimers"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--near", type=int, default=8)
    parser.add_argument("--local", action="store_true", help="without the long-range term")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found = {"nacl": nacl, "dimers": dimers}[arguments.task](arguments)
    line = json.dumps(vars(arguments) | found, default=str)
    print(line)
    if arguments.output:
        with open(arguments.output, "a") as file:
            file.write(line + "\n")


def train(loss, params, batches, arguments):
    """Params after `steps` of Adam with a falling rate; loss(params, *batch)."""
    steps = arguments.steps
    adam = optax.adam(optax.cosine_decay_schedule(arguments.rate, steps, alpha=0.01))

    @jax.jit
    def step(params, state, batch):
        value, slope = jax.value_and_grad(loss)(params, *batch)
        change, state = adam.update(slope, state, params)
        return optax.apply_updates(params, change), state, value

    state, rng = adam.init(params), np.random.default_rng(arguments.seed)
    begun = time.process_time()
    for i in range(steps):
        params, state, value = step(params, state, batches[rng.integers(len(batches))])
        if i % 50 == 0 or i == steps - 1:
            print(f"step {i} loss {float(value):.3e} cpu {time.process_time() - begun:.0f} s")
    return params


# --- rock salt ------------------------------------------------------------------------------------


def nacl(arguments):
    folder = arguments.data / "phonons" / "NaCl_rd"
    nac = json.loads((folder / "cells_nac.json").read_text())
    charge = nac["nac"]["born_effective_charge"][0][0][0]
    charge /= np.sqrt(nac["nac"]["dielectric_constant"][0][0])
    frames = read_frames(folder / "displaced64.extxyz.xz")
    cell = nac["unit_cell"]["lattice"][0][0]
    primitive = _rock_salt(cell)
    bare = models.MACE(
        elements=(11, 17), cutoff=5.0, channels=16, hidden_l=0, l_max=2, correlation=2,
        n_layers=1, radial_widths=(16, 16), avg_num_neighbors=26.0, scale=0.05,
        dipole=not arguments.local, atomic_dipoles=False, formal_charges=(charge, -charge),
    )  # fmt: skip
    systems = [from_ase(a, bare.cutoff) for a in frames]
    widest = max(s.edges.senders.shape[1] for s in systems)
    systems = [pad(s, n_neighbors=widest) for s in systems]
    small = from_ase(primitive, bare.cutoff)
    potential = bare
    if not arguments.local:
        potential = add_electrostatics(bare, ewald([systems[0], small], bare.cutoff, 1e-4))
    energies = np.array([a.info["REF_energy"] for a in frames]) / 64
    labels = [(jnp.asarray(e - energies.mean()), a.arrays["REF_forces"]) for e, a in
              zip(energies, frames, strict=True)]  # fmt: skip
    n_train = len(frames) * 4 // 5
    pairs = [
        (jax.tree.map(jnp.asarray, s), *known) for s, known in zip(systems, labels, strict=True)
    ]
    params = jax.jit(bare.init)(jax.random.key(arguments.seed), systems[0])
    shift = float(jax.jit(potential.apply)(params, pairs[0][0])["energy"][0]) / 64
    params = {"model": params, "shift": jnp.asarray(shift)}

    def errors(params, system, energy, forces):
        out = with_forces(potential.apply)(params["model"], system)
        return out["energy"][0] / 64 - params["shift"] - energy, out["forces"] - forces

    def loss(params, *frame):
        e, f = errors(params, *frame)
        return 1e2 * e**2 + (f**2).mean() * 1e3

    params = train(loss, params, pairs[:n_train], arguments)
    check = jax.jit(errors)
    test = [check(params, *frame) for frame in pairs[n_train:]]
    rms = lambda x: float(np.sqrt(np.mean(np.square(x))))
    return {
        "charge_e": charge,
        "energy_rmse_meV_per_atom": 1e3 * rms([e for e, _ in test]),
        "forces_rmse_meV_per_A": 1e3 * rms([f for _, f in test]),
        "forces_rms_meV_per_A": 1e3 * rms([f for _, _, f in pairs[n_train:]]),
        **gamma(potential, params["model"], small, primitive.get_masses()),
        "reference": REFERENCE,
    }


def _rock_salt(a):
    from ase.build import bulk

    return bulk("NaCl", "rocksalt", a=a)


def gamma(potential, params, system, masses):
    """Frequencies next to Gamma, THz: across the wave (TO) and along it (LO)."""
    direction = np.array([[1e-3, 1e-3, 0.0]])  # of the face-centred cell: along one cube axis
    D = np.asarray(jaxmlip.dynamical_matrix(potential.apply)(params, system, direction))[0]
    root = np.repeat(np.sqrt(masses), 3)
    values = np.linalg.eigvalsh((D + D.conj().T) / 2 / np.outer(root, root))
    thz = np.sign(values) * np.sqrt(np.abs(values)) / (2 * np.pi) * units.second * 1e-12
    return {
        "to_thz": float(thz[3:5].mean()),
        "lo_thz": float(thz[5]),
        "acoustic_thz": thz[:3].tolist(),
    }


# --- charged dimers -------------------------------------------------------------------------------


def dimers(arguments):
    frames = read_frames(arguments.data / "charged_dimers" / "charge_charge.extxyz.xz")
    for atoms in frames:
        atoms.pbc = False
    curves = [frames[i : i + 13] for i in range(0, len(frames), 13)]
    for curve in curves:
        part = _parts(curve[-1])  # where the ions are furthest apart
        for atoms in curve:
            atoms.arrays["part"] = part
    near = [a for curve in curves for a in curve[: arguments.near]]
    far = [a for curve in curves for a in curve[arguments.near :]]
    elements = tuple(sorted({int(z) for a in frames for z in a.numbers}))
    bare = models.MACE(
        elements=elements, cutoff=4.0, channels=16, l_max=2, correlation=2, hidden_l=1,
        n_layers=2, radial_widths=(16, 16), avg_num_neighbors=12.0, scale=0.2,
        dipole=not arguments.local, atomic_dipoles=False, charge_weights=not arguments.local,
    )  # fmt: skip
    ions = [ion for curve in curves for ion in _ions(curve[0])]
    size = dict(n_atoms=24, n_graphs=2)
    batch = lambda many: jax.tree.map(
        jnp.asarray, concatenate([_padded(a, bare.cutoff, size) for a in many])
    )
    apart, together = batch(ions), batch(near)
    potential = bare if arguments.local else add_electrostatics(bare, coulomb(together))

    def binding(params, system, which):
        """Energies of dimers less those of their ions; charges of all."""
        out, of_ions = potential.apply(params, system), potential.apply(params, apart)
        alone = of_ions["energy"][::2].reshape(-1, 2).sum(1)
        return out["energy"][::2] - alone[which], out.get("charges")

    def labels(many):
        energy = [a.info["REF_energy"] - a.info["energyA"] - a.info["energyB"] for a in many]
        which = [next(i for i, c in enumerate(curves) if any(a is b for b in c)) for a in many]
        return jnp.asarray(energy), jnp.asarray(which), *_fragments(many, size["n_atoms"])

    def loss(params, system, energy, which, member, charge):
        found, charges = binding(params, system, which)
        value = ((found - energy) ** 2).mean()
        if charges is None:
            return value
        of_ions = (member * charges.reshape(-1, 1, size["n_atoms"])).sum(-1)
        return value + ((of_ions - charge) ** 2).mean()

    params = jax.jit(bare.init)(jax.random.key(arguments.seed), apart)
    seen, unseen = (together, *labels(near)), (batch(far), *labels(far))
    params = train(loss, params, [seen], arguments)
    errors = jax.jit(lambda p, s, e, w, *_: binding(p, s, w)[0] - e)
    close, beyond = errors(params, *seen), errors(params, *unseen)
    rest = 13 - arguments.near
    reference = np.asarray(unseen[1]).reshape(-1, rest)
    found = np.asarray(beyond).reshape(-1, rest) + reference
    slope = lambda e: e[:, -1] - e[:, -2]
    return {
        "seen_rmse_meV": 1e3 * float(jnp.sqrt((close**2).mean())),
        "beyond_rmse_meV": 1e3 * float(jnp.sqrt((beyond**2).mean())),
        "beyond_rms_about_last_seen_meV": 1e3 * _if_flat(np.asarray(seen[1]), reference),
        "tail": float(np.mean(slope(found) / slope(reference))),
    }


def _if_flat(near, far):
    """Error of a curve that stays where it was at the last distance seen."""
    last = near.reshape(len(far), -1)[:, -1:]
    return float(np.sqrt(np.mean((far - last) ** 2)))


def _padded(atoms, cutoff, size):
    system = pad(from_ase(atoms, cutoff), **size)
    return pad(system, n_neighbors=max(23, system.edges.senders.shape[1]))


def _parts(atoms):
    """[n_atoms] 0 or 1: the ion of each atom, by bonds; the first atom is in ion 0 (A)."""
    near = atoms.get_all_distances() < BONDED
    part = np.linalg.matrix_power(near.astype(float), len(atoms)) > 0
    return np.where(part[0], 0, 1)


def _ions(atoms):
    part = atoms.arrays["part"]
    for i, charge in enumerate((atoms.info["chargeA"], atoms.info["chargeB"])):
        ion = atoms[part == i]
        ion.info = {"charge": float(charge)}
        yield ion


def _fragments(many, size):
    """(membership [n, 2, size], charges [n, 2]) of the ions of each dimer."""
    member = np.zeros((len(many), 2, size))
    for i, atoms in enumerate(many):
        part = atoms.arrays["part"]
        member[i, part, np.arange(len(atoms))] = 1
    charge = [[float(a.info["chargeA"]), float(a.info["chargeB"])] for a in many]
    return jnp.asarray(member), jnp.asarray(charge)


if __name__ == "__main__":
    main()
