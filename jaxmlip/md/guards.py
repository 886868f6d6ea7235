"""When a run is stopped: too hot, too steep, not finite, torn apart, an atom lost, or its potential
unsure.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import NumericalError
from jaxmlip.md.motion import conserved_energy, temperature_of
from jaxmlip.md.run import Block

TOO_STEEP = 1e3  # eV/Å
LOST = 1e3  # Å from the middle of the structure, along its open axes; or twice the farthest
RESPONSES = dict.fromkeys(
    ("dipole", "current", "polarizability"),
    "a potential whose dipole is a sum over atoms or bonds; or do not record it",
)
STRESSES = ("stress", "total_stress", "pressure")
LONG, MANY = 1.5, 0.25  # of its first length a bond is broken; of the bonds of a structure broken


class Bonds(NamedTuple):
    """Bonds that are to last; host."""

    pairs: np.ndarray  # [n_bonds, 2] atoms of the batch, of one structure
    shifts: np.ndarray  # [n_bonds, 3] lattice vectors between their cells
    lengths: np.ndarray  # [n_bonds] Å, at the start
    group: np.ndarray  # [n_bonds] bonds that are counted together: of a structure, of a ring


def check_block(block: Block, plan) -> None:
    """Raises `NumericalError` for what cannot be meant; plan: `simulate.Plan`."""
    _check_records(block, RESPONSES)
    _check_sure(block, plan.unsure)
    _check_vitals(block, plan)
    _check_bonds(block, plan.bonds)
    _check_lost(block, plan.lost)
    _check_records(block)


def _check_vitals(block, plan):
    run, motion = block.run, block.motion
    temperature, _, size = vitals(run, motion)
    tables = [r["temperature"] for r in block.records if "temperature" in r]
    hottest = float(np.max([t.max(initial=0) for t in (temperature, *tables)]))
    if hottest < np.inf and hottest <= plan.hottest and size.max() <= plan.steepest:
        return
    worst = np.argsort(-size)[:5]
    told = ", ".join(f"{int(run.bodies.index[i])} ({size[i]:.3g})" for i in worst)
    step = int(motion.step)
    raise NumericalError(
        f"the run blows up before step {step} ({step * run.integrator.dt / units.fs:.1f} fs): "
        f"{hottest:.0f} K (limit {plan.hottest:.0f}), {size.max():.3g} eV/Å (limit "
        f"{plan.steepest:g}); atoms with the largest forces, eV/Å: {told}",
        code="JM305",
        fix="a shorter time step, a relaxed start, a potential trained for such temperatures",
    )


def _check_sure(block, limit):
    """The largest uncertainty of every record, `observables.standard` has it."""
    for found in (r for r in block.records if "uncertainty" in r):
        worst = found["uncertainty"].max(1, initial=0)
        if (worst > limit).any():
            i = int((worst > limit).argmax())
            raise NumericalError(
                f"the potential is unsure of structure {int(found['uncertainty'][i].argmax())} at "
                f"step {int(found['step'][i])}: forces ± {worst[i]:.3g} eV/Å (limit {limit:g})",
                code="JM308",
                fix="label this structure and train with it; or a higher limit",
            )


def _check_bonds(block, bonds):
    """Whether a quarter of the bonds of a structure is half as long again as at the start."""
    if bonds is None or len(bonds.lengths) == 0:
        return
    run, motion = block.run, block.motion
    cell = np.asarray(motion.cell)[np.asarray(run.system.graph)[bonds.pairs[:, 0]]]
    lattice = np.einsum("na,nab->nb", bonds.shifts, cell)
    first, second = np.asarray(motion.positions)[bonds.pairs.T]
    ratio = np.linalg.norm(second - first + lattice, axis=-1) / bonds.lengths
    torn = np.bincount(bonds.group, ratio > LONG) / np.maximum(np.bincount(bonds.group), 1)
    if torn.max() < MANY:
        return
    group, step = int(torn.argmax()), int(motion.step)
    worst = sorted(np.flatnonzero(bonds.group == group), key=lambda i: -ratio[i])[:5]
    atoms = np.asarray(run.bodies.index)[bonds.pairs[worst]].tolist()
    told = zip(atoms, ratio[worst] * bonds.lengths[worst], bonds.lengths[worst], strict=True)
    raise NumericalError(
        f"structure {group} is torn apart before step {step} "
        f"({step * run.integrator.dt / units.fs:.1f} fs): {torn[group]:.0%} of its bonds are over "
        f"{LONG} times as long as at the start (limit {MANY:.0%}); atoms, now and then, Å: "
        + ", ".join(f"{i}-{j} ({now:.2f}, {then:.2f})" for (i, j), now, then in told),
        code="JM305",
        fix="a shorter time step, a relaxed start, a potential trained for such temperatures; "
        "--allow-unstable where bonds are meant to break",
    )


def _check_lost(block, limit):
    run = block.run
    distance = from_middle(run.system, block.motion.positions, block.motion.cell)
    if distance.max(initial=0) > limit:
        worst, step = int(distance.argmax()), int(block.motion.step)
        raise NumericalError(
            f"atom {int(np.asarray(run.bodies.index)[worst])} is lost: {distance[worst]:.0f} Å "
            f"from the middle of its structure (limit {limit:.0f}) at step {step} "
            f"({step * run.integrator.dt / units.fs:.1f} fs)",
            code="JM305",
            fix="a shorter time step, a colder start, a periodic cell; --allow-unstable where "
            "atoms are meant to leave",
        )


def from_middle(system, positions, cells):
    """[n_atoms] Å from the median of an atom's structure; periodic axes do not count."""
    graph, real = np.asarray(system.graph), np.asarray(system.atom_mask)
    pbc, cells = np.asarray(system.pbc), np.asarray(cells)
    positions = np.asarray(positions)
    distance = np.zeros(len(graph))
    for i in np.unique(graph[real & ~pbc.all(1)[graph]]):
        atoms = np.flatnonzero((graph == i) & real)
        away = (positions[atoms] - np.median(positions[atoms], axis=0)) @ np.linalg.inv(cells[i])
        distance[atoms] = np.linalg.norm(np.where(pbc[i], 0, away) @ cells[i], axis=1)
    return distance


def _check_records(block, names=None):
    """Every number of every record, or those of some names; stresses of molecules are none."""
    periodic = np.asarray(block.run.system.pbc).any(1)
    for found in block.records:
        for name in (n for n in found if names is None or n in names):
            x = found[name][:, periodic] if name in STRESSES else found[name]
            good = np.isfinite(x).all(tuple(range(1, x.ndim)))
            if not good.all():
                raise NumericalError(
                    f"the {name} is not finite at step {int(found['step'][good.argmin()])}",
                    code="JM110" if name in RESPONSES else "JM305",
                    fix=RESPONSES.get(name, "another potential, or do not record it"),
                )


def vitals(run, motion):
    """Temperatures (K) and conserved energies (eV) [n_graphs], sizes of forces (eV/Å) [n_atoms]."""
    found = _measured(replace(motion, list=()), run.bodies, run.system, run.integrator)
    return jax.device_get(found)


@partial(jax.jit, static_argnames="integrator")
def _measured(motion, bodies, system, integrator):
    forces = jnp.where(bodies.free[:, None], motion.forces, 0)
    return (
        temperature_of(motion, bodies, system),
        conserved_energy(motion, integrator, bodies, system),
        jnp.linalg.norm(forces, axis=-1),
    )
