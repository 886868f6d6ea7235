"""From options to a run and its files, and from its end to structures."""

from dataclasses import replace

import numpy as np

from jaxmlip.cli import selection
from jaxmlip.cli.dynamics import bonds, ensembles, ladders, rings, start
from jaxmlip.cli.output import stem
from jaxmlip.cli.session import predicts
from jaxmlip.errors import UsageError

SIZE = 25_000  # atoms x steps of a block, about: signals are heard between blocks
INFO = ("charge", "spin", "field")  # of a structure, true at all times
ARRAYS = ("numbers", "positions", "masses", "tags")  # labels of FILE, such as forces, are not
HOTTER = 1e4  # K above three times what was asked for: the run has blown up


def tags(o) -> list[str]:
    """What the names of a replica's files have."""
    return [""] if o["replicas"] == 1 else [f"_{i}" for i in range(o["replicas"])]


def table_tags(o) -> list[str]:
    """The same of tables: a ring of beads has one."""
    return [""] if o["beads"] > 1 else tags(o)


def trajectory_tags(o) -> list[str]:
    """The same of trajectories: a ring of beads has one of its centroid, too."""
    return tags(o) + (["_centroid"] if o["beads"] > 1 else [])


def restart_folder(output, source):
    """Where the restart points of a run are: beside its files."""
    return output.paths[next(iter(output.paths))].with_name(stem(source) + "_md_restart")


