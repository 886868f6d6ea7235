"""Messages: features of the senders times harmonics of the edges, weighted, summed at receivers."""

from dataclasses import replace
from math import isqrt, sqrt

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.nn import blocks
from jaxmlip.nn.blocks import block_rows, in_blocks
from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.system import System, sum_edges, to_edges, with_ghosts

Key = tuple[int, int]  # degree l, parity p


def natural(l_max: int) -> list[Key]:
    """(0, +1), (1, -1), (2, +1) ...: the parities that the harmonics themselves have."""
    return [(l, (-1) ** l) for l in range(l_max + 1)]


def order(key: Key):
    """Sorting of irreps: by degree, natural parity first."""
    l, p = key
    return l, p != (-1) ** l


def paths(senders, l_max: int, targets) -> list[tuple[Key, int, Key]]:
    """All couplings (key of the sender) x (degree of the edge) -> (key of the message).

    Sorted by message, then sender, then edge: the order of the radial weights.
    """
    out = []
    for target in sorted(targets, key=order):
        for sender in sorted(senders, key=order):
            for l in range(l_max + 1):
                triangle = abs(sender[0] - l) <= target[0] <= sender[0] + l
                if triangle and target[1] == sender[1] * (-1) ** l:
                    out.append((sender, l, target))
    return out


def fan_in(couplings, features) -> dict:
    """{key of the message: channels that arrive there}."""
    out: dict = {}
    for sender, _, target in couplings:
        out[target] = out.get(target, 0) + features[sender].shape[-1]
    return out


def few_species(system: System, n_species: int, *, channels: int, l_max: int) -> bool:
    """Whether `species_messages` is cheaper, by the operations of energy and forces.

    There the densities and then the channels are made for each species and component, here radial
    weights (and their slopes) for each neighbour and degree, at 4/5 of the speed (measured).
    """
    k = system.edges.senders.shape[-1]
    if system.edges.receivers is not None or not isinstance(k, int):
        return False
    by_species = n_species * (l_max + 1) ** 2 * (3 * k + 2 * channels)
    return by_species <= 1.25 * 2 * k * (l_max + 1) * channels


