"""What `jaxmlip phonons` tells: a table, the JSON, and a file that phonopy goes on from."""

from pathlib import Path

import numpy as np

from jaxmlip.cli import analysis, session
from jaxmlip.cli.output import Output, write

LARGEST = 4e6  # numbers in a phonopy.yaml; beyond, it would take minutes to write and to read


def title(source) -> str:
    name = Path(source.summary.get("model") or source.summary["force_constants"]).name
    return f"{source.atoms.get_chemical_formula()}   {name}"


def summary(found) -> str:
    """Acoustic sum, errors, imaginary modes: one line."""
    zeros = ", ".join(f"{f:.1e}" for f in found.acoustic.frequencies_THz)
    text = f"acoustic modes at Γ: {zeros} THz (sum {found.acoustic.violation:.1e} eV/Å²)"
    for name, one in (("mesh", found.interpolation), ("bands", found.bands.interpolation)):
        if one is not None:
            text += f"; {name} from {one.n_exact} exact q, error {one.error_THz:.1e} THz"
    count, lowest, _ = found.imaginary
    return text + (f"; {count} imaginary modes, lowest {lowest:.3f} THz" if count else "")


def table_of(found, source, table):
    """Frequencies at special points, and thermal properties at a few temperatures."""
    from rich.console import Group

    path = found.bands.path
    named = [i for i, label in enumerate(path.labels) if label] or range(len(path.q))
    lone = all(last - first == 1 for first, last in path.segments)
    chosen = range(len(path.q)) if lone else _first_of_each(path, named)
    same = np.allclose(source.in_file, np.eye(3))
    heads = {"": "left", "q": "left"} | ({} if same else {"q in FILE's cell": "left"})
    of_file = in_file(path.q, source)
    point = lambda q: "  ".join(f"{x:.4f}" for x in q.round(4) + 0.0)
    rows = [
        (
            path.labels[i],
            *(point(q[i]) for q in ((path.q,) if same else (path.q, of_file))),
            _row(found.bands, i),
        )
        for i in chosen
    ]
    bands = table(heads | {"THz": "left"}, rows, title=title(source))
    return Group(bands, _thermal_table(found, source, table))


def _first_of_each(path, named):
    seen = {}
    for i in named:
        seen.setdefault(path.labels[i], i)
    return seen.values()


def _row(bands, i):
    return "  ".join(f"{f:.3f}" for f in bands.frequencies_THz[i].round(3) + 0.0)


def _thermal_table(found, source, table):
    thermal = found.thermal
    wanted = sorted({int(np.abs(thermal.temperatures - t).argmin()) for t in (0, 100, 300, 1000)})
    rows = [
        tuple(
            f"{values[i]:.3f}"
            for values in (
                thermal.temperatures,
                thermal.free_energy,
                thermal.entropy,
                thermal.heat_capacity,
            )
        )
        for i in wanted
    ]
    heads = ("K", "F kJ/mol", "S J/(K mol)", "Cv J/(K mol)")
    return table(dict.fromkeys(heads, "right"), rows, title=f"per {per(source)}")


def per(source) -> str:
    unit, many = formula_unit(source.atoms)
    text = f"mol of cells {source.atoms.get_chemical_formula()}"
    return text if many == 1 else f"{text}, {many} formula units {unit} each"


def formula_unit(atoms) -> tuple[str, int]:
    """(its formula, how many of them the cell holds)."""
    unit, many = atoms.symbols.formula.reduce()
    return f"{unit:hill}", many


def place(q, source) -> str:
    """One q in words, in the basis of the cell of FILE, too, where that is another."""
    told = f"q = {np.round(q, 4).tolist()}"
    if np.allclose(source.in_file, np.eye(3)):
        return told
    return f"{told} ({np.round(in_file(q, source), 4).tolist()} in FILE's cell)"


def in_file(q, source):
    """q [n_q, 3] in fractions of the reciprocal vectors of the cell of FILE."""
    return np.asarray(q) @ np.linalg.inv(source.in_file).T


