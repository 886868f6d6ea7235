"""Parts of the published MACE variants around its convolution: all off by default.

Density normalisation, gated interactions whose radial weights know both species, embedding of the
state of a structure, and the pair repulsion of nuclei. After mace-torch 0.3 (MACE-MP-0b, MACE-MPA,
MACE-OMAT and MACE-MH: Batatia et al. 2023-2025, arXiv:2401.00096, arXiv:2510.25380).
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.nn.blocks import block_rows, in_blocks
from jaxmlip.nn.linear import Linear, of_species
from jaxmlip.nn.radial import envelope
from jaxmlip.nn.readout import activate
from jaxmlip.system import System, at_receivers, edge_vectors, sum_edges, to_edges

# V(r) = 14.3996 Zi Zj / r phi(r/a), a = length / (Zi^power + Zj^power): decays of phi
ZBL_DECAYS = (3.2, 0.9423, 0.4028, 0.2016)
COULOMB, BOHR = 14.3996, 0.529  # eV Å, Å: digits of mace-torch


def pair_repulsion(system: System, species, elements, radii, settings):
    """Screened repulsion of nuclei closer than the sum of their covalent radii, [n_atoms], eV.

    Ziegler, Biersack and Littmark (1985) times an envelope; radii Å by element; settings: p of
    the envelope, length and power of the screening, weights of its four exponentials.
    """
    p, length, power, *weights = settings
    r = jnp.linalg.norm(edge_vectors(system), axis=-1)
    z = np.asarray(elements, float)
    charges = of_pairs(system, species, np.outer(z, z), r.dtype)
    inverse = np.add.outer(z**power, z**power) / (length * BOHR)
    x = r * of_pairs(system, species, inverse, r.dtype)
    screening = sum(w * jnp.exp(-k * x) for w, k in zip(weights, ZBL_DECAYS, strict=True))
    reach = of_pairs(system, species, np.add.outer(radii, radii), r.dtype)
    energy = 0.5 * COULOMB * charges / r * screening * envelope(r, reach, p=int(p))
    return sum_edges(system, energy)


def of_pairs(system: System, species, table, dtype):
    """Entries of a table [n_species, n_species] for each edge."""
    receiver, sender = at_receivers(system, species), to_edges(system, species)
    return jnp.asarray(table, dtype)[receiver, sender]


def edge_species(system: System, species):
    """Indices of the species of senders and receivers: they label edges, tables stay small."""
    return to_edges(system, species), at_receivers(system, species)


class Density(nn.Module):
    """The map basis [edge, n] -> [edge, 1] whose sum over tanh(y²) is a number of neighbours."""

    @nn.compact
    def function(self, n_radial: int):
        """The map itself, linear."""
        w = self.param("layer_0", nn.initializers.normal(1.0), (n_radial, 1))
        return lambda basis: basis @ w.astype(basis.dtype) / np.sqrt(n_radial)


def sum_densities(system: System, terms, inputs, *, width: int):
    """Weighted numbers of neighbours: terms(inputs) [edge, 1] summed over edges, [n_atoms, 1].

    inputs: pytree of [edge, ...]; width: numbers that each edge needs on the way. In blocks of
    atoms, as `messages`, so that no such numbers are stored for all edges.
    """
    edges = replace(system.edges, halo=None, images=None)
    n, k = edges.senders.shape[0], edges.senders.shape[-1]
    rows = n
    if edges.receivers is None:
        rows = block_rows(n, width * k * system.positions.dtype.itemsize)
    some = lambda rows: sum_edges(replace(system, edges=rows[0]), terms(rows[1]))
    return in_blocks(some, (edges, inputs), rows=rows)


class SpeciesMLP(nn.Module):
    """Radial basis [edge, n] and the species of both atoms -> [edge, n_out].

    Hidden layers are normalised, then silu; all layers have a bias.
    """

    widths: tuple[int, ...]
    n_out: int
    n_species: int

    @nn.compact
    def function(self, n_radial: int):
        """The map itself, (basis, species of senders, of receivers) -> [edge, n_out]."""
        normal, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        table = (self.n_species, self.widths[0])
        tables = self.param("sender", zeros, table), self.param("receiver", zeros, table)
        sizes = (n_radial, *self.widths, self.n_out)
        first, *layers = [
            self.param(f"layer_{i}", normal, (m, n))
            for i, (m, n) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        ]
        biases = [self.param(f"bias_{i}", zeros, (n,)) for i, n in enumerate(sizes[1:])]
        scales = [
            self.param(f"scale_{i}", nn.initializers.ones, (n,)) for i, n in enumerate(self.widths)
        ]
        offsets = [self.param(f"offset_{i}", zeros, (n,)) for i, n in enumerate(self.widths)]

        def weights(basis, *species):
            x = basis @ first.astype(basis.dtype) + biases[0].astype(basis.dtype)
            for table, of_edge in zip(tables, species, strict=True):
                x = x + of_species(table.astype(basis.dtype), of_edge)
            for i, w in enumerate(layers):
                x = jax.nn.silu(layer_norm(x, scales[i], offsets[i]))
                x = x @ w.astype(x.dtype) + biases[i + 1].astype(x.dtype)
            return x

        return weights


def layer_norm(x, scale, offset):
    """x - mean, over its standard deviation in the last axis, times scale plus offset."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * scale.astype(x.dtype) + offset.astype(x.dtype)


