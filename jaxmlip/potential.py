"""What a potential is, what it predicts, and the algebra of potentials.

A potential is a pair of pure functions and a cutoff: `params = init(key, system)`,
`prediction = apply(params, system)`. A flax linen module with `__call__(self, system)` and a field
`cutoff` already is one. Only `energy` is owed; everything else that has a unit is in this table.

| key | shape | unit | sign, remark |
|---|---|---|---|
| energy | [n_graphs] | eV | |
| energies | [n_atoms] | eV | sum to the energy without its field and long-range terms |
| forces | [n_atoms, 3] | eV/Å | -dE/dr |
| stress | [n_graphs, 3, 3] | eV/Å³ | +dE/dstrain / V, ASE sign; NaN for molecules |
| charges | [n_atoms] | e | sum to the charge of the structure |
| atomic_dipoles | [n_atoms, 3] | e Å | beside the charges; of a model that predicts a dipole |
| electronegativities | [n_atoms] | eV/e | dE/dq of an atom alone at q = 0, for equilibration |
| hardnesses | [n_atoms] | eV/e² | d²E/dq² of the atom alone |
| dispersion_coefficients | [n_atoms] | eV^1/2 Å³ | their products are the C6 of pairs |
| charge_residual | [n_graphs] | eV/e | how far dE/dq of equilibrated charges is from one value |
| dipole | [n_graphs, 3] | e Å | -dE/dfield; about the origin where the structure is charged |
| polarizability | [n_graphs, 3, 3] | e² Å²/eV | -d²E/dfield² |
| born_charges | [n_atoms, 3, 3] | e | [atom, cartesian of the atom, cartesian of the field] |
| hessian | [n_atoms, 3, n_atoms, 3] | eV/Å² | d²E/drdr |
| energy_uncertainty | [n_graphs] | eV | standard deviation; of an ensemble or a last layer |
| forces_uncertainty | [n_atoms] | eV/Å | of one component of the force; of an ensemble |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import ModelError, UsageError
from jaxmlip.system import Array, System, sum_atoms, sum_energies

Prediction = dict[str, Array]

# shapes of what can be labelled, after the axis of atoms or of structures
PER_ATOM = {
    "energies": (),
    "forces": (3,),
    "charges": (),
    "atomic_dipoles": (3,),
    "electronegativities": (),
    "hardnesses": (),
    "dispersion_coefficients": (),
    "born_charges": (3, 3),
    "forces_uncertainty": (),
}
PER_STRUCTURE = {
    "energy": (),
    "stress": (3, 3),
    "dipole": (3,),
    "polarizability": (3, 3),
    "energy_uncertainty": (),
}
# how much a frame and its labels count in a loss; NaN: 1
WEIGHTED = ("energy", "forces", "stress", "dipole", "polarizability", "charges", "born_charges")
PER_STRUCTURE |= {"weight": (), **{f"weight:{name}": () for name in (*WEIGHTED, "hessian")}}


class Potential(NamedTuple):
    """`init(key, system) -> params` and `apply(params, system) -> Prediction`; cutoff in Å.

    `plan` is for potentials with long-range terms that have been loaded but not met a cell yet:
    see `bind`.
    """

    init: Callable
    apply: Callable
    cutoff: float
    plan: Callable | None = None  # system -> Potential; None: it needs no plan


def bind(potential, system: System):
    """The potential with its long-range sums planned for the cells of `system` (host).

    system: a batch, or a list of them, with edges within `potential.cutoff`. Itself if there is
    nothing to plan. A plan holds whole numbers (of waves, of mesh points), so energies stay smooth
    while cells change and accurate while they change little; bind again for other cells.
    """
    plan = getattr(potential, "plan", None)
    return potential if plan is None else plan(system)


def _made(make: Callable, potentials, init, apply, cutoff: float) -> Potential:
    """The potential that `make` makes of others, to be made again of them once they are bound."""
    if all(getattr(p, "plan", None) is None for p in potentials):
        return Potential(init, apply, cutoff)
    plan = lambda system: make(*(bind(p, system) for p in potentials))
    return Potential(init, apply, cutoff, plan)


def add(*potentials) -> Potential:
    """The sum of potentials: energies, charges, dipoles ... all add. Params are a tuple.

    All see the pairs within the longest cutoff, which costs those with a shorter one as if it were
    theirs: (15/5)³ times the pairs for a model of 5 Å beside dispersion to 15 Å.
    """

    def init(key, system):
        return tuple(p.init(key, system) for p in potentials)

    def apply(params, system):
        total: Prediction = {}
        for p, w in zip(potentials, params, strict=True):
            for name, value in p.apply(w, system).items():
                total[name] = total[name] + value if name in total else value
        return total

    return _made(add, potentials, init, apply, max(p.cutoff for p in potentials))


def scale(potential, factor: float) -> Potential:
    """A potential whose every prediction is multiplied by `factor`."""

    def apply(params, system):
        return {k: factor * v for k, v in potential.apply(params, system).items()}

    make = lambda p: scale(p, factor)
    return _made(make, [potential], potential.init, apply, potential.cutoff)


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

    make = lambda p: add_reference_energies(p, reference)
    return _made(make, [potential], potential.init, apply, potential.cutoff)


def add_field(potential) -> Potential:
    """Couples the dipole (and polarisability) that a potential predicts to `system.field`.

    E -> E - mu.F - F.alpha.F / 2. From then on the dipole is -dE/dF, and Born charges and
    polarisability are second derivatives of the same energy. `energies` stay without the field.
    A finite field along a crystal needs a dipole that is blind to the images of atoms, which nobody
    can see inside of `jit`: ask `derivatives.check_field` first, as the calculator, relaxations and
    dynamics do.
    """

    def apply(params, system: System):
        out = dict(potential.apply(params, system))
        _owes(out, "add_field", "dipole")
        field, dtype = system.field, out["energy"].dtype
        work = (out["dipole"] * field).sum(-1)
        if "polarizability" in out:
            alpha = out["polarizability"]
            work = work + 0.5 * jnp.einsum("ga,gab,gb->g", field, alpha, field)
            out["dipole"] = out["dipole"] + jnp.einsum("gab,gb->ga", alpha, field)
        out["energy"] = out["energy"] - work.astype(dtype)
        return out

    return _made(add_field, [potential], potential.init, apply, potential.cutoff)


def conserve_fragments(potential, fragments: Array, totals: Array) -> Potential:
    """The potential with charges that sum to the charge of each ion or molecule, not of all alone.

    fragments [n_atoms]: index of the fragment of each atom of the batch (any for padding), such as
    `electrostatics.bonded_fragments` finds them; totals [n_fragments]: their charges, e. Both hold
    for one batch and stay as they are while atoms move. Charges of a fragment are moved by one
    amount, so what a model shares out evenly over a structure has no say: far from all others an
    ion has the charges and the energy that it has alone. The dipole moves with them (list the atoms
    of a fragment at images next to one another). Apply it before `add_field` and
    `add_electrostatics`: an energy that has them already (any potential of `jaxmlip.load` with a
    dipole or a long-range term) keeps the charges as they were.

    Charges of a structure whose fragments do not sum to its total charge, or have no total, are
    NaN. `UsageError` for another number of atoms, and where atoms are spread over devices.
    """
    n_fragments, fragments, totals = len(totals), jnp.asarray(fragments), jnp.asarray(totals)

    def apply(params, system: System):
        _check_fragments(system, fragments)
        out = dict(potential.apply(params, system))
        _owes(out, "conserve_fragments", "charges")
        moved = _moved_charges(system, out["charges"], fragments, totals, n_fragments)
        out["charges"] = out["charges"] + moved
        if "dipole" in out:
            out["dipole"] = out["dipole"] + sum_atoms(system, moved[:, None] * system.positions)
        return out

    make = lambda p: conserve_fragments(p, fragments, totals)
    return _made(make, [potential], potential.init, apply, potential.cutoff)


def _check_fragments(system, fragments):
    where = "conserve_fragments"
    if fragments.shape != (system.n_atoms,):
        what = f"fragments have shape {fragments.shape}, expected [n_atoms] = ({system.n_atoms},)"
        raise UsageError(what, where=where)
    if system.edges is not None and system.edges.halo is not None:
        raise UsageError("the system is spread over devices", where=where, fix="one device")


def _moved_charges(system, charges, fragments, totals, n_fragments):
    """What each atom gets so that its fragment has its total, [n_atoms] e."""
    real = system.atom_mask
    of = lambda x: jnp.zeros(n_fragments, charges.dtype).at[fragments].add(jnp.where(real, x, 0))
    count = jnp.maximum(of(jnp.ones_like(charges)), 1)
    totals = totals.astype(charges.dtype)
    each = lambda x: x.at[fragments].get(mode="fill", fill_value=jnp.nan)
    share = each((totals - of(charges)) / count)
    sums = sum_atoms(system, each(totals / count))
    sound = jnp.abs(sums - system.charge) < 1e-3
    share = share * jnp.where(sound, 1.0, jnp.nan).astype(share.dtype)[system.graph]
    return jnp.where(real, share, 0)


def add_electrostatics(potential, solver) -> Potential:
    """Adds the energy of the charges (and atomic dipoles) that a potential predicts.

    solver: (system, charges, dipoles=None) -> [n_graphs] eV, the whole energy of point charges and
    dipoles, as `jaxmlip.electrostatics` makes them. The potential does not know it: forces, stress
    and Hessian are those of the sum, with charges that move with the atoms. `energies` stay those
    of the potential alone, for the energy of a field belongs to no atom.
    """

    def apply(params, system: System):
        out = dict(potential.apply(params, system))
        _owes(out, "add_electrostatics", "charges")
        energy = solver(system, out["charges"], out.get("atomic_dipoles"))
        out["energy"] = out["energy"] + energy.astype(out["energy"].dtype)
        return out

    make = lambda p: add_electrostatics(p, solver)
    cutoff = max(potential.cutoff, _reach(solver))
    return _made(make, [potential], potential.init, apply, cutoff)


def add_equilibration(potential, equilibrate) -> Potential:
    """Adds charges that make the energy least, from predicted electronegativities and hardnesses.

    equilibrate: (system, electronegativities, hardnesses) -> Prediction with `energy`, `charges`,
    `dipole` and `charge_residual`, as `jaxmlip.electrostatics.equilibration` makes it. The energy
    is that of the minimum and depends on `system.field` (of molecules), so the dipole is -dE/dfield
    without `add_field`. `energies` stay those of the potential alone.
    """

    def apply(params, system: System):
        out = dict(potential.apply(params, system))
        _owes(out, "add_equilibration", "electronegativities", "hardnesses")
        if "dipole" in out:
            raise UsageError(
                "the potential predicts a dipole of its own, equilibrated charges bring another",
                where="add_equilibration",
                fix="a model with `dipole: false`",
            )
        found = equilibrate(system, out["electronegativities"], out["hardnesses"])
        energy = out["energy"] + found["energy"].astype(out["energy"].dtype)
        return {**out, **found, "energy": energy}

    make = lambda p: add_equilibration(p, equilibrate)
    cutoff = max(potential.cutoff, _reach(equilibrate))
    return _made(make, [potential], potential.init, apply, cutoff)


def add_dispersion(potential, solver) -> Potential:
    """Adds -sum over pairs of c_i c_j / r^6 with the coefficients c that a potential predicts.

    solver: (system, c) -> sum over pairs of c_i c_j / r^6, [n_graphs], such as
    `electrostatics.inverse_power(system, cutoff, 6, exclude=cutoff)`: the attraction within the
    radius of `exclude` is the potential's own, which has learned it with all that damps it, and
    only the tail is added. `energies` stay those of the potential alone.
    """

    def apply(params, system: System):
        out = dict(potential.apply(params, system))
        _owes(out, "add_dispersion", "dispersion_coefficients")
        energy = solver(system, out["dispersion_coefficients"])
        out["energy"] = out["energy"] - energy.astype(out["energy"].dtype)
        return out

    make = lambda p: add_dispersion(p, solver)
    cutoff = max(potential.cutoff, _reach(solver))
    return _made(make, [potential], potential.init, apply, cutoff)


def _reach(solver) -> float:
    """The cutoff of a solver's edges, Å; 0 if it needs none."""
    return float(getattr(solver, "cutoff", None) or 0.0)


def _owes(prediction, where: str, *keys: str):
    missing = [key for key in keys if key not in prediction]
    if missing:
        raise UsageError(
            f"needs a potential that predicts {' and '.join(missing)}; this one predicts "
            f"{', '.join(sorted(prediction))}",
            where=where,
            fix="a model with such a readout (see the fields of jaxmlip.models.MACE)",
        )


def planned_later(plan: Callable, init: Callable, cutoff: float) -> Potential:
    """A potential that must be bound to a system (`bind`) before it can be applied.

    plan: system (host) -> Potential; init: as of the potential that it makes; cutoff of that, Å.
    """

    def apply(params, system):
        raise ModelError(
            "the long-range term has no plan yet: it depends on the cells",
            code="JM530",
            fix="potential = jaxmlip.bind(potential, system)",
        )

    again = lambda system: plan(system)._replace(plan=again)  # what is bound can be bound anew
    return Potential(init, apply, cutoff, again)
