"""Going on from a potential that exists: all of its parameters, the last layers, or low ranks.

An `Update` says what is trained in two pure functions. `transfer` makes a potential of it whose
params are the trained leaves alone, so that what is frozen has no gradient, no optimiser memory
and no moving average, and comes out of `merge` with every bit as it went in.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmlip.errors import UsageError
from jaxmlip.models.heads import HEAD
from jaxmlip.models.leaves import by_name, is_readout, nested
from jaxmlip.potential import bind

HIGHEST = jax.lax.Precision.HIGHEST


class Update(NamedTuple):
    """What is trained of given params, and how it is put back; both pure and traceable."""

    init: Callable  # trained = init(key)
    merge: Callable  # params = merge(trained), of the names and shapes of the given ones


class Tuned(NamedTuple):
    """A `Potential` of the trained leaves; `merge(trained)` are params of the whole one."""

    init: Callable
    apply: Callable
    cutoff: float
    plan: Callable | None
    merge: Callable


def whole(params) -> Update:
    """All of the parameters are trained."""
    return Update(lambda key: jax.tree.map(jnp.asarray, params), lambda trained: trained)


def part(params, chosen: Callable[[str], bool]) -> Update:
    """The leaves whose name, such as "params/energy_0/out", is chosen are trained.

    Raises `UsageError` if none is.
    """
    leaves = by_name(params)
    moving = {name: x for name, x in leaves.items() if chosen(name)}
    if not moving:
        raise UsageError(
            "no parameter is chosen to be trained",
            where="transfer",
            fix=f"choose of {', '.join(sorted({'/'.join(n.split('/')[:2]) for n in leaves}))}",
        )
    frozen = {name: x for name, x in leaves.items() if name not in moving}

    def merge(trained):
        return nested({**frozen, **by_name(trained)})

    return Update(lambda key: nested(jax.tree.map(jnp.asarray, moving)), merge)


def last_layers(params) -> Update:
    """The readouts are trained: what is linear or a small network over the final features."""
    return part(params, is_readout)


def low_rank(params, rank: int = 4, *, alpha: float | None = None) -> Update:
    """W + (alpha / rank) A B for every matrix W [..., a, b]; A [..., a, rank], B [..., rank, b].

    Leading axes (species, members) have matrices of their own. alpha: default `rank`. A is drawn
    with variance 1/rank and B is zero, so that one begins at W, and a step of Adam moves an entry
    of W about as far as if it were trained itself. Leaves for which A and B would be larger than W
    (vectors, small tables) are trained as they are. Raises `UsageError` for a rank below 1.

    Low-rank adaptation: Hu et al., 2021, arXiv:2106.09685; an invariant weight plus an invariant
    weight keeps the model equivariant.
    """
    if rank < 1:
        raise UsageError(f"a rank is at least 1, got {rank}", where="low_rank")
    factor = (rank if alpha is None else alpha) / rank
    leaves = by_name(params)
    low = {name: x for name, x in leaves.items() if _saves(x, rank)}
    rest = {name: x for name, x in leaves.items() if name not in low}

    def init(key):
        keys = dict(zip(low, jax.random.split(key, max(len(low), 1)), strict=False))
        kind = lambda x: jax.dtypes.canonicalize_dtype(x.dtype)
        draw = lambda name, x: jax.random.normal(keys[name], (*x.shape[:-1], rank), kind(x))
        zeros = lambda x: jnp.zeros((*x.shape[:-2], rank, x.shape[-1]), kind(x))
        a = {name: draw(name, x) / rank**0.5 for name, x in low.items()}
        b = {name: zeros(x) for name, x in low.items()}
        return {"a": nested(a), "b": nested(b), "rest": nested(jax.tree.map(jnp.asarray, rest))}

    def merge(trained):
        a, b = by_name(trained["a"]), by_name(trained["b"])
        sums = {name: _sum(x, factor, a[name], b[name]) for name, x in low.items()}
        return nested({**sums, **by_name(trained["rest"])})

    return Update(init, merge)


def _saves(x, rank):
    return x.ndim >= 2 and rank * (x.shape[-2] + x.shape[-1]) < x.shape[-2] * x.shape[-1]


def _sum(w, factor, a, b):
    """In full precision: TF32 would write its rounding into the model."""
    return w + factor * jnp.matmul(a, b, precision=HIGHEST)


def transfer(potential, params, *, update: Callable = whole) -> Tuned:
    """A potential whose params are what `update(params)` trains: `init(key, system)` begins at it.

    params: of the potential to start from. update: params -> `Update`: `whole`, `last_layers`,
    `partial(part, chosen=...)`, `partial(low_rank, rank=...)`. What is frozen is held as it is by
    `apply`, without a backward pass to its leaves. Save with `checkpoint.save(path, card,
    tuned.merge(trained))`.
    """
    change = update(params)

    def apply(trained, system):
        rest = {name: x for name, x in trained.items() if name != HEAD}
        chosen = {HEAD: trained[HEAD]} if HEAD in trained else {}
        return potential.apply({**change.merge(rest), **chosen}, system)

    plan = None
    if getattr(potential, "plan", None) is not None:
        plan = lambda system: transfer(bind(potential, system), params, update=update)
    init = lambda key, system: change.init(key)
    return Tuned(init, apply, potential.cutoff, plan, change.merge)


def update_named(name: str, *, rank: int = 4) -> Callable:
    """The update that a configuration calls all, last or lora."""
    return {"all": whole, "last": last_layers, "lora": partial(low_rank, rank=rank)}[name]
