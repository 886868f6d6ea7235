"""Messages: features of the senders times harmonics of the edges, weighted, summed at receivers."""

from math import sqrt

import jax
import jax.numpy as jnp

from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.system import System, sum_edges, to_edges

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


def convolve(system: System, features, harmonics, weights, couplings) -> dict:
    """Sum over neighbours of weight x (feature of the sender coupled to the harmonics of the edge).

    features {key: [n_atoms, 2l+1, c]}, harmonics: list of [edge, 2l+1], weights
    [edge, sum over paths of c]. Returns {key: [n_atoms, 2l+1, sum over paths to key of c]},
    each path scaled to component normalisation (e3nn's 'uvu' product). With edges
    per receiver the reduction is one batched matrix product a path, and messages are never stored.
    """
    sent = {key: to_edges(system, features[key]) for key in {c[0] for c in couplings}}
    sizes = [sent[sender].shape[-1] for sender, _, _ in couplings]
    by_path = jax.lax.split(weights, sizes, axis=weights.ndim - 1)
    out: dict = {}
    for weight, (sender, l, target) in zip(by_path, couplings, strict=True):
        table = jnp.asarray(
            sqrt(2 * target[0] + 1) * clebsch_gordan(sender[0], l, target[0]), harmonics[l].dtype
        )
        factors = jnp.einsum("amb,...m->...ab", table, harmonics[l])
        values = weight[..., None, :] * sent[sender]
        out.setdefault(target, []).append(sum_edges(system, values, factors))
    return {key: jnp.concatenate(parts, -1) for key, parts in out.items()}


def tensor_product(x, y, l3: int):
    """Channel-wise product of [..., 2 l1+1, c] and [..., 2 l2+1, c] -> [..., 2 l3+1, c].

    Component normalised: unit normal inputs give unit variance.
    """
    l1, l2 = (x.shape[-2] - 1) // 2, (y.shape[-2] - 1) // 2
    table = jnp.asarray(sqrt(2 * l3 + 1) * clebsch_gordan(l1, l2, l3), x.dtype)
    return jnp.einsum("...ac,...bc,abm->...mc", x, y, table)
