"""Pair potentials: Lennard-Jones, Morse and the universal screened Coulomb repulsion (ZBL).

Baselines, toys with known answers, and the short-range wall to `add` to a trained model. They
have no trainable parameters: `init` gives {}, parameters of the physics are fields. Each is the
exact curve up to `onset` (a fraction of the cutoff) and then falls smoothly to zero; `onset = 1`
gives the truncated and shifted curve of the reference tables, whose forces jump at the cutoff.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.nn.linear import species_index
from jaxmlip.nn.pair_sums import pair_energies
from jaxmlip.nn.radial import envelope
from jaxmlip.nn.readout import energy_prediction
from jaxmlip.system import System, at_receivers, edge_vectors, sum_edges, to_edges

# V(r) = Zi Zj e²/r phi(r/a), a = 0.46850 Å / (Zi^0.23 + Zj^0.23): Ziegler, Biersack and Littmark,
# The Stopping and Range of Ions in Matter (Pergamon, 1985); digits as in LAMMPS' pair_style zbl.
ZBL_WEIGHTS = (0.18175, 0.50986, 0.28022, 0.02817)
ZBL_DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
ZBL_LENGTH, ZBL_EXPONENT = 0.46850, 0.23


class LennardJones(nn.Module):
    """4 epsilon ((sigma/r)^12 - (sigma/r)^6); a `Potential` that predicts energy and energies.

    Parameters are one number for all pairs or a symmetric table [n_elements, n_elements].
    """

    elements: tuple[int, ...] = (18,)
    epsilon: float | tuple = 0.0104  # eV, depth of the well (argon)
    sigma: float | tuple = 3.40  # Å, where the energy is zero
    cutoff: float = 8.5  # Å
    onset: float = 0.8  # fraction of the cutoff where the switch begins; 1: truncated and shifted
    smoothness: int = 2  # derivatives that are continuous at onset and cutoff

    @nn.compact
    def __call__(self, system: System):
        epsilon, sigma = _by_pair(self, system, epsilon=self.epsilon, sigma=self.sigma)

        def curve(r, epsilon, sigma):
            attraction = (sigma / r) ** 6
            return 4 * epsilon * (attraction**2 - attraction)

        return _prediction(self, system, curve, (epsilon, sigma))


class Morse(nn.Module):
    """depth ((1 - exp(-a (r - r0)))² - 1); a `Potential`; parameters as in `LennardJones`."""

    elements: tuple[int, ...] = (29,)
    depth: float | tuple = 0.3429  # eV (copper: Girifalco and Weizer 1959, 10.1103/PhysRev.114.687)
    a: float | tuple = 1.3588  # 1/Å
    r0: float | tuple = 2.866  # Å, the minimum
    cutoff: float = 8.0  # Å
    onset: float = 0.8
    smoothness: int = 2

    @nn.compact
    def __call__(self, system: System):
        depth, a, r0 = _by_pair(self, system, depth=self.depth, a=self.a, r0=self.r0)

        def curve(r, depth, a, r0):
            decay = jnp.exp(-a * (r - r0))
            return depth * (decay**2 - 2 * decay)

        return _prediction(self, system, curve, (depth, a, r0))


class ZBL(nn.Module):
    """Screened repulsion of nuclei, for close collisions; a `Potential`. Nothing to fit."""

    elements: tuple[int, ...] = tuple(range(1, 119))
    cutoff: float = 2.0  # Å
    onset: float = 0.5
    smoothness: int = 2

    @nn.compact
    def __call__(self, system: System):
        z = np.asarray(self.elements, float)
        power = z**ZBL_EXPONENT
        tables = _by_pair(
            self, system, charges=np.outer(z, z), inverse=np.add.outer(power, power) / ZBL_LENGTH
        )

        def curve(r, charges, inverse):
            x = r * inverse
            terms = zip(ZBL_WEIGHTS, ZBL_DECAYS, strict=True)
            screening = sum(w * jnp.exp(-k * x) for w, k in terms)
            return units.coulomb_constant * charges / r * screening

        return _prediction(self, system, curve, tables)


def _by_pair(model, system, **tables):
    """The parameters of every edge, from one number or a table over `model.elements`."""
    species, _ = species_index(system.numbers, model.elements)
    pair = at_receivers(system, species), to_edges(system, species)
    n = len(model.elements)
    out = []
    for name, table in tables.items():
        table = np.asarray(table, float)
        if table.shape not in ((), (n, n)) or not np.array_equal(table, table.T):
            raise UsageError(
                f"{name} has shape {table.shape}; expected one number or a symmetric "
                f"table of {n} x {n}, in the order of elements",
                where=type(model).__name__,
            )
        if (table == table.flat[0]).all():  # no look-up for every edge
            out.append(float(table.flat[0]))
        else:
            out.append(jnp.asarray(table, system.positions.dtype)[pair])
    return out


def _prediction(model, system, curve, tables):
    """Half of each directed edge's energy to its receiver; NaN for unknown elements.

    The energy of a structure has forces in one pass and without a scatter; those of atoms, if
    nobody asks for them, cost nothing.
    """
    _, known = species_index(system.numbers, model.elements)

    def function(squares, tables):
        return 0.5 * _truncated(lambda r: curve(r, *tables), jnp.sqrt(squares), model)

    vectors = edge_vectors(system)
    squares = sum(vectors[..., axis] ** 2 for axis in range(3))
    single = sum_edges(system, function(squares, tables))
    out = energy_prediction(system, single, known)
    edges = system.edges
    if edges.receivers is not None or edges.halo is not None or system.wave is not None:
        return out
    whole = pair_energies(system, function, tables)
    return out | {"energy": energy_prediction(system, whole, known)["energy"]}


def _truncated(curve, r, model):
    start = model.onset * model.cutoff
    if start >= model.cutoff:
        shift = curve(jnp.full_like(r, model.cutoff))
        return jnp.where(r < model.cutoff, curve(r) - shift, 0)
    # with p = smoothness + 1 the envelope is as flat at its beginning as at its end
    x = jnp.maximum(r - start, 0)
    p = model.smoothness + 1
    return curve(r) * envelope(x, model.cutoff - start, p=p, smoothness=model.smoothness)
