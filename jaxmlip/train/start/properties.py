"""Property transfer: a new scalar read from the features of a frozen potential.

For data sets too small to train a network: the features have seen many more structures. The linear
readout has a closed solution (`ridge`), with the error that each structure has when it is left out.
A small network (`widths`) is trained by the ordinary step: `add_property`, then `transfer` with
`readout_of(name)`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.data.batching import batch, make_buckets, plan
from jaxmlip.errors import DataError
from jaxmlip.models import checkpoint
from jaxmlip.models.properties import check_entry, predicted_with_scalars, property_params
from jaxmlip.potential import bind
from jaxmlip.system import cast
from jaxmlip.train.start.transfer import part

STRENGTHS = tuple(10.0**k for k in range(-8, 5))  # of the penalty, in squared singular values / n


class Ridge(NamedTuple):
    """A linear readout and how good it is, in the unit of the labels."""

    card: dict
    params: dict
    error: float  # root mean square over structures (atoms) that were left out of the fit
    composition: float  # the same for the best fit of the composition alone
    spread: float  # standard deviation of the labels
    strength: float  # of the penalty, that with the smallest error


def scalars(card: dict, params, systems, *, batch_atoms: int = 256) -> list:
    """Invariant features of the atoms of each structure, [n_atoms, n_features] float64 numpy."""
    model = bind(checkpoint.build(card), list(systems))
    params = cast({"params": params["params"]}, systems[0].positions.dtype)
    joined = lambda p, s: jnp.concatenate(predicted_with_scalars(model, p, s)[1], -1)
    features, bare, out = jax.jit(joined), [(s, {}) for s in systems], [None] * len(systems)
    buckets = make_buckets(bare, n_buckets=1, max_atoms=batch_atoms)
    for b, members in plan(buckets, [s.n_atoms for s in systems], seed=None):
        found = np.asarray(features(params, batch(bare, buckets[b], members)[0]), np.float64)
        stops = np.cumsum([systems[i].n_atoms for i in members])
        for i, rows in zip(members, np.split(found, stops), strict=False):
            out[i] = rows
    return out


def add_property(card, params, name: str, system, *, widths: Sequence[int] = (), key, **entry):
    """(card, params) with a new readout `name`, not trained yet: a table by element and a network.

    widths: of its hidden layers. entry: of, extensive, unit (see `models.properties`). Raises
    `ModelError` for a name that is taken.
    """
    entry = {**entry, "widths": list(widths)}
    check_entry(name, entry)
    model = bind(checkpoint.build(card), system)
    shapes = jax.eval_shape(lambda p: predicted_with_scalars(model, p, system)[1], params)
    width, n_elements = sum(x.shape[-1] for x in shapes), len(card["fields"]["elements"])
    own = property_params(key, entry, width, n_elements)
    return _with(card, params, name, entry, own)


def readout_of(name: str) -> Callable:
    """The update of `transfer` that trains the readout `name` alone."""
    return partial(part, chosen=lambda leaf: leaf.startswith(f"properties/{name}/"))


def _with(card, params, name, entry, own):
    card = {**card, "properties": {**card.get("properties", {}), name: entry}}
    return card, {**params, "properties": {**params.get("properties", {}), name: own}}


def ridge(
    card: dict,
    params,
    name: str,
    frames,
    *,
    extensive: bool = False,
    of: str = "structure",
    unit: str = "",
    batch_atoms: int = 256,
) -> Ridge:
    """The linear readout of labels `name`, by penalised least squares in float64.

    frames: [(System, labels)] with labels[name] of shape [1] (or [n_atoms] for of="atom"), NaN
    where unknown. The table by element is not penalised; the features, each over its spread, are,
    by the strength that makes the error of left-out structures least. The error is exact for each
    strength (for atoms, those of a structure are left out together), a little optimistic in that
    the strength is chosen by it. Raises `DataError` for fewer than two known structures.
    """
    entry = {"of": of, "extensive": extensive, "widths": [], "unit": unit}
    check_entry(name, entry)
    frames = [f for f in frames if name in f[1] and np.isfinite(f[1][name]).any()]
    if len(frames) < 2:
        raise DataError(f"{len(frames)} structures have '{name}', needed are two", code="JM220")
    features = scalars(card, params, [s for s, _ in frames], batch_atoms=batch_atoms)
    elements = np.array(card["fields"]["elements"])
    kinds = [(np.asarray(s.numbers)[:, None] == elements).astype(float) for s, _ in frames]
    y = np.concatenate([np.asarray(labels[name], float).reshape(-1) for _, labels in frames])
    sizes = [len(k) if of == "atom" else 1 for k in kinds]
    rows = partial(_rows, of=of, extensive=extensive)
    x, c, group = rows(features), rows(kinds), np.repeat(np.arange(len(frames)), sizes)
    known = np.isfinite(y)
    x, c, y, group = x[known], c[known], y[known], group[known]
    scale = np.where(x.std(0) > 1e-12 * abs(x).max(), x.std(0), np.inf)
    weights, error, composition, strength = _solve(x / scale, c, y, group)
    weights = weights / scale
    table = np.linalg.lstsq(c, y - x @ weights, rcond=None)[0]
    own = {"element": jnp.asarray(table), "out": jnp.asarray(weights)}
    entry["fit"] = {"structures": len(frames), "left_out_rmse": error, "composition": composition}
    card, params = _with(card, params, name, entry, own)
    return Ridge(card, params, error, composition, float(y.std()), strength)


def _rows(values, *, of, extensive):
    """Values of atoms as the rows of a least squares problem."""
    if of == "atom":
        return np.concatenate(values)
    return np.array([v.sum(0) if extensive else v.mean(0) for v in values])


def _solve(x, c, y, group):
    """(weights, error, error of c alone, strength) of y = x w + c t, w penalised and t not."""
    u, values, _ = np.linalg.svd(c, full_matrices=False)
    q = u[:, values > 1e-10 * values.max()]
    rest = lambda z: z - q @ (q.T @ z)
    u, s, vt = np.linalg.svd(rest(x), full_matrices=False)
    target, whole = u.T @ y, lambda share: np.hstack([q, u * np.sqrt(share)])
    unit = s.max() ** 2 / len(y)
    shares = {strength: s**2 / (s**2 + strength * unit) for strength in STRENGTHS}
    left = lambda share: _left_out(whole(share), y, group)
    errors = {strength: left(share) for strength, share in shares.items()}
    best = min(errors, key=errors.get)
    safe = np.where(s > 1e-12 * s.max(), s, np.inf)
    return vt.T @ (shares[best] / safe * target), errors[best], left(0 * s), best


def _left_out(h, y, group):
    """Root mean square error of groups left out of a linear fit with hat matrix h h^T.

    For the rows g of a group: (1 - h_g h_g^T)^-1 of their residuals.
    """
    residual, square = y - h @ (h.T @ y), 0.0
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        own = np.eye(len(rows)) - h[rows] @ h[rows].T
        square += (np.linalg.lstsq(own, residual[rows], rcond=1e-10)[0] ** 2).sum()
    return float(np.sqrt(square / len(y)))
