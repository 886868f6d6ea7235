"""The start of a run: what is checked before anything is computed, the batch, the velocities."""

import hashlib
from dataclasses import replace

import numpy as np

from jaxmlip import units
from jaxmlip.cli.dynamics.ladders import targets
from jaxmlip.errors import DataError, ModelError, UsageError

HYDROGEN = 1.5  # fs, longest step that is usual with hydrogen that moves freely


def check_numbers(o: dict) -> None:
    """Raises `UsageError` for options that cannot be meant. o: {name: value}."""
    from jaxmlip.cli.session import positive

    if not 0 <= o["temp"] < float("inf"):
        raise UsageError(f"--temp is {o['temp']} K; it cannot be negative", where="--temp")
    positive(
        timestep=o["timestep"],
        friction=o["friction"],
        thermostat_time=o["thermostat_time"],
        barostat_time=o["barostat_time"],
        bulk_modulus=o["bulk_modulus"],
    )
    if not np.isfinite(o["pressure"]):
        raise UsageError(f"--pressure is {o['pressure']} GPa", where="--pressure")
    if o["ladder"] is None and o["temp"] == 0 and o["ensemble"] != "nve":
        raise UsageError(
            f"--temp is 0 K and --ensemble {o['ensemble']} has a heat bath",
            where="--temp",
            fix="a temperature above zero; `jaxmlip relax` goes to a minimum",
        )
    if not 0.01 <= o["timestep"] <= 20:
        raise UsageError(
            f"--timestep is {o['timestep']} fs; expected 0.01 to 20",
            where="--timestep",
            fix="it is in fs: 0.5 with hydrogen, 1 to 2 without",
        )
    for name in ("stats_every", "traj_every", "response_every", "heat_flux_every"):
        every, option = o[name], "--" + name.replace("_", "-")
        if every and o["steps"] % every:
            less = o["steps"] // every * every
            raise UsageError(
                f"{option} {every} does not divide --steps {o['steps']}",
                where=option,
                fix=f"--steps {less or every}" + (f" or {less + every}" if less else ""),
            )


def warnings_of(atoms, o: dict):
    """What is likely to be a mistake, in words."""
    light = 1 in atoms.numbers and atoms.get_masses()[atoms.numbers == 1].min() < 1.5
    if light and o["timestep"] > HYDROGEN:
        yield (
            f"--timestep {o['timestep']:g} fs with hydrogen, whose bonds vibrate in about 9 fs: "
            "the energy will not be kept; 0.5 fs is usual"
        )
    if o["heat_flux_every"] and o["ensemble"] == "nvt":
        yield (
            f"--friction {o['friction']:g} 1/fs acts on every atom and takes away the heat that "
            "flows: the conductivity will be too low; nve, nvt-csvr and nvt-nh keep it"
        )
    if not _keeps_velocities(o) and has_velocities(atoms) and not o["new_velocities"]:
        yield (
            "replicas, rings and ladders begin with velocities of their own: those of FILE are "
            "not used"
        )
    if o["response_every"] and o["ensemble"] == "nvt":
        width = units.hbar * o["friction"] / units.fs / units.invcm
        yield (
            f"--friction {o['friction']:g} 1/fs makes all lines of spectra {width:.0f} cm⁻¹ wider; "
            "nve, nvt-csvr and nvt-nh do not"
        )


def fingerprint(atoms) -> str:
    """A hash of all that a run starts from."""
    h = hashlib.sha256()
    for x in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()):
        h.update(np.ascontiguousarray(x).tobytes())
    h.update(np.ascontiguousarray(atoms.get_momenta()).tobytes())
    h.update(repr([atoms.info.get(k) for k in ("charge", "spin", "field")]).encode())
    h.update(repr([c.todict() for c in atoms.constraints]).encode())
    return h.hexdigest()[:16]


def copies_of(system, n: int):
    """A batch of the same structure."""
    from jaxmlip.system import concatenate

    return system if n == 1 else concatenate([system] * n)


def motion_of(run, atoms, o: dict, n: int):
    """(run, motion): velocities of the file if it has any, else thermal ones."""
    import jax

    from jaxmlip.md import at_rest, thermal_motion

    key, kept = jax.random.key(o["seed"]), has_velocities(atoms) and not o["new_velocities"]
    kept &= _keeps_velocities(o)
    wanted = o["beads"] * targets(o)
    if kept:
        motion = at_rest(run.system, key)
        velocities = atoms.get_velocities()  # ASE's unit of time is ours
        free = np.asarray(run.bodies.free)[:, None]
        velocities = np.where(free, velocities, 0).astype(motion.positions.dtype)
        motion = _at_rest_as_a_whole(run, replace(motion, velocities=jax.numpy.asarray(velocities)))
    else:
        motion = thermal_motion(run.system, run.bodies, key, temperature=wanted)
    if not o["remove_rot"]:
        return run, motion
    return without_rotation(
        run, motion, keeps=o["ensemble"] != "nvt", temperature=None if kept else wanted
    )


