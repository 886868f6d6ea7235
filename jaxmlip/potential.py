"""What a potential is, what it predicts, and the algebra of potentials.

A potential is a pair of pure functions and a cutoff: `params = init(key, system)`,
`prediction = apply(params, system)`. A flax linen module with `__call__(self, system)` and a field
`cutoff` already is one. Only `energy` is owed; everything else that has a unit is in this table.

| key | shape | unit | sign, remark |
|---|---|---|---|
| energy | [n_graphs] | eV | |
| energies | [n_atoms] | eV | sum to the energy without its field terms |
| forces | [n_atoms, 3] | eV/Å | -dE/dr |
| stress | [n_graphs, 3, 3] | eV/Å³ | +dE/dstrain / V, ASE sign; NaN for molecules |
| charges | [n_atoms] | e | sum to the charge of the structure |
| dipole | [n_graphs, 3] | e Å | -dE/dfield; about the origin where the structure is charged |
| polarizability | [n_graphs, 3, 3] | e² Å²/eV | -d²E/dfield² |
| born_charges | [n_atoms, 3, 3] | e | [atom, cartesian of the atom, cartesian of the field] |
| hessian | [n_atoms, 3, n_atoms, 3] | eV/Å² | d²E/drdr |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmlip.system import Array, System, sum_energies

Prediction = dict[str, Array]

# shapes of what can be labelled, after the axis of atoms or of structures
PER_ATOM = {"energies": (), "forces": (3,), "charges": (), "born_charges": (3, 3)}
PER_STRUCTURE = {"energy": (), "stress": (3, 3), "dipole": (3,), "polarizability": (3, 3)}


class Potential(NamedTuple):
    """`init(key, system) -> params` and `apply(params, system) -> Prediction`; cutoff in Å."""

    init: Callable
    apply: Callable
    cutoff: float


def add(*potentials) -> Potential:
    """The sum of potentials: energies, charges, dipoles ... all add. Params are a tuple."""

    def init(key, system):
        return tuple(p.init(key, system) for p in potentials)

    def apply(params, system):
        total: Prediction = {}
        for p, w in zip(potentials, params, strict=True):
            for name, value in p.apply(w, system).items():
                total[name] = total[name] + value if name in total else value
        return total

    return Potential(init, apply, max(p.cutoff for p in potentials))


def scale(potential, factor: float) -> Potential:
    """A potential whose every prediction is multiplied by `factor`."""

    def apply(params, system):
        return {k: factor * v for k, v in potential.apply(params, system).items()}

    return Potential(potential.init, apply, potential.cutoff)


def add_reference_energies(potential, reference: dict[int, float]) -> Potential:
    """Adds the energy of the free atoms, {atomic number: eV}, to `energy` and `energies`.

    An element without a reference energy gives NaN, never a silent zero.
    """
    table = np.full(120, np.nan)
    table[0] = 0.0
    for number, energy in reference.items():
        table[number] = energy

    def apply(params, system: System):
        out = dict(potential.apply(params, system))
        atomic = jnp.asarray(table)[system.numbers]
        out["energy"] = out["energy"] + sum_energies(system, atomic)
        if "energies" in out:
            out["energies"] = out["energies"] + atomic.astype(out["energies"].dtype)
        return out

    return Potential(potential.init, apply, potential.cutoff)


def add_field(potential) -> Potential:
    """Couples the dipole (and polarisability) that a potential predicts to `system.field`.

    E -> E - mu.F - F.alpha.F / 2. From then on the dipole is -dE/dF, and Born charges and
    polarisability are second derivatives of the same energy. `energies` stay without the field.
    """

    def apply(params, system: System):
        out = dict(potential.apply(params, system))
        if "dipole" not in out:
            raise KeyError(
                f"add_field needs a potential that predicts 'dipole'; this one "
                f"predicts {sorted(out)}"
            )
        field, dtype = system.field, out["energy"].dtype
        work = (out["dipole"] * field).sum(-1)
        if "polarizability" in out:
            alpha = out["polarizability"]
            work = work + 0.5 * jnp.einsum("ga,gab,gb->g", field, alpha, field)
            out["dipole"] = out["dipole"] + jnp.einsum("gab,gb->ga", alpha, field)
        out["energy"] = out["energy"] - work.astype(dtype)
        return out

    return Potential(potential.init, apply, potential.cutoff)
