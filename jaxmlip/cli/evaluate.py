"""`jaxmlip evaluate`: the accuracy of a model on labelled structures."""

from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import plan, table, task
from jaxmlip.errors import UsageError

ENERGIES = {"energy", "energies", "forces", "stress", "hessian"}  # and what is made of them


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A packaged potential (see `jaxmlip models list`) or a .safetensors file.",
        ),
    ],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Labelled structures, extended XYZ: REF_energy (eV), REF_forces (eV/Å) ...",
        ),
    ],
    json: options.Json = None,
    overwrite: options.Overwrite = False,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=KEY",
            help="Where a label is in the file, such as energy=dft_energy; may be repeated.",
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=UNIT",
            help="Unit of a label in the file, such as polarizability=A3 or dipole=D; may be "
            "repeated. Errors are in the units above.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="What to compare; default all that file and model have. May be repeated."
        ),
    ] = None,
    batch_atoms: Annotated[int, typer.Option(min=1, help="Atoms computed at once.")] = 512,
    dtype: options.Precision = Dtype.float32,
):
    """Mean absolute and root mean square errors: meV/atom, meV/Å, meV/Å³, e Å, e, e² Å²/eV."""
    from jaxmlip.cli import session

    output = plan(file, [], json_file=json, overwrite=overwrite)
    keys = _pairs(key or (), "--key", "energy=dft_energy")
    units = _pairs(unit or (), "--unit", "polarizability=A3")
    session.start(x64=dtype == Dtype.float64)
    energy = not label or bool(ENERGIES & set(label))
    opened = session.open_model(model, dtype, needs_energy=energy)
    session.announce("evaluate", opened, batch_atoms)
    with task("comparing") as tell:
        found = _compared(
            file, opened, keys=keys, units=units, labels=label, batch_atoms=batch_atoms
        )
        tell(f"{found['n_frames']} structures, {found['n_atoms']} atoms")
    output.console.print(_table(found))
    output.finish(
        {"command": "evaluate", "structure": file, **opened.summary, **session.versions(), **found}
    )


def _compared(file, model, *, keys, units, labels, batch_atoms) -> dict:
    import numpy as np

    from jaxmlip.interfaces.check import check_elements
    from jaxmlip.interfaces.labels import read_labelled
    from jaxmlip.models import checkpoint
    from jaxmlip.potential import bind
    from jaxmlip.train.evaluation.accuracy import evaluate

    card = model.card
    frames = read_labelled(
        file,
        card["cutoff"],
        keys=keys,
        units=units,
        needed=labels or (),
        dtype=np.dtype(model.dtype),
    )
    for i, (system, _) in enumerate(frames):
        check_elements(
            system.numbers, card["elements"], model=model.name, where=f"{file} frame {i}"
        )
    reference = {int(z): float(e) for z, e in (card.get("reference_energies") or {}).items()}
    bare = checkpoint.potential_of(card | {"reference_energies": {}})
    bare = bind(bare, [system for system, _ in frames])
    return evaluate(
        bare,
        model.params,
        frames,
        labels=labels,
        reference_energies=reference,
        batch_atoms=batch_atoms,
    )


def _pairs(given, where, example) -> dict:
    """{label: value} of options LABEL=VALUE."""
    found = dict(pair.partition("=")[::2] for pair in given)
    for name, value in found.items():
        if not value:
            raise UsageError(
                f"'{name}' has no '=' with a value after it",
                where=where,
                fix=f"for example {where} {example}",
            )
    return found


def _table(found):
    rows = {}
    for name, value in found.items():
        for kind in ("mae", "rmse"):
            what, middle, unit = name.partition(f"_{kind}_")
            if middle:
                unit = _unit(unit)
                rows.setdefault((what, unit), {})[kind] = f"{value:.4g}"
    return table(
        {"label": "left", "MAE": "right", "RMSE": "right", "unit": "left"},
        [(what, e.get("mae", "-"), e.get("rmse", "-"), unit) for (what, unit), e in rows.items()],
    )


def _unit(name) -> str:
    for plain, written in (("_per_", "/"), ("A3", "Å³"), ("A", "Å"), ("eÅ", "e Å")):
        name = name.replace(plain, written)
    return name
