"""An ensemble as one potential: what its members predict on average, and how far they disagree.

The members share an architecture; their parameters are stacked, with the member as the first axis
of every leaf, so that one program computes all of them and a model file holds all of them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters.partial_eval import dce_jaxpr

from jaxmlip.errors import ModelError
from jaxmlip.potential import Potential, _made
from jaxmlip.system import _sum_devices

GEOMETRY = ("positions", "cell", "charge", "spin", "field")  # what an energy has slopes along


def together(function: Callable, n: int) -> Callable:
    """`function(state, ...)` for all members at once (`vmap`); what follows the state is shared."""
    return lambda states, *rest: jax.vmap(lambda state: function(state, *rest))(states)


def in_turn(function: Callable, n: int) -> Callable:
    """The same, one member after the other in a loop on the device: the memory of one member."""
    return lambda states, *rest: jax.lax.map(lambda state: function(state, *rest), states)


def ensemble_potential(
    potential, n: int, *, forces: bool = True, over: Callable | None = None
) -> Potential:
    """The mean of n members, whose stacked params are its own.

    Every prediction is the mean over members, so that forces, stress, Hessian ... of the ensemble
    are derivatives of its energy. Beside them, over the members m (sample standard deviations):
    energy_uncertainty [n_graphs], eV: of the energies E_m;
    forces_uncertainty [n_atoms], eV/Å: of a component of the forces, sqrt(sum over m of
    |F_m - F|² / (3 (n - 1))). It costs a backward pass, which forces and stress then do not need
    any more; `forces=False` leaves it out.
    Uncertainties are not differentiable (their gradient is zero): they are watched.

    over: `in_turn` (default on a CPU, whose caches hold one member) or `together` (default on
    other devices). Raises `ModelError` for fewer than two members, or params that are not of n.
    """
    if n < 2:
        raise ModelError(f"an ensemble has two members or more, got {n}", code="JM510")

    def init(key, system):
        return jax.vmap(lambda k: potential.init(k, system))(jax.random.split(key, n))

    def apply(params, system):
        _check(params, n)
        # along a wave the doors differentiate by what is not in GEOMETRY; no one watches there
        member = (
            _with_slopes(potential.apply) if forces and system.wave is None else potential.apply
        )
        each = (over or _default())(member, n)(*jax.tree.map(jnp.asarray, (params, system)))
        slopes = each.pop("slopes", None)
        out = {name: value.mean(0) for name, value in each.items()}
        out["energy_uncertainty"] = jax.lax.stop_gradient(_spread(each["energy"]))
        if slopes is not None:
            out["forces_uncertainty"] = jnp.sqrt((_spread(slopes) ** 2).mean(-1))
        return out

    make = lambda p: ensemble_potential(p, n, forces=forces, over=over)
    return _made(make, [potential], init, apply, potential.cutoff)


def _default() -> Callable:
    return in_turn if jax.default_backend() == "cpu" else together


def _with_slopes(apply):
    """`apply` with `slopes`, dE/dr [n_atoms, 3], and an energy that knows its own derivatives.

    Who differentiates that energy gets slopes that are there already, and no second backward pass
    is run; the slopes are an ordinary function, so that higher derivatives follow.
    """
    tied = _tied(lambda params, system: apply(params, system)["energy"])

    def of(params, system):
        def energy(geometry):
            out = apply(params, replace(system, **geometry))
            return out["energy"].sum(), out

        floats = {k: getattr(system, k) for k in GEOMETRY if _is_float(getattr(system, k))}
        known = {"positions"} | _seen(lambda geometry: energy(geometry)[0], floats)
        slopes, out = jax.grad(energy, has_aux=True)({k: floats[k] for k in known})
        # what the energy does not depend on must not look as if it did (`depends_on_field`)
        other = {k: jnp.zeros_like(x) for k, x in floats.items() if k not in known}
        total = tied(params, replace(system, **other), out["energy"], slopes)
        return {**out, "energy": total, "slopes": jax.lax.stop_gradient(slopes["positions"])}

    return of


def _seen(function, arguments: dict) -> set:
    """Names of the arguments that the value of a function depends on, from its program."""
    jaxpr = jax.make_jaxpr(function)(arguments).jaxpr
    return {
        k for k, used in zip(sorted(arguments), dce_jaxpr(jaxpr, [True])[1], strict=True) if used
    }


def _tied(energy_of):
    """`f(params, system, energy, slopes)` -> energy, whose derivative by the system is `slopes`."""

    @jax.custom_jvp
    def tied(params, system, energy, slopes):
        return energy

    @partial(tied.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        params, system, energy, slopes = primals
        change = jnp.zeros_like(energy)
        for name, slope in slopes.items():
            moved = getattr(tangents[1], name)
            if not isinstance(moved, SymbolicZero):
                change += _by_structure(name, slope * moved, system).astype(change.dtype)
        if not all(isinstance(t, SymbolicZero) for t in jax.tree.leaves(tangents[0])):
            along = jax.tree.map(_filled, tangents[0])
            change += jax.jvp(lambda w: energy_of(w, system), (params,), (along,))[1]
        return tied(*primals), change

    return tied


def _by_structure(name, values, system):
    """Values of atoms or structures, summed for each structure; linear, as a tangent must be."""
    values = values.reshape(len(values), -1).sum(1)
    if name != "positions":
        return values
    return _sum_devices(system, jax.ops.segment_sum(values, system.graph, system.n_graphs))


def _filled(tangent):
    is_zero = isinstance(tangent, SymbolicZero)  # of whole numbers: of JAX's type without bits
    return np.zeros(tangent.shape, tangent.dtype) if is_zero else tangent


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def stack_members(members):
    """Params of an ensemble from those of its members, a list."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def split_members(params) -> list:
    """The params of each member of an ensemble."""
    n = jax.tree.leaves(params)[0].shape[0]
    return [jax.tree.map(lambda x, m=m: x[m], params) for m in range(n)]


def _spread(values):
    """Sample standard deviation over the first axis."""
    n = values.shape[0]
    return jnp.sqrt(((values - values.mean(0)) ** 2).sum(0) / (n - 1))


def _check(params, n):
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if sizes != {(n,)}:
        raise ModelError(
            f"an ensemble of {n} needs params stacked along a first axis of {n}; found first axes "
            f"{sorted(s[0] if s else 0 for s in sizes)}",
            code="JM510",
            fix="stack_members([params, ...])",
        )
