"""Ensembles: several models of one architecture, trained at once by one program.

Members differ by the seed of their weights and, if asked for, by the frames that each of them is
trained on. Their training states are stacked: member is the first axis of every leaf.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import UsageError
from jaxmlip.models.members import (
    ensemble_potential,
    in_turn,
    split_members,
    stack_members,
    together,
)
from jaxmlip.potential import PER_ATOM
from jaxmlip.system import System

AS_THEY_ARE = ("weight", "directions", "head")  # labels that tell how others are compared
__all__ = [
    "ensemble",
    "ensemble_potential",
    "in_turn",
    "leave_out",
    "split_members",
    "stack_members",
    "together",
]


def ensemble(
    init: Callable, step: Callable, n: int, *, share: float = 1.0, over: Callable = together
):
    """`(init, step)` of n members from those of one (`step.training`), each one compile.

    init(key, system): states of n members from n keys. step(states, system, labels, ...): all
    members take a step on the same batch; metrics are those of the members together: mean loss,
    largest gradient norm, most bad steps in a row, and metric sums added up over the members. A
    member whose step is not finite keeps its state, the others go on.

    share: of the frames that a member sees; each member sees others (see `leave_out`), which is
    aggregation by subsampling (Bühlmann and Yu, 2002, 10.1214/aos/1031689014). 1: all see all.
    over: `together` (vmap) or `in_turn`. Raises `UsageError` for n < 2 or a share not in (0, 1].
    """
    if n < 2 or not 0 < share <= 1:
        raise UsageError(
            f"an ensemble of {n} members, each with {share} of the frames",
            where="ensemble",
            fix="two members or more, and a share above 0 and at most 1",
        )

    def init_all(key, system):
        return jax.vmap(lambda k: init(k, system))(jax.random.split(key, n))

    def one(member_state, system, labels, *rest):
        member, state = member_state
        seen = labels if share == 1 else leave_out(labels, system, member, share=share)
        return step(state, system, seen, *rest)

    def step_all(states, system, labels, *rest):
        members = jnp.arange(n)
        states, metrics = over(one, n)((members, states), system, labels, *rest)
        return states, _joined(metrics)

    return jax.jit(init_all), jax.jit(step_all, donate_argnums=0)


def with_members(potential, init: Callable, step: Callable, n: int, *, share: float = 1.0):
    """(potential, init, step, merge) of a run that trains n members; of one as they are.

    The potential is the mean of the members, for validation and for the model file; merge: of its
    params, where the potential of one has such (adapters that become plain weights).
    """
    merge = getattr(potential, "merge", lambda params: params)
    if n == 1:
        return potential, init, step, merge
    mean = ensemble_potential(potential, n, forces=False)
    return mean, *ensemble(init, step, n, share=share), jax.vmap(merge)


def _joined(metrics):
    """One dict of metrics from those of each member."""
    how = {"loss": jnp.mean, "gradient": jnp.max, "bad": jnp.max}
    add = lambda tree: jax.tree.map(lambda x: x.sum(0), tree)
    return {k: how.get(k, add)(v) for k, v in metrics.items()}


def leave_out(labels: dict, system: System, member, *, share: float) -> dict:
    """The labels with NaN for the structures that `member` does not see.

    Whether it sees a structure depends on its coordinates alone, to the last bit, so it is the same
    in every epoch, in every batch, on every device and after a restart; about `share` are seen.
    """
    seen = _lots(system, member) < share

    def masked(name, value):
        if name.partition(":")[0] in AS_THEY_ARE:
            return value
        rows = seen[system.graph] if name in PER_ATOM or name == "hessian" else seen
        return jnp.where(rows.reshape(-1, *(1,) * (jnp.ndim(value) - 1)), value, jnp.nan)

    return {name: masked(name, value) for name, value in labels.items()}


def _lots(system, member):
    """A number in [0, 1) for each structure, drawn from the bits of its coordinates."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(system.positions, jnp.float32), jnp.uint32)
    weights = jnp.asarray(np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint32))
    atom = jnp.where(system.atom_mask, (_mixed(bits) * weights).sum(1, dtype=jnp.uint32), 0)
    # sums of whole numbers: the order of atoms does not matter, nor does rounding
    label = jnp.zeros(system.n_graphs, jnp.uint32).at[system.graph].add(atom)
    keys = jax.vmap(lambda x: jax.random.fold_in(jax.random.fold_in(jax.random.key(7), member), x))
    return jax.vmap(lambda k: jax.random.uniform(k, dtype=jnp.float32))(keys(label))


def _mixed(x):
    """Bits spread over the whole number (the finaliser of a hash), so that sums do not collide."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
