"""`jaxmlip serve`: what a server gets over the socket is what the potential says."""

import socket
import threading

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


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("atoms", [bulk("Ar", "fcc", 5.2, cubic=True), molecule("H2O")], ids=str)
def test_a_server_gets_forces_and_virials(atoms):
    atoms.rattle(0.05, seed=0)
    served, port = atoms.copy(), free_port()
    with SocketIOCalculator(port=port, timeout=60) as server:
        counted = []
        client = threading.Thread(
            target=lambda: counted.append(serve.answer(served, OPENED, port=port))
        )
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
    client.join(timeout=60)
    assert counted == [2]


def test_no_server_is_an_error_with_its_address(tmp_path, capsys):
    molecule("H2O").write(tmp_path / "water.xyz")
    port = free_port()
    assert main(["serve", str(tmp_path / "water.xyz"), "--address", f"localhost:{port}"]) == 5
    assert f"localhost:{port}" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "water.xyz"), "--address", "nowhere"]) == 2
