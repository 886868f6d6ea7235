"""Training on several devices, of one machine or of many: each takes a share of every batch.

A batch for d devices is one `System` of d parts of equal shape, one after the other; arrays of
atoms, edges and structures are split along their first axis. `spread` gives the potential that
computes each part where it lies. Nothing else changes: the loss is a ratio of sums over the whole
batch, and its gradient is that of one device, up to the order of summation (Born charges are
compared along other random directions, with the same mean). A run does this where its configuration
says `devices: N`, or `all`: the batches stay those of one device.

On many machines every process runs the same command on the same data and folder; under Slurm, one
task a device, each of which sees all devices of its node (JAX picks its own by its place there):

    srun --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --gpu-bind=none \
        jaxmlip train run.yaml --set devices=all

Elsewhere JAX_COORDINATOR (host:port), JAX_PROCESSES and JAX_PROCESS tell how they find each other
(`parallel.processes.connect`). All plan the same batches from the same seed, each builds its own
parts, and only process 0 writes files.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlip.data.batching import Bucket, batch
from jaxmlip.errors import UsageError
from jaxmlip.models.heads import HEAD
from jaxmlip.potential import Potential, _made
from jaxmlip.system import System, concatenate

AXIS = "batch"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()
GROWTH = 1.125  # of the shape of parts, for a batch that does not fit into the usual one


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
        own = {HEAD} if isinstance(params, dict) and jnp.ndim(params.get(HEAD, 0)) else set()
        whole = {k: SPLIT if k in own else WHOLE for k in params} if own else WHOLE
        return jax.shard_map(of_part, mesh=mesh, in_specs=(whole, specs), out_specs=SPLIT)(
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


def divide(members, atoms, n: int) -> list[list[int]]:
    """The frames of a batch in n parts of about as many atoms each.

    The largest frame first, each to the part that has the fewest atoms yet. atoms: number of atoms
    of each frame. A part may have no frame.
    """
    parts, loads = [[] for _ in range(n)], [0] * n
    for i in sorted(members, key=lambda i: (-int(atoms[i]), i)):
        k = min(range(n), key=lambda k: (loads[k], len(parts[k])))
        parts[k].append(i)
        loads[k] += int(atoms[i])
    return parts


def part_buckets(buckets, batches, atoms, n: int, *, needed: int | None = None):
    """The shape of one of n parts of the batches [(bucket, members)], for each bucket.

    That of the largest part; frames: those of the bucket. Raises `UsageError` where no batch has
    a structure for every device (or as many as are `needed`).
    """
    most = max(len(members) for _, members in batches)
    if most < (n if needed is None else needed):
        raise UsageError(
            f"{n} devices share batches of at most {most} structures",
            where="devices",
            fix="a larger batch_atoms, or fewer devices",
        )
    parts = {b: [[]] for b in range(len(buckets))}
    for b, members in batches:
        parts[b] += divide(members, atoms, n)
    size = lambda part: sum(int(atoms[i]) for i in part)
    return tuple(
        replace(
            bucket,
            n_atoms=max(1, *map(size, parts[b])),
            n_graphs=max(map(len, parts[b])) + 1,
        )
        for b, bucket in enumerate(buckets)
    )


def fitting(bucket: Bucket, parts, atoms) -> Bucket:
    """The bucket, or the first larger one of a ladder that holds all parts: one more shape."""
    size = max(sum(int(atoms[i]) for i in part) for part in parts)
    graphs = max(map(len, parts)) + 1
    while bucket.n_atoms < size or bucket.n_graphs < graphs:
        grown = (int(np.ceil(GROWTH * x)) for x in (bucket.n_atoms, bucket.n_graphs))
        n_atoms, n_graphs = grown
        bucket = replace(bucket, n_atoms=n_atoms, n_graphs=n_graphs)
    return bucket


def parallel_batch(
    frames, bucket: Bucket, parts, mesh: Mesh, *, complete: Callable | None = None
) -> tuple[System, dict]:
    """The placed batch of parts (`divide`) of one shape; a process reads its own frames only.

    complete: labels = complete(labels, system, members), of a part, for what is added last.
    """
    owners = [device.process_index for device in mesh.devices]
    mine = [m for m, owner in zip(parts, owners, strict=True) if owner == jax.process_index()]

    def made(members):
        system, labels = batch(frames, bucket, members)
        return system, labels if complete is None else complete(labels, system, members)

    like = None if all(mine) else _empty(made(next(p for p in parts if p)[:1]))
    own = [made(members) if members else like for members in mine]
    return place(join(own, first=owners.index(jax.process_index())), mesh)


def _empty(like):
    """A batch of the same shape without frames: it adds nothing to any sum."""
    system, labels = like
    graph = np.full_like(system.graph, system.n_graphs - 1)
    edges = replace(system.edges, mask=np.zeros_like(system.edges.mask))
    edges = replace(edges, senders=np.zeros_like(edges.senders))
    system = replace(system, numbers=np.zeros_like(system.numbers), graph=graph, edges=edges)
    unknown = {k: np.full_like(v, np.nan) for k, v in labels.items()}
    if "directions" in labels:  # along which the model is differentiated: always numbers
        unknown["directions"] = np.zeros_like(labels["directions"])
    return system, unknown


def parallel(function: Callable, mesh: Mesh, *, donate=0) -> Callable:
    """The function with results that are whole on every device.

    A step of `training(spread(...), ...)`, or sums of a batch (donate=(): nothing is consumed).
    """
    everywhere = NamedSharding(mesh, WHOLE)

    def whole(*args):
        return jax.lax.with_sharding_constraint(function(*args), everywhere)

    return jax.jit(whole, donate_argnums=donate)


def _check(system, n):
    sizes = (system.n_atoms, system.n_graphs)
    if any(size % n for size in sizes) or system.edges is None:
        raise UsageError(
            f"{sizes[0]} atoms in {sizes[1]} structures are not {n} parts of one shape",
            where="spread",
            fix="join(batches of one bucket)",
        )
