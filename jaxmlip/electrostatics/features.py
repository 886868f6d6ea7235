"""What a potential far away does to the features of an atom: potential and field at its place.

Charges made of features (several at once, channels) act as sources of a long-range potential;
with a solver planned with `exclude` the sources within that radius are left out, smoothly, for
the messages have brought what they say. The potential is a scalar, the field a vector with the
parity of a position, so both can be fed back into equivariant features. All is linear in the
sources and made of derivatives of the solver's energy: nothing is written a second time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmlip import units
from jaxmlip.errors import UsageError
from jaxmlip.system import System


def exterior(solver: Callable):
    """(system, sources [n_atoms, c] e) -> potentials [n_atoms, c], fields [n_atoms, 3, c].

    In units of a charge: 1 is the potential of e at 1 Å (14.4 V), and its field. The channels
    share the waves of the atoms, and their sums over waves are one matrix product. `UsageError`
    while displacements carry a wavevector: potentials that feed back do not.
    """

    def of_one(system, charges):
        energy = lambda q, dipoles: solver(system, q, dipoles).sum()
        at_atoms = jax.grad(energy, argnums=(0, 1))
        potential, slope = at_atoms(charges, jnp.zeros_like(system.positions))
        return potential / units.coulomb_constant, -slope / units.coulomb_constant

    def of_sources(system: System, sources):
        if system.wave is not None:
            raise UsageError(
                "potentials of far sources do not follow a displacement wave",
                where="exterior",
                fix="for D(q) derivatives.dynamical_matrix_supercell; for Born charges and "
                "currents of crystals dipoles of atoms alone (`charges: false`)",
            )
        return jax.vmap(lambda q: of_one(system, q), in_axes=1, out_axes=-1)(sources)

    return of_sources
