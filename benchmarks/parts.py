"""The parts of our MACE one by one: times, counted work, and fractions of what the machine can do.

    python -m benchmarks.profile --system si64 --cores 1 --output results.jsonl

Each part is compiled alone, as the model itself computes it, forward and with the backward pass to
its inputs. Its limit is the larger of counted FLOP over the measured rate of a matrix product and
compulsory bytes (inputs, outputs and their gradients, once each) over that of a copy; `of_limit` is
limit over measured time. On one core times are CPU times, on more wall times.
"""

import argparse
from dataclasses import replace

import numpy as np

from benchmarks import drive, timing, work
from benchmarks.systems import structure


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--system", default="si64")
    parser.add_argument("--model", default="mace", choices=[k for k in drive.MODELS if "mace" in k])
    parser.add_argument("--channels", type=int)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--cores", type=int, help="pin to so many cores (Linux); default all")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of repeats a part")
    parser.add_argument("--output", help="append the lines to this file, too")
    given = parser.parse_args()
    timing.pin(given.cores)  # before JAX counts the cores
    task = {"model": given.model, "system": given.system, "dtype": given.dtype}
    task |= drive.MODELS[given.model] | {"budget": given.budget}
    if given.channels:
        task["channels"] = given.channels
    for line in profile(task):
        drive.keep(line, given.output)


def profile(task):
    """Lines of results: the rates of this machine, each part, and the whole."""
    import jax

    if task["dtype"] == "float64":
        jax.config.update("jax_enable_x64", True)
    import jaxmlip
    from benchmarks.peers.jaxmlip import model_of

    atoms = structure(task["system"])
    system = jax.device_put(jaxmlip.from_ase(atoms, task["cutoff"], dtype=task["dtype"]))
    model, params = model_of(task, system)
    sizes = {"n_atoms": len(atoms), "n_edges": int(system.edges.mask.sum())}
    facts = {k: task[k] for k in ("system", "model", "dtype", "channels")} | sizes
    facts |= {"task": "profile", "cores": timing.cores()}
    machine = rates(task["dtype"])
    yield facts | {"part": "machine", **machine}
    forward, both = (f(model, params, **sizes) for f in (work.forward_flop, work.flop))
    for name, function, inputs, counted in parts(model, params, system):
        flop = [sum(n for k, n in work_of.items() if k in counted) for work_of in (forward, both)]
        yield facts | {"part": name, **part(function, inputs, flop, machine, task["budget"])}
    whole = lambda system: jaxmlip.predict(model.apply)(params, system)
    line = run(whole, (system,), task["budget"])
    flop = sum(both.values())
    line |= {
        "gflop": flop / 1e9,
        "of_limit": flop / 1e9 / machine["gemm_gflops"] / line["ms"] * 1e3,
    }
    yield facts | {"part": "energy, forces, stress", **{f"both_{k}": v for k, v in line.items()}}


def rates(dtype):
    """GFLOP/s of a large matrix product (XLA's or numpy's) and GB/s of a copy beyond the caches."""
    import jax

    a = np.random.default_rng(0).normal(size=(1536, 1536)).astype(dtype)
    product, x = jax.jit(lambda x: x @ x), jax.numpy.asarray(a)
    source = np.ones(2**24)
    target = np.ones_like(source)
    calls = (
        lambda: product(x).block_until_ready(),
        lambda: a @ a,
        lambda: np.copyto(target, source),
    )
    ms = [time_of(timing.measure(call, budget=1.0)) for call in calls]
    flop, moved = 2 * len(a) ** 3, 2 * source.nbytes
    return {"gemm_gflops": flop / min(ms[:2]) / 1e6, "copy_gbytes": moved / ms[2] / 1e6}


def time_of(measured):
    return measured["cpu_ms" if timing.cores() == 1 else "wall_ms"]