def write_constants(found, source, output: Output) -> None:
    """NAME_phonopy.yaml: the file's own force constants, or those of the grid of exact q."""
    from jaxmlip.vibrations.phonons.interpolation import in_supercell

    constants = source.constants
    if constants is None:
        shape = found.mesh.divisions if found.interpolation is None else found.interpolation.shape
        size = 9 * len(source.atoms) ** 2 * np.prod(shape)
        if found.force_constants is None or size > LARGEST:
            output.paths["phonopy.yaml"].unlink(missing_ok=True)  # that of an earlier run
            return output.warn(f"no phonopy.yaml: {size:.0f} force constants are too many for it")
        constants = in_supercell(found.crystal, source.atoms.numbers, found.force_constants, shape)
    # phonopy tells the kind of a file by its name
    write(output.paths["phonopy.yaml"], lambda partial: _through(partial, constants, source.polar))


def _through(partial, constants, polar):
    from jaxmlip.interfaces.phonons.phonopy_files import write_phonopy

    plain = partial.with_name(partial.name + ".yaml")
    write_phonopy(plain, constants, polar)
    plain.replace(partial)


def results(found, source, *, tolerance: float | None) -> dict:
    """The JSON: flat, units in the names."""
    from jaxmlip.interfaces.phonons.phonopy import share_not_displaced

    bands, thermal = found.bands, found.thermal
    count, lowest, where = found.imaginary
    group = found.crystal.group
    unit, many = formula_unit(source.atoms)
    return {
        "command": "phonons",
        "formula": source.atoms.get_chemical_formula(),
        **source.summary,
        **session.versions(),
        **analysis.geometry(source.atoms),
        "masses_amu": found.crystal.masses,
        "space_group": f"{group.symbol} ({group.number})",
        "per": per(source),
        "formula_unit": unit,
        "formula_units_per_cell": many,
        "cells_per_file_cell": round(1 / abs(np.linalg.det(source.in_file)), 6),
        "cell_in_file_cell": source.in_file,
        "qpoints": bands.path.q,
        "qpoints_in_file_cell": in_file(bands.path.q, source),
        "frequencies_THz": bands.frequencies_THz,
        "band_labels": list(bands.path.labels),
        "band_distances_per_A": bands.path.distance,
        "band_segments": bands.path.segments,
        "group_velocities_km_per_s": bands.group_velocities,
        "mesh": found.mesh.divisions,
        "mesh_qpoints": found.mesh.q,
        "mesh_weights": found.mesh.weights,
        "mesh_frequencies_THz": found.frequencies_THz,
        "dos_frequencies_THz": found.dos_THz,
        "dos_per_THz": found.dos,
        "projected_dos_per_THz": found.projected_dos,
        "temperatures_K": thermal.temperatures,
        "cv_J_per_K_mol": thermal.heat_capacity,
        "free_energy_kJ_mol": thermal.free_energy,
        "entropy_J_per_K_mol": thermal.entropy,
        "zero_point_energy_kJ_mol": thermal.zero_point_energy,
        "share_of_modes_left_out": thermal.left_out,
        "thermal_displacements_A2": found.displacements,
        "share_of_modes_not_in_displacements": share_not_displaced(
            found.mesh, found.frequencies_THz
        ),
        "acoustic_sum_eV_per_A2": found.acoustic.violation,
        "acoustic_frequencies_THz": found.acoustic.frequencies_THz,
        "n_imaginary": count,
        "lowest_frequency_THz": lowest,
        "lowest_frequency_qpoint": where,
        "n_exact_q": found.n_exact,
        **_errors(found, tolerance),
    }


def _errors(found, tolerance):
    """What is known of the interpolation; zero points where every matrix is exact."""
    out = {} if tolerance is None else {"tolerance_THz": tolerance}
    for name, one in (("mesh", found.interpolation), ("band", found.bands.interpolation)):
        out |= {
            f"{name}_interpolation_error_THz": None if one is None else one.error_THz,
            f"{name}_interpolation_measured_at": 0 if one is None else one.n_measured,
            f"{name}_interpolation_grid": None if one is None else one.shape,
        }
    return out
