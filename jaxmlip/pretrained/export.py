"""A potential compiled ahead of time: one file that predicts, and needs no architecture.

The file holds the traced and lowered program of energy, forces (and stress) as `jax.export` writes
it, the parameters, and the card: arrays in an .npz, nothing pickled, each with its SHA-256. It is
loaded without flax and without the code of the model; XLA compiles it on first use.

A potential that is computed in the same way at every size can be one program for all (its shapes
stay symbols); of others there is a program each of a few sizes, which systems are padded to.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxmlip.derivatives.first import predict, with_forces
from jaxmlip.errors import DataError, ModelError, ResourceError, check_dtype
from jaxmlip.potential import PER_ATOM
from jaxmlip.pretrained import program_file
from jaxmlip.system import Edges, System, cast, pad

ANY = (0, 0)  # the size of a program whose shapes are symbols


class Exported(NamedTuple):
    """What a file gives back; `predict(params, system)` is as `jaxmlip.predict(apply)`."""

    predict: Callable
    params: dict
    cutoff: float  # Å
    card: dict
    sizes: list  # [(atoms, neighbours per atom)], or [] for any
    dtype: str
    platforms: tuple


def export(
    potential,
    params,
    path,
    *,
    sizes=None,
    dtype="float64",
    stress: bool = True,
    platforms=None,
    vjp_order: int = 0,
    card: dict | None = None,
) -> dict:
    """Writes the program of a potential; returns what the file says of itself.

    sizes: [(atoms, neighbours per atom), ...] of one structure, a program each; None: one program
    for any size, but without the blocks of atoms that bound memory (`nn.blocks`; those of fixed
    sizes are chosen for the exporting machine). platforms: such as ('cpu', 'cuda'); default the
    present one. vjp_order: how often the program can be differentiated after it is loaded. Raises
    `ModelError` for a potential that is computed differently at different sizes (give `sizes`
    then), `ResourceError` for the disk.
    """
    _check_packages()
    check_dtype(dtype)
    params = cast(params, dtype)
    function = (predict if stress else with_forces)(potential.apply)
    leaves, tree = jax.tree.flatten(params)
    arrays = {f"param_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    sizes = [tuple(map(int, size)) for size in sizes or []]
    for i, size in enumerate(sizes or [ANY]):
        program = _program(function, tree, leaves, size, dtype, platforms)
        arrays[f"program_{i}"] = np.frombuffer(program.serialize(vjp_order=vjp_order), np.uint8)
    manifest = {
        "format": program_file.FORMAT,
        "sizes": sizes,
        "dtype": str(np.dtype(dtype)),
        "x64": bool(jax.config.jax_enable_x64),
        "cutoff": float(potential.cutoff),
        "platforms": list(program.platforms),
        "calling_convention": program.calling_convention_version,
        "vjp_order": vjp_order,
        "stress": stress,
        "jax": jax.__version__,
        "params": program_file.skeleton(params),
        "card": card or {},
        "sha256": {name: program_file.digest(value) for name, value in arrays.items()},
    }
    program_file.write(Path(path), arrays, manifest)
    return manifest


def load_exported(path) -> Exported:
    """The potential of a file that `export` wrote. Raises `ModelError` if it is not whole.

    `predict(params, system)` takes one structure with edges per receiver, in the dtype of the
    program; it pads to the nearest size and gives back arrays of the system's own size. A system
    that is too large, of another kind, or of elements that the card does not list, raises
    `DataError`. A program is run: load no file of a stranger.
    """
    _check_packages()
    arrays, manifest = program_file.read(Path(path))
    if manifest["x64"]:
        check_dtype(np.float64)  # its sums are in float64, whatever its dtype
    _check_platform(manifest, path)
    sizes = [tuple(size) for size in manifest["sizes"]]
    programs = [_loaded(arrays[f"program_{i}"], path) for i in range(len(sizes) or 1)]
    numbers = program_file.leaves(manifest["params"])
    values = {i: jnp.asarray(arrays[f"param_{i}"]) for i in numbers}
    return Exported(
        _predictor(programs, sizes, manifest["dtype"], manifest["card"].get("elements")),
        program_file.filled(manifest["params"], values),
        manifest["cutoff"],
        manifest["card"],
        sizes,
        manifest["dtype"],
        tuple(manifest["platforms"]),
    )


def _check_packages():
    from importlib.util import find_spec

    if find_spec("flatbuffers") is None:
        raise ResourceError(
            "jax.export keeps its programs with the package flatbuffers, which is not installed",
            code="JM406",
            fix="pip install flatbuffers",
        )


# --- tracing -------------------------------------------------------------------------------------


def _program(function, tree, leaves, size, dtype, platforms):
    def flat(leaves, arrays):
        return function(jax.tree.unflatten(tree, leaves), _system(arrays))

    # dicts and lists only: other containers would have to be registered by whoever loads this
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves], _shapes(size, dtype)
    try:
        return jax.export.export(jax.jit(flat), platforms=platforms)(*arguments)
    except jax.errors.InconclusiveDimensionOperation as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"how this potential is computed depends on its size ({first})",
            code="JM520",
            fix="give the sizes that are wanted: `--atoms`, `--neighbors`",
        ) from error


def _shapes(size, dtype) -> dict:
    n, k = jax.export.symbolic_shape("n, k") if size == ANY else size
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)
    return {
        "positions": shape(dtype, n, 3),
        "numbers": shape(np.int32, n),
        "graph": shape(np.int32, n),
        "cell": shape(dtype, 1, 3, 3),
        "pbc": shape(bool, 1, 3),
        "charge": shape(dtype, 1),
        "spin": shape(dtype, 1),
        "field": shape(dtype, 1, 3),
        "senders": shape(np.int32, n, k),
        "shifts": shape(np.int32, n, k, 3),
        "mask": shape(bool, n, k),
    }


def _system(arrays) -> System:
    arrays = dict(arrays)
    edges = {name: arrays.pop(name) for name in ("senders", "shifts", "mask")}
    return System(**arrays, edges=Edges(receivers=None, **edges))


# --- calling -------------------------------------------------------------------------------------


def _predictor(programs, sizes, dtype, elements):
    calls = [jax.jit(program.call) for program in programs]

    def predict_of(params, system):
        _check(system, dtype)
        _check_elements(system.numbers, elements)
        which, fitted = _fit(system, sizes)
        out = calls[which](jax.tree.leaves(params), _arguments(fitted))
        return _cut(out, fitted.n_atoms, system.n_atoms)

    return predict_of


def _arguments(system) -> dict:
    names = ("positions", "numbers", "graph", "cell", "pbc", "charge", "spin", "field")
    edges = {name: getattr(system.edges, name) for name in ("senders", "shifts", "mask")}
    return {name: getattr(system, name) for name in names} | edges


def _check(system, dtype):
    edges = system.edges
    what = None
    if system.n_graphs != 1:
        what = f"a batch of {system.n_graphs} structures; this program takes one"
    elif edges is None or edges.receivers is not None:
        what = "this program takes edges per receiver (`from_ase(atoms, cutoff)`)"
    elif system.positions.dtype != dtype:
        what = f"positions are {system.positions.dtype}; this program computes in {dtype}"
    if what:
        raise DataError(what, code="JM521", fix="see `load_exported`")


def _check_elements(numbers, elements):
    """Of numbers that are known on the host; 0 is padding."""
    if not elements or isinstance(numbers, jax.core.Tracer):
        return
    unknown = sorted(set(np.asarray(numbers).tolist()) - {0, *elements})
    if unknown:
        raise DataError(
            f"atomic numbers {unknown} are not known; this program knows {sorted(elements)}",
            code="JM521",
            fix="a program of a model that was trained on these elements",
        )


def _fit(system, sizes):
    """(index of the smallest program that is large enough, the system padded to it)."""
    if not sizes:
        return 0, system
    n, k = system.edges.senders.shape
    found = [i for i, (atoms, width) in enumerate(sizes) if atoms >= n and width >= k]
    if not found:
        raise DataError(
            f"{n} atoms with {k} neighbours do not fit; this program takes at most "
            + " or ".join(f"{a} atoms with {w}" for a, w in sizes),
            code="JM521",
            fix="export a larger size",
        )
    best = min(found, key=lambda i: sizes[i][0] * sizes[i][1])
    atoms, width = sizes[best]
    return best, system if (n, k) == (atoms, width) else pad(
        system, n_atoms=atoms, n_neighbors=width
    )


def _cut(out, padded, n):
    """Real atoms only."""
    return {k: v[:n] if k in PER_ATOM and padded != n else v for k, v in out.items()}


# --- loading --------------------------------------------------------------------------------------


def _loaded(data, path):
    try:
        return jax.export.deserialize(bytearray(data.tobytes()))
    except Exception as error:  # jax tells of other calling conventions with several kinds
        raise ModelError(
            f"jax {jax.__version__} cannot read this program ({error})",
            where=str(path),
            code="JM506",
            fix="export it again with the present version of jax",
        ) from error


def _check_platform(manifest, path):
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in manifest["platforms"]:
        raise ModelError(
            f"exported for {', '.join(manifest['platforms'])}; this is {here}",
            where=str(path),
            code="JM522",
            fix="export with this platform among `platforms`",
        )
