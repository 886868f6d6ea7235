"""An ensemble as one potential: what its members predict on average, and how far they disagree.

The members share an architecture; their parameters are stacked, with the member as the first axis
of every leaf, so that one program computes all of them and a model file holds all of them. The
geometry (vectors, harmonics, radial basis) is computed once.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxmlip.errors import ModelError
from jaxmlip.potential import Potential, _made


def ensemble_potential(potential, n: int, *, forces: bool = True) -> Potential:
    """The mean of n members, whose stacked params are its own.

    Every prediction is the mean over members, so that forces, stress, Hessian ... of the ensemble
    are derivatives of its energy. Beside them, over the members m (sample standard deviations):
    energy_uncertainty [n_graphs], eV: of the energies E_m;
    forces_uncertainty [n_atoms], eV/Å: of a component of the forces, sqrt(sum over m of
    |F_m - F|² / (3 (n - 1))). It costs a backward pass that most of `forces` shares with it;
    `forces=False` leaves it out.
    Uncertainties are not differentiable (their gradient is zero): they are watched.
    Raises `ModelError` for fewer than two members, or params that are not of n members.
    """
    if n < 2:
        raise ModelError(f"an ensemble has two members or more, got {n}", code="JM510")

    def init(key, system):
        return jax.vmap(lambda k: potential.init(k, system))(jax.random.split(key, n))

    def apply(params, system):
        _check(params, n)
        at = lambda w, r: potential.apply(w, replace(system, positions=r))
        held = jax.lax.stop_gradient(system)
        fixed = lambda w, r: potential.apply(w, replace(held, positions=r))
        # one copy of the positions a member: only then are both passes below the same program
        positions = jnp.broadcast_to(system.positions, (n if forces else 1, system.n_atoms, 3))
        each = jax.vmap(at)(params, positions) if forces else _shared(at, params, system)
        out = {name: value.mean(0) for name, value in each.items()}
        out["energy_uncertainty"] = jax.lax.stop_gradient(_spread(each["energy"]))
        if forces:
            by_member = _forces(fixed, *jax.lax.stop_gradient((params, positions)))
            out["forces_uncertainty"] = jnp.sqrt((_spread(by_member) ** 2).mean(-1))
        return out

    make = lambda p: ensemble_potential(p, n, forces=forces)
    return _made(make, [potential], init, apply, potential.cutoff)


def predict_members(prediction: Callable, n: int) -> Callable:
    """`f(params, system)`: mean of `prediction` over n members, with uncertainties, in turn.

    prediction: of one member, such as `with_forces(apply)` or `predict(apply)`. The result is that
    of `prediction(ensemble_potential(...).apply)`; members are computed one after the other in a
    loop on the device, in the memory of one, which on a processor with small caches is the faster
    way, and the forces of each come at no further cost. Not meant to be differentiated.
    """

    def of(params, system):
        _check(params, n)
        each = jax.lax.map(lambda w: prediction(w, system), params)
        out = {name: value.mean(0) for name, value in each.items()}
        out["energy_uncertainty"] = _spread(each["energy"])
        if "forces" in each:
            out["forces_uncertainty"] = jnp.sqrt((_spread(each["forces"]) ** 2).mean(-1))
        return out

    return of


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


def _shared(at, params, system):
    return jax.vmap(at, (0, None))(params, system.positions)


def _forces(at, params, positions):
    """Forces of each member [n, n_atoms, 3] at [n, n_atoms, 3], of params that are held fixed.

    As the gradient of the mean: the compiler then sees that this pass is the one that the forces
    of the mean need, and does it once.
    """

    def mean(positions):
        return jax.vmap(at)(params, positions)["energy"].mean(0).sum()

    return -len(positions) * jax.grad(mean)(positions)


def _check(params, n):
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if sizes != {(n,)}:
        raise ModelError(
            f"an ensemble of {n} needs params stacked along a first axis of {n}; found first axes "
            f"{sorted(s[0] if s else 0 for s in sizes)}",
            code="JM510",
            fix="stack_members([params, ...])",
        )
