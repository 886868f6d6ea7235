"""The smooth part of a slab, as wavevectors of a cell with a long enough period along the normal.

In two dimensions each wavevector k along the slab has the kernel 2 pi exp(-k |z|) / k, and
-2 pi |z| for k = 0 (Parry, Surf. Sci. 49, 433 (1975); de Leeuw and Perram, Mol. Phys. 37, 1313
(1979)). Cut at |z| = L / 2 and repeated with the period L it has a closed transform
(Rozzi et al., 10.1103/PhysRevB.73.205119), and where atoms are less than L / 2 apart, by some
widths of the Gaussian, they feel no image: the sum is that of two dimensions, to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError


def slab_cell(cell, pbc, axes, height: float):
    """Cells [n_graphs, 3, 3] whose open axis is the normal of the slab, of length `height` Å."""
    following = jnp.cross(jnp.roll(cell, -1, 1), jnp.roll(cell, -2, 1))
    slab = (axes == 2)[:, None] & ~pbc
    area = jnp.where(slab, (following**2).sum(-1), 1.0)
    normals = following / jnp.sqrt(area)[..., None]
    return jnp.where(slab[..., None], height * normals, cell)


def slab_transform(alpha: float, m, k, pbc, height: float):
    """Transform for a Gaussian charge, [n_graphs, ...]; m [..., 3] integers, k [n_graphs, ..., 3].

    Along the periodic axes m may be any number (a wavevector of phonons is added).
    """
    shape = (len(pbc), *[1] * (m.ndim - 1), 3)
    periodic = pbc.reshape(shape)
    flat = (jnp.where(periodic, m, 0) == 0).all(-1)
    k2 = (k**2).sum(-1)
    across = 2 * jnp.pi / height * jnp.where(periodic, 0, m).sum(-1)
    along2 = jnp.where(flat, 1.0, k2 - across**2)
    parity = jnp.cos(height / 2 * across)  # +1 or -1
    seen = 1 - parity * jnp.where(flat, 1.0, jnp.exp(-jnp.sqrt(along2) * height / 2))
    zero = flat & (across == 0)
    k2 = jnp.where(zero, 1.0, k2)
    value = 4 * jnp.pi * jnp.exp(-k2 / (4 * alpha**2)) / k2 * seen
    return jnp.where(zero, -jnp.pi * height**2 / 2, value)


def too_thick(positions, real, cell, pbc, axes, needed: float, height: float):
    """[n_graphs] True where a slab's atoms come within `needed` Å of the middle of the period.

    Raises `UsageError` JM532 where the positions are known.
    """
    slab = (axes == 2)[:, None] & ~pbc
    normal = jnp.where(slab[..., None], cell, 0).sum(1) / height
    z = jax.lax.stop_gradient(jnp.einsum("gna,ga->gn", positions, normal))
    top = jnp.where(real, z, -jnp.inf).max(1)
    bottom = jnp.where(real, z, jnp.inf).min(1)
    thick = (axes == 2) & (top - bottom > height / 2 - needed)
    if not isinstance(thick, jax.core.Tracer):
        _check(np.asarray(thick), np.asarray(top - bottom), height / 2 - needed)
    return thick


def _check(thick, heights, most: float):
    if not thick.any():
        return
    graph = int(thick.argmax())
    raise UsageError(
        f"structure {graph} reaches over {heights[graph]:.2f} Å along its open axis; the sum was "
        f"planned for up to {most:.2f} Å",
        where="ewald",
        fix="plan it for this slab: jaxmlip.bind(potential, system), or a new solver",
        code="JM532",
    )