def prepared(atoms, opened, o, output, settings, source):
    """(run, motion, plan of the run)."""
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.md import prepare
    from jaxmlip.md.guards import LOST, TOO_STEEP, from_middle
    from jaxmlip.md.simulate import Plan

    n, fixed = o["replicas"], selection.held(atoms, source)
    system = start.copies_of(from_ase(atoms, None, dtype=opened.dtype), n)
    integrator = _integrator(atoms, o)
    observe, every, summed, keep = _observed(atoms, system, opened, o)
    run = prepare(
        opened.potential,
        opened.params,
        system,
        integrator,
        masses=np.tile(atoms.get_masses(), n),
        fixed=None if fixed is None else np.tile(fixed, n),
        observe=observe,
        keep=keep,
    )
    run = rings.resting(run, n) if ensembles.RECIPES[o["ensemble"]].settles else run
    run, motion = start.motion_of(run, atoms, o, n)
    hot = 3 * max(np.max(ladders.targets(o)), 300.0) + HOTTER
    far = 2 * from_middle(system, system.positions, system.cell).max(initial=0)
    limits = {"hottest": o["beads"] * hot, "steepest": TOO_STEEP, "lost": max(LOST, far)}
    limits["bonds"] = bonds.found(atoms, n, together=o["beads"] > 1)
    if o["allow_unstable"]:
        limits = dict.fromkeys(("hottest", "steepest", "lost"), float("inf"))
    if o["max_uncertainty"] is not None:
        limits["unsure"] = o["max_uncertainty"]
    return (
        run,
        motion,
        Plan(
            steps=o["steps"],
            every=every,
            block=o["block"] or int(np.clip(SIZE // (n * len(atoms)), 20, 500)),
            files=_files(atoms, fixed, o, output),
            restarts=restart_folder(output, source),
            settings=settings,
            frames=bool(o["traj_every"]),
            summed=summed,
            minutes=o["restart_minutes"],
            hours=o["hours"],
            **limits,
        ),
    )


def check(atoms, opened, o, source) -> None:
    """Raises for what `prepared` would refuse, before anything is computed."""
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.md.motion import bodies_of

    n, fixed = o["replicas"], selection.held(atoms, source)
    system = start.copies_of(from_ase(atoms, None, dtype=opened.dtype), n)
    held = None if fixed is None else np.tile(fixed, n)
    bodies = bodies_of(system, np.tile(atoms.get_masses(), n), fixed=held)
    _integrator(atoms, o).check(system, bodies)
    _observed(atoms, system, opened, o)
    if o["max_uncertainty"] is not None:
        _check_ensemble(opened)


def _integrator(atoms, o):
    integrator = ensembles.integrator_of(o["ensemble"], o)
    return integrator._replace(needs_stress=integrator.needs_stress or _has_stress(atoms, o))


def _has_stress(atoms, o):
    return o["stress"] and bool(atoms.pbc.all())


def _observed(atoms, system, opened, o):
    """(functions, their intervals, which are summed, what is kept of the prediction)."""
    from jaxmlip.md import observables
    from jaxmlip.md.replica_exchange import walkers

    found = [(observables.frame, o["traj_every"])] if o["traj_every"] else []
    ring = o["beads"] > 1
    table = rings.observed(o["beads"], o["temp"]) if ring else observables.with_msd
    found.append((table if o["ladder"] is None else walkers, o["stats_every"]))
    if o["response_every"]:
        alpha = predicts(opened.card, "polarizability")
        look = observables.responses(opened.potential.apply, alpha=alpha)
        found.append((look, o["response_every"]))
    if o["heat_flux_every"]:
        found.append((observables.heat_flow(_unreferenced(opened.card)), o["heat_flux_every"]))
    summed = ()
    if o["rdf"]:
        if not atoms.pbc.all():
            raise UsageError(
                "g(r) needs a structure that is periodic along all axes", where="--rdf"
            )
        found.append(
            (observables.pair_counts(system.numbers, opened.potential.cutoff), o["stats_every"])
        )
        summed = (len(found) - 1,)
    dipole = bool(opened.card["fields"].get("dipole")) and not atoms.pbc.any()
    functions, every = zip(*found, strict=True)
    keep = ("dipole",) if dipole else ()
    keep += ("forces_uncertainty",) if opened.card.get("members") else ()
    return functions, every, summed, keep


def _unreferenced(card):
    """apply of the model without reference energies, which would flow with every element."""
    from jaxmlip.models import checkpoint

    bare = card | {"reference_energies": None, "head_reference_energies": None}
    return checkpoint.potential_of(bare).apply


def _check_ensemble(opened):
    if not opened.card.get("members"):
        raise UsageError(
            f"model '{opened.name}' is not an ensemble, so it says nothing of its forces' errors",
            where="--max-uncertainty",
            fix="one trained with `ensemble: 4`",
        )


def _files(atoms, fixed, o, output):
    from ase.data import atomic_masses

    from jaxmlip.md.files import Files, Scene

    own = not np.allclose(atoms.get_masses(), atomic_masses[atoms.numbers])
    scene = Scene(
        numbers=atoms.numbers,
        symbols=tuple(atoms.get_chemical_symbols()),
        masses=atoms.get_masses(),
        pbc=np.asarray(atoms.pbc),
        dt=o["timestep"],
        fixed=fixed,
        own_masses=own,
        info=tuple((k, atoms.info[k]) for k in INFO if k in atoms.info),
    )
    ring, n = o["beads"] > 1, len(atoms)
    place = lambda i: {"index": i, "first": i * n, "role": _role(o, bead=i)}
    scenes = [replace(scene, **place(i)) for i in range(o["replicas"])]
    if ring:
        scenes.append(replace(scene, mean_of=o["beads"], role=_role(o)))
    tables = [None] * o["replicas"] * ring + table_tags(o)
    return tuple(
        Files(
            scene=one,
            table=output.paths.get(f"md{table}_stats.csv"),
            extxyz=output.paths.get(f"md{tag}.xyz"),
            h5md=output.paths.get(f"md{tag}.h5"),
        )
        for one, tag, table in zip(scenes, trajectory_tags(o), tables, strict=True)
    )


def _role(o, bead=None):
    """What frames are, where they are not the motion of one structure."""
    if o["beads"] > 1:
        own = () if bead is None else (("bead", bead),)
        return (("ensemble", str(o["ensemble"])), ("beads", o["beads"]), *own)
    return () if o["ladder"] is None else (("ladder", True),)


def structures(motion, atoms, replicas, *, moving=True):
    """The atoms of every replica as they are in a motion (or a dict of its arrays).

    moving: with velocities. Those of beads are of n_beads times the temperature: nobody's start.
    """
    get = motion.get if isinstance(motion, dict) else lambda name: getattr(motion, name)
    array = lambda name: np.asarray(get(name), np.float64)
    out = []
    for i in range(replicas):
        own, copy = slice(i * len(atoms), (i + 1) * len(atoms)), atoms.copy()
        copy.info = {k: v for k, v in atoms.info.items() if k in INFO}
        copy.arrays = {k: v for k, v in copy.arrays.items() if k in ARRAYS}
        copy.set_positions(array("positions")[own], apply_constraint=False)
        if atoms.pbc.all():
            copy.set_cell(array("cell")[i])
        if moving:
            momenta = array("velocities")[own] * atoms.get_masses()[:, None]
            copy.set_momenta(momenta, apply_constraint=False)
        out.append(copy)
    return out
