"""Interactions of pairs beside a network: screened repulsion, damped Coulomb, dispersion.

Curves in r (Å) that give eV for one pair, for potentials whose parameters a network predicts or
that are trained; and `near`, the short edges of a system whose list reaches farther.
"""

from dataclasses import replace
from math import pi, sqrt

import jax
import jax.numpy as jnp

from jaxmlip import units
from jaxmlip.system import System, edge_vectors

FINE_STRUCTURE = 0.0072973525662  # CODATA 2014, from the constants of `units`

# Static polarisability (bohr³) and C6 (hartree bohr⁶) of free atoms: Tkatchenko and Scheffler
# 2009, 10.1103/PhysRevLett.102.073005, after Chu and Dalgarno 2004, 10.1063/1.1779576.
FREE_ATOMS = {
    1: (4.5, 6.5),
    2: (1.38, 1.46),
    3: (164.2, 1387.0),
    4: (38.0, 214.0),
    5: (21.0, 99.5),
    6: (12.0, 46.6),
    7: (7.4, 24.2),
    8: (5.4, 15.6),
    9: (3.8, 9.52),
    10: (2.67, 6.38),
    11: (162.7, 1556.0),
    12: (71.0, 627.0),
    13: (60.0, 528.0),
    14: (37.0, 305.0),
    15: (25.0, 185.0),
    16: (19.6, 134.0),
    17: (15.0, 94.6),
    18: (11.1, 64.3),
    19: (292.9, 3897.0),
    20: (160.0, 2221.0),
    30: (40.0, 284.0),
    31: (60.0, 498.0),
    32: (41.0, 354.0),
    33: (29.0, 246.0),
    34: (25.0, 210.0),
    35: (20.0, 162.0),
    36: (16.8, 129.6),
    53: (35.0, 385.0),
    54: (27.3, 285.9),
}


def near(system: System, cutoff: float, capacity: int):
    """(system with the edges shorter than `cutoff` alone, True where it has more of them).

    At most `capacity` edges an atom are kept, in the order of the list; which ones are, no
    derivative sees. Fewer edges than that are returned as they are, longer ones included.
    Per receiver the second value is [n_atoms], flat (capacity x n_atoms edges in all) it is [1].
    """
    edges = system.edges
    flat = edges.receivers is not None
    size = capacity * system.n_atoms if flat else capacity
    if edges.senders.shape[-1] <= size:
        return system, jnp.zeros(1, bool)
    vectors = jax.lax.stop_gradient(edge_vectors(system))
    keep = edges.mask & ((vectors**2).sum(-1) < cutoff**2)
    place, found = _places(keep, size)
    rows = () if flat else (jnp.arange(keep.shape[0])[:, None],)
    take = lambda x: jnp.asarray(x)[(*rows, place)]
    chosen = replace(
        edges,
        senders=take(edges.senders),
        receivers=take(edges.receivers) if flat else None,
        shifts=take(edges.shifts),
        mask=jnp.arange(size) < jnp.minimum(found, size)[..., None],
        images=None,
    )
    return replace(system, edges=chosen), jnp.atleast_1d(found > size)


def _places(keep, size):
    """Columns [..., size] of the first True in the last axis (then the last column), and counts."""
    slot = jnp.where(keep, jnp.cumsum(keep, -1) - 1, size)
    last = keep.shape[-1] - 1
    columns = jnp.broadcast_to(jnp.arange(last + 1), keep.shape)
    rows = tuple(jnp.indices(keep.shape)[:-1])
    place = jnp.full((*keep.shape[:-1], size), last)
    return place.at[(*rows, slot)].set(columns, mode="drop"), keep.sum(-1)


def switch(r, start: float, stop: float):
    """1 up to `start`, 0 from `stop` on, all derivatives continuous, [...] -> [...]."""
    x = jnp.clip((stop - r) / (stop - start), 0.0, 1.0)
    return _flat_at_zero(x) / (_flat_at_zero(x) + _flat_at_zero(1 - x))


def _flat_at_zero(x):
    inside = x > 0.01  # below it exp(-1/x) < 1e-43, and its derivatives are 0 times infinity
    return jnp.where(inside, jnp.exp(-1 / jnp.where(inside, x, 1.0)), 0.0)


def screened_repulsion(r, numbers, *, weights, decays, exponent, inverse_length):
    """Repulsion of two nuclei screened by their electrons, eV; r [...], numbers: a pair of [...].

    The form of Ziegler, Biersack and Littmark (1985): weights [4] (used as fractions of their sum)
    and decays [4] of the exponentials in r inverse_length (Z1^exponent + Z2^exponent).
    """
    first, second = (jnp.maximum(z, 1).astype(r.dtype) for z in numbers)
    x = r * inverse_length * (first**exponent + second**exponent)
    screening = (weights / weights.sum() * jnp.exp(-decays * x[..., None])).sum(-1)
    return units.coulomb_constant * first * second / r * screening


def damped_coulomb(r, cutoff: float, *, width: float):
    """Energy of two unit charges at distance r, eV: erf(r/width)/r, brought to zero at `cutoff`.

    Between 0.45 cutoff and the cutoff it passes from the shifted curve to the one with shifted
    force, so energy and force are continuous at the cutoff and the curvature is not (Kabylda et al.
    2025, 10.1021/jacs.5c09558).
    """
    at = lambda x: jax.lax.erf(x / width) / x
    end = jnp.asarray(cutoff, jnp.result_type(r, float))
    slope = (2 / sqrt(pi) / width) * jnp.exp(-((end / width) ** 2)) / end - at(end) / end
    late = 1 - switch(r, 0.45 * cutoff, cutoff)
    curve = at(r) - at(end) - late * slope * (r - end)
    return jnp.where(r < cutoff, units.coulomb_constant * curve, 0)


def dispersion(r, polarizabilities, c6, *, scale: float):
    """Damped van der Waals energy of two atoms at distance r, eV, [...] -> [...].

    polarizabilities (bohr³) and c6 (hartree bohr⁶): pairs of [...], those of the atoms in the
    molecule. Terms C6, C8, C10 of coupled quantum Drude oscillators, damped at `scale` x the sum of
    the van der Waals radii: Khabibrakhmanov et al. 2023, 10.1021/acs.jctc.3c00797 (the radii from
    polarisabilities: Fedorov et al. 2018, 10.1103/PhysRevLett.121.183401).
    """
    (a, b), (ca, cb) = polarizabilities, c6
    c6 = 2 * ca * cb * a * b / (a**2 * cb + b**2 * ca)
    mean = (a + b) / 2
    radius = mean ** (1 / 7)
    x = FINE_STRUCTURE ** (-4 / 21) * radius
    sigma = -0.00433008 + x * (0.24428889 + x * (0.04125273 - x * 0.00078893))
    inverse = 2 * sigma**2  # 1 / gamma, bohr²
    square, damping = (r / units.bohr) ** 2, (2 * 2.54 * scale * radius) ** 2
    term = lambda n: 1 / (square**n + damping**n)
    sum_ = term(3) + inverse * (5 * term(4) + inverse * 245 / 8 * term(5))
    return -units.hartree * c6 * sum_