def part(function, inputs, flop, machine, budget):
    """Times and fractions of one part, forward and with the backward pass."""
    import jax

    floating = [jax.numpy.issubdtype(x.dtype, np.floating) for x in jax.tree.leaves(inputs)]
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree) if x.dtype != bool)
    outputs = jax.eval_shape(function, *inputs)
    moved = size(inputs) + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(outputs))
    assert all(floating), "the backward pass is taken to every input"
    total = lambda *inputs: sum(jax.numpy.sin(x).sum() for x in jax.tree.leaves(function(*inputs)))
    both = jax.grad(total, argnums=tuple(range(len(inputs))))
    out = {}
    for name, f, n, bytes_ in (
        ("forward", function, flop[0], moved),
        ("both", both, flop[1], 2 * moved),
    ):
        line = run(f, inputs, budget)
        least = max(n / machine["gemm_gflops"], bytes_ / machine["copy_gbytes"]) / 1e6
        line |= {"gflop": n / 1e9, "gbyte": bytes_ / 1e9, "of_limit": least / line["ms"]}
        out |= {f"{name}_{k}": v for k, v in line.items()}
    return out


def run(function, inputs, budget):
    """Time, temporary memory and XLA's own count of one compiled function."""
    from benchmarks.peers.jax_program import compiler

    watch = timing.Stopwatch()
    call, facts = compiler(function, *inputs)()
    compile_s = watch.cpu()
    call()
    return {"ms": time_of(timing.measure(call, budget=budget)), "compile_s": compile_s, **facts}


def parts(model, params, system):
    """(name, function, inputs, names of counted work) of each part, as the model computes it."""
    import jax

    apply = bound(model, params)
    species, _ = apply("_species", system)
    geometry = lambda positions: apply("_edges", replace(system, positions=positions), species)
    yield "harmonics and distances", geometry, (system.positions,), ()
    edges = jax.jit(geometry)(system.positions)
    features, table = apply("_embedding", system, species)
    layers = []
    for i in range(model.n_layers):
        senders = tuple(features)
        radial = lambda r, i=i, senders=senders: apply("_radial_weights", i, r, senders)
        yield f"radial network {i} alone", radial, (edges[1],), (f"radial {i}",)
        send = lambda features, edges, i=i, table=table: apply(
            "_messages", i, system, features, species, edges, table
        )[0]
        work_of = (f"radial {i}", f"convolution {i}", f"mixing {i}")
        yield f"messages {i}", send, (features, edges), work_of
        x = jax.jit(send)(features, edges)
        contract = lambda x, i=i: apply("_contraction", i, x, species)
        yield f"contraction {i} alone", contract, (x,), (f"contraction {i}",)
        # a layer that is given its messages in the place of the system
        update = lambda x, features, i=i: apply("_layer", i, x, features, species, edges, None)
        yield f"update {i}", update, (x, features), (f"contraction {i}", f"update {i}")
        features, table = jax.jit(update)(x, features), None
        layers.append(features)
    read = lambda layers: apply("_energies", system, layers, species)
    yield "readout", read, (layers,), ("readout",)


def bound(model, params):
    """apply(name, ...) of a method of the model, its private ones and those below."""
    from flax import linen as nn

    from jaxmlip.nn.linear import species_index
    from jaxmlip.nn.radial import radial_weights, with_slope
    from jaxmlip.nn.symmetric_contraction import SymmetricContraction
    from jaxmlip.nn.tensor_product import natural, paths

    class Parts(type(model)):
        @nn.compact
        def part(self, name, *arguments):
            return getattr(self, name)(*arguments)

        def _species(self, system):
            return species_index(system.numbers, self.elements)

        def _radial_weights(self, i, distances, senders):
            n = self.channels * len(paths(senders, self.l_max, natural(self.l_max)))
            layers = self._layers(i, n)
            weights = lambda layers, *r: radial_weights(layers, self._basis(*r))
            return with_slope(weights)(layers, *distances)

        def _contraction(self, i, x, species):
            hidden, n = tuple(natural(self._hidden(i))), len(self.elements)
            sizes = self.l_max, self.correlation, hidden, n
            return SymmetricContraction(*sizes, name=f"product_{i}")(x, species)

    class Updates(Parts):
        def _messages(self, i, given, *_):
            return given, None

    fields = [name for name in model.__dataclass_fields__ if name not in ("parent", "name")]
    fields = {name: getattr(model, name) for name in fields}
    own = lambda name: (Updates if name == "_layer" else Parts)(**fields)
    return lambda name, *given: own(name).apply(params, name, *given, method="part")
