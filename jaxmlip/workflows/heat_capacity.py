"""The heat capacity of one crystal from its file: relaxed, curved, summed; an item for a screening.

Positions (and the cell, if asked) are relaxed in float32 while that makes progress and in float64
for the rest; second derivatives, and all of what is not relaxed, are in the precision asked for.
Arrays are padded to the sizes of the ladder, so structures of like size share the compiled programs
of a worker and of the cache.
"""

import hashlib
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlip.errors import DataError, JaxmlipError, NumericalError
from jaxmlip.system import ladder, pad
from jaxmlip.vibrations.crystals import heat_capacity as vibrations

PROTOCOL = 2  # to be raised when the same input gives other numbers
SUMS = ("temperatures", "imaginary")  # settings that only decide what is summed over a spectrum
POLICIES = {
    "left-out": vibrations.left_out,
    "as-real": vibrations.as_real,
    "refused": vibrations.refused,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the numbers, beside structure and model; plain JSON as `asdict`."""

    temperatures: tuple[float, ...] = (300.0,)  # K
    relax: bool = True
    cell: bool = False  # relax the cell too
    fmax: float = 1e-3  # eV/Å
    stress: float = 1e-5  # eV/Å³, of the cell
    steps: int = 2000
    dtype: str = "float64"  # of second derivatives
    imaginary: str = "left-out"  # a key of POLICIES
    qpoints: tuple[tuple[float, float, float], ...] = ()  # none: the Hessian at Γ
    probes: int = 0  # random vectors of Lanczos quadrature at Γ; 0: the whole Hessian


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A potential as a worker keeps it from one structure to the next."""

    card: dict
    potential: Any
    params: Any
    spectrum: Any  # apply -> (params, system, masses) -> Spectrum; the same for the same apply


def items(
    files, model: str, settings: Settings, *, memory: float | None = None, workers: int = 1
) -> dict:
    """{name: item} for `map_resumable(heat_capacity, ..., key=key)`, small structures first.

    memory: bytes for the second derivatives of all workers together; default what is free when the
    first starts. Elements are those of all files, so that one program fits all.
    """
    from jaxmlip import pretrained

    card, paths = pretrained.card(model), named(files)
    found = {name: _looked_at(path) for name, path in paths.items()}
    elements = sorted({z for _, numbers in found.values() for z in numbers} & {*card["elements"]})
    shared = {
        "model": str(Path(model).resolve() if Path(model).is_file() else model),
        "model_sha256": card["sha256"],
        "elements": elements,
        "settings": asdict(settings),
        "memory": memory,
        "workers": workers,
        "protocol": PROTOCOL,
    }
    ascending = sorted(paths, key=lambda name: (len(found[name][1]), name))
    own = {n: {"file": str(paths[n]), "file_sha256": found[n][0]} for n in ascending}
    return {n: own[n] | shared for n in ascending}


def key(item: dict) -> dict:
    """All that a spectrum depends on: where files lie and how much memory there is do not.

    Nor do `SUMS`, whose part of a result `summed` makes anew.
    """
    settings = {k: v for k, v in item["settings"].items() if k not in SUMS}
    return {k: item[k] for k in ("file_sha256", "model_sha256", "protocol")} | {
        "settings": settings
    }


def summed(result: dict, settings: Settings) -> dict:
    """A result at the temperatures and with the imaginary modes of other settings.

    Raises `NumericalError` where these refuse imaginary modes and there are some.
    """
    spectrum = vibrations.Spectrum(
        frequencies_cm1=np.array(result["frequencies_cm1"]),
        weights=np.array(result["mode_weights"]),
        n_probes=settings.probes,
    )
    n = result["n_atoms"]
    return result | _thermodynamics(spectrum, np.full(n, result["mass_g_per_mol"] / n), settings)


def named(files) -> dict[str, Path]:
    """{name: path}: the bare name of a file, or all of it where two would have the same."""
    files = [Path(f) for f in files]
    stems = [f.stem for f in files]
    names = [f.stem if stems.count(f.stem) == 1 else f.name for f in files]
    if twice := [n for n in names if names.count(n) > 1]:
        raise DataError(f"two structures are named '{twice[0]}'", fix="rename one of the files")
    return dict(zip(names, files, strict=True))


def heat_capacity(item: dict) -> dict:
    """One structure, from file to heat capacity, as flat JSON with units in the names.

    Raises `DataError` for files that cannot be used, `ModelError` for unknown elements,
    `NumericalError` where the relaxation does not converge.
    """
    settings = Settings(**item["settings"])
    atoms, begun = _read(item), time.perf_counter()
    options = item["memory"], item["workers"], _tuples(settings.qpoints), settings.probes
    model = _model(item["model"], tuple(item["elements"]), *options, size=ladder(len(atoms)))
    potential, system, info, relax_dtype = relaxed(model.potential, model.params, atoms, settings)
    relaxing = time.perf_counter() - begun
    arrays = _cast((model.params, system), settings.dtype)
    spectrum = model.spectrum(potential.apply)(*arrays, atoms.get_masses())
    n = len(atoms)
    return {
        "formula": atoms.get_chemical_formula(),
        "n_atoms": n,
        **_thermodynamics(spectrum, atoms.get_masses(), settings),
        **spectrum.quality,
        "energy_eV": info.energy,
        "relax_dtype": relax_dtype,
        "fmax_eV_per_A": info.fmax,
        "relax_steps": info.n_steps if settings.relax else 0,
        "volume_A3": float(abs(np.linalg.det(np.asarray(system.cell, float)[0]))),
        "cell_A": np.asarray(system.cell, float)[0].tolist(),
        "positions_A": np.asarray(system.positions, float)[:n].tolist(),
        "numbers": atoms.numbers.tolist(),
        "frequencies_cm1": spectrum.frequencies_cm1.tolist(),
        "mode_weights": spectrum.weights.tolist(),
        "relax_s": relaxing,
        "curvature_s": time.perf_counter() - begun - relaxing,
        "peak_memory_MB": peak_memory(),
    }


def relaxed(potential, params, atoms, settings: Settings):
    """(bound potential, padded system in float64 with its edges, `RelaxInfo`, its dtype).

    In the precision of the settings where nothing is relaxed. Long-range sums are planned for the
    cell of the atoms, and again for the one that relaxing has made of it.
    """
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.potential import bind

    system = pad(from_ase(atoms, None), n_atoms=ladder(len(atoms)))
    potential = bind(potential, _with_edges(system, potential))
    for dtype in ("float32", "float64") if settings.relax else (settings.dtype,):
        weights, start = _cast((params, system), dtype)
        system, info = _relax(potential, weights, start, settings)
        if info.converged:
            break
    if settings.relax and not info.converged:
        raise NumericalError(
            f"not relaxed: {info.reason}",
            where="relax",
            code="JM304",
            fix="more --steps, or a larger --fmax",
        )
    (system,) = _cast((system,), "float64")
    system = _with_edges(system, potential)
    return bind(potential, system) if settings.cell else potential, system, info, dtype


def _with_edges(system, potential):
    from jaxmlip.neighbors import edges_within

    return edges_within(replace(system, edges=None), cutoff=potential.cutoff)


def _relax(potential, params, system, settings):
    from jaxmlip import md

    if not settings.relax:  # one evaluation tells energy and forces, and nothing has moved
        return md.relax(potential, params, system, fmax=settings.fmax, steps=1)
    limits = {"fmax": settings.fmax, "steps": settings.steps}
    if settings.cell:
        return md.relax_cell(potential, params, system, stress=settings.stress, **limits)
    return md.relax(potential, params, system, **limits)


def _cast(trees, dtype):
    """Trees as host arrays in another precision, so that neighbours can be searched."""
    import jax

    from jaxmlip.system import cast

    return jax.device_get(cast(trees, dtype))


@lru_cache(maxsize=1)
def _model(model: str, elements, memory, workers, qpoints, probes, *, size) -> _Model:
    """Kept while structures have one padded size: programs are compiled for its functions."""
    import jax

    if _model.cache_info().currsize:
        jax.clear_caches()  # the programs of a hundred sizes would fill the memory
    from jaxmlip import pretrained
    from jaxmlip.derivatives.second.free_memory import free_memory
    from jaxmlip.derivatives.second.hessian import chunk_memory
    from jaxmlip.models import checkpoint

    path = pretrained.path_of(model)
    potential, params, card = checkpoint.load(path, elements=elements, needs_energy=True)
    memory = (0.9 * free_memory() if memory is None else memory) / workers
    chunk = min(memory, chunk_memory())  # larger ones are not faster
    limits = {"chunk": chunk, "memory": memory, "qpoints": qpoints, "probes": probes}
    spectrum = lru_cache(maxsize=1)(partial(_spectrum, **limits))
    return _Model(card=card, potential=potential, params=params, spectrum=spectrum)


def _spectrum(apply, *, chunk, memory, qpoints, probes):
    if qpoints:
        from jaxmlip.derivatives.bloch.matrix import dynamical_matrix

        return vibrations.bloch_spectrum(dynamical_matrix(apply, memory=chunk), qpoints)
    if probes:
        return vibrations.lanczos_spectrum(apply, n_probes=probes, memory=chunk)
    return vibrations.gamma_spectrum(apply, memory=memory)


def _thermodynamics(spectrum, masses, settings) -> dict:
    thermo = vibrations.crystal_thermodynamics(
        spectrum, masses, settings.temperatures, imaginary=POLICIES[settings.imaginary]
    )
    per_mol = lambda values: thermo.molar(values).tolist()
    return {
        "mass_g_per_mol": thermo.mass,
        "temperatures_K": thermo.temperatures.tolist(),
        "cv_J_per_K_mol": per_mol(thermo.heat_capacity),
        "cv_J_per_K_g": thermo.gravimetric(thermo.heat_capacity).tolist(),
        "cv_error_J_per_K_g": thermo.gravimetric(thermo.heat_capacity_error).tolist(),
        "cv_soft_classical_J_per_K_g": thermo.gravimetric(thermo.classical_heat_capacity).tolist(),
        "entropy_J_per_K_mol": per_mol(thermo.entropy),
        "free_energy_kJ_mol": (thermo.molar(thermo.free_energy) / 1000).tolist(),
        "zpe_kJ_mol": float(thermo.molar(thermo.zero_point_energy) / 1000),
        "n_imaginary": thermo.n_imaginary,
        "n_left_out": thermo.n_left_out,
        "imaginary_policy": settings.imaginary,
        "lowest_cm1": thermo.lowest_cm1,
    }


def _read(item):
    from jaxmlip.interfaces.check import check_elements
    from jaxmlip.interfaces.read import read_structure

    atoms = read_structure(item["file"])
    if not atoms.pbc.all():
        raise DataError(
            "the structure is not periodic along three axes, so it is no crystal",
            where=item["file"],
            code="JM214",
            fix="`jaxmlip modes` has the thermochemistry of molecules",
        )
    if atoms.constraints:
        raise DataError(
            "the structure has constraints; vibrations here are those of free atoms",
            where=item["file"],
            code="JM215",
            fix="a file without constraints",
        )
    check_elements(atoms.numbers, item["elements"], model=item["model"], where=item["file"])
    return atoms


def _looked_at(path):
    """(SHA-256, atomic numbers) of a file; none if it cannot be read: its own run tells why."""
    from jaxmlip.interfaces.read import read_structure

    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest(), read_structure(path).numbers
    except (JaxmlipError, OSError):
        return None, ()


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def peak_memory() -> float | None:
    """Most memory that this process has held so far, MB of 10^6 bytes; None where nobody tells."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