def _at_rest_as_a_whole(run, motion):
    """Without the motion of the centre of mass, if it is to have no share in the temperature.

    Langevin runs leave one; a constant of motion from then on, no bath would ever take it away.
    """
    from jaxmlip.cli.output import note
    from jaxmlip.md.motion import temperature_of, without_drift

    if not run.integrator.keeps_momentum:
        return motion
    still = without_drift(motion, run.bodies, run.system)
    hottest = lambda m: float(temperature_of(m, run.bodies, run.system).max())
    kelvin = hottest(motion), hottest(still)
    if kelvin[0] - kelvin[1] < 1e-6 * kelvin[0]:
        return motion
    note(f"the centre of mass of FILE moves ({kelvin[0] - kelvin[1]:.3g} K): brought to rest")
    return still


def _keeps_velocities(o: dict) -> bool:
    """Whether those of FILE would be of the right temperature, and of one trajectory alone."""
    return o["replicas"] == 1


def has_velocities(atoms) -> bool:
    return atoms.has("momenta") and bool(np.any(atoms.get_momenta()))


def without_rotation(run, motion, *, keeps: bool, temperature):
    """(run, motion) without angular momentum, for molecules.

    keeps: whether it stays so (no random forces): the rotations then are no degrees of freedom.
    temperature: K, one number or one a structure, to which velocities are scaled; None: not.
    """
    import jax

    from jaxmlip.md.motion import temperature_of

    positions, velocities = (np.array(x, float) for x in (motion.positions, motion.velocities))
    masses, graph = np.asarray(run.bodies.masses, float), np.asarray(run.system.graph)
    dof = np.array(run.bodies.dof)
    for g in range(run.system.n_graphs):
        own = graph == g
        r = positions[own] - np.average(positions[own], axis=0, weights=masses[own])
        spin, rank = _spin(r, velocities[own], masses[own])
        velocities[own] -= np.cross(spin, r)
        dof[g] -= rank if keeps else 0
    run = replace(run, bodies=replace(run.bodies, dof=jax.numpy.asarray(dof)))
    dtype = motion.velocities.dtype
    motion = replace(motion, velocities=jax.numpy.asarray(velocities.astype(dtype)))
    if temperature is not None:
        now = np.maximum(temperature_of(motion, run.bodies, run.system), 1e-30)
        scale = np.sqrt(temperature / now)[graph][:, None].astype(dtype)
        motion = replace(motion, velocities=motion.velocities * scale)
    return run, motion


def _spin(r, v, m):
    """Angular velocity of a molecule about its centre, and how many ways it can turn."""
    momentum = (m[:, None] * np.cross(r, v)).sum(0)
    inertia = (
        m[:, None, None] * ((r**2).sum(1)[:, None, None] * np.eye(3) - r[:, :, None] * r[:, None])
    ).sum(0)
    moments, axes = np.linalg.eigh(inertia)
    turns = moments > 1e-6 * max(moments.max(), 1e-30)
    inverse = np.where(turns, 1 / np.where(turns, moments, 1), 0)
    return axes @ (inverse * (axes.T @ momentum)), int(turns.sum())


def check_structure(atoms, o: dict, where: str) -> None:
    """Raises for what cannot move, or not turn."""
    if o["remove_rot"] and (atoms.pbc.any() or atoms.constraints):
        raise UsageError(
            "--remove-rot is for free molecules; this one is periodic or held",
            where="--remove-rot",
        )
    if len(atoms) == 1 and not atoms.pbc.any():
        raise DataError("a single atom has nothing to move against", where=where, code="JM214")


def check_heat_flux(opened, atoms, o: dict, where: str) -> None:
    """Raises where the energies of atoms do not make the heat flux of the model or structure."""
    if not o["heat_flux_every"]:
        return
    option, card = "--heat-flux-every", opened.card
    if o["beads"] > 1:
        raise UsageError("the heat flux is one of classical nuclei", where=option, fix="nve")
    if not atoms.pbc.all():
        raise DataError(
            f"{option} is for conductivities, and this structure is periodic along "
            f"{int(atoms.pbc.sum())} of 3 axes",
            where=where,
            code="JM214",
            fix="a structure with a cell and pbc along all axes",
        )
    terms = [name for name in ("electrostatics", "dispersion") if card.get(name)]
    if terms or getattr(opened.potential, "plan", None) is not None:
        raise ModelError(
            f"model '{opened.name}' has long-range terms ({', '.join(terms) or 'of its own'}), "
            "whose energy is not a sum over atoms here: its heat flux would lack them",
            where=option,
            code="JM508",
            fix="a model of short range",
        )
