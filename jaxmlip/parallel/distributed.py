"""A potential over several devices: the same `apply`, mapped over domains with `shard_map`."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlip.errors import UsageError
from jaxmlip.parallel.halo import AXIS
from jaxmlip.potential import PER_ATOM

SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def device_mesh(n_domains: int, devices=None) -> Mesh:
    """A mesh of `n_domains` devices (default: the first ones of this process)."""
    devices = jax.devices() if devices is None else devices
    if len(devices) < n_domains:
        raise UsageError(
            f"{n_domains} domains need as many devices, there are {len(devices)}",
            where="device_mesh",
            fix="fewer domains; on a CPU XLA_FLAGS=--xla_force_host_platform_device_count=N makes "
            "N devices of one",
        )
    return Mesh(np.array(devices[:n_domains]), (AXIS,))


def distributed(apply, mesh: Mesh):
    """`apply` for systems from `decompose`, each domain on a device of `mesh`; same signature.

    (params, system) -> Prediction; values of atoms are those of the domains (see `restore`),
    values of structures are those of the whole. Every transform of the house takes it as it takes
    `apply`: `predict(distributed(apply, mesh))`. Receptive fields are exact, no atom or edge is
    computed twice; energies differ from those of one device by the order of summation.

    Whatever `apply` sums over atoms must go through `sum_atoms` or `sum_energies`; any other sum
    is refused by JAX, which sees that it differs between devices.
    """

    def distributed_of(params, system):
        _check(system, mesh)
        specs = partition(system)

        def of_domain(params, system):
            return _split(apply(params, system))

        mapped = jax.shard_map(
            of_domain, mesh=mesh, in_specs=(WHOLE, specs), out_specs=(SPLIT, WHOLE)
        )
        by_atom, by_structure = mapped(params, system)
        return {**by_structure, **by_atom}

    return distributed_of


def partition(system):
    """The `PartitionSpec` of each leaf: atoms and edges are split over devices, the rest is not."""
    whole = dict.fromkeys(("cell", "pbc", "charge", "spin", "field"), WHOLE)
    split = jax.tree.map(lambda _: SPLIT, system)
    return type(system)(**{**vars(split), **whole})


def place(system, mesh: Mesh):
    """The system with each domain's arrays on its own device."""
    _check(system, mesh)
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(put, system, partition(system))


def _split(prediction):
    by_atom = {k: v for k, v in prediction.items() if k in PER_ATOM}
    return by_atom, {k: v for k, v in prediction.items() if k not in PER_ATOM}


def _check(system, mesh):
    halo = None if system.edges is None else system.edges.halo
    if halo is None:
        raise UsageError(
            "the system is not decomposed", where="distributed", fix="decompose(system, n).system"
        )
    n_domains, n_devices = int(np.prod(halo.grid)), int(np.prod(mesh.devices.shape))
    if n_domains != n_devices or mesh.axis_names != (AXIS,):
        raise UsageError(
            f"the system has {n_domains} domains, the mesh {n_devices} devices "
            f"along axes {mesh.axis_names}",
            where="distributed",
            fix="device_mesh(n_domains)",
        )
