"""NequIP: equivariant message passing with gates (Batzner et al. 2022, arXiv:2101.03164).

The architecture of the nequip code, layer for layer: species embedding, then convolutions (linear,
radial weights x harmonics, sum over neighbours, linear, plus a species-dependent self-connection)
each followed by a gate. The fields after `polarizability` say where Nequix (Koker et al. 2025,
arXiv:2508.16067) and SevenNet (Park et al. 2024, 10.1021/acs.jctc.4c00190) differ; what is left
between them and this file is factors and orders of weights (`interfaces.weights`).
"""

from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.nn.harmonics import edge_harmonics
from jaxmlip.nn.linear import (
    ChargeSpinEmbedding,
    Linear,
    SpeciesEmbedding,
    SpeciesLinear,
    name_of,
    of_species,
    species_index,
)
from jaxmlip.nn.radial import (
    SILU_GAIN,
    TANH_GAIN,
    RadialMLP,
    bessel,
    envelope,
    radial_weights,
    split_last,
    with_slope,
)
from jaxmlip.nn.readout import ScalarReadout, energy_prediction, response_predictions
from jaxmlip.nn.tensor_product import fan_in, messages, natural, order, paths
from jaxmlip.system import System, edge_vectors

TINY = 1e-12  # under the root of a norm: features that are all zero stay finite


