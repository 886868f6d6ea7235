"""`jaxmlip check-model`: is a potential smooth, conservative and symmetric?"""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import note, plan, table, task
from jaxmlip.errors import UsageError


def check_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A packaged potential, a .safetensors file, or an ASE calculator as "
            "MODULE:NAME (called without arguments), such as ase.calculators.emt:EMT.",
        ),
    ],
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="A structure that the model should know; default ethanol, or a crystal.",
        ),
    ] = None,
    json: options.Json = None,
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    rattle: Annotated[
        float, typer.Option(min=0, help="Atoms are displaced by this much first, Å (rms).")
    ] = 0.05,
    cutoff: Annotated[
        float | None,
        typer.Option(min=0, help="Of a calculator, Å; default looked for with pairs of atoms."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this check alone; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of displacements, rotations and directions.")] = 0,
    dtype: options.Precision = Dtype.float64,
):
    """Symmetry, forces as derivatives, smoothness, extensivity, drift. Exit 1 if a check fails."""
    from jaxmlip.cli import session
    from jaxmlip.workflows.audit import CHECKS, audit, passed

    unknown = sorted({*(only or ())} - {*CHECKS})
    if unknown:
        raise UsageError(
            f"unknown check '{unknown[0]}'", where="--only", fix=f"one of {', '.join(CHECKS)}"
        )
    output = plan(file or "model", [], json_file=json, overwrite=overwrite)
    session.start(x64=True)
    subject = _opened(model, file, frame, output, cutoff=cutoff, dtype=dtype)
    atoms = subject["atoms"]
    atoms.rattle(rattle, seed=seed)
    with task(f"checking {subject['name']} at {atoms.get_chemical_formula()}") as tell:
        findings = audit(
            subject["evaluate"],
            _system(atoms),
            precision=str(dtype),
            cutoff=subject["cutoff"],
            in_float32=subject["in_float32"],
            masses=atoms.get_masses(),
            only=only,
            seed=seed,
            tell=tell,
        )
        failed = [f for f in findings if f.passed is False]
        tell(f"{len(failed)} of {len(findings)} numbers beyond their limit")
    output.console.print(_table(findings))
    output.finish(
        {
            "command": "check-model",
            "structure": file or atoms.get_chemical_formula(),
            **subject["summary"],
            **session.versions(),
            "passed": passed(findings),
            "failed": sorted({f.check for f in failed}),
            "findings": [vars(f) | {"passed": f.passed} for f in findings],
        }
    )
    if failed:
        raise typer.Exit(1)


def _system(atoms):
    from jaxmlip.interfaces.ase import from_ase

    return from_ase(atoms, None)


def _opened(model, file, frame, output, *, cutoff, dtype) -> dict:
    """What is checked: evaluate, a structure, and what is known beside."""
    from jaxmlip.interfaces.evaluate import of_calculator, of_potential

    if ":" in model and not Path(model).exists():
        calculator = _calculator(model)
        if file is None:
            raise UsageError(
                "what elements a calculator knows is not known", where=model, fix="give a FILE"
            )
        return {
            "name": model,
            "evaluate": of_calculator(calculator),
            "atoms": _structure(file, frame),
            "cutoff": cutoff,
            "in_float32": None,
            "summary": {"model": model},
        }
    from jaxmlip.cli import session

    opened = session.open_model(model, str(dtype))
    atoms = _specimen(opened) if file is None else None
    if file is not None:
        atoms = session.read(file, opened, output, frame=frame)
    make = lambda kind: of_potential(opened.potential, opened.params, dtype=kind)
    planned = getattr(opened.potential, "plan", None) is not None
    if planned:
        note("the potential has long-range terms: pairs of atoms are not looked at for a cutoff")
    return {
        "name": opened.name,
        "evaluate": make(str(dtype)),
        "atoms": atoms,
        "cutoff": None if planned else float(opened.potential.cutoff),
        "in_float32": make("float32") if dtype == Dtype.float64 else None,
        "summary": opened.summary,
    }


def _structure(file, frame):
    from jaxmlip.interfaces.read import read_structure

    return read_structure(file, frame=frame)


def _calculator(path):
    from importlib import import_module

    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f"cannot make the calculator: {error}",
            where=path,
            fix="MODULE:NAME of a class or function that takes no arguments",
        ) from error


def _specimen(opened):
    """For want of a structure: ethanol, or a crystal of the elements of the model, at rest."""
    from ase.build import molecule
    from ase.optimize import FIRE

    from jaxmlip.interfaces.calculator import PotentialCalculator

    elements = opened.card["elements"]
    if {1, 6, 8} <= {*map(int, elements)}:
        return molecule("CH3CH2OH")
    atoms = _crystal(elements)
    atoms.calc = PotentialCalculator(opened.potential, opened.params, dtype=opened.dtype)
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=200)
    atoms.calc = None
    return atoms


def _crystal(elements):
    """Eight atoms of the first elements on a face-centred lattice, at bonding distances."""
    import numpy as np
    from ase import Atoms
    from ase.data import covalent_radii

    some = [int(z) for z in elements][:4]
    numbers = np.resize(some, 8)
    nearest = 2.2 * max(covalent_radii[some].mean(), 0.6)
    a = nearest * np.sqrt(2)
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    positions = a * np.concatenate([corners, corners + [1, 0, 0]])
    return Atoms(numbers, positions, cell=np.diag([2 * a, a, a]), pbc=True)


def _table(findings):
    columns = {
        "check": "left",
        "quantity": "left",
        "value": "right",
        "limit": "right",
        "unit": "left",
        "verdict": "left",
        "note": "left",
    }
    words = {True: "ok", False: "FAIL", None: "told"}
    return table(
        columns,
        [
            (
                f.check,
                f.quantity,
                f"{f.value:.1e}",
                "" if f.limit is None else f"{f.limit:.0e}",
                f.unit,
                words[f.passed],
                f.note,
            )
            for f in findings
        ],
    )
