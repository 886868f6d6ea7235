"""Frames and observables as H5MD 1.1 (de Buyl et al., 2014, 10.1016/j.cpc.2014.01.018).

particles/atoms/{position, velocity, force} and observables/<name>, each with step, time (fs) and
value, units as attributes; box/edges where an axis is periodic; in parameters charge, spin and
field of the structure, and of what run it is where frames alone would mislead: of a ring of beads
(ensemble, beads), of one bead, of a ladder. Å, fs, eV, e, K, V; forces alone are in kJ/mol/Å, the
unit that readers such as MDAnalysis know.
"""

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, ResourceError
from jaxmlip.md.files.journal import journaled, settle
from jaxmlip.md.files.scene import OBSERVABLES, ROLE, Scene, Series, Trajectory

FORCE = 1 / units.kJ_mol  # kJ/mol/Å of 1 eV/Å
UNIT = {name: unit for name, unit, _ in OBSERVABLES.values()}
ELEMENTS = {  # of particles: {name: (key of frames, unit, factor)}
    "position": ("positions", "Angstrom", 1.0),
    "velocity": ("velocities", "Angstrom fs-1", units.fs),
    "force": ("forces", "kJ mol-1 Angstrom-1", FORCE),
    "box/edges": ("cell", "Angstrom", 1.0),
}
INFO = ("charge", "spin", "field")
UNITS = {"time": "fs", **{place: unit for place, (_, unit, _) in ELEMENTS.items()}}
CHUNK = 2**18  # bytes, about, of what is written or read at once


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise ResourceError(
            "H5MD files need the package h5py", code="JM405", fix="pip install h5py"
        ) from error
    return h5py


def append_h5md(path, scene: Scene, frames: dict, tables=()) -> None:
    """Adds frames {step, positions, ...} and tables [{step, name: [n_records, ...]}] of one
    structure, in the units of a run; the file is made if need be, and whole at any moment.
    """
    with journaled(path) as pages, _opened(pages, scene) as file:
        for table in (t for t in tables if len(t["step"])):
            places = {f"observables/{k}": (v, UNIT[k]) for k, v in table.items() if k != "step"}
            _add(file, scene, table["step"], places)
        if frames and len(frames["step"]):
            _add(file, scene, frames["step"], _particles(scene, frames))


def cut_h5md(path, step: int) -> None:
    """Forgets what was recorded after `step`."""
    with journaled(path) as pages:
        if pages.size == 0:
            return
        with _h5py().File(pages, "r+") as file:
            keep = {}
            for place in _elements(file):
                steps = file[place]["step"]
                if steps.id not in keep:
                    keep[steps.id] = int(np.searchsorted(steps[:], step, side="right"))
                file[place]["value"].resize(keep[steps.id], axis=0)
            for place in _elements(file):
                n = len(file[place]["value"])
                for name in ("step", "time"):
                    file[place][name].resize(n, axis=0)


def read_h5md(path, *, group: str | None = None) -> Trajectory:
    """The trajectory of a particles group (the first by default), with all observables.

    Raises `DataError` for a file that is no H5MD trajectory, or in other units than those above.
    """
    settle(path)
    try:
        with _h5py().File(path, "r") as file:
            name = group or next(iter(file["particles"]))
            return _read(file, file["particles"][name])
    except (OSError, KeyError, StopIteration) as error:
        raise DataError(
            f"not an H5MD trajectory ({error})", where=str(path), code="JM207"
        ) from error


# --- writing -------------------------------------------------------------------------------------


def _opened(pages, scene):
    """The HDF5 file, with what every frame shares."""
    from jaxmlip import __version__

    if pages.size:
        return _h5py().File(pages, "r+")
    file = _h5py().File(pages, "w")
    head = file.create_group("h5md")
    head.attrs["version"] = np.array([1, 1])
    head.create_group("author").attrs["name"] = "unknown"
    creator = head.create_group("creator")
    creator.attrs["name"], creator.attrs["version"] = "jaxmlip", __version__
    module = head.create_group("modules/units")
    module.attrs["version"], module.attrs["system"] = np.array([1, 0]), "SI"
    atoms = file.create_group("particles/atoms")
    atoms["species"] = scene.numbers.astype(np.int32)
    atoms["mass"] = scene.masses.astype(np.float64)
    atoms["mass"].attrs["unit"] = "u"
    box = atoms.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = ["periodic" if p else "none" for p in scene.pbc]
    for name, value in scene.info:
        file[f"parameters/{name}"] = np.asarray(value, np.float64)
    for name, value in scene.role:
        file[f"parameters/{name}"] = value
    return file


