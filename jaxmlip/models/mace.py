"""MACE: equivariant many-body message passing (Batatia et al. 2022, arXiv:2206.07697).

The published architecture, layer for layer: weights of mace-torch 0.3 (ScaleShiftMACE with
RealAgnostic(Residual)Interaction blocks) can be copied in without approximation. Charges, atomic
dipoles and polarisabilities are further readouts of the same features.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxmlip.nn.harmonics import spherical_harmonics
from jaxmlip.nn.linear import (
    ChargeSpinEmbedding,
    Linear,
    SpeciesEmbedding,
    SpeciesLinear,
    species_index,
)
from jaxmlip.nn.radial import RadialMLP, bessel, envelope
from jaxmlip.nn.readout import energy_prediction, read_scalar, response_predictions
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

    @nn.compact
    def __call__(self, system: System):
        species, known = species_index(system.numbers, self.elements)
        harmonics, basis = self._edges(system)
        embedding = SpeciesEmbedding(self.channels, len(self.elements), name="embedding")
        features, table = embedding(species), embedding(jnp.arange(len(self.elements)))
        if self.charge_spin:
            table = None  # features are no longer a matter of the species alone
            extra = ChargeSpinEmbedding(self.channels, name="charge_spin")(system)
            features = {(0, 1): features[0, 1] + extra[:, None, :]}
        features = {k: v.astype(system.positions.dtype) for k, v in features.items()}
        layers = []
        for i in range(self.n_layers):
            features = self._layer(i, system, features, species, harmonics, basis, table)
            table = None
            layers.append(features)
        width = self.readout_width
        energies = self.scale * read_scalar("energy", layers, width) + self.shift
        return energy_prediction(system, energies, known) | response_predictions(
            system, layers, width, dipole=self.dipole, polarizability=self.polarizability
        )

    def _edges(self, system):
        vectors = edge_vectors(system)
        r = jnp.linalg.norm(vectors, axis=-1)
        smooth = envelope(r, self.cutoff, p=self.envelope_p, smoothness=self.smoothness)
        basis = bessel(r, self.cutoff, self.n_radial) * smooth[..., None]
        return spherical_harmonics(vectors / r[..., None], self.l_max), basis

    def _layer(self, i, system, features, species, harmonics, basis, table):
        n, c = len(self.elements), self.channels
        hidden = tuple(natural(self._hidden(i)))
        first = i == 0 and not self.residual_first
        skip = {}
        if not first:
            skip = SpeciesLinear(c, n, keep=hidden, name=f"skip_{i}")(features, species)
        x = self._messages(i, system, features, species, harmonics, basis, table)
        x = {key: v / self.avg_num_neighbors for key, v in x.items()}
        if first:
            x = SpeciesLinear(c, n, name=f"skip_{i}")(x, species)
        product = SymmetricContraction(self.l_max, self.correlation, hidden, n, name=f"product_{i}")
        x = Linear(c, name=f"linear_{i}")(product(x, species))
        return {key: v + skip[key] if key in skip else v for key, v in x.items()}

    def _messages(self, i, system, features, species, harmonics, basis, table):
        """What the neighbours of each atom send, {key: [n_atoms, 2l+1, channels]}.

        table: the features by species, if that is all they depend on.
        """
        c, couplings = self.channels, paths(features, self.l_max, natural(self.l_max))
        up = Linear(c, name=f"up_{i}")
        radial = RadialMLP(self.radial_widths, len(couplings) * c, name=f"radial_{i}")
        mix = Linear(c, name=f"message_{i}").function(fan_in(couplings, features))
        edges = (system, harmonics, basis, couplings)
        if table is not None and few_species(system, len(self.elements)):
            table = up(table)[0, 1][:, 0]
            layers = radial.layers(self.n_radial)
            return species_messages(*edges, table, species, radial=layers, mix=mix)
        radial = radial.function(self.n_radial)
        return messages(*edges, up(features), radial=radial, mix=mix)

    def _hidden(self, i):
        """Degree of the features after layer i: the last keeps only what is read out."""
        if i < self.n_layers - 1:
            return self.hidden_l
        return 2 if self.polarizability else int(self.dipole)
