"""Constant pressure: cells that fluctuate as they should, over any heat bath.

Stochastic cell rescaling. The weight of a cell h, its atoms at fixed fractions, is
V^(N + 1) exp(-(U + P V) / kT) with respect to the invariant measure of linear maps: dV of
isotropic, V^-2 dh of flexible cells (Martyna, Tobias and Klein, 1994, 10.1063/1.467468). A Langevin
equation without inertia for strains h -> h exp(e) leaves it as it is:

    de = B / (3 tau V0) ((N + 1) kT - V (stress + P)) dt + sqrt(2 kT B / (3 tau V0)) dW

with the compressibility B, over all symmetric e or those of a linear subspace. With V for V0 in the
denominators it is that of Bernetti and Bussi, 2020, 10.1063/5.0020514 (volume alone) and of Del
Tatto, Raiteri, Bernetti and Bussi, 2022, 10.3390/app12031139. Here V0 is the volume at the start:
the noise is the same everywhere, so that a step and its reverse are equally probable to a higher
order in its length, and a gas that is squeezed does not overshoot. Momenta are not rescaled: the
kinetic pressure is its mean, of all N atoms, whether or not the centre of mass moves.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError
from jaxmlip.md.cell import as_function as free_function
from jaxmlip.md.cell import free_strains, hydrostatic
from jaxmlip.md.integrators import as_function, check_number, same
from jaxmlip.md.motion import Integrator, inner
from jaxmlip.system import strain as strained
from jaxmlip.system import sum_atoms

WATER = 4.5e-5 / units.bar  # Å³/eV, compressibility
_product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@same
def stochastic_cell(
    bath: Integrator,
    *,
    pressure,
    tau: float = 1000.0,
    compressibility: float = WATER,
    free=hydrostatic,
) -> Integrator:
    """`bath` at constant pressure.

    pressure: eV/Å³ (`units.GPa`, `units.bar`), positive under compression; one number, one a
    structure, or a function of the time in fs that gives either. tau: fs, in which a volume with
    that compressibility (Å³/eV, 1 / bulk modulus) relaxes; only their ratio counts. free: which
    strains: `hydrostatic` keeps the shape, None leaves lengths and angles free, else [3, 3] of
    booleans or a linear function of a strain that returns its free part, along Cartesian axes.

    What is kept is the effective energy of Bernetti and Bussi: with enthalpy and entropy, kT times
    the logarithm of how much more probable the steps were than their reverse. Its drift tells
    whether `dt` is short enough. Cells must be periodic along all axes, and no atom held.
    """
    if bath.kT is None:
        raise UsageError(
            "constant pressure needs a heat bath, for the cell takes energy",
            where="stochastic_cell",
            fix="csvr, langevin or nose_hoover in place of nve",
        )
    if bath.exchanges:
        raise UsageError(
            "configurations that are exchanged would come into cells of others",
            where="stochastic_cell",
            fix="exchanges at constant volume",
        )
    if not (tau > 0 and compressibility > 0):
        raise UsageError(
            f"tau = {tau} fs, compressibility = {compressibility} Å³/eV: both must be above zero",
            where="stochastic_cell",
        )
    drive = Drive(
        pressure=as_function(pressure, bath.dt),
        kT=bath.kT,
        dt=bath.dt,
        rate=compressibility / (3 * tau * units.fs),
        projector=free_strains(free_function(free)),
    )

    def init(motion, bodies):
        return {
            "inner": bath.init(motion, bodies),
            "volume": _volume(motion),
            "strain": jnp.zeros_like(motion.cell),
            "given": jnp.zeros_like(motion.energy),
        }

    def before(motion, bodies, system):
        strain, noise2, keys = drawn(motion, bodies, system, drive)
        given = motion.bath["given"] + given_there(motion, strain, noise2, bodies, system, drive)
        motion = deformed(replace(motion, keys=keys), strain / 2, system)
        motion = deformed(inner(bath.before, motion, bodies, system), strain / 2, system)
        return replace(motion, bath=motion.bath | {"strain": strain, "given": given})

    def after(motion, bodies, system):
        motion = inner(bath.after, motion, bodies, system)
        given = motion.bath["given"] + given_back(motion, bodies, system, drive)
        return replace(motion, bath=motion.bath | {"given": given})

    def check(system, bodies):
        bath.check(system, bodies)
        check_number(pressure=pressure)(system, bodies)
        _check_cells(system, bodies)

    return bath._replace(
        init=init,
        before=before,
        after=after,
        needs_stress=True,
        moves_cell=True,
        check=check,
        bath_energy=lambda motion, bodies, system: (
            bath.bath_energy(replace(motion, bath=motion.bath["inner"]), bodies, system)
            + motion.bath["given"]
        ),
    )


class Drive(NamedTuple):
    """What moves the cell."""

    pressure: Callable  # motion -> eV/Å³, one number or [n_graphs]
    kT: Callable  # motion -> eV, alike
    dt: float  # internal units
    rate: float  # compressibility / (3 tau), internal units
    projector: np.ndarray  # [3, 3, 3, 3] on the strains that are free


def drawn(motion, bodies, system, drive):
    """Strain [n_graphs, 3, 3], its squared noise in units of its width [n_graphs], keys left."""
    keys = jax.vmap(jax.random.split)(motion.keys)
    normal = jax.vmap(lambda key: jax.random.normal(key, (3, 3), motion.cell.dtype))(keys[:, 0])
    noise = _free_part(normal, drive)
    mean, width = moments(motion, bodies, system, drive)
    strain = jnp.where(_crystals(system), mean + width * noise, 0)
    return strain, (noise**2).sum((1, 2)), keys[:, 1]


def moments(motion, bodies, system, drive):
    """Mean [n_graphs, 3, 3] and width [n_graphs, 1, 1] of the strain of one step."""
    volume, (count, kT, target) = _volume(motion), _state(motion, bodies, system, drive)
    push = ((count + 1) * kT - target * volume)[:, None, None] * jnp.eye(3, dtype=volume.dtype)
    rate = (drive.rate * drive.dt / motion.bath["volume"])[:, None, None]
    mean = rate * _free_part(push - volume[:, None, None] * motion.stress, drive)
    return mean, jnp.sqrt(2 * kT[:, None, None] * rate)


def given_there(motion, strain, noise2, bodies, system, drive):
    """What a step from here costs before its reverse is known, [n_graphs] eV."""
    volume, (count, kT, target) = _volume(motion), _state(motion, bodies, system, drive)
    growth = jnp.trace(strain, axis1=1, axis2=2)  # of the logarithm of the volume
    cost = target * volume * jnp.expm1(growth) - kT * ((count + 1) * growth + 0.5 * noise2)
    return jnp.where(_crystals(system)[:, 0, 0], cost, 0).astype(motion.energy.dtype)


def given_back(motion, bodies, system, drive):
    """The part of the cost that the reverse of the last step decides, [n_graphs] eV."""
    mean, width = moments(motion, bodies, system, drive)
    noise2 = (((-motion.bath["strain"] - mean) / width) ** 2).sum((1, 2))
    cost = 0.5 * drive.kT(motion) * noise2
    return jnp.where(_crystals(system)[:, 0, 0], cost, 0).astype(motion.energy.dtype)


def deformed(motion, strain, system):
    """Positions and cells mapped by exp(strain); exp(-strain) maps them back."""
    total = term = strain
    for n in range(2, 9):
        term = _product("gab,gbc->gac", term, strain) / n
        total = total + term
    moved = strained(replace(system, positions=motion.positions, cell=motion.cell), total)
    return replace(motion, positions=moved.positions, cell=moved.cell)


def _free_part(tensors, drive):
    """The part of tensors [n_graphs, 3, 3] in the strains that are free."""
    return _product("abcd,gcd->gab", jnp.asarray(drive.projector, tensors.dtype), tensors)


def _state(motion, bodies, system, drive):
    """Atoms, kT (eV) and pressure (eV/Å³), [n_graphs] each."""
    count = sum_atoms(system, bodies.free.astype(motion.cell.dtype))
    spread = lambda x: jnp.broadcast_to(x, count.shape)
    return count, spread(drive.kT(motion)), spread(drive.pressure(motion))


def _volume(motion):
    return jnp.abs(jnp.linalg.det(motion.cell))


def _crystals(system):
    """Which structures are there and periodic along all axes, [n_graphs, 1, 1]."""
    atoms = sum_atoms(system, jnp.ones(system.n_atoms, system.cell.dtype))
    return (jnp.all(system.pbc, axis=1) & (atoms > 0))[:, None, None]


def _check_cells(system, bodies):
    graph, real = np.asarray(system.graph), np.asarray(system.atom_mask)
    there = np.bincount(graph[real], minlength=system.n_graphs) > 0
    open_ = there & ~np.asarray(system.pbc).all(1)
    if open_.any():
        raise DataError(
            f"structure {int(np.argmax(open_))} is not periodic along all axes: it has no volume",
            where="stochastic_cell",
            fix="a heat bath alone; or set pbc",
        )
    held = real & ~np.asarray(bodies.free)
    if held.any():
        raise UsageError(
            f"atom {int(np.argmax(held))} is held where it is, but the cell moves",
            where="stochastic_cell",
            fix="a heat bath alone, or no held atoms",
        )
