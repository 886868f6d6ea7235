"""Where labels of second derivatives come from: files of Hessians, phonopy, a teacher potential."""

from dataclasses import replace

import jax
import numpy as np

from jaxmlip.data.batching import batch, make_buckets, plan
from jaxmlip.derivatives.second.hessian import hessian_vector_product
from jaxmlip.errors import DataError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.hessians import read_hessians, supercell_hessian
from jaxmlip.interfaces.phonons.phonopy_files import read_phonopy
from jaxmlip.models import checkpoint
from jaxmlip.neighbors import find_edges
from jaxmlip.potential import PER_ATOM, bind
from jaxmlip.system import cast
from jaxmlip.train.config.settings import Config
from jaxmlip.train.objective.curvature import Known, along_moves, from_hessian, soft_modes


def second_derivatives(config: Config, train, valid, terms, load):
    """(train, valid, [Known or None] of each): `hessian` taken from the frames, others added."""
    if "hessian" not in terms:
        return train, valid, None, None
    c, cutoff = config.curvature, float(config.model.fields["cutoff"])
    like = {k: v for k, v in train[0][1].items() if k != "hessian"}
    options = {"like": like, "dtype": config.dtype, "modes": c.modes}
    train = train + phonopy_frames(c.force_constants, cutoff, **options)
    (train, known), (valid, valid_known) = taken(train), taken(valid)
    if c.teacher is not None:
        potential, params = (load or _teacher)(c.teacher)
        params = cast(params, config.dtype)
        for frames, found in ((train, known), (valid, valid_known)):
            rest = [i for i, one in enumerate(found) if one is None]
            options = {"n_directions": c.teacher_directions, "seed": config.seed}
            told = of_teacher(potential, params, [frames[i] for i in rest], **options)
            for i, one in zip(rest, told, strict=True):
                found[i] = one
    return train, valid, known, valid_known


def _teacher(path):
    return checkpoint.load(path, needs_energy=True)[:2]


def with_hessians(frames, path):
    """Frames [(System, labels)] with a label `hessian` [n, 3, n, 3] where the file has one."""
    if path is None:
        return frames
    found = read_hessians(path, [system.n_atoms for system, _ in frames])
    return [
        (system, labels if h is None else labels | {"hessian": h})
        for (system, labels), h in zip(frames, found, strict=True)
    ]


def taken(frames):
    """(frames without the labels `hessian` and `moves`, [Known or None]).

    moves [m, n_atoms, 3]: of such a frame the products with these displacements alone are known.
    """
    known = [
        _known(labels, f"frame {i}", system.positions.dtype) if "hessian" in labels else None
        for i, (system, labels) in enumerate(frames)
    ]
    drop = lambda labels: {k: v for k, v in labels.items() if k not in ("hessian", "moves")}
    return [(system, drop(labels)) for system, labels in frames], known


def _known(labels, where, dtype):
    known = from_hessian(labels["hessian"], where=where, dtype=dtype)
    return along_moves(known, labels["moves"]) if "moves" in labels else known


def phonopy_frames(files, cutoff: float, *, like: dict, dtype, modes: int = 0) -> list:
    """A frame with a Hessian for each phonopy file, its supercell; like: labels of the others.

    modes: label `moves`, the displacements of so many of the softest phonons that the supercell
    holds; 0: none, the Hessian counts as a whole.
    """
    out = []
    for file in files:
        constants = read_phonopy(file)[0]
        atoms, hessian = supercell_hessian(constants)
        labels = {name: _unknown(value, name, len(atoms)) for name, value in like.items()}
        system = from_ase(atoms, cutoff, dtype=dtype, where=str(file))
        labels = labels | {"hessian": hessian}
        if modes:
            square = hessian.reshape(3 * len(atoms), -1)
            labels["moves"] = soft_modes(square, constants.masses[constants.atoms], modes)
        out.append((system, labels))
    return out


def _unknown(value, name, n_atoms):
    shape = (n_atoms, *value.shape[1:]) if name in PER_ATOM else value.shape
    return np.full(shape, np.nan)


def of_teacher(
    potential, params, frames, *, n_directions: int = 0, seed: int = 0, max_atoms: int = 256
) -> list[Known]:
    """What a potential says of the Hessians of frames [(System, labels)].

    n_directions: random ones, of normal numbers, whose products are computed once a frame; 0, or
    as many as a frame has components: the whole Hessian. Products of all structures of a batch
    are computed at once. Raises `DataError` where one is not finite.
    """
    if not frames:
        return []
    systems = [(replace(s, edges=_edges(s, potential.cutoff)), {}) for s, _ in frames]
    potential = bind(potential, [system for system, _ in systems])
    buckets = make_buckets(systems, n_buckets=2, max_atoms=max_atoms)
    product = jax.jit(hessian_vector_product(potential.apply))
    out = [None] * len(frames)
    for b, members in plan(buckets, [s.n_atoms for s, _ in systems], seed=None):
        system, _ = batch(systems, buckets[b], members)
        asked = [_asked(systems[i][0], n_directions, [seed, i]) for i in members]
        found = _products(product, params, system, asked)
        for i, directions, products in zip(members, asked, found, strict=True):
            if not np.isfinite(products).all():
                raise DataError("the Hessian of the teacher is not finite", where=f"frame {i}")
            n = systems[i][0].n_atoms
            whole = len(directions) == 3 * n
            out[i] = Known(None if whole else directions, products)
    return out


def _edges(system, cutoff):
    return find_edges(system.positions, system.cell[0], system.pbc[0], cutoff)


def _asked(system, n_directions, seed):
    """[m, n, 3] the unit vectors, or random directions."""
    n, dtype = system.n_atoms, system.positions.dtype
    if n_directions == 0 or n_directions >= 3 * n:
        return np.eye(3 * n, dtype=dtype).reshape(-1, n, 3)
    return np.random.default_rng(seed).normal(size=(n_directions, n, 3)).astype(dtype)


def _products(product, params, system, asked):
    """H d of every structure's own directions, one of each structure at a time."""
    stops = np.cumsum([d.shape[1] for d in asked])
    rows = [slice(stop - d.shape[1], stop) for d, stop in zip(asked, stops, strict=True)]
    out = [np.empty_like(d) for d in asked]
    for j in range(max(map(len, asked))):
        vector = np.zeros_like(system.positions)
        for d, r in zip(asked, rows, strict=True):
            if j < len(d):
                vector[r] = d[j]
        result = np.asarray(product(params, system, vector))
        for d, r, o in zip(asked, rows, out, strict=True):
            if j < len(d):
                o[j] = result[r]
    return out
