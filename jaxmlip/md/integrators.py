"""Integrators: one step of Newton's equations, alone or with a heat bath.

Ours rather than jax_md's, whose trajectories the tests compare: jax_md draws two numbers of its
stochastic rescaling from one key (so they are not independent), keeps time steps and chain masses
in float32 and has one thermostat for a whole batch.
"""

from dataclasses import replace
from functools import lru_cache, wraps

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.md.motion import Integrator, centered, kinetic_energy, normals, per_structure
from jaxmlip.system import Array

# Suzuki-Yoshida weights of order 4 (Martyna, Tuckerman, Tobias and Klein, 1996,
# 10.1080/00268979600100761)
_OUTER = 1 / (2 - 2 ** (1 / 3))
TINY = 1e-30
SUZUKI_YOSHIDA = (_OUTER, 1 - 2 * _OUTER, _OUTER)


def same(make):
    """`make`, which gives the same object for the same numbers (so nothing is compiled twice);
    arrays and lists, one number a structure, may stand for a number.
    """
    cached = lru_cache(make)

    def plain(value):
        value = np.asarray(value).tolist() if isinstance(value, Array) else value
        return tuple(map(plain, value)) if isinstance(value, list) else value

    @wraps(make)
    def made(*args, **options):
        return cached(*args, **{name: plain(value) for name, value in options.items()})

    return made


@same
def nve(*, dt: float) -> Integrator:
    """Velocity Verlet: constant energy (Swope et al., 1982, 10.1063/1.442716). dt: fs."""
    dt = checked(dt) * units.fs

    def before(motion, bodies, system):
        return drifted(kicked(motion, bodies, system, dt / 2), dt)

    def after(motion, bodies, system):
        return kicked(motion, bodies, system, dt / 2)

    return Integrator(lambda motion, bodies: (), before, after, dt)


@same
def langevin(*, dt: float, temperature, friction: float = 0.01) -> Integrator:
    """Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews, 2013, 10.1063/1.4802990).

    dt: fs. temperature: K; one number, one a structure, or a function of the time in fs that
    gives either. friction: 1/fs. Acts on every degree of freedom, on the centre of mass too unless
    it is held. The bath is the energy that it has given, eV: with it, the total is conserved within
    the error of `dt`.
    """
    check_bath("langevin", temperature, least=0, friction=(friction, 0))
    dt, gamma = checked(dt) * units.fs, friction / units.fs
    kT = energy_of(temperature, dt)

    def before(motion, bodies, system):
        motion = drifted(kicked(motion, bodies, system, dt / 2), dt / 2)
        cold = kinetic_energy(motion, bodies, system)
        motion = damped(motion, bodies, system, dt, gamma, kT(motion))
        given = kinetic_energy(motion, bodies, system) - cold
        motion = replace(motion, bath=motion.bath + given.astype(motion.bath.dtype))
        return drifted(motion, dt / 2)

    def after(motion, bodies, system):
        return kicked(motion, bodies, system, dt / 2)

    return Integrator(
        lambda motion, bodies: jnp.zeros_like(motion.energy),
        before,
        after,
        dt,
        bath_energy=lambda motion, bodies, system: -motion.bath,
        keeps_momentum=False,
        kT=kT,
        check=check_number(temperature=temperature),
    )


@same
def csvr(*, dt: float, temperature, tau: float = 100.0) -> Integrator:
    """Canonical sampling by velocity rescaling (Bussi, Donadio and Parrinello, 2007,
    10.1063/1.2408420).

    dt, tau (relaxation time): fs. temperature: as in `langevin`. The bath is the energy that it
    has given, eV: with it, the total is conserved within the error of `dt`.
    """
    check_bath("csvr", temperature, least=0, tau=(tau, TINY))
    verlet, tau = nve(dt=dt), tau * units.fs
    dt = verlet.dt
    kT = energy_of(temperature, dt)

    def after(motion, bodies, system):
        motion = verlet.after(motion, bodies, system)
        return rescaled(motion, bodies, system, dt / tau, kT(motion))

    return verlet._replace(
        init=lambda motion, bodies: jnp.zeros_like(motion.energy),
        after=after,
        bath_energy=lambda motion, bodies, system: -motion.bath,
        kT=kT,
        check=check_number(temperature=temperature),
    )


