"""A Hessian that is known to fit before it runs: chunks planned from the compiler's own figures.

A host function: it compiles the program that will run, asks XLA how much memory that needs, and
compiles another with fewer rows at a time only if the first is over the limit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmlip.derivatives.second.free_memory import free_memory
from jaxmlip.derivatives.second.hessian import (
    chosen,
    chunk_memory,
    gradient_at,
    rows_at_once,
    rows_of,
    whole_chunk,
)
from jaxmlip.errors import ResourceError, UsageError


@dataclass(frozen=True, kw_only=True)
class HessianPlan:
    """A compiled Hessian for arrays of these shapes, and what it will need."""

    run: Callable  # (params, system) -> [n_rows, 3, n_atoms, 3], eV/Å²
    chunk: int  # columns (atom and direction) done at once
    n_columns: int  # columns in all, 3 x the atoms asked for
    argument_bytes: int  # params and system, in memory before the call
    result_bytes: int
    temporary_bytes: int
    memory: float  # the limit
    n_compilations: int  # 1 unless the first choice was over the limit
    compile_seconds: float

    @property
    def peak_bytes(self) -> int:
        """Arguments, result and temporary memory together: what the limit is held against.

        The compiler's figures. A process may grow by some 25 MB more in its first call (two cores,
        864 atoms of a pair potential, 82 MB planned; the cause is not known); the second call grew
        by 0.3 MB more than planned.
        """
        return self.argument_bytes + self.result_bytes + self.temporary_bytes

    def __str__(self):
        return (
            f"{self.n_columns} columns, {self.chunk} at a time: {_mb(self.peak_bytes)} "
            f"({_mb(self.temporary_bytes)} temporary) of {_mb(self.memory)}"
        )


def plan_hessian(
    apply, params, system, *, atoms=None, memory: float | None = None, chunk: int | None = None
) -> HessianPlan:
    """Compiles `hessian(apply, atoms=atoms)` so that it stays within `memory` bytes, all told.

    memory: limit on arguments, result and temporary memory of the running program (not of the
    compiler); by default 0.9 of what is free. chunk: columns at a time to begin with, instead of
    the number that is fast on this device. Raises `ResourceError` with the least that is needed
    where one column at a time is still too much. Not for use inside `jit`: it compiles.
    """
    _check(params, system, memory, chunk)
    rows = chosen(atoms, system.n_atoms)
    limit = 0.9 * free_memory() if memory is None else float(memory)
    _refuse_result(limit, system, rows)
    first = _first_chunk(apply, params, system, 3 * len(rows), limit) if chunk is None else chunk
    tried = [_compiled(apply, params, system, rows, first)]
    if tried[0]["peak"] > limit and tried[0]["chunk"] > 1:
        tried.append(_compiled(apply, params, system, rows, 1))
        between = _largest(tried, limit)
        if between > 1:
            tried.append(_compiled(apply, params, system, rows, between))
    fitting = [t for t in tried if t["peak"] <= limit]
    if not fitting:
        least = min(t["peak"] for t in tried)
        raise ResourceError(
            f"the Hessian of {system.n_atoms} atoms needs at least {_mb(least)}, one "
            f"column at a time; the limit is {_mb(limit)}",
            where="plan_hessian",
            fix=f"memory={_rounded_up(least):g}, fewer rows (atoms=), or float32",
        )
    return _plan(max(fitting, key=lambda t: t["chunk"]), tried, 3 * len(rows), limit)


def _first_chunk(apply, params, system, n_columns, limit):
    """As many columns as are fast, or as surely fit beside arguments and result if fewer."""
    at = gradient_at(apply, params, system)
    positions = jnp.asarray(system.positions)
    known = _size((params, system)) + n_columns * positions.nbytes
    return rows_at_once(at, positions, min(chunk_memory(), limit - known), n_columns)


def _compiled(apply, params, system, rows, chunk):
    chunk = whole_chunk(3 * len(rows), min(chunk, 3 * len(rows)))

    def program(params, system):
        at = gradient_at(apply, params, system)
        return rows_of(at, jnp.asarray(system.positions), rows, chunk)

    begun = time.perf_counter()
    run = jax.jit(program).lower(params, system).compile()
    figures = run.memory_analysis()
    sizes = {
        "argument": figures.argument_size_in_bytes,
        "result": figures.output_size_in_bytes,
        "temporary": figures.temp_size_in_bytes,
    }
    out = {"run": run, "chunk": chunk, "peak": sum(sizes.values()), "sizes": sizes}
    return out | {"seconds": time.perf_counter() - begun}


def _largest(tried, limit):
    """A chunk that stays below the limit, memory being linear in the chunk; two are measured.

    A result that must be cut to size is there twice: room for it is left.
    """
    many, one = tried
    slope = (many["peak"] - one["peak"]) / (many["chunk"] - 1)
    room = limit - one["peak"] - one["sizes"]["result"]
    if room < 0 or slope <= 0:
        return 1
    return min(1 + int(room / slope), many["chunk"] - 1)


def _plan(best, tried, n_columns, limit):
    return HessianPlan(
        run=best["run"],
        chunk=best["chunk"],
        n_columns=n_columns,
        **{f"{name}_bytes": size for name, size in best["sizes"].items()},
        memory=limit,
        n_compilations=len(tried),
        compile_seconds=sum(t["seconds"] for t in tried),
    )


def _mb(n):
    return f"{n / 1e6:.3g} MB"


def _rounded_up(n):
    """To three digits: what a refusal names is enough."""
    unit = 10 ** max(len(str(int(n))) - 3, 0)
    return unit * -(-int(n) // unit)


def _size(tree):
    return sum(jnp.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def _check(params, system, memory, chunk):
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, system))):
        raise UsageError(
            "it compiles, which cannot be done inside jit, vmap or grad",
            where="plan_hessian",
            fix="jaxmlip.hessian(apply, memory=...) counts instead of compiling",
        )
    for name, value in (("memory", memory), ("chunk", chunk)):
        if value is not None and not value > 0:
            raise UsageError(f"{name} is {value}; it must be positive", where="plan_hessian")


def _refuse_result(limit, system, rows):
    """What cannot fit is refused before minutes of compiling."""
    least = 9 * len(rows) * system.n_atoms * jnp.asarray(system.positions).dtype.itemsize
    if least > limit:
        raise ResourceError(
            f"the Hessian of {system.n_atoms} atoms alone needs {_mb(least)}; the limit is "
            f"{_mb(limit)}",
            where="plan_hessian",
            fix=f"memory above {_rounded_up(least):g}, fewer rows (atoms=), or spectral_density, "
            "which needs no Hessian",
        )
