"""Training on several devices, of one machine or of many: each takes a share of every batch.

A batch for d devices is one `System` of d parts of equal shape, one after the other; arrays of
atoms, edges and structures are split along their first axis. `spread` gives the potential that
computes each part where it lies. Nothing else changes: the loss is a ratio of sums over the whole
batch, and its gradient is that of one device, up to the order of summation.

On many machines call `connect()` first, in every process, with the same command and data; under
Slurm it needs no arguments, one task a device:

    srun --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 python train.py

Elsewhere JAX_COORDINATOR (host:port), JAX_PROCESSES and JAX_PROCESS tell it. All processes plan the
same batches from the same seed, each builds its own parts, and only process 0 should write files.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlip.data.batching import Bucket, batch, plan
from jaxmlip.errors import ResourceError, UsageError
from jaxmlip.potential import Potential, _made
from jaxmlip.system import System, concatenate

AXIS = "batch"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()
ENVIRONMENT = ("JAX_COORDINATOR", "JAX_PROCESSES", "JAX_PROCESS")


def connect(**options) -> int:
    """Joins the processes of a run; returns how many there are. Call it before anything else.

    Taken from Slurm, Open MPI or a TPU pod where one of them started this process, else from
    JAX_COORDINATOR, JAX_PROCESSES and JAX_PROCESS, if they are set; alone, nothing is done.
    options: of `jax.distributed.initialize`. Raises `ResourceError` if the others are not found.
    """
    given = [os.environ.get(name) for name in ENVIRONMENT]
    if any(given) and not all(given):
        raise UsageError(
            f"of {', '.join(ENVIRONMENT)} only some are set", where="connect", fix="set all three"
        )
    if all(given):
        options = {
            "coordinator_address": given[0],
            "num_processes": int(given[1]),
            "process_id": int(given[2]),
        } | options
    elif not options and int(os.environ.get("SLURM_NTASKS", "1")) < 2:
        return 1
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"cannot join the other processes: {error}",
            where="connect",
            fix="start it with srun, or set " + ", ".join(ENVIRONMENT),
        ) from error
    return jax.process_count()


def device_mesh(n: int | None = None) -> Mesh:
    """A mesh of n devices along the batch (default: all, of all processes).

    Raises `UsageError` if there are fewer.
    """
    devices = jax.devices()
    if n is not None and not 1 <= n <= len(devices):
        raise UsageError(
            f"{n} devices are asked for, there are {len(devices)}",
            where="device_mesh",
            fix="fewer; on a CPU XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of one",
        )
    return Mesh(np.array(devices[:n]), (AXIS,))


def spread(potential, mesh: Mesh) -> Potential:
    """The potential for systems of `join`, each part on a device of its own.

    Params are the same on all devices. Every transform takes its `apply` as that of the potential
    itself; cotangents of params are summed over devices.
    """
    n = mesh.devices.size

    def of_part(params, system):
        part = jax.lax.axis_index(AXIS)
        return potential.apply(params, _own(system, part))

    def apply(params, system):
        _check(system, n)
        specs = jax.tree.map(lambda _: SPLIT, system)
        return jax.shard_map(of_part, mesh=mesh, in_specs=(WHOLE, specs), out_specs=SPLIT)(
            params, system
        )

    def init(key, system):
        return potential.init(key, first_part(system, n))

    return _made(lambda p: spread(p, mesh), [potential], init, apply, potential.cutoff)


def _own(system, part):
    """One part of a joined system, with its atoms and structures counted from zero."""
    atoms, graphs, edges = part * system.n_atoms, part * system.n_graphs, system.edges
    receivers = edges.receivers
    edges = replace(
        edges,
        senders=edges.senders - atoms.astype(edges.senders.dtype),
        receivers=None if receivers is None else receivers - atoms.astype(receivers.dtype),
    )
    return replace(system, graph=system.graph - graphs.astype(system.graph.dtype), edges=edges)


def first_part(system: System, n: int) -> System:
    """The first of the n parts of a joined system."""
    return jax.tree.map(lambda x: x[: x.shape[0] // n], system)


def join(parts, *, first: int = 0) -> tuple[System, dict]:
    """(System, labels) of several batches [(System, labels)] of one shape (host, numpy).

    first: how many parts of the whole batch, on devices of other processes, come before these.
    Raises `UsageError` for parts of different shapes or with different labels.
    """
    shapes = {tuple(map(np.shape, jax.tree.leaves(part))) for part in parts}
    if len(shapes) > 1 or len({tuple(sorted(labels)) for _, labels in parts}) > 1:
        raise UsageError(
            "the parts of a batch differ in shape or in labels",
            where="join",
            fix="batches of one bucket",
        )
    labels = [labels for _, labels in parts]
    joined = {k: np.concatenate([known[k] for known in labels]) for k in labels[0]}
    one, system = parts[0][0], concatenate([system for system, _ in parts])
    edges, atoms = system.edges, first * one.n_atoms
    receivers = None if edges.receivers is None else edges.receivers + atoms
    edges = replace(edges, senders=edges.senders + atoms, receivers=receivers)
    return replace(system, graph=system.graph + first * one.n_graphs, edges=edges), joined


def place(joined: tuple[System, dict], mesh: Mesh) -> tuple[System, dict]:
    """A joined batch with each part on its device. Of many processes, each gives the parts of its
    own devices and gets the whole."""
    sharding = NamedSharding(mesh, SPLIT)
    if jax.process_count() == 1:
        return jax.device_put(joined, sharding)
    put = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return jax.tree.map(put, joined)


def everywhere(tree, mesh: Mesh):
    """Params or a training state, the same on every device."""
    return jax.device_put(tree, NamedSharding(mesh, WHOLE))


def parallel_plan(buckets, atoms, n: int, *, seed, epoch: int = 0):
    """[(bucket, [frame indices of each device])] of one epoch: the batches of `data.plan`, n at a
    time. The last ones of a bucket may leave devices without frames; those get empty batches.
    """
    waiting, out = {b: [] for b in range(len(buckets))}, []
    for b, members in plan(buckets, atoms, seed=seed, epoch=epoch):
        waiting[b].append(members)
        if len(waiting[b]) == n:
            out.append((b, waiting[b]))
            waiting[b] = []
    rest = [(b, parts + [[]] * (n - len(parts))) for b, parts in waiting.items() if parts]
    return out + rest


def parallel_batch(frames, bucket: Bucket, parts, mesh: Mesh):
    """The placed batch of one entry of `parallel_plan`; a process reads its own frames only."""
    owners = [device.process_index for device in mesh.devices]
    mine = [m for m, owner in zip(parts, owners, strict=True) if owner == jax.process_index()]
    like = batch(frames, bucket, next(p for p in parts if p)[:1])
    made = [batch(frames, bucket, members) if members else _empty(like) for members in mine]
    return place(join(made, first=owners.index(jax.process_index())), mesh)


def _empty(like):
    """A batch of the same shape without frames: it adds nothing to any sum."""
    system, labels = like
    graph = np.full_like(system.graph, system.n_graphs - 1)
    edges = replace(system.edges, mask=np.zeros_like(system.edges.mask))
    edges = replace(edges, senders=np.zeros_like(edges.senders))
    system = replace(system, numbers=np.zeros_like(system.numbers), graph=graph, edges=edges)
    return system, {k: np.full_like(v, np.nan) for k, v in labels.items()}


def parallel(step: Callable, mesh: Mesh) -> Callable:
    """A step whose state stays whole on every device, from one of `training(spread(...), ...)`."""

    def parallel_step(state, *rest):
        state, metrics = step(state, *rest)
        return jax.lax.with_sharding_constraint(state, NamedSharding(mesh, WHOLE)), metrics

    return jax.jit(parallel_step, donate_argnums=0)


def _check(system, n):
    sizes = (system.n_atoms, system.n_graphs)
    if any(size % n for size in sizes) or system.edges is None:
        raise UsageError(
            f"{sizes[0]} atoms in {sizes[1]} structures are not {n} parts of one shape",
            where="spread",
            fix="join(batches of one bucket)",
        )
