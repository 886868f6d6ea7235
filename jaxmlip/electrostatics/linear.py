"""Symmetric positive equations of many structures at once, each solved as if it were alone."""

import jax.numpy as jnp
from jax import lax, vmap
from jax.scipy.linalg import cho_factor, cho_solve

from jaxmlip.system import System


def factorised(system: System, product):
    """(b [n_atoms] -> x with product(x) = b, where product is positive [n_graphs]).

    product: linear, without terms between structures. By Cholesky factors of each structure: where
    it is not positive x is zero, there and nowhere else. Memory: n_graphs x n_atoms².
    """
    unit = jnp.eye(system.n_atoms, dtype=system.positions.dtype)
    mine = system.graph == jnp.arange(system.n_graphs)[:, None]
    alone = jnp.where(mine[:, :, None] & mine[:, None], vmap(product)(unit), unit)
    factors = vmap(lambda m: cho_factor(m)[0])(alone)
    positive = jnp.isfinite(factors).all((1, 2))
    factors = jnp.where(positive[:, None, None], factors, unit)
    mine = mine & positive[:, None]

    def solve(b):
        found = vmap(lambda f, b: cho_solve((f, False), b))(factors, jnp.where(mine, b, 0))
        return found.sum(0)

    return solve, positive


def conjugate_gradients(product, b, *, sums, spread, precondition, tolerance, steps: int):
    """x with product(x) = b, [n_atoms]; one iteration for each structure, in lockstep.

    sums: over the atoms of each structure; spread: back to its atoms. Ends when the root of the sum
    of squares is below `tolerance` times that of b in every structure, or after `steps`.
    """
    over = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
    limit = tolerance**2 * sums(b * b)

    def go_on(state):
        _, r, _, _, step = state
        return (step < steps) & jnp.any(sums(r * r) > limit)

    def advance(state):
        x, r, p, rz, step = state
        image = product(p)
        length = spread(over(rz, sums(p * image)))
        x, r = x + length * p, r - length * image
        z = precondition(r)
        new = sums(r * z)
        return x, r, z + spread(over(new, rz)) * p, new, step + 1

    z = precondition(b)
    state = (jnp.zeros_like(b), b, z, sums(b * z), 0)
    return lax.while_loop(go_on, advance, state)[0]
