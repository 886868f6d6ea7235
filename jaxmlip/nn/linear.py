"""Linear maps that mix channels, not components, and embeddings of species and charge."""

from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.contractions import spread_rows


class Linear(nn.Module):
    """{key: [n, 2l+1, c]} -> {key: [n, 2l+1, channels]} for the keys in `keep` (default all).

    `channels` may differ by key: ((key, channels), ...); keys that are not listed are dropped.
    Weights are unit normal and divided by sqrt(c) in use, as in e3nn. `bias` gives the even
    scalars one (no other feature may have it).
    """

    channels: int | tuple
    keep: tuple | None = None
    bias: bool = False

    @nn.compact
    def function(self, sizes: dict, *, scaled: bool = True):
        """The map itself, features -> features, for features with `sizes` {key: c}.

        Not `scaled`: without the division by sqrt(c), for who does it in passing elsewhere.
        """
        normal, zeros = nn.initializers.normal(1.0), nn.initializers.zeros
        weights = {
            key: self.param(name_of(key), normal, (sizes[key], n))
            for key, n in channels_by_key(self.channels, self.keep, sizes)
        }
        bias = None
        if self.bias and (0, 1) in weights:
            bias = self.param("bias", zeros, weights[0, 1].shape[-1:])
        return lambda features: mix_channels(features, weights, bias, scaled=scaled)

    def __call__(self, features):
        return self.function({key: x.shape[-1] for key, x in features.items()})(features)


def mix_channels(features: dict, weights: dict, bias=None, *, scaled: bool = True) -> dict:
    """{key: features[key] @ weights[key] / sqrt(c)} for keys with weights, and a bias."""
    out = {key: matrix_product(features[key], w, scaled=scaled) for key, w in weights.items()}
    if bias is not None:
        out[0, 1] = out[0, 1] + bias.astype(out[0, 1].dtype)
    return out


def matrix_product(x, weights, *, scaled: bool = True):
    """x [..., c] @ weights [c, d] / sqrt(c), in the dtype of x; not `scaled`: without the root."""
    weights = weights.astype(x.dtype)
    return x @ (weights * (1 / sqrt(len(weights))) if scaled else weights)


class SpeciesLinear(nn.Module):
    """A `Linear` with weights of its own for each species (product with the one-hot species).

    Divided by sqrt(n_species c), e3nn's normalisation of the full product.
    """

    channels: int | tuple
    n_species: int
    keep: tuple | None = None

    @nn.compact
    def function(self, sizes: dict):
        """The map itself, (features, species) -> features, for features with `sizes` {key: c}."""
        weights = {
            key: self._weight(key, sizes[key], n)
            for key, n in channels_by_key(self.channels, self.keep, sizes)
        }
        return lambda features, species: {
            key: species_product(features[key], w, species) for key, w in weights.items()
        }

    def __call__(self, features, species):
        return self.function({key: x.shape[-1] for key, x in features.items()})(features, species)

    def _weight(self, key, n_in, n_out):
        shape = (self.n_species, n_in, n_out)
        return self.param(name_of(key), nn.initializers.normal(1.0), shape)


def species_product(x, weights, species):
    """x [n, m, c] times the matrix of each atom's species, weights [n_species, c, d], scaled."""
    n_species, c, _ = weights.shape
    weights, scale = weights.astype(x.dtype), 1 / sqrt(n_species * c)
    if n_species == 1:
        return x @ (weights[0] * scale)
    if x.shape[1] * n_species > 8:  # copies of the matrices cost less than the products with all
        return spread_rows(x, of_species(weights, species, scale))
    onehot = scale * jax.nn.one_hot(species, n_species, dtype=x.dtype)
    # zero but for the own species, so that one product serves, with all matrices as they lie
    placed = onehot[:, None, :, None] * x[:, :, None, :]
    return placed.reshape(*x.shape[:2], n_species * c) @ weights.reshape(n_species * c, -1)


class SpeciesEmbedding(nn.Module):
    """Index of the species [n] -> scalars {(0, 1): [n, 1, channels]}; None: of every species."""

    channels: int
    n_species: int

    @nn.compact
    def __call__(self, species, dtype):
        shape = (self.n_species, self.channels)
        w = self.param("weight", nn.initializers.normal(1.0), shape).astype(dtype)
        w = w / sqrt(self.n_species)
        return {(0, 1): (w if species is None else of_species(w, species))[:, None, :]}


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


def of_species(weights, species, scale: float = 1.0):
    """Rows of weights [n_species, ...] for each atom (or edge), times a number -> [n, ...].

    A product with the one-hot matrix while species are few: the gradient of a gather would be a
    contended scatter of all atoms into a few rows.
    """
    n = weights.shape[0]
    if n > 16:
        return weights[species] * scale
    onehot = scale * jax.nn.one_hot(species, n, dtype=weights.dtype)
    return jnp.tensordot(onehot, weights, 1, precision=jax.lax.Precision.HIGHEST)


def channels_by_key(channels, keep, features) -> list:
    """[(key, output channels)] of a linear map, in the order of the features."""
    if isinstance(channels, int):
        return [(key, channels) for key in features if keep is None or key in keep]
    wanted = dict(channels)
    return [(key, wanted[key]) for key in features if key in wanted]


def name_of(key) -> str:
    """'1o' for (1, -1): degree and parity as irreps are written."""
    return f"{key[0]}{'e' if key[1] > 0 else 'o'}"


def species_index(numbers, elements):
    """Atomic numbers [n] -> (index in `elements` [n], is known [n]); unknown and padding give 0."""
    table = np.full(120, -1, np.int32)
    table[np.asarray(elements)] = np.arange(len(elements))
    index = jnp.asarray(table)[numbers]
    return jnp.maximum(index, 0), index >= 0
