"""Charged dimers beyond the distances that a model was trained on: `benchmarks.long_range dimers`.

The data are 10 pairs of organic ions at 13 distances each. A small MACE, the same with and without
the Coulomb energy of its charges, is trained on the binding energies of the `near` shortest
distances of each and asked for the others. Charges are those of the ions that the data tell (the
sum of each ion is a label). "tail": the change of energy between the last two distances over that
of the reference. "exponent": the power of R by which the energy of ions falls between 20 and 80 Å,
-1 for charges; a local model has no energy there. "left_apart": what is left of the binding energy
when they are infinitely far apart, which should be nothing: with `--ions` each ion keeps its charge
(`conserve_fragments`), else the dimer keeps that of both.
"""

import time
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlip
from jaxmlip import models, units
from jaxmlip.electrostatics import coulomb
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.extxyz import read_frames
from jaxmlip.potential import add_electrostatics, conserve_fragments
from jaxmlip.system import concatenate, pad

BONDED = 1.8  # Å, within an ion
APART = (20.0, 40.0, 80.0)  # Å, between the centres of ions
ROOM = 24  # atoms of a padded dimer
Batch = namedtuple("Batch", "system energy curve member charge ion")


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def dimers(arguments):
    curves = read_curves(arguments.data / "charged_dimers" / "charge_charge.extxyz.xz")
    near, far = ([a for c in curves for a in c[s]] for s in _halves(arguments.near))
    bare = _small_mace(curves, arguments)
    apart = _batch([ion for c in curves for ion in _ions(c[0])], bare.cutoff)
    seen, unseen = labelled(near, bare.cutoff), labelled(far, bare.cutoff)
    binding = _binding(*_potentials(bare, coulomb(seen.system), arguments), apart)
    params = jax.jit(bare.init)(jax.random.key(arguments.seed), apart)
    params = fit(_loss(binding), jaxmlip.cast(params, np.float32), seen, arguments)
    energies = jax.jit(lambda params, batch: binding(params, batch)[0])
    errors = lambda batch: 1e3 * rms(energies(params, batch) - batch.energy)
    of = lambda values: np.asarray(values).reshape(len(curves), -1)
    found, known = of(energies(params, unseen)), of(unseen.energy)
    slope = lambda e: e[:, -1] - e[:, -2]
    return {
        "seen_rmse_meV": errors(seen),
        "beyond_rmse_meV": errors(unseen),
        "beyond_rmse_if_flat_meV": 1e3 * rms(known - of(seen.energy)[:, -1:]),
        "tail": float(np.mean(slope(found) / slope(known))),
        **_scaling(lambda many: energies(params, labelled(many, bare.cutoff)), curves),
    }


def _halves(near):
    return slice(None, near), slice(near, None)


def read_curves(path):
    """[10][13] molecules: one dimer at 13 distances, with the ion of each atom."""
    frames = read_frames(path)
    curves = [frames[i : i + 13] for i in range(0, len(frames), 13)]
    for i, curve in enumerate(curves):
        part = _parts(curve[-1])  # where the ions are furthest apart
        for atoms in curve:
            atoms.pbc, atoms.info["curve"], atoms.arrays["part"] = False, i, part
    return curves


def _small_mace(curves, arguments):
    elements = tuple(sorted({int(z) for curve in curves for z in curve[0].numbers}))
    far = not arguments.local
    return models.MACE(
        elements=elements, cutoff=arguments.cutoff, channels=16, l_max=1, correlation=2,
        hidden_l=0, n_layers=2, radial_widths=(16, 16), avg_num_neighbors=8.0, scale=0.2,
        dipole=far, atomic_dipoles=False, charge_weights=far and not arguments.ions,
    )  # fmt: skip


def _potentials(bare, solver, arguments):
    """(batch -> the potential of its dimers, that of ions alone)."""
    if arguments.local:
        return lambda batch: bare, bare
    alone = add_electrostatics(bare, solver)
    if not arguments.ions:
        return lambda batch: alone, alone
    kept = lambda batch: conserve_fragments(bare, batch.ion, batch.charge.reshape(-1))
    return lambda batch: add_electrostatics(kept(batch), solver), alone


