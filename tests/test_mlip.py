"""Archives of mlip give its energies, forces and stress.

`data/mlip_mace.zip` is a small MACE with random weights (2 layers, 4 channels, l_max 2, node
symmetry 1, correlation 3, basis factor from avg_r_min), written by mlip 0.2.5 (e3j 0.1.1) with
`save_model_to_zip`; `data/mlip_mace.npz` holds what mlip predicts with it in float64.
"""

import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.weights import format_of, mlip
from jaxmlip.models import checkpoint
from jaxmlip.nn.tensor_product import natural
from jaxmlip.system import pad

DATA = Path(__file__).parent / "data"
ARCHIVE = DATA / "mlip_mace.zip"


@pytest.fixture(scope="module")
def predict():
    """atoms -> predictions of the archive, in float64."""
    card, params = mlip.read(ARCHIVE)
    potential, params = checkpoint.potential_of(card), jaxmlip.cast(params, np.float64)
    function = jax.jit(jaxmlip.predict(potential.apply))
    edges = lambda atoms: jaxmlip.from_ase(atoms, potential.cutoff)
    return lambda atoms: function(params, pad(edges(atoms), n_atoms=12, n_neighbors=64))


def stored(name):
    """(atoms, what mlip predicts)."""
    file = np.load(DATA / "mlip_mace.npz")
    found = {k.split("|")[1]: file[k] for k in file if k.startswith(f"{name}|")}
    keys = ("positions", "numbers", "cell", "pbc")
    return Atoms(**{k: found[k] for k in keys}), found


@pytest.fixture(scope="module")
def content():
    """(settings, arrays) of the archive."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        arrays = dict(np.load(io.BytesIO(archive.read("params.npz")), allow_pickle=False))
        return json.loads(archive.read("hyperparams.json")), arrays


@pytest.mark.parametrize("name", ["ethanol", "ice"])
def test_energy_forces_and_stress_are_those_of_mlip(predict, name):
    """Limit: mlip computes the factor of its radial basis in float32, even in float64."""
    assert format_of(ARCHIVE) == "mlip"
    atoms, expected = stored(name)
    out = predict(atoms)
    assert_allclose(out["energy"], expected["energy"], rtol=0, atol=1e-6)
    assert_allclose(out["forces"][: len(atoms)], expected["forces"], rtol=0, atol=5e-7)
    if atoms.pbc.any():
        assert_allclose(out["stress"], expected["stress"], rtol=0, atol=1e-8)


def test_a_slab_is_a_crystal_with_a_vacuum_wider_than_the_cutoff(predict):
    """The crystal's cell cuts the slab in two, so that its edges cross the border."""
    slab, _ = stored("ice")
    slab.set_cell([*slab.cell[:2], [0, 0, np.ptp(slab.positions[:, 2]) + 8]])
    slab.pbc, crystal = (True, True, False), slab.copy()
    crystal.pbc = True
    crystal.positions[:, 2] -= crystal.positions[:, 2].mean()
    crystal.wrap()
    assert np.ptp(crystal.positions[:, 2]) > 7
    open_, closed = predict(slab), predict(crystal)
    for key in ("energy", "forces", "stress"):
        assert_allclose(open_[key], closed[key], rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gate_nodes": True}, "gate_nodes"),
        ({"radial_envelope": "soft_envelope"}, "radial_envelope"),
        ({"num_channels": 10**9}, "num_channels"),
        ({"readout_irreps": ["8x0e + 4x1o", "0e"]}, "only scalars"),
        ({"correlation": 2}, "expected"),
        ({"node_symmetry": 3}, "not in 0 to 2"),
        ({"node_symmetry": 10**9}, "not in 0 to 2"),
        ({"l_max": 6, "correlation": 4}, "too many"),
    ],
)
def test_options_that_are_not_here_are_refused(content, change, message):
    settings, arrays = content
    with pytest.raises(ModelError, match=message):
        mlip.convert(settings | {"config": settings["config"] | change}, arrays)


def test_other_architectures_versions_heads_and_arrays_are_refused(content):
    settings, arrays = content
    with pytest.raises(ModelError, match="NequIP"):
        mlip.convert(settings | {"config": {"target_irreps": "8x0e"}}, arrays)
    with pytest.raises(ModelError, match="versions 0.2"):
        mlip.convert(settings | {"version": "0.1.3"}, arrays)
    with pytest.raises(UsageError, match="no head '1'"):
        mlip.convert(settings, arrays, head="1")
    with pytest.raises(ModelError, match="without a place"):
        mlip.convert(settings, arrays | {"params#mlip_network#more": np.ones(3)})
    with pytest.raises(ModelError, match="should be one"):
        mlip.convert(settings, {k: v for k, v in arrays.items() if "embedding" not in k})


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, content):
    """Zeros pack a thousand times smaller; weights hardly do."""
    file, path = io.BytesIO(), tmp_path / "bomb.zip"
    np.savez_compressed(file, zeros=np.zeros(16 * 10**6))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hyperparams.json", json.dumps(content[0]))
        archive.writestr("params.npz", file.getvalue())
    with pytest.raises(ModelError, match="unpacks to more"):
        mlip.read(path)


@pytest.mark.parametrize("l_max, correlation", [(3, 4), (5, 4), (6, 3)])
def test_products_that_would_fill_the_memory_are_refused_before_they_are_built(l_max, correlation):
    """Each of the largest settings that are not refused for their number of couplings."""
    with pytest.raises(ModelError, match="too many"):
        mlip.coupled_powers(l_max, correlation, natural(l_max))
