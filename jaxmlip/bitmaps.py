"""Which of many candidates are chosen, as bits of words: counted and listed, no scatter, no sort.

The last axis is that of the rows: sums over bits and words are then arithmetic along contiguous
memory.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.system import Array

WORD = 32  # bits


def packed(is_set: Array) -> Array:
    """Words [..., rows] of the bits [..., 32, rows]."""
    bits = np.left_shift(np.uint32(1), np.arange(WORD, dtype=np.uint32))[:, None]
    return jnp.where(is_set, bits, jnp.uint32(0)).sum(-2, dtype=jnp.uint32)


def nth_bits(words: Array, width: int) -> tuple[Array, Array]:
    """Where the first `width` set bits of each row are, and how many there are in all.

    words: [n_words, rows]. -> [width, rows] index of the bit, 32 x word + bit, -1 where there are
    no more; [rows].
    """
    before = [jnp.zeros(words.shape[1], jnp.int32)]
    for word in words:
        before.append(before[-1] + jax.lax.population_count(word).astype(jnp.int32))
    *before, total = jax.lax.optimization_barrier(before)  # else summed anew for each slot
    slot = jnp.arange(width, dtype=jnp.int32)[:, None]
    where = jnp.zeros((width, words.shape[1]), jnp.int32)
    first, word = where, jnp.broadcast_to(words[0], where.shape)
    for k in range(1, len(words)):
        reached = before[k] <= slot
        where = jnp.where(reached, k * WORD, where)
        first = jnp.where(reached, before[k], first)
        word = jnp.where(reached, words[k], word)
    return jnp.where(slot < total, where + _nth_bit(word, slot - first), -1), total


def _nth_bit(word, rank):
    """Place of the set bit with `rank` others below it, by halves of the word."""
    place = jnp.zeros_like(rank)
    for half in (16, 8, 4, 2, 1):
        low = jax.lax.population_count(word & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        above = rank >= low
        rank = jnp.where(above, rank - low, rank)
        word = jnp.where(above, word >> half, word)
        place = jnp.where(above, place + half, place)
    return place
