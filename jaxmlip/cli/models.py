"""`jaxmlip models`: which potentials there are, what is in one, and how others come in."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import export, options
from jaxmlip.cli.output import note, plan, table, task
from jaxmlip.errors import UsageError

app = typer.Typer(
    help="Potentials: list them, show the card of one, take them from other codes.",
    no_args_is_help=False,
)
app.command()(export.export)
COLUMNS = {
    "name": "left",
    "state": "left",
    "elements": "left",
    "architecture": "left",
    "cutoff (Å)": "right",
    "licence": "left",
    "level of theory": "left",
}


@app.command("list")
def list_models(json: options.Json = None, overwrite: options.Overwrite = False):
    """The potentials at hand, and the published ones that can be pulled."""
    from jaxmlip import pretrained
    from jaxmlip.pretrained.published import PUBLISHED
    from jaxmlip.pretrained.pull import pulled

    output = plan("models", [], json_file=json, overwrite=overwrite)
    packaged, here = pretrained.names(), pulled()
    cards, rows, damaged = {}, [], {}
    for name in dict.fromkeys([*packaged, *here]):
        try:
            card = pretrained.card(name)
            rows.append(_row(name, card, "packaged" if name in packaged else "pulled"))
            cards[name] = card
        except Exception as error:  # one bad file must not hide the others
            rows.append((name, "damaged", *[""] * 5))
            damaged[name] = str(error)
    known = {**cards, **damaged}
    absent = {name: entry for name, entry in PUBLISHED.items() if name not in known}
    rows += [
        (name, "to be pulled", "", "", "", entry.licence, entry.level_of_theory)
        for name, entry in absent.items()
    ]
    output.console.print(table(COLUMNS, rows))
    for name, reason in damaged.items():
        output.warn(f"{name} cannot be used: {reason}")
    if not cards:
        note("there is no packaged potential in this installation")
    output.finish(
        {
            "command": "models list",
            "models": list(cards),
            "model_sha256": [card["sha256"] for card in cards.values()],
            "packaged": packaged,
            "pulled": [name for name in here if name in cards],
            "damaged": list(damaged),
            "to_be_pulled": list(absent),
        }
    )


def _row(name, card, state):
    return (
        name,
        state,
        _elements(card),
        card["architecture"],
        f"{card['cutoff']:g}",
        str(card.get("licence", "-")),
        str(card.get("level_of_theory", "-")),
    )


@app.command()
def show(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME|PATH", help="A packaged potential or a .safetensors file."),
    ] = "organic",
    json: options.Json = None,
    overwrite: options.Overwrite = False,
):
    """The card of a potential: what it is for, how accurate it is, its SHA-256."""
    from jaxmlip import pretrained
    from jaxmlip.models import checkpoint

    output = plan("models", [], json_file=json, overwrite=overwrite)
    path = pretrained.path_of(model)
    card, arrays = checkpoint.read(path)
    checkpoint.check_shapes(card, arrays, str(path))
    n_parameters = sum(a.size for a in arrays.values())
    _print_card(output, card, n_parameters, str(model))
    output.finish({"command": "models show", **_summary(model, path, card, n_parameters)})


@app.command("import")
def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Weights of mace-torch, Nequix, SevenNet, SO3LR (params.pkl) or mlip (zip).",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The model file; default NAME.safetensors here."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name; default that of the file.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Which head of several; owed unless one is called Default.")
    ] = None,
    json: options.Json = None,
    overwrite: options.Overwrite = False,
):
    """Weights of another code as a model file of this one, tested before it is written.

    No code of the file is run. The file is refused (exit status 6) unless every array has its
    place, the numbers are finite, the forces the slope of the energy (eV, Å), the energy is
    blind to rotations, and dipole and polarisability turn with the structure.
    """
    from jaxmlip.cli import session

    output = plan("models", [], json_file=json, overwrite=overwrite)
    session.start(x64=True)
    from jaxmlip.pretrained import imports

    to = to or Path(f"{name or imports.stem(file)}.safetensors")
    _check_output(to, file, overwrite)
    with task(f"importing {file.name}"):
        card = imports.import_weights(file, to, name=name, head=head)
    _finish(output, "models import", to, card)


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", show_default=False, help="See `jaxmlip models list`.")
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="A file that was downloaded before: no network is used."
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Which head of several; owed unless one is called Default.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence that restricts use.")
    ] = False,
    accept_unverified: Annotated[
        bool,
        typer.Option("--accept-unverified", help="Take a file whose SHA-256 is not known here."),
    ] = False,
    json: options.Json = None,
    overwrite: options.Overwrite = False,
):
    """A published potential from its publisher's address, checked and imported, once for all."""
    from jaxmlip.cli import session
    from jaxmlip.pretrained import pull as pulls

    output = plan("models", [], json_file=json, overwrite=overwrite)
    entry = pulls.published(name)
    note(f"{name}: licence {entry.licence}, {entry.terms['licence_terms']}")
    note(f"please cite {entry.citation}")
    session.start(x64=True)
    with task(f"pulling {name}") as tell:
        path, card = pulls.pull(
            name,
            source=source,
            head=head,
            accept_licence=accept_licence,
            accept_unverified=accept_unverified,
            overwrite=overwrite,
            tell=tell,
        )
    for file, found in card["origin_sha256"].items():
        verdict = "as published" if entry.verified else "not verified against a known hash"
        note(f"{file}: SHA-256 {found}, {verdict}")
    _finish(output, "models pull", path, card)


