"""`jaxmlip singlepoint`: what a model says of structures as they are."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import plan, table, task, write_extxyz

SHOWN = 20  # rows of the table


def singlepoint(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    extxyz: Annotated[bool, typer.Option(
        "--extxyz", help="Write the structures with their results, NAME_singlepoint.xyz.")] = False,
    dtype: options.Precision = Dtype.float64,
):
    """Energy (eV), forces (eV/Å), stress (eV/Å³), dipole (e Å) and charges (e), every frame."""
    from jaxmlip.cli import session

    output = plan(file, ["singlepoint.xyz"] if extxyz else [], out=out, json_file=json,
                  overwrite=overwrite)
    session.start(x64=dtype == Dtype.float64)
    opened = session.open_model(model, dtype)
    frames = session.read_all(file, opened, output)
    session.announce("singlepoint", opened, max(map(len, frames)))
    with task(f"computing {len(frames)} structure{'s' if len(frames) > 1 else ''}") as tell:
        frames = list(_computed(frames, opened, tell))
    output.console.print(_table(frames))
    if len(frames) > SHOWN:
        output.console.print(f"... and {len(frames) - SHOWN} more (--json gives all)")
    if extxyz:
        write_extxyz(output.paths["singlepoint.xyz"], frames)
    output.finish({"command": "singlepoint", "structure": file, **opened.summary,
                   **session.versions(), "n_frames": len(frames), **_json(frames)})


def _computed(frames, model, tell):
    from jaxmlip.cli.analysis import with_results
    from jaxmlip.interfaces.calculator import PotentialCalculator

    calculator = PotentialCalculator(model.potential, model.params, dtype=model.dtype,
                                     elements=model.card["elements"], name=model.name)
    for i, atoms in enumerate(frames):
        atoms = atoms.copy()
        has_stress = atoms.pbc.any() and atoms.cell.rank == 3
        calculator.calculate(atoms, ("energy", "forces", *(("stress",) if has_stress else ())))
        tell(f"{i + 1} done")
        yield with_results(atoms, **calculator.results)


def _fmax(atoms):
    return float((atoms.calc.results["forces"] ** 2).sum(1).max() ** 0.5)


def _table(frames):
    has_dipole = "dipole" in frames[0].calc.results
    rows = []
    for i, atoms in enumerate(frames[:SHOWN]):
        results = atoms.calc.results
        dipole = [f"{(results['dipole'] ** 2).sum() ** 0.5:.4f}"] if has_dipole else []
        rows.append((str(i), atoms.get_chemical_formula(), f"{results['energy']:.6f}",
                     f"{_fmax(atoms):.5f}", *dipole))
    columns = {"frame": "right", "formula": "left", "energy (eV)": "right",
               "fmax (eV/Å)": "right"} | ({"|dipole| (e Å)": "right"} if has_dipole else {})
    return table(columns, rows)


KEYS = {"energy": "energy_eV", "forces": "forces_eV_per_A", "energies": "energies_eV",
        "stress": "stress_voigt_eV_per_A3", "dipole": "dipole_eA", "charges": "charges_e"}


def _json(frames) -> dict:
    """One structure: plain values. Several: lists over the frames, null where there is none."""
    from jaxmlip.cli.analysis import geometry

    each = [geometry(a) | {"formula": a.get_chemical_formula(), "fmax_eV_per_A": _fmax(a)}
            | {name: a.calc.results[key] for key, name in KEYS.items() if key in a.calc.results}
            for a in frames]
    if len(each) == 1:
        return each[0]
    return {key: [one.get(key) for one in each] for key in {k: 0 for one in each for k in one}}
