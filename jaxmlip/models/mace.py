"""MACE: equivariant many-body message passing (Batatia et al. 2022, arXiv:2206.07697).

The published architecture, layer for layer: weights of mace-torch 0.3 fit in without approximation
(`interfaces.weights.mace_torch`). The fields after `polarizability` are what its variants and
foundation models add; all are off by default and then cost nothing. Charges, atomic dipoles and
polarisabilities are further readouts of the same features.
"""

from math import sqrt

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.nn.blocks import block_rows, in_blocks
from jaxmlip.nn.charges import PositiveBySpecies, Transfers, read_charges
from jaxmlip.nn.harmonics import edge_harmonics
from jaxmlip.nn.interaction import (
    Density,
    Gate,
    SpeciesMLP,
    StateEmbedding,
    edge_species,
    of_pairs,
    pair_repulsion,
    sum_densities,
)
from jaxmlip.nn.linear import (
    ChargeSpinEmbedding,
    Linear,
    SpeciesEmbedding,
    SpeciesLinear,
    species_index,
)
from jaxmlip.nn.radial import (
    RadialMLP,
    agnesi,
    bessel,
    chebyshev,
    envelope,
    gaussians,
    perceptron,
    radial_weights,
    soft,
    split_last,
    with_slope,
)
from jaxmlip.nn.readout import (
    ScalarReadout,
    energy_prediction,
    read_scalar,
    response_predictions,
)
from jaxmlip.nn.symmetric_contraction import SymmetricContraction
from jaxmlip.nn.tensor_product import (
    fan_in,
    few_species,
    messages,
    natural,
    paths,
    species_messages,
)
from jaxmlip.system import System, edge_vectors

DENSITY_WIDTH = 64  # hidden layer of the density of gated interactions


