"""The exchange of ghosts: what a domain sends to its neighbours on a periodic grid of domains.

Only linear collectives are used (`ppermute`, `psum`), so every derivative of a program that goes
through them is exact: reverse mode sends the gradients of ghosts back to their owners.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "domains"  # name of the mesh axis

Offset = tuple[int, int, int]


def static():
    return field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Halo:
    """In round i every domain sends its atoms `send[i]` to the domain that lies `offsets[i]` on.

    Ghosts follow a domain's own atoms, round after round, in the order in which they were sent;
    an atom is sent once to a domain, however many of its images are neighbours there. Grid and
    offsets are static, as `ppermute` needs them: they are part of the compiled program.
    """

    send: tuple  # for each round [n_domains * capacity] rows of the domain's own atoms
    grid: Offset = static()  # domains along the three axes; the last runs fastest
    offsets: tuple[Offset, ...] = static()  # grid steps from sender to receiver, modulo the grid

    def with_ghosts(self, nodes):
        """[n_atoms, ...] -> [n_atoms + n_ghosts, ...]; a pytree of arrays goes in one message."""
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, nodes))
        groups: dict = {}
        for i, x in enumerate(leaves):
            groups.setdefault(x.dtype, []).append(i)
        for members in groups.values():
            for i, x in zip(members, self._extend([leaves[i] for i in members]), strict=True):
                leaves[i] = x
        return jax.tree.unflatten(tree, leaves)

    def sum(self, value):
        """The sum of a value over all domains, on all of them."""
        return jax.lax.psum(value, AXIS)

    def _extend(self, arrays):
        """Several arrays of one type, sent side by side."""
        sizes = [int(np.prod(x.shape[1:])) for x in arrays]
        packed = [x.reshape(len(x), size) for x, size in zip(arrays, sizes, strict=True)]
        packed = packed[0] if len(packed) == 1 else jnp.concatenate(packed, 1)
        ghosts = [
            jax.lax.ppermute(packed[rows], AXIS, shifted(self.grid, offset))
            for rows, offset in zip(self.send, self.offsets, strict=True)
        ]
        parts = jnp.split(jnp.concatenate([packed, *ghosts]), np.cumsum(sizes)[:-1], axis=1)
        return [p.reshape(len(p), *x.shape[1:]) for p, x in zip(parts, arrays, strict=True)]


def shifted(grid: Offset, offset: Offset) -> list[tuple[int, int]]:
    """(source, destination) of every domain when all send by `offset`; the grid is periodic."""
    source = np.arange(int(np.prod(grid)))
    places = np.stack(np.unravel_index(source, grid), -1)
    target = np.ravel_multi_index(tuple(np.mod(places + np.array(offset), grid).T), grid)
    return list(zip(source.tolist(), target.tolist(), strict=True))
