"""Reference energies: taken from labels, and refitted for a run that goes on from a potential.

They belong to a level of theory. Such a start predicts energies without them; what is then missing
from the labels, element by element, is theirs.
"""

import jax
import numpy as np

from jaxmlip.data.batching import atoms_of, batch, make_buckets, plan
from jaxmlip.data.statistics import remove_reference_energies
from jaxmlip.errors import UsageError
from jaxmlip.interfaces.labels import atomic_number
from jaxmlip.models import checkpoint
from jaxmlip.system import cast
from jaxmlip.train.config.settings import Config
from jaxmlip.train.frames.stored import Stored, bind_to, energies_of, mapped, numbers_of

LIMIT = 0.5  # eV per atom that references may be off before they are said to be of another level
FREE = 1e3  # how much more freely an element without a reference takes what is missing


def without_references(frames, reference: dict[int, float] | None):
    """The frames with the energies of free atoms removed in float64."""
    energies = energies_of(frames)
    if not reference or np.isnan(energies).all():
        return frames if isinstance(frames, Stored) else list(frames)
    rest = remove_reference_energies(numbers_of(frames), energies, reference)
    return mapped(frames, lambda i, system, labels: labels | {"energy": rest[i][None]})


def references_of(config: Config, card, params, frames, *, head=None) -> dict[int, float]:
    """{atomic number: eV} of the labels of `frames` for a start with card and params.

    `refit`: those of `refit`, for the elements of the frames. `keep`, or given: refused with
    `UsageError` if `refit` shows them to be of another level of theory.
    """
    asked = _asked(config, head)
    old = {int(z): float(e) for z, e in (card.get("reference_energies") or {}).items()}
    if isinstance(asked, dict):
        old = {atomic_number(z): float(e) for z, e in asked.items()}
    energies = energies_of(frames)
    if not np.isfinite(energies).any():
        return old
    options = {"batch_atoms": config.batch_atoms, "dtype": config.dtype}
    bare = bare_energies(card, params, frames, **options)
    found, shift = refit(numbers_of(frames), energies, bare, old)
    if asked == "refit":
        return found
    missing = sorted(set(found) - set(old))
    if missing or shift > LIMIT:
        what = f"they are {shift:.3g} eV per atom off the labels, which are of another level"
        raise UsageError(
            f"no reference energies for elements {missing}" if missing else what,
            where="start.reference_energies",
            fix="reference_energies: refit",
        )
    return old


def _asked(config, head):
    """What is to be done about reference energies; a table is of the head where there are some."""
    asked = config.start.reference_energies
    if not isinstance(asked, dict):
        return config.data.reference_energies or asked
    if head is not None and head not in asked:
        raise UsageError(
            f"no table for the head '{head}', there are some of {sorted(asked)}",
            where="start.reference_energies",
            fix="{head: {element: eV}}, or refit",
        )
    return asked if head is None else asked[head]


def bare_energies(card, params, frames, *, batch_atoms: int, dtype) -> np.ndarray:
    """Energies without references that a model predicts, eV, [n_frames] float64."""
    potential = bind_to(checkpoint.potential_of({**card, "reference_energies": {}}), frames)
    apply, params = jax.jit(potential.apply), cast(params, dtype)
    bare = mapped(frames, lambda i, system, labels: {})
    buckets = make_buckets(bare, n_buckets=1, max_atoms=batch_atoms)
    out = np.full(len(frames), np.nan)
    for b, members in plan(buckets, atoms_of(bare), seed=None):
        system, _ = batch(bare, buckets[b], members)
        out[members] = np.asarray(apply(params, system)["energy"], np.float64)[: len(members)]
    return out


def refit(numbers, energies, bare, old: dict[int, float]) -> tuple[dict[int, float], float]:
    """(reference energies, shift): the old ones plus what is missing, by least squares.

    numbers: [[n_atoms]] of each structure; energies, bare: [n_structures] eV, labels (NaN where
    unknown) and what the start predicts without references. The rest energies - bare - sum of old
    is fitted by energies of elements, of which the smallest are taken where compositions leave a
    choice; an element without an old one is free, one that no energy tells of is left out. shift:
    root mean square of the fit, eV per atom. Structures of one atom are left out where others have
    its element, for a start need not know them.
    """
    elements = np.unique(np.concatenate([n[n > 0] for n in map(np.asarray, numbers)]))
    counts = np.array([(np.asarray(n)[:, None] == elements).sum(0) for n in numbers], float)
    sizes = counts.sum(1)
    told = np.isfinite(energies)
    untold = ~(counts[told & (sizes > 1)] > 0).any(0)
    used = told & ((sizes > 1) | counts[:, untold].any(1))
    prior = np.array([old.get(int(z), 0.0) for z in elements])
    rest = (np.asarray(energies) - bare - counts @ prior)[used]
    freedom = np.array([1.0 if int(z) in old else FREE for z in elements])
    change = freedom * np.linalg.lstsq(counts[used] * freedom, rest, rcond=None)[0]
    known = np.array([int(z) in old for z in elements])
    fitted = counts[used] @ np.where(known, change, 0) / sizes[used]
    there = known | (counts[used] > 0).any(0)
    found = {
        int(z): float(e) for z, e in zip(elements[there], (prior + change)[there], strict=True)
    }
    return found, float(np.sqrt(np.mean(fitted**2))) if used.any() else 0.0
