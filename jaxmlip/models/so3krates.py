"""So3krates with physical terms: an attention network for what is near, physics for what is far.

The architecture of SO3LR (Kabylda et al. 2025, 10.1021/jacs.5c09558): to the energies that the
network gives come a screened nuclear repulsion with trained parameters, the Coulomb energy of the
partial charges that it predicts, and a dispersion energy from the volumes of the atoms (their
Hirshfeld ratios) that it predicts. The network sees edges up to `local_cutoff`, the last two terms
all up to `cutoff`: a list that long is needed, and the network runs on the short ones alone.
"""

from math import log, pi, sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.nn import pairwise
from jaxmlip.nn.attention import AttentionLayer, bernstein, dense
from jaxmlip.nn.harmonics import spherical_harmonics
from jaxmlip.nn.linear import of_species, species_index
from jaxmlip.nn.radial import envelope
from jaxmlip.nn.readout import conserve_charge, energy_prediction, one_or_nan, total_dipole
from jaxmlip.system import System, at_receivers, edge_vectors, sum_atoms, sum_edges, to_edges

NORMAL = nn.initializers.normal(1.0)


class So3krates(nn.Module):
    """A `Potential`: init(key, system), apply(params, system) -> energy, energies, charges, dipole.

    Elements that are not in `elements` give NaN. So does an atom with more than `local_neighbors`
    neighbours within `local_cutoff` (water has 38 on average): none is ever dropped silently. The
    network costs what `local_neighbors` is (energy and forces of 192 atoms of water, lists of 888,
    float32: 0.34 s of processor time with 48, 0.63 s with 96). The curvature of the Coulomb energy,
    not its slope, has a step at `cutoff`, as published (`pairwise.damped_coulomb`).
    """

    elements: tuple[int, ...]  # atomic numbers, sorted; their order is the order of the weights
    cutoff: float = 12.0  # Å, where Coulomb and dispersion energies end
    local_cutoff: float = 4.5  # Å, of the network
    local_neighbors: int = 64  # that the network has room for, where the list is longer than that
    channels: int = 128  # num_features
    degrees: tuple[int, ...] = (1, 2, 3, 4)
    heads: int = 4  # num_heads
    n_layers: int = 3  # num_layers
    n_radial: int = 32  # num_radial_basis_fn
    avg_num_neighbors: float = 1.0
    readout_width: int = 128  # energy_regression_dim
    repulsion: bool = True  # zbl_repulsion_bool
    coulomb_width: float = 4.0  # Å, electrostatic_energy_scale; 0: no Coulomb energy
    dispersion_scale: float = 1.2  # dispersion_energy_scale; 0: no dispersion energy
    dispersion_tail: float = 2.0  # Å before the cutoff where dispersion is switched off
    charge_spin: bool = True  # use_charge_embed and use_spin_embed
    dipole: bool = True  # predict charges and the dipole

    @nn.compact
    def __call__(self, system: System):
        species, known = species_index(system.numbers, self.elements)
        short, crowded = pairwise.near(system, self.local_cutoff, self.local_neighbors)
        known &= ~crowded
        r, smooth, features = self._network(short, system, species)
        self.sow("intermediates", "scalars", features)  # for models.properties
        energies = self._energies(features, species)
        if self.repulsion:
            energies += self._repulsion(short, r, smooth)
        out, far = {}, 0.0
        distances = jnp.linalg.norm(edge_vectors(system), axis=-1)
        if self.dipole or self.coulomb_width:
            charges = self._charges(features, species) * one_or_nan(system, known)
            charges = conserve_charge(system, charges)
        if self.coulomb_width:
            curve = pairwise.damped_coulomb(distances, self.cutoff, width=self.coulomb_width)
            far += at_receivers(system, charges) * to_edges(system, charges) * curve
        if self.dispersion_scale:
            far += self._dispersion(system, distances, features, species)
        if self.coulomb_width or self.dispersion_scale:
            energies += 0.5 * sum_edges(system, far)
        if self.dipole:
            dipole = total_dipole(system, charges, jnp.zeros_like(system.positions))
            out = {"charges": charges, "dipole": dipole}
        return energy_prediction(system, energies, known) | out

    # --- the network ------------------------------------------------------------------------------

    def _network(self, short, system, species):
        """(distances, envelope) of the short edges, and the scalars of the last layer."""
        vectors = edge_vectors(short)
        r = jnp.linalg.norm(vectors, axis=-1)
        unit = vectors / r[..., None]
        # what is farther stands at the cutoff, where its weight is zero: nothing can overflow
        r = jnp.minimum(r, self.local_cutoff)
        smooth = envelope(r, self.local_cutoff, p=3)
        basis = bernstein(r, self.n_radial)
        every = spherical_harmonics(unit, max(self.degrees))
        parts = [every[..., l**2 : (l + 1) ** 2] for l in self.degrees]
        harmonics = jnp.concatenate(parts, -1) / sqrt(4 * pi)
        x, euclidean = self._embedding(system, species), None
        for i in range(self.n_layers):
            layer = AttentionLayer(
                self.heads, self.degrees, self.avg_num_neighbors, name=f"layer_{i}"
            )
            x, euclidean = layer(short, x, euclidean, basis, harmonics, smooth)
        return r, smooth, x

    def _embedding(self, system, species):
        dtype = system.positions.dtype
        x = self._by_element("embedding", species, self.channels, dtype)
        if not self.charge_spin:
            return x
        x = x + StateEmbedding(len(self.elements), self.channels, name="charge")(
            system, species, system.charge.astype(dtype)
        )
        x = x + StateEmbedding(len(self.elements), self.channels, name="spin")(
            system, species, system.spin.astype(dtype) - 1
        )
        return x / sqrt(3)

    def _by_element(self, name, species, width, dtype, init=NORMAL):
        w = self.param(name, init, (len(self.elements), width) if width else (len(self.elements),))
        return of_species(jnp.asarray(w, dtype), species)

    # --- what is read from it ---------------------------------------------------------------------

    def _energies(self, features, species):
        hidden = jax.nn.silu(dense("energy_hidden", features, self.readout_width))
        energies = dense("energy_out", hidden, 1)[:, 0]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self._by_element("energy_scale", species, 0, energies.dtype, ones)
        return energies * scale + self._by_element(
            "energy_shift", species, 0, energies.dtype, zeros
        )

    def _charges(self, features, species):
        hidden = jax.nn.silu(dense("charge_hidden", features, self.readout_width))
        shift = self._by_element("charge_shift", species, 0, features.dtype)
        return dense("charge_out", hidden, 1)[:, 0] + shift

    def _ratios(self, features, species):
        """Volumes of the atoms over those of free atoms, [n_atoms]."""
        half = self.channels // 2
        hidden = jax.nn.silu(dense("ratio_hidden", features, self.readout_width // 2))
        key = dense("ratio_out", hidden, half)
        query = self._by_element("ratio_query", species, half, features.dtype)
        shift = self._by_element("ratio_shift", species, 0, features.dtype)
        return jnp.abs(shift + (query * key).sum(-1) / sqrt(half))

    # --- pair terms -------------------------------------------------------------------------------

    def _repulsion(self, short, r, smooth):
        positive = lambda name, *start: jax.nn.softplus(
            self.param(name, lambda _: jnp.asarray([log(np.expm1(v)) for v in start]))
        ).astype(r.dtype)
        curve = pairwise.screened_repulsion(
            r,
            (at_receivers(short, short.numbers), to_edges(short, short.numbers)),
            weights=positive("repulsion_weights", 0.1818, 0.5099, 0.2802, 0.02817),
            decays=positive("repulsion_decays", 3.2, 0.9423, 0.4028, 0.2016),
            exponent=positive("repulsion_exponent", 0.23),
            inverse_length=positive("repulsion_inverse_length", 1 / 0.46850),
        )
        return 0.5 * sum_edges(short, curve * smooth * pairwise.switch(r, 0.0, 1.5))

    def _dispersion(self, system, r, features, species):
        unknown = sorted(set(self.elements) - set(pairwise.FREE_ATOMS))
        if unknown:
            raise UsageError(
                f"no free-atom polarisability and C6 of the elements {unknown}",
                where="So3krates",
                fix="dispersion_scale = 0, or elements of pairwise.FREE_ATOMS",
            )
        ratios = jnp.where(system.atom_mask, self._ratios(features, species), 1)
        free = np.array([pairwise.FREE_ATOMS[z] for z in self.elements]).T
        alpha, c6 = (of_species(jnp.asarray(v, r.dtype), species) for v in free)
        own = alpha * ratios, c6 * ratios**2
        here, there = (at_receivers(system, x) for x in own), to_edges(system, own)
        curve = pairwise.dispersion(r, *zip(here, there, strict=True), scale=self.dispersion_scale)
        return curve * pairwise.switch(r, self.cutoff - self.dispersion_tail, self.cutoff)


class StateEmbedding(nn.Module):
    """A number of a structure (its charge, its unpaired electrons) on its atoms, [n, channels].

    Shared out among the atoms by attention (Unke et al. 2021, 10.1038/s41467-021-27504-0); exactly
    zero for zero, and with keys and values of their own for positive and negative numbers.
    """

    n_species: int
    channels: int

    @nn.compact
    def __call__(self, system: System, species, state):
        def rows(name, n):
            return jnp.asarray(self.param(name, NORMAL, (n, self.channels)), state.dtype)

        negative = (state < 0).astype(int)[system.graph]
        query = of_species(rows("query", self.n_species), species)
        key, value = rows("key", 2)[negative], rows("value", 2)[negative]
        share = jax.nn.softplus((query * key).sum(-1) / sqrt(self.channels))
        total = sum_atoms(system, share)
        share = share / jnp.where(total > 0, total, 1)[system.graph]
        x = (state[system.graph] * share)[:, None] * value
        hidden = dense("hidden", jax.nn.silu(x), self.channels, bias=False)
        return x + dense("out", jax.nn.silu(hidden), self.channels, bias=False)