class MACE(nn.Module):
    """A `Potential`: init(key, system), apply(params, system) -> energy, energies, charges ...

    Energies are without free-atom references (see `add_reference_energies`). Elements that are
    not in `elements` give NaN.
    """

    elements: tuple[int, ...]  # atomic numbers, sorted; their order is the order of the weights
    cutoff: float = 5.0  # Å (r_max)
    channels: int = 64
    hidden_l: int = 1  # degree of the features passed on (hidden_irreps)
    l_max: int = 3  # degree of the harmonics on edges (max_ell)
    correlation: int = 3  # degree of the many-body polynomials
    n_layers: int = 2  # num_interactions
    n_radial: int = 8  # num_bessel
    envelope_p: int = 5  # num_polynomial_cutoff
    smoothness: int = 2  # derivatives that vanish at the cutoff
    radial_widths: tuple[int, ...] = (64, 64, 64)  # radial_MLP
    readout_width: int = 16  # MLP_irreps
    avg_num_neighbors: float = 1.0
    residual_first: bool = True  # first block is RealAgnosticResidualInteractionBlock
    scale: float = 1.0  # eV (atomic_inter_scale)
    shift: float = 0.0  # eV per atom (atomic_inter_shift)
    charge_spin: bool = False  # embed total charge and multiplicity
    dipole: bool = False  # predict charges and the dipole
    polarizability: bool = False
    residual_rest: bool = True  # the other blocks are RealAgnosticResidualInteractionBlock
    density: bool = False  # normalise by neighbours weighted by distance (...Density... blocks)
    gated: bool = False  # all blocks are RealAgnosticResidualNonLinearInteractionBlock
    edge_channels: tuple[int, ...] = ()  # by degree, if not `channels` (edge_irreps)
    edge_channels_first: int = 0  # the same for the first layer (0: `channels`)
    species_product: bool = True  # or the same polynomials for all species (use_agnostic_product)
    radial_basis: str = "bessel"  # "gaussian", "chebyshev" (radial_type)
    frequencies: tuple[float, ...] = ()  # of the Bessel functions, if not 1, 2, 3 ... (pi/cutoff)
    covalent_radii: tuple[float, ...] = ()  # Å, by element, for the three that follow
    agnesi: tuple[float, ...] = ()  # q, p, a (distance_transform)
    soft: float = 0.0  # steepness (distance_transform)
    pair_repulsion: tuple[float, ...] = ()  # p, length, power and weights: nn.interaction
    cut_weights: bool = False  # the envelope multiplies weights, not the basis (apply_cutoff False)
    gate: str = "silu"  # of the last readout
    readout_bias: bool = False  # NonLinearBiasReadoutBlock
    last_readout_only: bool = False
    state: tuple = ()  # embedding of charge and multiplicity: nn.interaction.StateEmbedding
    state_readout: bool = False  # energies of atoms from that embedding alone
    energy: bool = True  # False: a model of dipoles; its energy is zero
    charges: bool = True  # False: the dipole is a sum of atomic dipoles alone
    tensor_widths: tuple[int, int] = (0, 0)  # hidden vectors, l = 2 tensors of the last readout
    atomic_dipoles: bool = True  # False: the dipole is that of the charges alone
    formal_charges: tuple[float, ...] = ()  # e by element: charges begin there and are not read
    charge_transfer: int = 0  # channels of charge that flows along edges: nn.charges.Transfers
    charge_weights: bool = False  # what charges miss of the total goes by learned weights
    equilibration: bool = False  # predict electronegativities and hardnesses
    dispersion: bool = False  # predict roots of C6 coefficients

    @nn.compact
    def __call__(self, system: System):
        species, known = species_index(system.numbers, self.elements)
        edges = self._edges(system, species)
        features, table = self._embedding(system, species)
        energies = self._state_energies(features)
        layers = []
        for i in range(self.n_layers):
            features = self._layer(i, system, features, species, edges, table)
            features = self._after_layer(i, system, features)
            table = None
            layers.append(features)
            self.sow("intermediates", "scalars", features[0, 1][:, 0])  # for models.properties
        energies += self._energies(system, layers, species)
        out = energy_prediction(system, energies, known) | self._long_range(layers, species)
        return out | response_predictions(
            system,
            layers,
            self.readout_width,
            known,
            dipole=self.dipole,
            polarizability=self.polarizability,
            charges=self.charges,
            atomic_dipoles=self.atomic_dipoles,
            tensor_widths=self.tensor_widths,
            gate=self.gate,
            read_charges=self._charges(system, species),
        )

    def _after_layer(self, i, system, features):
        """The features that go on: a place for what other architectures add between layers."""
        return features

    def _charges(self, system, species):
        """layers -> charges and their dipole, or None for the plain readout."""
        if not (self.formal_charges or self.charge_transfer or self.charge_weights):
            return None
        formal = jnp.asarray(self.formal_charges, system.positions.dtype)
        transfers = None
        if self.charge_transfer:
            transfers = Transfers(self.charge_transfer, self.cutoff, name="charge_transfer")
        return lambda layers: read_charges(
            system,
            layers,
            self.readout_width,
            gate=self.gate,
            base=jnp.where(system.atom_mask, formal[species], 0) if self.formal_charges else None,
            weighted=self.charge_weights,
            transfers=transfers,
        )

    def _long_range(self, layers, species):
        """What `add_equilibration` and `add_dispersion` ask for, each if wanted."""
        dtype, n, out = layers[-1][0, 1].dtype, len(self.elements), {}
        read = lambda name: read_scalar(name, layers, self.readout_width, gate=self.gate)
        if self.equilibration:
            out["electronegativities"] = read("electronegativity")
            out["hardnesses"] = PositiveBySpecies(n, 10.0, name="hardness")(species, dtype)
        if self.dispersion:
            free = PositiveBySpecies(n, 5.0, name="dispersion")(species, dtype)
            out["dispersion_coefficients"] = free * 2 * nn.sigmoid(read("dispersed"))
        return out

    def _embedding(self, system, species):
        """Scalars of each atom, and of each species if they depend on the species alone."""
        embedding = SpeciesEmbedding(self.channels, len(self.elements), name="embedding")
        dtype = system.positions.dtype
        features, table = embedding(species, dtype), embedding(None, dtype)
        for wanted, extra in (
            (self.charge_spin, ChargeSpinEmbedding(self.channels, name="charge_spin")),
            (self.state, StateEmbedding(self.state, self.channels, name="state")),
        ):
            if wanted:
                features, table = {(0, 1): features[0, 1] + extra(system)[:, None, :]}, None
        return {k: v.astype(system.positions.dtype) for k, v in features.items()}, table

    def _state_energies(self, features):
        if not self.state_readout:
            return 0.0
        return ScalarReadout(name="state_energy")(features[0, 1][:, 0])

    def _energies(self, system, layers, species):
        if not self.energy:
            return jnp.zeros_like(layers[-1][0, 1][:, 0, 0])
        layers = layers[-1:] if self.last_readout_only else layers
        options = {"gate": self.gate, "bias": self.readout_bias}
        energies = read_scalar("energy", layers, self.readout_width, **options)
        if self.pair_repulsion:
            pairs = (self.elements, self.covalent_radii, self.pair_repulsion)
            energies += pair_repulsion(system, species, *pairs)
        return self.scale * energies + self.shift

    def _edges(self, system, species):
        """Harmonics, and (r [edge],), or (r, bond) where a bond length transforms distances."""
        vectors = edge_vectors(system)
        r = jnp.linalg.norm(vectors, axis=-1)
        harmonics = edge_harmonics(system, vectors / r[..., None], self.l_max)
        if not self.agnesi and not self.soft:
            return harmonics, (r,)
        radii = np.asarray(self.covalent_radii)
        return harmonics, (r, of_pairs(system, species, np.add.outer(radii, radii), r.dtype))

    def _smooth(self, r):
        return envelope(r, self.cutoff, p=self.envelope_p, smoothness=self.smoothness)[..., None]

    def _basis(self, r, bond=None):
        """Radial basis [edge, n_radial]; with its envelope, unless that multiplies the weights."""
        basis = self._functions(r if bond is None else self._transformed(r, bond))
        return basis if self.cut_weights else basis * self._smooth(r)

    def _functions(self, r):
        if self.radial_basis != "bessel":
            return {"gaussian": gaussians, "chebyshev": chebyshev}[self.radial_basis](
                r, self.cutoff, self.n_radial
            )
        frequencies = jnp.asarray(self.frequencies) if self.frequencies else None
        return bessel(r, self.cutoff, self.n_radial, frequencies=frequencies)

    def _transformed(self, r, bond):
        if self.agnesi and self.soft:
            raise UsageError(
                "distances are transformed by agnesi or by soft, not both", where="MACE"
            )
        return agnesi(r, bond / 2, *self.agnesi) if self.agnesi else soft(r, bond, self.soft)

    def _layer(self, i, system, features, species, edges, table):
        x, density = self._messages(i, system, features, species, edges, table)
        update = self._update(i, features)
        numbers = 16 * self.channels * (self.l_max + 1) ** 2  # of a forward and a backward pass
        rows = block_rows(species.shape[0], numbers * edges[0].dtype.itemsize)
        return in_blocks(lambda row: update(*row), (x, density, features, species), rows=rows)

    def _update(self, i, features):
        """(messages, density, features, species) of any atoms -> their features after layer i."""
        n, c = len(self.elements), self.channels
        hidden = tuple(natural(self._hidden(i)))
        residual = self.residual_rest if i else self.residual_first
        normalise, skip = self._normalise(i, features), self._skip(i, features, hidden, residual)
        n, which = (n, lambda s: s) if self.species_product else (1, jnp.zeros_like)
        product = SymmetricContraction(self.l_max, self.correlation, hidden, n, name=f"product_{i}")
        product = product.function(c, 1 / sqrt(c))
        linear = Linear(c, name=f"linear_{i}").function(dict.fromkeys(hidden, c), scaled=False)

        def update(x, density, features, species):
            x = normalise(x, density, features)
            old = skip(features, species) if residual else {}
            x = linear(product(x if residual else skip(x, species), which(species)))
            return {key: v + old[key] if key in old else v for key, v in x.items()}

        return update

    def _normalise(self, i, features):
        """What a density does to messages: (messages, density, features) -> messages."""
        if self.gated:
            return Gate(self.channels, self.l_max, name=f"gate_{i}").function(features)
        if self.density:
            return lambda x, density, _: {k: v / (density + 1)[..., None] for k, v in x.items()}
        return lambda x, *_: x

    def _skip(self, i, features, hidden, residual):
        """(features, species) -> features: past the layer, or (not residual) within it."""
        c, n, sizes = self.channels, len(self.elements), dict.fromkeys(features, self.channels)
        if self.gated:
            linear = Linear(c, keep=hidden, name=f"skip_{i}").function(sizes)
            return lambda features, _: linear(features)
        if residual:
            return SpeciesLinear(c, n, keep=hidden, name=f"skip_{i}").function(sizes)
        return SpeciesLinear(c, n, name=f"skip_{i}").function(dict.fromkeys(natural(self.l_max), c))

    def _messages(self, i, system, features, species, edges, table):
        """What the neighbours of each atom send, {key: [n_atoms, 2l+1, channels]}, and density.

        table: the features by species, if that is all they depend on.
        """
        sizes = self._edge_channels(i, features)
        couplings = paths(sizes, self.l_max, natural(self.l_max))
        widths = {key: x.shape[-1] for key, x in features.items()}
        up = Linear(tuple(sizes.items()), name=f"up_{i}").function(widths, scaled=False)
        sent = up(features)
        mixed, arriving = tuple(self._mixed_channels().items()), fan_in(couplings, sent)
        mix = Linear(mixed, name=f"message_{i}").function(arriving, scaled=False)
        radial_width = 1 if self.gated else (self.radial_widths or (self.n_radial,))[-1]
        scale = 1 if self.gated or self.density else 1 / self.avg_num_neighbors
        scales = [  # of all these linear maps at once
            scale / sqrt(widths[sender] * arriving[target] * radial_width)
            for sender, _, target in couplings
        ]
        harmonics, distances = edges
        n_weights = sum(sizes[sender] for sender, _, _ in couplings)
        edges = (system, harmonics)
        few = table is not None and not self.gated and not self.cut_weights
        size = {"channels": self.channels, "l_max": self.l_max}
        if few and few_species(system, len(self.elements), **size):
            table = up(table)[0, 1][:, 0]
            hidden, last = self._layers(i, n_weights)
            some = with_slope(lambda hidden, *r: perceptron(hidden, self._basis(*r)))
            radial = lambda r: some(hidden, *r), last
            x = species_messages(
                *edges, distances, couplings, table, species, radial=radial, mix=mix, scales=scales
            )
        else:
            by_path = [sizes[sender] for sender, _, _ in couplings]
            radial, inputs = self._radial(i, by_path, system, species, distances)
            x = messages(*edges, inputs, couplings, sent, radial=radial, mix=mix, scales=scales)
        return x, self._density(i, system, species, distances)

    def _layers(self, i, n_weights):
        return RadialMLP(self.radial_widths, n_weights, name=f"radial_{i}").layers(self.n_radial)

    def _edge_channels(self, i, features):
        """{key: channels} of what is sent."""
        sizes = self.edge_channels if i else (self.edge_channels_first or self.channels,)
        return {
            k: sizes[k[0]] if sizes else self.channels for k in features if k[0] < (len(sizes) or 9)
        }

    def _mixed_channels(self):
        """{key: channels} of the sums over neighbours; with gates the scalars hold those too."""
        c = self.channels
        return {k: c * (1 + self.l_max * (self.gated and k[0] == 0)) for k in natural(self.l_max)}

    def _radial(self, i, sizes, system, species, distances):
        """A function from inputs (arrays [edge, ...]) to weights, [edge, size] each; its inputs."""
        cut = self._smooth if self.cut_weights else lambda r: 1.0
        if not self.gated:
            layers = self._layers(i, sum(sizes))

            def of_paths(layers, *r):
                weights = radial_weights(layers, self._basis(*r), scaled=False) * cut(r[0])
                return split_last(weights, sizes)

            weights = with_slope(of_paths)
            return lambda r: weights(layers, *r), distances
        mlp = SpeciesMLP(self.radial_widths, sum(sizes), len(self.elements), name=f"radial_{i}")
        mlp, inputs = mlp.function(self.n_radial), (distances, edge_species(system, species))
        weights = lambda r, pair: mlp(self._basis(*r), *pair) * cut(r[0])
        return lambda inputs: split_last(weights(*inputs), sizes), inputs

    def _density(self, i, system, species, distances):
        """Number of neighbours, weighted by tanh of a square, [n_atoms, 1]; None if not needed."""
        if not self.gated and not self.density:
            return None
        pair, width, name = (), 4 * self.n_radial, f"density_{i}"
        if self.gated:
            mlp = SpeciesMLP((DENSITY_WIDTH,), 1, len(self.elements), name=name)
            weights, pair = mlp.function(self.n_radial), edge_species(system, species)
            width += 4 * DENSITY_WIDTH
        else:
            weights = Density(name=name).function(self.n_radial)

        def terms(inputs):
            r, *pair = inputs
            y = jnp.tanh(weights(self._basis(*r), *pair) ** 2)
            return y * self._smooth(r[0]) if self.cut_weights else y

        return sum_densities(system, terms, (distances, *pair), width=width)

    def _hidden(self, i):
        """Degree of the features after layer i: the last keeps only what is read out."""
        if i < self.n_layers - 1:
            return self.hidden_l
        return 2 if self.polarizability else int(self.dipole and self.atomic_dipoles)