def _check_output(path, source, overwrite):
    """Sees before the work that the file can be written where the user wants it."""
    if path.exists() and path.resolve() == source.resolve():
        raise UsageError("this is the input; it is never replaced", where=str(path), fix="--output")
    if path.suffix != ".safetensors":
        raise UsageError("a model file ends in .safetensors", where=str(path), fix="--output")
    if path.exists() and not overwrite:
        raise UsageError(
            "the file is already there",
            where=str(path),
            code="JM104",
            fix="--overwrite to replace it, or another --output",
        )


def _finish(output, command, path, card):
    from jaxmlip.models import checkpoint

    n_parameters = sum(a.size for a in checkpoint.read(path)[1].values())
    _print_card(output, card, n_parameters, card["name"])
    heads = card.get("heads") or {}
    if len(heads.get("available", ())) > 1:
        note(f"head '{heads['imported']}' of {', '.join(heads['available'])}")
    note(f"model file: {path}")
    output.finish({"command": command, **_summary(card["name"], path, card, n_parameters)})


def _summary(model, path, card, n_parameters) -> dict:
    return {
        "model": str(model),
        "model_sha256": card["sha256"],
        "path": str(path),
        "n_parameters": n_parameters,
        "cutoff_A": card["cutoff"],
        "card": card,
    }


def _print_card(output, card, n_parameters, title):
    rows = [("elements", _elements(card)), ("parameters", f"{n_parameters}")]
    rows += [row for key, value in card.items() if key != "elements" for row in _rows(key, value)]
    output.console.print(table({"card": "left", "": "left"}, rows, title=title))


def _elements(card) -> str:
    from ase.data import chemical_symbols

    elements = [e if isinstance(e, str) else chemical_symbols[int(e)] for e in card["elements"]]
    return " ".join(elements) if len(elements) < 20 else f"{len(elements)} elements"


def _rows(key, value):
    """A card entry as lines; what is nested is indented."""
    if key == "reference_energies" and len(value) > 12:
        return [(key, f"of {len(value)} elements")]
    if not isinstance(value, dict):
        return [(key, f"{value:.6g}" if isinstance(value, float) else str(value))]
    inner = [(f"  {k}", v) for name, item in value.items() for k, v in _rows(name, item)]
    return [(key, ""), *inner]
