"""What moves: the state of a trajectory, and what of it never changes.

Everything is per structure of the batch: temperatures, thermostats and random numbers of one
structure know nothing of the others, so a trajectory is the same alone and among others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError
from jaxmlip.system import Array, System, sum_atoms


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Motion:
    """All that a step changes; saved and loaded, the trajectory goes on bit for bit (on CPU)."""

    positions: Array  # [n_atoms, 3] Å, never wrapped
    velocities: Array  # [n_atoms, 3] Å/sqrt(amu Å²/eV): times `units.fs` Å/fs
    cell: Array  # [n_graphs, 3, 3] Å
    forces: Array  # [n_atoms, 3] eV/Å
    energy: Array  # [n_graphs] eV, potential
    stress: Array  # [n_graphs, 3, 3] eV/Å³, NaN unless the integrator needs it
    keys: Array  # [n_graphs] random keys, one a structure
    step: Array  # steps done; -1: forces are not there yet
    bath: Any = ()  # what a thermostat or barostat remembers
    list: Any = ()  # neighbours, and where they were found
    extra: Any = ()  # {name: array} that the run keeps of the prediction


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Bodies:
    """What stays: masses, who is held, and how many ways each structure can move."""

    masses: Array  # [n_atoms] amu, 1 for padding
    free: Array  # [n_atoms] bool, False for padding and held atoms
    index: Array  # [n_atoms] place of the atom in its structure
    dof: Array  # [n_graphs] degrees of freedom that share the temperature
    center: Array | None = None  # [n_graphs] True where the centre of mass is held


class Integrator(NamedTuple):
    """One step around one evaluation of forces, in two parts; both are pure.

    `before(motion, bodies, system)` takes the motion, with its forces, to the positions and cell
    of the next evaluation; `after(motion, bodies, system)` ends the step with the new forces.
    """

    init: Callable  # (motion, bodies) -> bath
    before: Callable
    after: Callable
    dt: float  # internal units
    needs_stress: bool = False
    moves_cell: bool = False
    exchanges: bool = False  # structures trade places
    keeps_momentum: bool = True  # no random or friction forces on the centre of mass
    bath_energy: Callable = lambda motion, bodies, system: 0.0  # eV; the total is conserved
    kT: Callable | None = None  # motion -> eV, of the bath: one number or [n_graphs]
    check: Callable = lambda system, bodies: None  # host; raises where it cannot be used


def bodies_of(
    system: System, masses, *, fixed=None, fixed_center: bool = False, keeps_momentum: bool = True
) -> Bodies:
    """Bodies of a batch (host). masses [n_atoms] amu; fixed [n_atoms] True for held atoms.

    fixed_center: no net force or noise moves a centre of mass. Its three motions do not count
    where it is held, or where nothing acts on it.
    """
    real = np.asarray(system.atom_mask)
    masses = np.where(real, np.asarray(masses, np.float64), 1.0)
    if not (np.isfinite(masses).all() and (masses > 0).all()):
        i = int(np.argmin(np.where(np.isfinite(masses), masses, -1)))
        raise DataError(f"the mass of atom {i} is {masses[i]} amu; it must be above zero")
    fixed = np.zeros(len(real), bool) if fixed is None else np.asarray(fixed, bool)
    graph, n = np.asarray(system.graph), system.n_graphs
    count = lambda which: np.bincount(graph[which], minlength=n)
    free, dtype = real & ~fixed, np.asarray(system.positions).dtype
    alone = (count(real & fixed) == 0) & (count(free) > 1)
    whole = alone & (keeps_momentum or fixed_center)
    if fixed_center and not (alone | (count(real) == 0)).all():
        i = int(np.argmin(alone | (count(real) == 0)))
        raise UsageError(
            f"structure {i} has {count(real)[i]} atoms, {count(real & fixed)[i]} of them held: "
            "its centre of mass cannot be held, too",
            where="fixed_center",
        )
    first = np.searchsorted(graph, np.arange(n))
    return Bodies(
        masses=masses.astype(dtype),
        free=free,
        index=(np.arange(len(real)) - first[graph]).astype(np.int32),
        dof=(3 * count(free) - 3 * whole).astype(dtype),
        center=whole if fixed_center else None,
    )


def thermal_motion(system: System, bodies: Bodies, key, *, temperature) -> Motion:
    """A motion with Maxwell-Boltzmann velocities, scaled to exactly `temperature` (K, one number
    or one a structure).

    The centre of mass rests where no atom is held. Forces are not there yet: a run adds them.
    """
    keys = jax.random.split(jax.random.fold_in(key, 0), system.n_graphs)
    motion = at_rest(system, key)
    temperature = per_structure(temperature, system.n_graphs, "temperature")
    noise = normals(keys, bodies, system, motion.positions.dtype)
    velocities = noise / jnp.sqrt(bodies.masses)[:, None]
    motion = replace(motion, velocities=jnp.where(bodies.free[:, None], velocities, 0))
    motion = without_drift(motion, bodies, system)
    now = temperature_of(motion, bodies, system)
    scale = jnp.sqrt(temperature / jnp.maximum(now, 1e-30)).astype(now.dtype)
    return replace(motion, velocities=motion.velocities * scale[system.graph][:, None])


def per_structure(values, n_graphs: int, name: str) -> np.ndarray:
    """One number for all structures, or one a structure, as [n_graphs] (host)."""
    values = np.asarray(values, float)
    if values.shape not in ((), (n_graphs,)):
        raise UsageError(
            f"{name} has shape {values.shape}; expected one number, or one for each of the "
            f"{n_graphs} structures (those that are padding, too)",
            where=name,
        )
    return np.broadcast_to(values, (n_graphs,))


def at_rest(system: System, key) -> Motion:
    """The structure without velocities."""
    positions = jnp.asarray(system.positions)
    n, dtype = system.n_graphs, positions.dtype
    return Motion(
        positions=positions,
        velocities=jnp.zeros_like(positions),
        cell=jnp.asarray(system.cell),
        forces=jnp.full_like(positions, jnp.nan),
        energy=jnp.full(n, jnp.nan, jnp.result_type(float)),
        stress=jnp.full((n, 3, 3), jnp.nan, dtype),
        keys=jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(1, n + 1)),
        step=jnp.full((), -1, jnp.int32),
    )


def normals(keys, bodies: Bodies, system: System, dtype):
    """A standard normal vector for every atom, [n_atoms, 3].

    Made from the key of the structure and the place of the atom in it alone, so that neither
    padding nor the other structures of the batch change it.
    """
    own = jax.vmap(jax.random.fold_in)(keys[system.graph], bodies.index)
    return jax.vmap(lambda key: jax.random.normal(key, (3,), dtype))(own)


def without_drift(motion: Motion, bodies: Bodies, system: System) -> Motion:
    """Centres of mass at rest, in the structures whose centre is free."""
    masses = jnp.where(bodies.free, bodies.masses, 0)
    held = sum_atoms(system, (~bodies.free).astype(masses.dtype)) > 0
    several = sum_atoms(system, bodies.free.astype(masses.dtype)) > 1
    shift = _of_center(motion.velocities, several & ~held, masses, system)
    return replace(motion, velocities=motion.velocities - shift)


def centered(velocities, bodies: Bodies, system: System):
    """Velocities [n_atoms, 3] without those of the centres of mass that are held."""
    if bodies.center is None:
        return velocities
    masses = jnp.where(bodies.free, bodies.masses, 0)
    return velocities - _of_center(velocities, bodies.center, masses, system)


def _of_center(velocities, which, masses, system):
    """The velocity of the centre of mass of an atom's structure, [n_atoms, 3]; 0 elsewhere."""
    momentum = sum_atoms(system, masses[:, None] * velocities)
    mean = momentum / jnp.maximum(sum_atoms(system, masses), 1e-30)[:, None]
    mean = jnp.where(which[:, None], mean, 0)
    return jnp.where((masses > 0)[:, None], mean[system.graph], 0)


def kinetic_energy(motion: Motion, bodies: Bodies, system: System):
    """[n_graphs] eV."""
    return 0.5 * sum_atoms(system, bodies.masses * (motion.velocities**2).sum(-1))


def conserved_energy(motion: Motion, integrator: Integrator, bodies: Bodies, system: System):
    """Potential + kinetic energy + that of the bath, [n_graphs] eV."""
    kinetic = kinetic_energy(motion, bodies, system).astype(motion.energy.dtype)
    return motion.energy + kinetic + integrator.bath_energy(motion, bodies, system)


def inner(part: Callable, motion: Motion, bodies: Bodies, system: System) -> Motion:
    """Part of a step of an integrator that another one wraps: its state is `bath["inner"]`."""
    bath = motion.bath
    motion = part(replace(motion, bath=bath["inner"]), bodies, system)
    return replace(motion, bath=bath | {"inner": motion.bath})


def temperature_of(motion: Motion, bodies: Bodies, system: System):
    """2 K / (degrees of freedom x kB), [n_graphs], K."""
    kinetic = kinetic_energy(motion, bodies, system)
    return 2 * kinetic / (jnp.maximum(bodies.dof, 1) * units.kB)
