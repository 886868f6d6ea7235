"""`jaxmlip models`: which potentials there are, and what is in one."""

from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.output import note, plan, table

app = typer.Typer(
    help="Packaged potentials: list them, show the card of one.", no_args_is_help=False
)


@app.command("list")
def list_models(json: options.Json = None, overwrite: options.Overwrite = False):
    """The packaged potentials."""
    from jaxmlip import pretrained

    output = plan("models", [], json_file=json, overwrite=overwrite)
    cards = {name: pretrained.card(name) for name in pretrained.names()}
    rows = [
        (
            name,
            _elements(card),
            card["architecture"],
            f"{card['cutoff']:g}",
            str(card.get("level_of_theory", "-")),
        )
        for name, card in cards.items()
    ]
    output.console.print(
        table(
            {
                "name": "left",
                "elements": "left",
                "architecture": "left",
                "cutoff (Å)": "right",
                "level of theory": "left",
            },
            rows,
        )
    )
    if not cards:
        note("there is no packaged potential in this installation")
    output.finish(
        {
            "command": "models list",
            "models": list(cards),
            "model_sha256": [card["sha256"] for card in cards.values()],
        }
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
    n_parameters = sum(a.size for a in arrays.values())
    rows = [("elements", _elements(card)), ("parameters", f"{n_parameters}")]
    rows += [row for key, value in card.items() if key != "elements" for row in _rows(key, value)]
    output.console.print(table({"card": "left", "": "left"}, rows, title=str(model)))
    output.finish(
        {
            "command": "models show",
            "model": str(model),
            "model_sha256": card["sha256"],
            "path": str(path),
            "n_parameters": n_parameters,
            "cutoff_A": card["cutoff"],
            "card": card,
        }
    )


def _elements(card) -> str:
    from ase.data import chemical_symbols

    elements = [e if isinstance(e, str) else chemical_symbols[int(e)] for e in card["elements"]]
    return " ".join(elements) if len(elements) < 20 else f"{len(elements)} elements"


def _rows(key, value):
    """A card entry as lines; what is nested is indented."""
    if not isinstance(value, dict):
        return [(key, f"{value:.6g}" if isinstance(value, float) else str(value))]
    inner = [(f"  {k}", v) for name, item in value.items() for k, v in _rows(name, item)]
    return [(key, ""), *inner]
