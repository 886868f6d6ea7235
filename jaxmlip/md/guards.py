"""When a run is stopped: too hot, too steep, not finite, or where its potential is unsure."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import NumericalError
from jaxmlip.md.motion import conserved_energy, temperature_of
from jaxmlip.md.run import Block

TOO_STEEP = 1e3  # eV/Å


def check_block(block: Block, plan) -> None:
    """Raises `NumericalError` for what cannot be meant; plan: `simulate.Plan`."""
    run, motion = block.run, block.motion
    _check_responses(block.records)
    _check_sure(block, plan.unsure)
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


def _check_responses(records):
    for name in ("dipole", "current", "polarizability"):
        for found in (r for r in records if name in r and not np.isfinite(r[name]).all()):
            bad = ~np.isfinite(found[name]).reshape(len(found["step"]), -1).all(1)
            raise NumericalError(
                f"the {name} is not finite at step {int(found['step'][bad.argmax()])}",
                code="JM110",
                fix="a potential whose dipole is a sum over atoms or bonds; or do not record it",
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