@same
def nose_hoover(*, dt: float, temperature, tau: float = 100.0, length: int = 3) -> Integrator:
    """A Nosé-Hoover chain: deterministic, reversible, canonical for systems that are ergodic
    (Martyna, Klein and Tuckerman, 1992, 10.1063/1.463940; Martyna et al., 1996).

    dt, tau (time of the bath, whose inertia is f kT tau²): fs. temperature: K, one number or one a
    structure. length: thermostats of the chain.
    """
    verlet = nve(dt=dt)
    if length < 2:
        raise UsageError(f"a chain of length {length}; it needs at least 2", where="nose_hoover")
    if callable(temperature):
        raise UsageError("its inertia needs one temperature for all times", where="nose_hoover")
    check_bath("nose_hoover", temperature, least=TINY, tau=(tau, TINY))
    dt, tau = verlet.dt, tau * units.fs
    kT = energy_of(temperature, dt)

    def inertia(motion, bodies):
        first = jnp.maximum(bodies.dof, 1)[:, None]
        chain = jnp.concatenate([first, *[jnp.ones_like(first)] * (length - 1)], 1)
        return kT(motion)[..., None] * tau**2 * chain

    def init(motion, bodies):
        zero = jnp.zeros((len(bodies.dof), length), motion.positions.dtype)
        return {"positions": zero, "velocities": zero}

    def half(motion, bodies, system):
        return chained(motion, bodies, system, inertia(motion, bodies), kT(motion), dt / 2)

    def before(motion, bodies, system):
        return verlet.before(half(motion, bodies, system), bodies, system)

    def after(motion, bodies, system):
        return half(verlet.after(motion, bodies, system), bodies, system)

    def bath_energy(motion, bodies, system):
        x, v = motion.bath["positions"], motion.bath["velocities"]
        kinetic = 0.5 * (inertia(motion, bodies) * v**2).sum(1)
        return kinetic + kT(motion) * (bodies.dof * x[:, 0] + x[:, 1:].sum(1))

    return verlet._replace(
        init=init,
        before=before,
        after=after,
        bath_energy=bath_energy,
        kT=kT,
        check=check_number(temperature=temperature),
    )


# --- parts of steps ------------------------------------------------------------------------------


def kicked(motion, bodies, system, dt):
    """Velocities after the forces have acted for `dt`; what is held keeps still."""
    kick = dt * motion.forces / bodies.masses[:, None]
    velocities = motion.velocities + jnp.where(bodies.free[:, None], kick, 0)
    return replace(motion, velocities=centered(velocities, bodies, system))


def drifted(motion, dt):
    """Positions after `dt` at constant velocity."""
    return replace(motion, positions=motion.positions + dt * motion.velocities)


def energy_of(temperature, dt):
    """kB T (eV, one number or [n_graphs]) as a function of the motion."""
    at = as_function(temperature, dt)
    return lambda motion: units.kB * at(motion)


def as_function(value, dt):
    """A number, one a structure, or a function of the time in fs, as a function of the motion."""

    def at(motion):
        now = value(motion.step * (dt / units.fs)) if callable(value) else value
        return jnp.asarray(now, motion.velocities.dtype)

    return at


def check_number(**values):
    """For `Integrator.check`: raises unless there is one number, or one a structure."""

    def check(system, bodies):
        for name, value in values.items():
            if not callable(value):
                per_structure(value, system.n_graphs, name)

    return check


def damped(motion, bodies, system, dt, gamma, kT):
    """The exact solution of friction and noise alone over `dt` (the O of BAOAB)."""
    keys = jax.vmap(jax.random.split)(motion.keys)
    dtype = motion.velocities.dtype
    # rounded first, then squared in float64: in float32 the noise would not fit the friction
    keep = float(np.exp(-gamma * dt).astype(dtype))
    kT = jnp.broadcast_to(kT, keys.shape[:1])[system.graph]
    width = jnp.sqrt((1 - keep**2) * kT / bodies.masses)[:, None].astype(dtype)
    noise = width * normals(keys[:, 0], bodies, system, dtype)
    velocities = jnp.where(bodies.free[:, None], keep * motion.velocities + noise, 0)
    velocities = centered(velocities.astype(dtype), bodies, system)
    return replace(motion, velocities=velocities, keys=keys[:, 1])


