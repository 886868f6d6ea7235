"""`jaxmlip serve`: energies and forces for i-PI, and for any program that speaks its protocol."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import Output, note
from jaxmlip.errors import ResourceError, UsageError


def serve(
    file: options.File,
    model: options.Model = "organic",
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where i-PI listens.")
    ] = "localhost:31415",
    unix: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its UNIX socket instead, /tmp/ipi_NAME."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Write every message to this file.")] = None,
    dtype: options.Precision = Dtype.float64,
):
    """Drive nothing, answer: forces (and virials of crystals) of the positions that i-PI sends.

    FILE gives elements, periodic axes, charge and spin, in the order of atoms of the server. Start
    the server first. Ends when the server does.
    """
    from jaxmlip.cli import session

    session.start(x64=dtype == Dtype.float64)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, Output(json=None))
    opened = session.bound(opened, atoms)
    host, port = _address(address)
    n = answer(atoms, opened, host=host, port=port, unix=unix, log=log)
    note(f"served {n} configurations")


def answer(atoms, opened, *, host="localhost", port=31415, unix=None, log=None) -> int:
    """Answers a server until it ends; the number of configurations."""
    from ase.calculators.socketio import SocketClient

    from jaxmlip.interfaces.calculator import PotentialCalculator

    atoms.calc = PotentialCalculator(
        opened.potential, opened.params, dtype=opened.dtype, elements=opened.card.get("elements")
    )
    where = f"/tmp/ipi_{unix}" if unix else f"{host}:{port}"
    stream = None if log is None else open(log, "w")
    try:
        client = SocketClient(host=host, port=port, unixsocket=unix, log=stream)
        note(f"connected to {where}")
        return sum(1 for _ in client.irun(atoms, use_stress=bool(atoms.pbc.any())))
    except (ConnectionError, FileNotFoundError) as error:
        raise ResourceError(
            f"no server answers: {error.strerror or error}",
            where=where,
            fix="start i-PI first, with the same address (ffsocket: address, port, mode)",
        ) from error
    finally:
        if stream is not None:
            stream.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"'{text}' is not HOST:PORT", where="--address", fix="localhost:31415")
    return host, int(port)
