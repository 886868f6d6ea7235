"""D3 dispersion with the damping of Becke and Johnson: what density functionals leave out.

    E = -sum over pairs of  s6 C6 / (r^6 + R^6) + s8 C8 / (r^8 + R^8)
    C8 = 3 C6 Q_i Q_j,    R = a1 sqrt(C8/C6) + a2

C6 depends on how many neighbours both atoms have: it is interpolated between reference molecules
(Grimme, Antony, Ehrlich, Krieg 2010, 10.1063/1.3382344; damping: Grimme, Ehrlich, Goerigk 2011,
10.1002/jcc.21759). The tables are fields, read by `jaxmlip.interfaces.d3.d3_tables` from a library
that keeps them. All is a sum over edges, differentiable as often as the switch allows; the energy
of three bodies (Axilrod and Teller, s9) is not here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.nn.linear import species_index
from jaxmlip.nn.radial import envelope
from jaxmlip.nn.readout import energy_prediction
from jaxmlip.system import System, at_receivers, edge_vectors, sum_edges, to_edges

STEEPNESS = 16.0  # of the count of neighbours
SHARPNESS = 4.0  # of the choice between references


class D3(nn.Module):
    """A `Potential` without trainable parameters, to `add` to a model; n elements, k references.

    Pairs are the exact sum up to `onset` (a fraction of their cutoff) and fall smoothly to zero;
    onset = 1 cuts them, as the reference programs do at 31.75 and 21.17 Å. What the default cutoff
    leaves out of dense crystals: diamond has -0.18961 eV an atom, with 30 Å -0.19108 (0.8 % more).
    """

    elements: tuple[int, ...]
    references: tuple  # C6 between references [n, n, k, k], eV Å⁶; 0 where an element has fewer
    coordination: tuple  # neighbours of each reference [n, k]
    radii: tuple  # covalent, [n] Å, with the factor 4/3 of the method in them
    moments: tuple  # Q of each element [n], Å
    a1: float
    a2: float  # Å
    s8: float
    s6: float = 1.0
    cutoff: float = 15.0  # Å, of pairs
    count_cutoff: float = 12.0  # Å, of the count of neighbours; at most `cutoff`
    onset: float = 0.8
    smoothness: int = 2  # derivatives that are continuous where pairs begin to fade, and end

    @nn.compact
    def __call__(self, system: System):
        species, known = species_index(system.numbers, self.elements)
        weights = self._weights(system, species)
        squares = self._squares(system)
        c6 = self._coefficients(system, species, weights)
        moments = jnp.asarray(self.moments, squares.dtype)[species]
        ratio = 3 * at_receivers(system, moments) * to_edges(system, moments)  # C8 / C6
        ratio = jnp.where(ratio > 0, ratio, 1)
        damped = self.a1 * jnp.sqrt(ratio) + self.a2
        pairs = self.s6 / (squares**3 + damped**6) + self.s8 * ratio / (squares**4 + damped**8)
        pairs = c6 * pairs * self._fade(jnp.sqrt(squares), self.cutoff)
        return energy_prediction(system, -0.5 * sum_edges(system, pairs), known)

    def _squares(self, system):
        """r² of each edge, Å²; no longer than what counts, or their powers would overflow."""
        vectors = edge_vectors(system)
        squares = sum(vectors[..., axis] ** 2 for axis in range(3))
        return jnp.minimum(squares, (1.01 * self.cutoff) ** 2)

    def _weights(self, system, species):
        """Share of each reference in each atom, [n_atoms, k]."""
        neighbors = self.count(system, species)
        references = jnp.asarray(self.coordination, neighbors.dtype)[species]
        exists = jnp.asarray(_exist(self.references))[species]
        unlike = SHARPNESS * (neighbors[:, None] - references) ** 2
        return jax.nn.softmax(jnp.where(exists, -unlike, -jnp.inf), axis=-1)

    def count(self, system, species):
        """Fractional number of neighbours, [n_atoms]."""
        r = jnp.sqrt(self._squares(system))
        radii = jnp.asarray(self.radii, r.dtype)[species]
        touch = at_receivers(system, radii) + to_edges(system, radii)
        near = jax.nn.sigmoid(STEEPNESS * (touch / r - 1))
        return sum_edges(system, near * self._fade(r, min(self.count_cutoff, self.cutoff)))

    def _coefficients(self, system, species, weights):
        """C6 of each edge, from the references of its own two elements; one loop, none stored."""
        n, k = len(self.elements), weights.shape[1]
        table = jnp.asarray(_checked(self), weights.dtype).reshape(n * n, k, k)
        pair = n * at_receivers(system, species) + to_edges(system, species)
        mine, theirs = at_receivers(system, weights), to_edges(system, weights)
        return (table[pair] * mine[..., :, None] * theirs[..., None, :]).sum((-2, -1))

    def _fade(self, r, cutoff):
        start = self.onset * cutoff
        if start >= cutoff:
            return jnp.where(r < cutoff, 1.0, 0.0)
        p = self.smoothness + 1
        fall = envelope(jnp.maximum(r - start, 0), cutoff - start, p=p, smoothness=self.smoothness)
        return fall


def _exist(references) -> np.ndarray:
    """[n, k] which references an element has."""
    table = np.asarray(references, float)
    return np.einsum("iiaa->ia", table) > 0


def _checked(model) -> np.ndarray:
    """The table of C6; raises `UsageError` for tables of other sizes."""
    n, table = len(model.elements), np.asarray(model.references, float)
    k = table.shape[-1]
    shapes = [np.shape(x) for x in (table, model.coordination, model.radii, model.moments)]
    expected = [(n, n, k, k), (n, k), (n,), (n,)]
    if shapes != expected:
        raise UsageError(
            f"references, coordination, radii and moments have shapes {shapes}, expected {expected}"
            f" for {n} elements",
            where="D3",
            fix="jaxmlip.interfaces.d3.d3_tables(elements)",
        )
    return table
