"""`jaxmlip serve`: what a server gets over the socket is what the potential says."""

import socket
import threading
from contextlib import suppress

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.socketio import SocketIOCalculator
from numpy.testing import assert_allclose

from jaxmlip.cli import serve
from jaxmlip.cli.main import main
from jaxmlip.cli.session import Opened
from jaxmlip.interfaces.calculator import PotentialCalculator
from jaxmlip.models import LennardJones

ARGON = LennardJones(elements=(1, 8, 18), epsilon=0.01, sigma=3.0, cutoff=6.0)
OPENED = Opened(
    name="lj", potential=ARGON, params={}, card={"elements": [1, 8, 18]}, dtype="float64"
)


LONG = 600  # seconds: the first answer waits for a compiler on a machine that others use


def server_on_a_free_port():
    """(server, its port): what was free a moment ago may be taken by now."""
    for _ in range(20):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        with suppress(OSError):
            return SocketIOCalculator(port=port, timeout=LONG), port
    raise OSError("no free port")


@pytest.mark.parametrize("atoms", [bulk("Ar", "fcc", 5.2, cubic=True), molecule("H2O")], ids=str)
def test_a_server_gets_forces_and_virials(atoms):
    atoms.rattle(0.05, seed=0)
    served, counted = atoms.copy(), []
    server, port = server_on_a_free_port()
    with server:
        answers = lambda: counted.append(serve.answer(served, OPENED, port=port))
        client = threading.Thread(target=answers, daemon=True)
        client.start()
        atoms.calc = server
        wanted = atoms.copy()
        wanted.calc = PotentialCalculator(ARGON, {}, dtype="float64")
        for _ in range(2):
            assert_allclose(atoms.get_forces(), wanted.get_forces(), atol=1e-10)
            assert_allclose(atoms.get_potential_energy(), wanted.get_potential_energy(), atol=1e-10)
            if atoms.pbc.any():
                assert_allclose(atoms.get_stress(), wanted.get_stress(), atol=1e-10)
            moved = atoms.positions + np.random.default_rng(1).normal(
                0, 0.05, atoms.positions.shape
            )
            atoms.positions, wanted.positions = moved, moved
    client.join(timeout=LONG)
    assert counted == [2]


def test_no_server_is_an_error_with_its_address(tmp_path, capsys):
    molecule("H2O").write(tmp_path / "water.xyz")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))  # so that no one else listens there; nor does this
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path / "water.xyz"), "--address", f"localhost:{port}"]) == 5
    assert f"localhost:{port}" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "water.xyz"), "--address", "nowhere"]) == 2