class NequIP(nn.Module):
    """A `Potential`: init(key, system), apply(params, system) -> energy, energies, charges ...

    Energies are without free-atom references (see `add_reference_energies`). Elements that are
    not in `elements` give NaN. The last layer keeps only what is read out.
    """

    elements: tuple[int, ...]  # atomic numbers, sorted; their order is the order of the weights
    cutoff: float = 5.0  # Å (r_max)
    channels: int | tuple[int, ...] = 32  # num_features, for all degrees or degree by degree
    l_max: int = 2  # of harmonics, and of features unless `channels` lists fewer degrees
    parity: bool = True  # features of both parities, or (False) only those of the harmonics
    n_layers: int = 4  # num_layers
    n_radial: int = 8  # num_basis
    trainable_basis: bool = True  # BesselBasis_trainable: frequencies are parameters
    envelope_p: int = 6  # PolynomialCutoff_p
    smoothness: int = 2  # derivatives that vanish at the cutoff
    radial_widths: tuple[int, ...] = (64, 64)  # invariant_layers x invariant_neurons
    embedding_channels: int = 0  # chemical_embedding_irreps_out; 0: as the scalar features
    output_channels: int = 0  # conv_to_output_hidden_irreps_out; 0: half of the scalar features
    readout_width: int = 16  # hidden layer of the scalar readouts of charges and polarisabilities
    avg_num_neighbors: float = 1.0
    scale: float | tuple[float, ...] = 1.0  # eV, one or by element (per_species_rescale_scales)
    shift: float | tuple[float, ...] = 0.0  # eV per atom (per_species_rescale_shifts)
    charge_spin: bool = False  # embed total charge and multiplicity
    dipole: bool = False  # predict charges and the dipole
    polarizability: bool = False
    reflections: bool = True  # False: rotations only; harmonics are even, paths ignore parity
    species_skip: bool = True  # self-connections with weights for each species
    layer_norm: bool = False  # before each gate (`EquivariantNorm`)
    bias: bool = False  # of the even scalars of linear maps, self-connections and `energy` excepted
    solid_harmonics: bool = False  # harmonics of vectors that are not normalised, r^l Y_l
    switch_from: float = 0.0  # Å; if > 0 an XPLOR switch from there, instead of the polynomial

    @nn.compact
    def __call__(self, system: System):
        if self.polarizability and self.l_max < 2:
            raise UsageError(f"polarizability needs l_max >= 2, got {self.l_max}", where="NequIP")
        if self.dipole and not self.reflections:
            raise UsageError("a dipole needs reflections", where="NequIP")
        species, known = species_index(system.numbers, self.elements)
        edges = self._edges(system)
        features = self._embedding(system, species)
        for i in range(self.n_layers):
            features = self._layer(i, system, features, species, edges)
            self.sow("intermediates", "scalars", features[0, 1][:, 0])  # for models.properties
        energies = self._energies(features, species)
        return energy_prediction(system, energies, known) | response_predictions(
            system,
            [features],
            self.readout_width,
            known,
            dipole=self.dipole,
            polarizability=self.polarizability,
        )

    def _edges(self, system):
        vectors = edge_vectors(system)
        r = jnp.linalg.norm(vectors, axis=-1)
        frequencies = jnp.arange(1.0, self.n_radial + 1)
        if self.trainable_basis:
            frequencies = self.param("frequencies", lambda _: frequencies)
        directions = vectors if self.solid_harmonics else vectors / r[..., None]
        return edge_harmonics(system, directions, self.l_max), frequencies, r

    def _weights(self, parameters, r):
        """Radial weights [edge, n] of distances; parameters: (frequencies, layers)."""
        frequencies, layers = parameters
        basis = bessel(r, self.cutoff, self.n_radial, frequencies=frequencies)
        return radial_weights(layers, basis * self._envelope(r)[..., None], scaled=False)

    def _envelope(self, r):
        if self.switch_from:
            return switch(r, self.switch_from, self.cutoff)
        return envelope(r, self.cutoff, p=self.envelope_p, smoothness=self.smoothness)

    def _embedding(self, system, species):
        c = self.embedding_channels or self._channels(0)
        embedding = SpeciesEmbedding(c, len(self.elements), name="embedding")
        x = embedding(species, system.positions.dtype)[0, 1]
        if self.charge_spin:
            x = x + ChargeSpinEmbedding(c, name="charge_spin")(system)[:, None, :]
        return {(0, 1): x.astype(system.positions.dtype)}

    def _layer(self, i, system, features, species, edges):
        couplings = self._paths(features, self._targets(i))
        same = tuple((key, x.shape[-1]) for key, x in features.items())
        up = Linear(same, bias=self.bias, name=f"up_{i}")
        up = up.function(dict(same), scaled=self.bias)(features)
        arriving = fan_in(couplings, features)
        out = self._with_gates(arriving)
        mix = Linear(out, bias=self.bias, name=f"message_{i}").function(arriving, scaled=False)
        sizes = [dict(same)[sender] for sender, _, _ in couplings]
        layers = RadialMLP(self.radial_widths, sum(sizes), name=f"radial_{i}")
        layers = layers.layers(self.n_radial)
        harmonics, frequencies, r = edges
        weights = with_slope(lambda *given: split_last(self._weights(*given), sizes))
        radial = lambda r: weights((frequencies, layers), r)
        width = self.avg_num_neighbors * (self.radial_widths or (self.n_radial,))[-1]
        scales = [  # of the sum and all these linear maps at once
            1 / sqrt(width * arriving[target] * (1 if self.bias else dict(same)[sender]))
            for sender, _, target in couplings
        ]
        x = messages(system, harmonics, r, couplings, up, radial=radial, mix=mix, scales=scales)
        skip = self._skip(i, out, features, species)
        x = {key: v + skip[key] if key in skip else v for key, v in x.items()}
        return gate(EquivariantNorm(name=f"norm_{i}")(x) if self.layer_norm else x)

    def _skip(self, i, out, features, species):
        if self.species_skip:
            return SpeciesLinear(out, len(self.elements), name=f"skip_{i}")(features, species)
        return Linear(out, name=f"skip_{i}")(features)

    def _targets(self, i):
        if i == self.n_layers - 1:
            return [(0, 1), *[(1, -1)] * self.dipole, *[(2, 1)] * self.polarizability]
        highest = self.l_max if isinstance(self.channels, int) else len(self.channels) - 1
        keys = natural(min(highest, self.l_max))
        if not self.reflections:
            return [(l, 1) for l, _ in keys]
        return keys + [(l, -p) for l, p in keys] if self.parity else keys

    def _paths(self, senders, targets):
        if self.reflections:
            return paths(senders, self.l_max, targets)
        return [
            (sender, l, target)
            for target in sorted(targets)
            for sender in sorted(senders)
            for l in range(self.l_max + 1)
            if abs(sender[0] - l) <= target[0] <= sender[0] + l
        ]

    def _channels(self, l):
        return self.channels if isinstance(self.channels, int) else self.channels[l]

    def _with_gates(self, keys):
        """((key, channels), ...) before the gate: a further scalar for each channel of l > 0."""
        gates = sum(self._channels(l) for l, _ in keys if l > 0)
        extra = {(0, 1): gates}
        return tuple((key, self._channels(key[0]) + extra.get(key, 0)) for key in keys)

    def _energies(self, features, species):
        width = self.output_channels or max(1, self._channels(0) // 2)
        hidden = Linear(width, ((0, 1),), self.bias, name="hidden")(features)[0, 1][:, 0]
        energies = ScalarReadout(name="energy")(hidden)
        by_element = lambda x: of_species(
            jnp.asarray(np.broadcast_to(x, len(self.elements)), energies.dtype), species
        )
        return by_element(self.scale) * energies + by_element(self.shift)


class EquivariantNorm(nn.Module):
    """Features divided by one length an atom, then times a weight for each channel.

    The square of that length is the mean over keys of |x|^2 / (2l+1)^2, summed over channels (not
    averaged, and the degrees weighted so: that is what Nequix computes).
    """

    @nn.compact
    def __call__(self, features):
        squares = [(x * x).sum((-2, -1)) / x.shape[-2] ** 2 for x in features.values()]
        scale = jax.lax.rsqrt(sum(squares) / len(squares) + TINY)[:, None, None]
        return {key: x * (scale * self._weight(key, x)) for key, x in features.items()}

    def _weight(self, key, x):
        return self.param(name_of(key), nn.initializers.ones, x.shape[-1:]).astype(x.dtype)


def switch(r, start: float, cutoff: float):
    """XPLOR: 1 up to `start`, 0 from `cutoff` on, with continuous slope, [...] -> [...]."""
    t = jnp.clip((r * r - start**2) / (cutoff**2 - start**2), 0.0, 1.0)
    return (1.0 - t) ** 2 * (1.0 + 2.0 * t)


def gate(features: dict) -> dict:
    """Even scalars through silu, odd ones through tanh; l > 0 times silu of scalars of their own.

    The gates are the last even scalars, in the order of the irreps (degree, natural parity first).
    """
    gated = sorted((key for key in features if key[0] > 0), key=order)
    sizes = [features[key].shape[-1] for key in gated]
    scalars = features[0, 1].shape[-1] - sum(sizes)
    even = jax.nn.silu(features[0, 1]) * SILU_GAIN
    out = {(0, 1): even[..., :scalars]}
    if (0, -1) in features:
        out[0, -1] = jnp.tanh(features[0, -1]) * TANH_GAIN
    for key, stop in zip(gated, scalars + np.cumsum(sizes, dtype=int), strict=True):
        out[key] = features[key] * even[..., stop - features[key].shape[-1] : stop]
    return out
