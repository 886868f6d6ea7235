"""Options that commands share, so that a flag means the same everywhere."""

import re
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


class Method(StrEnum):
    lbfgs = "lbfgs"
    fire = "fire"


def femtoseconds(text: str | float) -> float:
    """fs of "0.5", "0.5 fs" or "0.0005 ps"."""
    number, unit = re.fullmatch(r"\s*(.*?)\s*(fs|ps|)\s*", str(text)).groups()
    try:
        return float(number) * (1000 if unit == "ps" else 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; give fs, as 0.5 or '0.5 fs'") from None


Time = partial(typer.Option, parser=femtoseconds, metavar="FS")

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        show_default=False,
        help="A structure (xyz, extxyz, cif, POSCAR ...; Å) or a molecule by name, such as H2O.",
    ),
]
Frame = Annotated[int, typer.Option(help="Which structure of a file of many; -1 is the last.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="A packaged potential (see `jaxmlip models list`) or a .safetensors file.",
    ),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        help="Where the results go as JSON; - is standard output, and "
        "tables then go to standard error.",
    ),
]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision of the calculation.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the files that are written.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")]
Fmax = Annotated[
    float, typer.Option(min=0, help="Relax until no atom feels more than this force, eV/Å.")
]
Steps = Annotated[int, typer.Option(min=1, help="Most evaluations of energy and forces.")]
Minimizer = Annotated[Method, typer.Option("--method", help="How to relax.")]
Relax = Annotated[
    bool,
    typer.Option("--relax/--no-relax", help="Relax first: harmonic modes are those of a minimum."),
]
Primitive = Annotated[
    bool,
    typer.Option(
        "--primitive/--as-given",
        help="Crystals: reduce to the primitive cell, or take the cell of FILE.",
    ),
]
Symprec = Annotated[float, typer.Option(help="Crystals: Å within which atoms are equivalent.")]
FixedCell = Annotated[bool, typer.Option("--fixed-cell", help="Crystals: relax atoms only.")]
Stress = Annotated[float, typer.Option(min=0, help="Crystals: relax to this stress, eV/Å³.")]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV",
        help="A spectrum to lay over the picture: two columns, cm⁻¹ and intensity; scaled.",
    ),
]
Csv = Annotated[bool, typer.Option("--csv", help="Write the curve as a table, too.")]
