"""MACE that feels charges beyond its cutoff: their potential becomes part of its features.

Between two layers every atom reads a few charges off its features; the potential and the field
that all of them make at the atoms, less what lies within the cutoff (messages have brought that),
are mixed into the scalars and vectors that the next layer sends on. The energy stays one smooth
function of positions, strain and field. In the spirit of long-distance equivariants (Grisafi and
Ceriotti 2019, 10.1063/1.5128375; Loche et al. 2025, 10.1063/5.0251713), with learned sources.

Explicit charges and their energy are another matter, and compose: see `add_electrostatics`.
"""

from math import sqrt
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlip.electrostatics import coulomb, ewald
from jaxmlip.electrostatics.features import exterior
from jaxmlip.errors import ModelError
from jaxmlip.models.mace import MACE
from jaxmlip.models.plans import largest


class LongRangeMACE(MACE):
    """A `Potential`, planned by `jaxmlip.bind(model, system)`; fields as of `MACE`, and three."""

    sources: int = 4  # charges that every atom has as a source, each layer
    tolerance: float = 1e-4  # relative error of the forces between sources
    solver: Any = None  # as `plan` makes it; not part of a model card

    def plan(self, system) -> "LongRangeMACE":
        """The model for the cells of a system (host): open structures alone need no edges."""
        batches = system if isinstance(system, list | tuple) else [system]
        if not any(b.pbc.any() for b in batches):
            return self.clone(solver=coulomb(largest(system), exclude=self.cutoff))
        options = {"tolerance": self.tolerance, "exclude": self.cutoff}
        return self.clone(solver=ewald(system, self.cutoff, **options))

    def _after_layer(self, i, system, features):
        if self.n_layers == 1:
            raise ModelError(
                "what is far is felt between layers, and there is one",
                where="LongRangeMACE",
                fix="n_layers=2",
            )
        if i == self.n_layers - 1:
            return features
        scalars = features[0, 1][:, 0]
        sources = scalars @ self._weight(f"sources_{i}", scalars, self.sources)
        potentials, fields = self._exterior(system, sources)
        felt = {(0, 1): potentials[:, None, :], (1, -1): fields}
        return {
            key: x + self._mixed(f"felt_{i}_{key[0]}", scalars, felt[key], x.shape[-1])
            if key in felt
            else x
            for key, x in features.items()
        }

    def _mixed(self, name, scalars, felt, channels):
        """felt [n, 2l+1, s], alone and times scalars of the atom itself -> [n, 2l+1, channels]."""
        plain = felt @ self._weight(f"{name}_plain", felt, channels)
        scaled = felt @ self._weight(f"{name}_scaled", felt, channels)
        own = scalars @ self._weight(f"{name}_own", scalars, channels)
        return plain + scaled * own[:, None, :]

    def _exterior(self, system, sources):
        if self.solver is not None:
            real = jnp.where(system.atom_mask[:, None], sources, 0)
            potentials, fields = exterior(self.solver)(jax.tree.map(jnp.asarray, system), real)
            return self.cutoff * potentials, self.cutoff**2 * fields  # of order 1 at the cutoff
        if self.is_initializing():
            return jnp.zeros_like(sources), jnp.zeros((len(sources), 3, self.sources))
        raise ModelError(
            "the long-range features have no plan yet: it depends on the cells",
            where="LongRangeMACE",
            code="JM530",
            fix="potential = jaxmlip.bind(potential, system)",
        )

    def _weight(self, name, like, n_out):
        w = self.param(name, nn.initializers.normal(1.0), (like.shape[-1], n_out))
        return w.astype(like.dtype) / sqrt(like.shape[-1])
