"""Work in blocks of atoms: what is large for each edge is computed, used and forgotten.

The results are those of one pass (each atom is computed alone). A block's backward pass
computes its forward pass again, so that what is made inside a block is never stored for all
edges; on a CPU the blocks also stay in cache, and their memory is not fresh pages at every call,
which together was faster for 64 atoms and more than one pass although more is computed.
"""

import os
from functools import cache

import jax
import jax.numpy as jnp

MEBI = 2**20
CACHE = {"cpu": (12 * MEBI, 6 * MEBI)}  # bytes that are done at once, and of a block for each core
OUTER = 32  # blocks at most, where each costs work for all atoms
DEVICE = (8192 * MEBI, 4096 * MEBI)  # the same for a device that does not tell its memory
SHARES = (8, 16)  # of the memory that it tells, these parts of it


def block_rows(n_rows: int, bytes_per_row: int) -> int:
    """Rows a block, out of n_rows that need `bytes_per_row` each while they are computed.

    All of them if together they are small. On CPU a block then stays in cache; on other devices it
    is as large as memory comfortably allows. A number of rows that is not known when the program
    is traced is taken whole.
    """
    if not isinstance(n_rows, int):
        return n_rows
    whole, block = CACHE.get(jax.default_backend()) or device_limits()
    if n_rows * bytes_per_row <= whole:
        return n_rows
    if jax.default_backend() == "cpu":
        block = block * cores()
    return max(1, min(n_rows, block // bytes_per_row))


@cache
def device_limits() -> tuple[int, int]:
    """The two limits of a device with memory of its own; asked once a process."""
    return limits_of(jax.local_devices()[0])


def limits_of(device) -> tuple[int, int]:
    """Bytes that are done at once, and of a block: shares of what JAX may use of the device."""
    try:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        memory = None
    return tuple(memory // share for share in SHARES) if memory else DEVICE


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def in_blocks(function, arrays, *, rows: int):
    """function(arrays), computed `rows` rows at a time; a row of the result needs its row alone.

    arrays: pytree of [n, ...]; the result is a pytree of [n, ...]. Every order of forward- and
    reverse-mode derivatives is that of the function.
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    if rows is n or rows >= n:
        return function(arrays)
    count = _count(n, rows)
    rows = -(-n // count)
    blocks = jax.tree.map(lambda x: _stack(x, count, rows), arrays)
    done = jax.lax.map(jax.checkpoint(function), blocks)
    return jax.tree.map(lambda x: x.reshape(count * rows, *x.shape[2:])[:n], done)


def _count(n, rows) -> int:
    """Number of blocks: one that divides n if fewer than twice as many do.

    What pads the blocks of other numbers is computed, and compiled, too.
    """
    least = -(-n // rows)
    return next((c for c in range(least, 2 * least) if n % c == 0), least)


def _stack(x, count, rows):
    """[n, ...] -> [count, rows, ...]; missing rows repeat the last."""
    x = jnp.asarray(x)
    extra = count * rows - x.shape[0]
    if extra:
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (extra, *x.shape[1:]))])
    return x.reshape(count, rows, *x.shape[1:])
