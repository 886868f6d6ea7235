"""A near and a far model are one potential, and the near one pays for near neighbours only."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from structures import KEY, card, rattled, triclinic

import jaxmlip
from jaxmlip.derivatives.first import with_forces
from jaxmlip.errors import ModelError
from jaxmlip.models import MACE, DualCutoff, checkpoint
from jaxmlip.potential import bind

ELEMENTS, SHORT, LONG = (6, 8), 3.3, 6.0
TINY = {
    "channels": 2,
    "n_layers": 1,
    "l_max": 1,
    "hidden_l": 0,
    "correlation": 2,
    "n_radial": 2,
    "radial_widths": (4,),
    "readout_width": 2,
}
RICH = {**TINY, "channels": 16, "radial_widths": (16, 16)}
MODEL = DualCutoff(
    elements=ELEMENTS,
    cutoff=LONG,
    short_cutoff=SHORT,
    short={**RICH, "avg_num_neighbors": 4.0},
    long=TINY,
    avg_num_neighbors=30.0,
)


@pytest.fixture(scope="module")
def crystal():
    return jaxmlip.from_ase(rattled(triclinic()), LONG)


@pytest.fixture(scope="module")
def params(crystal):
    return jax.jit(MODEL.init)(KEY, crystal)


@pytest.fixture(scope="module")
def whole(crystal, params):
    """The program without packing."""
    return jax.jit(MODEL.apply).lower(params, crystal).compile()


@pytest.mark.slow
def test_the_parts_are_models_of_their_own_cutoffs_and_add(crystal, params, whole):
    near_system = jaxmlip.from_ase(rattled(triclinic()), SHORT)
    total = 0.0
    for name, cutoff, system, n, fields in (
        ("short", SHORT, near_system, 4.0, RICH),
        ("long", LONG, crystal, 30.0, TINY),
    ):
        part = MACE(elements=ELEMENTS, cutoff=cutoff, avg_num_neighbors=n, **fields)
        total += jax.jit(part.apply)({"params": params["params"][name]}, system)["energy"]
    assert_allclose(whole(params, crystal)["energy"], total, rtol=1e-12)
    assert near_system.edges.senders.shape[1] < crystal.edges.senders.shape[1] / 2


def test_packing_changes_the_cost_and_nothing_else(crystal, params, whole):
    planned = bind(MODEL, crystal)
    widest = crystal.edges.senders.shape[1]
    assert 0 < planned.short_neighbors < widest / 2
    packed = jax.jit(planned.apply).lower(params, crystal).compile()
    energy = lambda program: program(params, crystal)["energy"]
    assert_allclose(energy(packed), energy(whole), rtol=1e-12)
    work = lambda program: program.cost_analysis()["flops"]
    assert work(packed) < 0.8 * work(whole)


@pytest.mark.slow
def test_forces_are_the_same_with_and_without_packing(crystal, params):
    packed, whole = (jax.jit(with_forces(m.apply)) for m in (bind(MODEL, crystal), MODEL))
    found, expected = (f(params, crystal)["forces"] for f in (packed, whole))
    assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_more_near_neighbours_than_room_are_never_forgotten(crystal, params):
    crowded = MODEL.clone(short_neighbors=2)
    assert np.isnan(jax.jit(crowded.apply)(params, crystal)["energy"]).all()


@pytest.mark.slow
def test_a_model_file_holds_the_fields_of_both_parts(tmp_path, crystal, params, whole):
    fields = {
        "elements": list(ELEMENTS),
        "cutoff": LONG,
        "short_cutoff": SHORT,
        "short": {**RICH, "radial_widths": [16, 16], "avg_num_neighbors": 4.0},
        "long": {**TINY, "radial_widths": [4]},
        "avg_num_neighbors": 30.0,
    }
    checkpoint.save(tmp_path / "m.safetensors", card("DualCutoff", fields), params)
    potential, loaded, _ = checkpoint.load(tmp_path / "m.safetensors")
    found = jax.jit(bind(potential, crystal).apply)(loaded, crystal)
    assert_allclose(found["energy"], whole(params, crystal)["energy"], rtol=1e-12)


def test_parts_that_cannot_be_are_refused(crystal):
    for fields, words in (
        ({"short_cutoff": 7.0}, "near part reaches"),
        ({"long": {"chanels": 3}}, "chanels.*channels"),
        ({"short": {"cutoff": 3.0}}, "no field 'cutoff'"),
    ):
        with pytest.raises(ModelError, match=words):
            jax.eval_shape(MODEL.clone(**fields).init, KEY, crystal)
