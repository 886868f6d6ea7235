"""What the workers of JAX codes share: compiling, waiting, and the compiler's own figures."""

import jax
import numpy as np


def compiler(function, *arguments):
    """A `compile` for `benchmarks.worker`: lowers, compiles and reports, then calls."""

    def compile_():
        program = jax.jit(function).lower(*arguments).compile()
        call = lambda: jax.block_until_ready(program(*arguments))
        return call, figures(program)

    return compile_


def stepper(step, params, memory, *rest):
    """A `compile` whose call makes one step from where the last one ended."""

    def compile_():
        program = jax.jit(step).lower(params, memory, *rest).compile()
        state = [params, memory]

        def call():
            state[:] = jax.block_until_ready(program(*state, *rest))

        return call, figures(program)

    return compile_


def figures(program):
    """Temporary memory in MB, and the work that XLA counts in its optimised program."""
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    return {
        "temporary_mb": memory.temp_size_in_bytes / 2**20,
        "xla_gflop": cost.get("flops", 0.0) / 1e9,
        "xla_gbyte": cost.get("bytes accessed", 0.0) / 1e9,
    }


def environment():
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def cast(tree, dtype):
    """Floating leaves in another precision; integers, keys and the rest as they are."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    floating = lambda x: hasattr(x, "dtype") and jax.numpy.issubdtype(x.dtype, np.floating)
    return jax.tree.map(lambda x: jax.numpy.asarray(x, dtype) if floating(x) else x, tree)


def random_like(shapes, seed=0):
    """Unit normal weights of these shapes (numpy, float32)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def count(params):
    return sum(int(x.size) for x in jax.tree.leaves(params) if hasattr(x, "size"))