class Gate(nn.Module):
    """Messages over their density, plus what the atom had, gated: {key: [n_atoms, 2l+1, c]}.

    The scalars carry c gates for each further degree behind them: silu for themselves, sigmoids
    for the others; then a linear map.
    """

    channels: int
    l_max: int

    @nn.compact
    def function(self, features):
        """The map itself, (messages, density [n_atoms, 1], features) -> messages."""
        c, keys = self.channels, [(l, (-1) ** l) for l in range(self.l_max + 1)]
        scale = self.param("alpha", nn.initializers.constant(20.0), (1,))
        slope = self.param("beta", nn.initializers.zeros, (1,))
        wanted = tuple((key, c if key[0] else c * len(keys)) for key in keys)
        sizes = {key: x.shape[-1] for key, x in features.items()}
        own = Linear(wanted, name="own").function(sizes)
        linear = Linear(c, name="linear").function(dict.fromkeys(keys, c))

        def gated(messages, density, features):
            cast = lambda x: x.astype(density.dtype)
            norm, old = (density * cast(slope) + cast(scale))[..., None], own(features)
            x = {key: m / norm for key, m in messages.items()}
            x = {key: m + old[key] if key in old else m for key, m in x.items()}
            scalars, *gates = jnp.split(x[0, 1], len(keys), axis=-1)
            out = {(0, 1): activate("silu", scalars)}
            for key, g in zip(keys[1:], gates, strict=True):
                out[key] = x[key] * activate("sigmoid", g)
            return linear(out)

        return gated


class StateEmbedding(nn.Module):
    """Total charge (e) and multiplicity of each structure -> scalars of its atoms [n, channels].

    quantities: (name in `System`, width, classes, offset, has bias) for each; with classes the
    number (plus offset) is an index into a table, without (0) the input of a small network. A
    number that is not whole or outside the table gives NaN.
    """

    quantities: tuple
    channels: int

    @nn.compact
    def __call__(self, system: System):
        x = jnp.concatenate([self._one(system, *q) for q in self.quantities], -1)
        x = nn.Dense(self.channels, use_bias=False, name="project")(x)
        return jax.nn.silu(x).astype(system.positions.dtype)[system.graph]

    def _one(self, system, name, width, classes, offset, bias):
        value = jnp.asarray(getattr(system, name)).astype(system.positions.dtype)
        if classes:
            table = self.param(name, nn.initializers.normal(1.0), (classes, width))
            index = jnp.round(value + offset).astype(int)
            inside = (index >= 0) & (index < classes) & (index == value + offset)
            return jnp.where(inside[:, None], table[jnp.clip(index, 0, classes - 1)], jnp.nan)
        x = nn.Dense(width, use_bias=bias, name=f"{name}_hidden")(value[:, None])
        return nn.Dense(width, use_bias=bias, name=f"{name}_out")(jax.nn.silu(x))
