"""Linear maps that mix channels and leave components alone, and embeddings of species and charge."""

from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Linear(nn.Module):
    """{key: [n, 2l+1, c]} -> {key: [n, 2l+1, channels]} for the keys in `keep` (default all).

    Weights are unit normal and divided by sqrt(c) in use, as in e3nn.
    """

    channels: int
    keep: tuple | None = None

    @nn.compact
    def __call__(self, features):
        return {key: x @ self._weight(key, x) for key, x in features.items()
                if self.keep is None or key in self.keep}

    def _weight(self, key, x):
        shape = (x.shape[-1], self.channels)
        w = self.param(name_of(key), nn.initializers.normal(1.0), shape)
        return w.astype(x.dtype) / sqrt(x.shape[-1])


class SpeciesLinear(nn.Module):
    """A `Linear` with weights of its own for each species (product with the one-hot species).

    Divided by sqrt(n_species c), e3nn's normalisation of the full product.
    """

    channels: int
    n_species: int
    keep: tuple | None = None

    @nn.compact
    def __call__(self, features, species):
        return {key: self._apply(key, x, species) for key, x in features.items()
                if self.keep is None or key in self.keep}

    def _apply(self, key, x, species):
        shape = (self.n_species, x.shape[-1], self.channels)
        w = self.param(name_of(key), nn.initializers.normal(1.0), shape)
        w = w.astype(x.dtype) / sqrt(self.n_species * x.shape[-1])
        if self.n_species > 8:  # gathered weights are [n, c, c]; below this all products are cheaper
            return jnp.einsum("nmc,ncd->nmd", x, w[species])
        onehot = jax.nn.one_hot(species, self.n_species, dtype=x.dtype)
        every = jnp.einsum("nmc,zcd->nmzd", x, w)
        return jnp.einsum("nmzd,nz->nmd", every, onehot)


class SpeciesEmbedding(nn.Module):
    """Index of the species [n] -> scalars {(0, 1): [n, 1, channels]}."""

    channels: int
    n_species: int

    @nn.compact
    def __call__(self, species):
        shape = (self.n_species, self.channels)
        w = self.param("weight", nn.initializers.normal(1.0), shape)
        return {(0, 1): w[species][:, None, :] / sqrt(self.n_species)}


class ChargeSpinEmbedding(nn.Module):
    """Total charge (e) and multiplicity of each structure -> scalars of its atoms [n, channels].

    Exactly zero for neutral singlets, so that those are not affected.
    """

    channels: int

    @nn.compact
    def __call__(self, system):
        state = jnp.stack([system.charge, system.spin - 1.0], -1).astype(system.positions.dtype)
        x = jax.nn.silu(nn.Dense(self.channels, use_bias=False, name="hidden")(state))
        return nn.Dense(self.channels, use_bias=False, name="out")(x)[system.graph]


def name_of(key) -> str:
    """'1o' for (1, -1): degree and parity as irreps are written."""
    return f"{key[0]}{'e' if key[1] > 0 else 'o'}"


def species_index(numbers, elements):
    """Atomic numbers [n] -> (index into `elements` [n], is known [n]); unknown and padding give 0."""
    table = np.full(120, -1, np.int32)
    table[np.asarray(elements)] = np.arange(len(elements))
    index = jnp.asarray(table)[numbers]
    return jnp.maximum(index, 0), index >= 0
