"""`jaxmlip models export`: a potential as a compiled-ahead program in one file."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import note, plan, table, task
from jaxmlip.errors import UsageError, did_you_mean

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    model: Annotated[
        str, typer.Argument(metavar="NAME|PATH", show_default=False, help="See `models list`.")
    ],
    atoms: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A program for up to so many atoms; several may be given."),
    ] = None,
    neighbors: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most neighbours of an atom; default atoms - 1, enough for a molecule."
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default NAME.npz in this folder."),
    ] = None,
    stress: Annotated[bool, typer.Option(help="With stress, which costs time.")] = True,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda, rocm or tpu; several may be given. Default: this one."),
    ] = None,
    dtype: options.Precision = Dtype.float64,
    json: options.Json = None,
    overwrite: options.Overwrite = False,
):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) as a program that needs no model code.

    Without --atoms one program serves systems of any size, where the model allows that. Read it
    with `jaxmlip.pretrained.export.load_exported`.
    """
    from jaxmlip.cli import session

    output = plan("export", [], json_file=json, overwrite=overwrite)
    _check_options(atoms, neighbors, platform or [])
    session.start(x64=dtype == Dtype.float64)
    opened = session.open_model(model, dtype)
    to = to or Path(f"{Path(opened.name).stem}.npz")
    if to.exists() and not overwrite:
        what = "the file is already there"
        raise UsageError(what, where=str(to), code="JM104", fix="--overwrite, or another --output")
    from jaxmlip.pretrained.export import export

    with task(f"tracing {opened.name}"):
        found = export(
            opened.potential,
            opened.params,
            to,
            sizes=[(n, neighbors or max(n - 1, 1)) for n in sorted(set(atoms or []))],
            dtype=str(dtype),
            stress=stress,
            platforms=tuple(platform) if platform else None,
            card=opened.card,
        )
    sizes = [f"{n} atoms with {k} neighbours" for n, k in found["sizes"]]
    rows = [
        ("sizes", ", ".join(sizes) or "any"),
        ("dtype", found["dtype"]),
        ("platforms", ", ".join(found["platforms"])),
        ("jax", f"{found['jax']}, calling convention {found['calling_convention']}"),
        ("file", f"{to.stat().st_size / 1e6:.1f} MB"),
    ]
    output.console.print(table({"program": "left", "": "left"}, rows, title=opened.name))
    note(f"written: {to}")
    kept = {key: found[key] for key in ("sizes", "platforms", "calling_convention", "stress")}
    summary = opened.summary | session.versions()
    output.finish({"command": "models export", "path": str(to), **summary, **kept})


def _check_options(atoms, neighbors, platforms):
    """Sees before the work that every option has a meaning."""
    if neighbors and not atoms:
        raise UsageError(
            "a program for any size has room for any number of neighbours",
            where="--neighbors",
            fix="give --atoms too, or leave it out",
        )
    for name in platforms:
        if name not in PLATFORMS:
            raise UsageError(
                f"there is no platform '{name}'.{did_you_mean(name, PLATFORMS)}",
                where="--platform",
                fix=f"one of {', '.join(PLATFORMS)}",
            )
