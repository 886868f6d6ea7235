"""`jaxmlip singlepoint`: what a model says of structures as they are."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import plan, table, task, write_extxyz
from jaxmlip.errors import NumericalError

SHOWN = 20  # rows of the table
UNCERTAINTIES = ("energy_uncertainty", "forces_uncertainty")


def singlepoint(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    extxyz: Annotated[
        bool,
        typer.Option(
            "--extxyz", help="Write the structures with their results, NAME_singlepoint.xyz."
        ),
    ] = False,
    dtype: options.Precision = Dtype.float64,
):
    """Energy (eV), forces (eV/Å), stress (eV/Å³), dipole (e Å) and charges (e), every frame.

    Ensembles and calibrated models tell their uncertainties, of energies (eV) and forces (eV/Å).
    """
    from jaxmlip.cli import session

    output = plan(
        file, ["singlepoint.xyz"] if extxyz else [], out=out, json_file=json, overwrite=overwrite
    )
    session.start(x64=dtype == Dtype.float64)
    opened = session.open_model(model, dtype)
    frames = session.read_all(file, opened, output)
    opened = session.bound(opened, *frames, strained=True)
    session.announce("singlepoint", opened, max(map(len, frames)))
    with task(f"computing {len(frames)} structure{'s' if len(frames) > 1 else ''}") as tell:
        frames = list(_computed(frames, opened, tell))
    output.console.print(_table(frames))
    if len(frames) > SHOWN:
        output.console.print(f"... and {len(frames) - SHOWN} more (--json gives all)")
    if extxyz:
        write_extxyz(output.paths["singlepoint.xyz"], frames)
    output.finish(
        {
            "command": "singlepoint",
            "structure": file,
            **opened.summary,
            **session.versions(),
            "n_frames": len(frames),
            **_json(frames),
        }
    )


def _computed(frames, model, tell):
    """The frames with their results. Padded to few sizes, since each size is compiled."""
    import jax

    from jaxmlip import predict

    function = jax.jit(predict(model.potential.apply))
    for i, atoms in enumerate(frames):
        out = jax.device_get(function(model.params, _padded(atoms, model)))
        yield _with_results(atoms, _checked(_results(out, atoms), i))
        tell(f"{i + 1} done")


def _with_results(atoms, results):
    """A copy with its results; uncertainties, which ASE knows none of, as info and array.

    Those of an earlier model, from the file, go.
    """
    from jaxmlip.cli.analysis import with_results

    unsure = {key: results.pop(key, None) for key in UNCERTAINTIES}
    copy = with_results(atoms, **results)
    for key, home in zip(UNCERTAINTIES, (copy.info, copy.arrays), strict=True):
        home.pop(key, None)
        home |= {} if unsure[key] is None else {key: unsure[key]}
    return copy


def _values(atoms) -> dict:
    """Results and uncertainties of a frame."""
    unsure = {k: home[k] for k in UNCERTAINTIES for home in (atoms.info, atoms.arrays) if k in home}
    return atoms.calc.results | unsure


def _padded(atoms, model):
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.system import ladder, pad

    system = from_ase(atoms, model.potential.cutoff, dtype=model.dtype)
    size = ladder(len(atoms))
    most = system.edges.senders.shape[1] if atoms.pbc.any() else size
    return pad(system, n_atoms=size, n_neighbors=most)


def _results(out, atoms) -> dict:
    """Real atoms only, float64, no batch axis, stress in Voigt order as ASE has it."""
    import numpy as np

    n = len(atoms)
    of_atoms = ("forces", "energies", "charges", "forces_uncertainty")
    results = {k: np.asarray(out[k][:n], np.float64) for k in of_atoms if k in out}
    results |= {k: float(out[k][0]) for k in ("energy", "energy_uncertainty") if k in out}
    if "dipole" in out and not atoms.pbc.any():  # of a crystal it has no meaning
        results["dipole"] = np.asarray(out["dipole"][0], np.float64)
    if atoms.pbc.any() and atoms.cell.rank == 3:
        results["stress"] = np.asarray(out["stress"][0], np.float64)[
            [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
        ]
    return results


def _checked(results, frame) -> dict:
    import numpy as np

    for name, value in results.items():
        if not np.isfinite(value).all():
            raise NumericalError(
                f"{name} is not finite",
                where=f"frame {frame}",
                code="JM303",
                fix="look at the geometry: are atoms on top of each other?",
            )
    return results


def _longest(vectors) -> float:
    return float((vectors**2).sum(-1).max() ** 0.5)


COLUMNS = {  # heading: result, and what is told of it
    "energy (eV)": ("energy", lambda x: f"{x:.6f}"),
    "± (eV)": ("energy_uncertainty", lambda x: f"{x:.6f}"),
    "fmax (eV/Å)": ("forces", lambda x: f"{_longest(x):.5f}"),
    "worst ± (eV/Å)": ("forces_uncertainty", lambda x: f"{x.max():.5f}"),
    "|dipole| (e Å)": ("dipole", lambda x: f"{_longest(x):.4f}"),
}


def _table(frames):
    """The first frames; a column for what any of them has."""
    shown = [(atoms.get_chemical_formula(), _values(atoms)) for atoms in frames[:SHOWN]]
    told = {
        heading: [text(found[key]) if key in found else "-" for _, found in shown]
        for heading, (key, text) in COLUMNS.items()
        if any(key in found for _, found in shown)
    }
    formulas = [formula for formula, _ in shown]
    columns = {"frame": "right", "formula": "left"} | dict.fromkeys(told, "right")
    rows = zip(map(str, range(len(shown))), formulas, *told.values(), strict=True)
    return table(columns, rows)


KEYS = {
    "energy": "energy_eV",
    "forces": "forces_eV_per_A",
    "energies": "energies_eV",
    "stress": "stress_voigt_eV_per_A3",
    "dipole": "dipole_eA",
    "charges": "charges_e",
    "energy_uncertainty": "energy_uncertainty_eV",
    "forces_uncertainty": "forces_uncertainty_eV_per_A",
}


def _json(frames) -> dict:
    """One structure: plain values. Several: lists over the frames, null where there is none."""
    from jaxmlip.cli.analysis import geometry

    each = [
        geometry(atoms)
        | {"formula": atoms.get_chemical_formula(), "fmax_eV_per_A": _longest(found["forces"])}
        | {name: found[key] for key, name in KEYS.items() if key in found}
        for atoms, found in ((a, _values(a)) for a in frames)
    ]
    if len(each) == 1:
        return each[0]
    return {key: [one.get(key) for one in each] for key in {k: 0 for one in each for k in one}}
