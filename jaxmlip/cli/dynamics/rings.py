"""Rings of beads for a command line: how they settle, what is observed and shown of them."""

from dataclasses import replace

SHOWN = ("kinetic_energy", "gyration", "temperature")  # numbers of a ring


def observed(n_beads: int, temperature: float):
    """What is observed of rings, told of each of their beads, for files are theirs.

    The conserved energy is the mean over beads, as the potential energy is: drifts then compare
    with those of classical nuclei.
    """
    import jax.numpy as jnp

    from jaxmlip.md import quantum
    from jaxmlip.md.observables import standard

    of = quantum(n_beads, temperature)

    def told(*state):
        found = of(*state)
        named = {"energy": found["potential_energy"]} | {name: found[name] for name in SHOWN}
        named["conserved_energy"] = found["conserved_energy"] / n_beads
        known = standard(*state)
        own = {k: known[k] for k in ("uncertainty",) if k in known}
        of_beads = {k: jnp.repeat(x, n_beads) for k, x in named.items()}
        return {"step": found["step"]} | of_beads | own

    return told


def shown(progress, n_beads: int):
    """Temperature of nuclei, not of their beads; energies are a bead's already."""
    return progress._replace(temperature=progress.temperature / n_beads)


def resting(run, n_beads: int):
    """The run of one ring whose centre of mass rests, so that it has no share in temperatures."""
    return replace(run, bodies=replace(run.bodies, dof=run.bodies.dof - 3 / n_beads))


def settling(run, plan, bath, *, steps: int, folder):
    """(run, plan) of some steps of one ring under a bath, before dynamics without it.

    Beads that begin on one point have no energy in their springs, and nothing but a bath would
    ever give it to them. bath: a `ring_polymer` that moves every mode, the centroid too. folder: of
    its restart points.
    """
    from jaxmlip.md.observables import standard

    warm = replace(run, integrator=bath, observe=(standard,))
    own = {"steps": steps, "every": (steps,), "files": (), "summed": (), "restarts": folder}
    return warm, replace(plan, frames=True, **own)


def settled(run, outcome):
    """(run, motion) as they go on after `settling`, the centre of mass at rest."""
    from jaxmlip.md import handed_over

    run = replace(run, neighbors=outcome.run.neighbors)
    return run, _at_rest(handed_over(run, outcome.motion), run.bodies.masses)


def _at_rest(motion, masses):
    """The centre of mass of all beads at rest; beads move against one another as they did."""
    drift = (masses[:, None] * motion.velocities).sum(0) / masses.sum()
    return replace(motion, velocities=motion.velocities - drift)