def messages(
    system: System, harmonics, inputs, couplings, features, *, radial, mix, scales=None
) -> dict:
    """Sum over neighbours of weight x (feature of the sender coupled to the harmonics), mixed.

    features {key: [n_atoms, 2l+1, c]}, harmonics: [edge, (l_max+1)²], zero for padded edges
    (`edge_harmonics`); radial: inputs (arrays
    [edge, ...]) -> weights, a list of [edge, c] for the paths; mix: what becomes of the sums of
    an atom (it is computed with them); scales: a number for each path, which it is times. Radial
    weights and products are large for every edge, so
    they are made in blocks of atoms (`nn.blocks`), and with flat edges all at once.
    """
    nodes = with_ghosts(system, {key: features[key] for key in {c[0] for c in couplings}})

    def some(rows):
        edges, sent, harmonics, inputs = rows
        part = replace(system, edges=edges)
        return mix(convolve(part, sent, harmonics, radial(inputs), couplings, scales))

    def gathered(rows):
        edges, harmonics, inputs = rows
        sent = to_edges(replace(system, edges=edges), nodes)
        return in_blocks(some, (edges, sent, harmonics, inputs), rows=inner)

    edges = replace(system.edges, halo=None, images=None)
    n, k = edges.senders.shape[0], edges.senders.shape[-1]
    inner = outer = n
    if edges.receivers is None:
        width = lambda key: features[key].shape[-1] * harmonics.dtype.itemsize * k
        inner = block_rows(n, sum((2 * s[0] + 2) * width(s) for s, _, _ in couplings))
        # the backward pass of each outer block adds to the features of all atoms: few of them
        outer = max(inner, -(-n // blocks.OUTER)) if isinstance(n, int) else n
    return in_blocks(gathered, (edges, harmonics, inputs), rows=outer)


def species_messages(
    system: System, harmonics, inputs, couplings, table, species, *, radial, mix, scales
):
    """`messages` of scalars that depend only on the species, table [n_species, c], exactly.

    The radial weights end in a matrix, radial = (inputs -> [edge, hidden], last matrix), so
    neighbours can be summed first, species by species, into a density without channels.
    Per-receiver edges only.
    """
    hidden, last = radial
    dtype, degrees = harmonics.dtype, isqrt(harmonics.shape[-1])
    onehot = with_ghosts(system, jax.nn.one_hot(species, len(table), dtype=dtype))
    by_path = jax.lax.split(last.astype(dtype), [table.shape[1]] * len(couplings), axis=1)
    products = {
        target: (l, (table[:, None, :] * (scale * w)).reshape(-1, w.shape[-1]))
        for (_, l, target), scale, w in zip(couplings, scales, by_path, strict=True)
    }
    parts = [len(table) * (2 * l + 1) * last.shape[0] for l in range(degrees)]

    def some(rows):
        edges, harmonics, inputs = rows
        part = replace(system, edges=edges)
        sent, radials = to_edges(part, onehot), hidden(inputs)[..., None, :]
        factors = harmonics[..., None] * sent[..., None, :]
        factors = factors.reshape(*sent.shape[:2], 1, -1)
        density = sum_edges(part, radials, factors, masked=True).reshape(len(sent), -1)
        density = jax.lax.split(density, parts, axis=1)
        by_degree = lambda l: density[l].reshape(len(sent), 2 * l + 1, -1)
        return mix({target: by_degree(l) @ product for target, (l, product) in products.items()})

    edges = replace(system.edges, halo=None, images=None)
    n, k = edges.senders.shape
    numbers = k * (len(table) * degrees**2 + 8 * last.shape[0])
    rows = block_rows(n, numbers * dtype.itemsize)
    return in_blocks(some, (edges, harmonics, inputs), rows=rows)


def convolve(system: System, sent, harmonics, weights, couplings, scales=None) -> dict:
    """Sum over neighbours of weight x (feature of the sender coupled to the harmonics of the edge).

    sent {key: [edge, 2l+1, c]}, harmonics: [edge, (l_max+1)²], zero for padded edges, weights:
    list of [edge, c], one a path. Returns {key: [n_atoms, 2l+1, sum over paths to key of c]},
    each path scaled to component normalisation (e3nn's 'uvu' product), times its scale. With edges
    per receiver the reduction is one batched matrix product a path, and messages are never stored.
    """
    out: dict = {}
    factors = coupled_harmonics(harmonics, couplings, scales)
    for weight, factor, (sender, _, target) in zip(weights, factors, couplings, strict=True):
        values = weight[..., None, :] * sent[sender]
        out.setdefault(target, []).append(sum_edges(system, values, factor, masked=True))
    return {key: jnp.concatenate(parts, -1) for key, parts in out.items()}


def tensor_product(x, y, l3: int):
    """Channel-wise product of [..., 2 l1+1, c] and [..., 2 l2+1, c] -> [..., 2 l3+1, c].

    Component normalised: unit normal inputs give unit variance.
    """
    l1, l2 = (x.shape[-2] - 1) // 2, (y.shape[-2] - 1) // 2
    table = jnp.asarray(sqrt(2 * l3 + 1) * clebsch_gordan(l1, l2, l3), x.dtype)
    return jnp.einsum("...ac,...bc,abm->...mc", x, y, table)


def coupled_harmonics(harmonics, couplings, scales=None) -> list:
    """[edge, (l_max+1)²] -> [edge, components of sender, of message] for each path.

    Component normalisation, times a number a path. All degrees lie in one array, and a table has
    zeros for the others: slices and their gradients would be more to compile than the products.
    """
    scales = scales or [1.0] * len(couplings)
    return [
        _coupled(harmonics, sender[0], l, target[0], scale)
        for (sender, l, target), scale in zip(couplings, scales, strict=True)
    ]


def _coupled(y, l1, l2, l3, scale):
    table = np.zeros((y.shape[-1], 2 * l1 + 1, 2 * l3 + 1))
    coefficients = scale * sqrt(2 * l3 + 1) * clebsch_gordan(l1, l2, l3)
    table[l2**2 : (l2 + 1) ** 2] = np.swapaxes(coefficients, 0, 1)
    table = jnp.asarray(table.reshape(len(table), -1), y.dtype)
    products = jnp.matmul(y, table, precision=jax.lax.Precision.HIGHEST)
    return products.reshape(*y.shape[:-1], 2 * l1 + 1, 2 * l3 + 1)