def _binding(of_dimers, of_ions, apart):
    """(params, batch) -> energies of dimers less those of their ions, charges of the dimers."""

    def binding(params, batch):
        out = of_dimers(batch).apply(params, batch.system)
        ions = of_ions.apply(params, apart)
        alone = ions["energy"][::2].reshape(-1, 2).sum(1)  # every other structure is padding
        return out["energy"][::2] - alone[batch.curve], out.get("charges")

    return binding


def _loss(binding):
    def loss(params, batch):
        energy, charges = binding(params, batch)
        value = ((energy - batch.energy) ** 2).mean()
        if charges is None:
            return value
        of_ions = (batch.member * charges.reshape(-1, 1, ROOM)).sum(-1)
        return value + 10 * ((of_ions - batch.charge) ** 2).mean()

    return loss


def fit(loss, params, batch, arguments):
    """Params after `steps` of Adam with a falling rate."""
    adam = optax.adam(optax.cosine_decay_schedule(arguments.rate, arguments.steps, alpha=0.01))

    @jax.jit
    def step(params, state):
        value, slope = jax.value_and_grad(loss)(params, batch)
        change, state = adam.update(slope, state, params)
        return optax.apply_updates(params, change), state, value

    state = adam.init(params)
    for i in range(arguments.steps):
        params, state, value = step(params, state)
        if i % 50 == 0 or i == arguments.steps - 1:
            print(f"step {i} loss {float(value):.3e} cpu {time.process_time():.0f} s", flush=True)
    return params


def _scaling(energies, curves):
    """What falls with the distance R of ions that are far apart, averaged over dimers.

    E = E_apart + k q q'/R + d/R² through three distances: R is that of the centres of the ions, and
    d is how far their charges are from those.
    """
    found = np.stack([energies([_pulled(c[-1], d) for c in curves]) for d in APART])
    one, two, four = found
    falls, slower = one - two, two - four
    if np.abs(slower).max() < 1e-6:
        return {"exponent": None, "charge_product": 0.0, "left_apart_rms_meV": 1e3 * rms(four)}
    inverse = 1 / np.array(APART)
    left, product, _ = np.linalg.solve(np.vander(inverse, increasing=True), found)
    return {
        "exponent": -float(np.log2(falls.mean() / slower.mean())),
        "charge_product": float(product.mean() / units.coulomb_constant),
        "left_apart_rms_meV": 1e3 * rms(left),
    }


def _pulled(atoms, distance):
    """The dimer with the centres of its ions that far from each other."""
    second = atoms.arrays["part"] == 1
    along = atoms.positions[second].mean(0) - atoms.positions[~second].mean(0)
    length = np.linalg.norm(along)
    pulled = atoms.copy()
    pulled.positions[second] += along / length * (distance - length)
    return pulled


def labelled(many, cutoff) -> Batch:
    """A batch of dimers with their binding energies (eV), ions and charges of ions."""
    member = np.zeros((len(many), 2, ROOM), np.float32)
    ion = np.zeros((len(many), ROOM), np.int32) + 2 * np.arange(len(many))[:, None]
    for i, atoms in enumerate(many):
        member[i, atoms.arrays["part"], np.arange(len(atoms))] = 1
        ion[i, : len(atoms)] += atoms.arrays["part"]
    take = lambda f: jnp.asarray([f(a.info) for a in many])
    energy = take(lambda x: x["REF_energy"] - x["energyA"] - x["energyB"])
    charge = take(lambda x: [float(x["chargeA"]), float(x["chargeB"])])
    curve = take(lambda x: x["curve"])
    return Batch(_batch(many, cutoff), energy, curve, member, charge, ion.reshape(-1))


def _batch(many, cutoff):
    padded = [pad(from_ase(a, cutoff, dtype=np.float32), n_atoms=ROOM, n_graphs=2) for a in many]
    return jax.tree.map(jnp.asarray, concatenate(padded))


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
