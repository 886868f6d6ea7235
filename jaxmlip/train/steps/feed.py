"""The batches of a run: made on the host, completed with curvature, placed on its devices."""

from collections.abc import Callable
from dataclasses import replace

import jax

from jaxmlip.data.batching import atoms_of, batch, plan, waste
from jaxmlip.errors import UsageError
from jaxmlip.train.objective.curvature import with_directions
from jaxmlip.train.steps.devices import device_mesh, divide, everywhere, fitting, parallel_batch


def mesh_of(config):
    """The devices that the configuration asks for, as a mesh; None for a single one.

    Raises `UsageError` where there are fewer, or where processes would be left without any.
    """
    if config.devices == 1:
        return None
    n = None if config.devices == "all" else config.devices
    mesh = device_mesh(n)
    if mesh.devices.size < jax.device_count() and jax.process_count() > 1:
        raise UsageError(
            f"{n} devices are asked for, the {jax.process_count()} processes have "
            f"{jax.device_count()}",
            where="devices",
            fix="devices: all",
        )
    return None if mesh.devices.size == 1 else mesh


def batches_from(run, at):
    """((bucket, members), System, labels) of every step that is left of an epoch."""
    todo = plan(run.buckets, atoms_of(run.train), seed=run.config.seed, epoch=at.epoch)
    for step, (b, members) in enumerate(todo[at.batch :], at.step):
        curved = step % run.config.curvature.every == 0
        yield (b, members), *made(run, b, members, step=step if curved else None)


def made(run, b: int, members, *, step: int | None = None) -> tuple:
    """(System, labels) of training frames, with products of Hessians if it has the number of a
    step."""
    return _made(run, run.train, run.buckets[b], run.shares, b, members, run.curvature, step)


def made_valid(run, b: int, members) -> tuple:
    """The same of validation frames, with products of Hessians."""
    known, shares = run.valid_curvature, run.valid_shares
    return _made(run, run.valid, run.valid_buckets[b], shares, b, members, known, 0)


def _made(run, frames, bucket, shares, b, members, known, step):
    complete = _completing(run, known, members, step)
    if run.mesh is None:
        system, labels = batch(frames, bucket, members)
        return system, complete(labels, system, members)
    atoms = atoms_of(frames)
    parts = divide(members, atoms, run.mesh.devices.size)
    return parallel_batch(
        frames, fitting(shares[b], parts, atoms), parts, run.mesh, complete=complete
    )


def _completing(run, known, members, step) -> Callable:
    """The labels of any part of a batch with products of Hessians, if the batch has some."""
    if known is None or step is None or all(known[i] is None for i in members):
        return lambda labels, system, part: labels
    c = run.config.curvature
    options = {"seed": run.config.seed, "n": c.directions, "draw": c.draw}
    return lambda labels, system, part: with_directions(
        labels, system, known, part, step=step, always=True, **options
    )


def placed(run, state):
    """The training state on all devices of the run."""
    return state if run.mesh is None else everywhere(jax.device_get(state), run.mesh)


def padding(run) -> float:
    """Share of the padded atoms of an epoch that are not real."""
    n, buckets = 1, run.buckets
    if run.mesh is not None:
        n = run.mesh.devices.size
        buckets = [replace(s, n_atoms=n * s.n_atoms) for s in run.shares]
    atoms = atoms_of(run.train)
    return waste(buckets, plan(run.buckets, atoms, seed=run.config.seed), atoms)