def _particles(scene, frames):
    """{place in the file: (values, unit)} of frames."""
    return {
        f"particles/atoms/{place}": (frames[key] if factor == 1 else frames[key] * factor, unit)
        for place, (key, unit, factor) in ELEMENTS.items()
        if key in frames and (key != "cell" or scene.pbc.any())
    }


def _add(file, scene, steps, places):
    """Rows at several places that share their steps and times."""
    first = None
    for place, (values, unit) in places.items():
        if place not in file:
            _make(file, place, values, unit, first)
        element = file[place]
        n = len(element["value"])
        _extend(element["value"], n, values)
        if first is None:
            _extend(element["step"], n, steps)
            _extend(element["time"], n, np.asarray(steps) * scene.dt)
        first = first or place


def _make(file, place, values, unit, first):
    element = file.create_group(place)
    _dataset(element, "value", values.shape[1:], values.dtype).attrs["unit"] = unit
    if first is not None:  # one array under several names
        element["step"], element["time"] = file[first]["step"], file[first]["time"]
        return
    _dataset(element, "step", (), np.int64)
    _dataset(element, "time", (), np.float64).attrs["unit"] = "fs"


def _dataset(group, name, shape, dtype):
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    rows = int(np.clip(CHUNK // max(size, 1), 1, 1024))
    return group.create_dataset(
        name, (0, *shape), dtype=dtype, maxshape=(None, *shape), chunks=(rows, *shape)
    )


def _extend(dataset, n, values):
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values


# --- reading -------------------------------------------------------------------------------------


def _elements(file):
    """Places of all that depends on time."""
    found = []

    def look(name, item):
        if hasattr(item, "keys") and {"step", "value"} <= set(item):
            found.append(name)

    file.visititems(look)
    return found


def _read(file, atoms):
    position = atoms["position"]
    pbc = np.array([_text(b) == "periodic" for b in atoms["box"].attrs["boundary"]])
    values = lambda place: _checked(atoms[place]["value"], place) if place in atoms else None
    scaled = lambda x, factor: None if x is None else x * factor
    numbers = np.asarray(atoms["species"])
    step, time = _times(position)
    observables = file["observables"] if "observables" in file else {}
    return Trajectory(
        step=step,
        time=time,
        positions=values("position"),
        velocities=values("velocity"),
        forces=scaled(values("force"), 1 / FORCE),
        cell=_edges(atoms, len(step)) if pbc.any() else None,
        numbers=numbers[0] if numbers.ndim > 1 else numbers,
        masses=np.asarray(atoms["mass"]) if "mass" in atoms else None,
        pbc=pbc,
        observables={
            name: Series(
                step=_times(element)[0],
                time=_times(element)[1],
                value=np.asarray(element["value"]),
                unit=_text(element["value"].attrs.get("unit", "")),
            )
            for name, element in observables.items()
            if "value" in element and "step" in element
        },
        info=_told(file, INFO),
        role={k: _text(v) if k == "ensemble" else int(v) for k, v in _told(file, ROLE).items()},
        creator=_text(file["h5md/creator"].attrs.get("name", "")) if "h5md/creator" in file else "",
    )


def _told(file, names):
    told = file["parameters"] if "parameters" in file else {}
    return {name: told[name][()] for name in names if name in told}


def _times(element):
    step = _each(element, "step")
    return step, _each(element, "time") if "time" in element else np.full(len(step), np.nan)


def _each(element, name):
    """Step or time of every frame; a single number is the interval."""
    values = _checked(element[name], name)
    if values.ndim:
        return values
    return element[name].attrs.get("offset", 0) + values * np.arange(len(element["value"]))


def _checked(dataset, place):
    """Its values; `DataError` where they say that they are in another unit than ours."""
    wanted = UNITS.get(place, "")
    found = _text(dataset.attrs.get("unit", wanted))
    if found != wanted:
        raise DataError(
            f"{place} is in {found}, expected {wanted}", where=dataset.file.filename, code="JM207"
        )
    return np.asarray(dataset)


def _edges(atoms, n_frames):
    """[n_frames, 3, 3]; files of others may have one box for all, or three lengths."""
    edges = atoms["box/edges"]
    edges = _checked(edges["value"] if hasattr(edges, "keys") else edges, "box/edges").astype(float)
    flat = edges.ndim == 1 or (edges.ndim == 2 and edges.shape != (3, 3))
    edges = edges[..., None] * np.eye(3) if flat else edges
    return edges if edges.ndim == 3 else np.broadcast_to(edges, (n_frames, 3, 3))


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)