def rescaled(motion, bodies, system, time, kT):
    """Velocities scaled so that kinetic energies of each structure are drawn from the canonical
    ensemble with relaxation over `time` (in units of tau): eq. A7 of Bussi et al. 2007.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(motion.keys)
    dtype = motion.velocities.dtype
    kinetic = kinetic_energy(motion, bodies, system)
    keep = jnp.exp(-jnp.asarray(time, dtype))
    share = kT / 2 / jnp.maximum(kinetic, 1e-30)
    one = jax.vmap(lambda key: jax.random.normal(key, (), dtype))(keys[:, 0])
    # the sum of dof - 1 squared normals
    rest = jax.vmap(lambda key, n: 2 * jax.random.gamma(key, n / 2, dtype=dtype))
    others = jnp.where(bodies.dof > 1, rest(keys[:, 1], jnp.maximum(bodies.dof - 1, 1)), 0)
    cross = 2 * one * jnp.sqrt(keep * (1 - keep) * share)
    scale2 = keep + share * (1 - keep) * (one**2 + others) + cross
    scale2 = jnp.where((bodies.dof > 0) & (kinetic > 0), scale2, 1)
    given = (scale2 - 1) * kinetic
    velocities = motion.velocities * jnp.sqrt(scale2)[system.graph][:, None].astype(dtype)
    return replace(
        motion,
        velocities=velocities,
        keys=keys[:, 2],
        bath=motion.bath + given.astype(motion.bath.dtype),
    )


def chained(motion, bodies, system, inertia, kT, dt):
    """Velocities and chains after the chains have acted for `dt`."""
    kinetic = kinetic_energy(motion, bodies, system)
    x, v = motion.bath["positions"], motion.bath["velocities"]
    scale = jnp.ones_like(kinetic)
    for weight in SUZUKI_YOSHIDA:
        x, v, factor = _chain(x, v, kinetic * scale**2, bodies.dof, inertia, kT, weight * dt)
        scale = scale * factor
    velocities = motion.velocities * scale[system.graph][:, None]
    return replace(motion, velocities=velocities, bath={"positions": x, "velocities": v})


def _chain(x, v, kinetic, dof, inertia, kT, dt):
    """One symmetric update of chains [n_graphs, length]; the factor on the velocities of atoms."""
    length = x.shape[1]

    def push(v, m, kinetic):
        if m == 0:
            force = (2 * kinetic - dof * kT) / inertia[:, 0]
        else:
            force = (inertia[:, m - 1] * v[:, m - 1] ** 2 - kT) / inertia[:, m]
        damp = jnp.exp(-dt / 4 * v[:, m + 1]) if m + 1 < length else 1.0
        return v.at[:, m].set((v[:, m] * damp + dt / 2 * force) * damp)

    for m in reversed(range(length)):
        v = push(v, m, kinetic)
    factor = jnp.exp(-dt * v[:, 0])
    x = x + dt * v
    for m in range(length):
        v = push(v, m, kinetic * factor**2)
    return x, v, factor


def check_bath(where: str, temperature, *, least: float, **values) -> None:
    """Raises `UsageError` for a temperature below `least` K, or a value below its own least.

    temperature: K; of a function of time nothing is known. values: name=(value, least).
    """
    told = {} if callable(temperature) else {"temperature": (temperature, least)}
    for name, (value, smallest) in (told | values).items():
        value = np.asarray(value, float)
        if not (np.isfinite(value) & (value >= smallest)).all():
            kind = "not negative" if smallest == 0 else "above zero"
            raise UsageError(f"{name} = {value.tolist()}; it must be {kind}", where=where)


def checked(dt: float) -> float:
    """The time step, or `UsageError` for one that is in other units than fs."""
    if not 0.01 <= dt <= 20:
        raise UsageError(
            f"the time step is {dt}; expected between 0.01 and 20 fs",
            where="dt",
            fix="time steps are in fs: 0.5 for hydrogen, 1 to 2 for heavier atoms",
        )
    return float(dt)
