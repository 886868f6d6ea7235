"""A potential that is told its elements is the same function of structures that have no others."""

import jax
import numpy as np
import pytest
from ase.build import bulk
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import MACE, NequIP, checkpoint

ELEMENTS = (1, 8, 13, 14, 29)
SMALL = dict(elements=ELEMENTS, cutoff=4.0, channels=4, l_max=1, n_radial=4, radial_widths=(8,))
MODELS = {
    "MACE": MACE(correlation=2, **SMALL),
    "MACE, plain first": MACE(correlation=2, residual_first=False, **SMALL),
    "MACE, universal": MACE(
        correlation=2,
        density=True,
        agnesi=(0.92, 4.6, 1.08),
        covalent_radii=(0.31, 0.66, 1.21, 1.11, 1.32),
        pair_repulsion=(6.0, 0.88, 0.3, 0.18, 0.5, 0.28, 0.02),
        charge_spin=True,
        **SMALL,
    ),
    "MACE, gated": MACE(correlation=2, gated=True, species_product=False, **SMALL),
    "NequIP": NequIP(n_layers=2, scale=(1.0, 2.0, 3.0, 4.0, 5.0), shift=(5, 4, 3, 2, 1), **SMALL),
}


@pytest.fixture(scope="module")
def system():
    atoms = bulk("Si", cubic=True)
    atoms.numbers[:3] = 13
    atoms.rattle(0.1, seed=1)
    return from_ase(atoms, 4.0)


SLOW = ("MACE, universal", "MACE, gated")
EACH = [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW), id=n) for n in MODELS]


@pytest.mark.parametrize("name", EACH)
def test_fewer_elements_are_the_same_function(name, system, tmp_path):
    model = MODELS[name]
    params = jax.jit(model.init)(jax.random.key(0), system)
    fields = {
        f: getattr(model, f) for f in model.__dataclass_fields__ if f not in ("parent", "name")
    }
    references = {z: -float(z) for z in ELEMENTS}
    card = {"architecture": name.split(",")[0], "fields": fields, "reference_energies": references}
    checkpoint.save(tmp_path / "m.safetensors", card, params)
    n_parameters = sum(np.size(x) for x in jax.tree.leaves(params))
    found = {}
    for elements in (None, [14, 13]):
        potential, params, card = checkpoint.load(tmp_path / "m.safetensors", elements=elements)
        found[elements is None] = jax.jit(potential.apply)(params, system)
    assert card["elements"] == [13, 14]
    assert sum(np.size(x) for x in jax.tree.leaves(params)) < n_parameters
    for key in ("energy", "energies"):  # of eight environments; parameters are float64: round-off
        assert_allclose(found[False][key], found[True][key], atol=1e-11, err_msg=key)


def test_an_element_that_the_potential_does_not_know_is_refused():
    with pytest.raises(ModelError, match="79"):
        jaxmlip.load("organic", elements=[6, 79])


def test_a_calculator_of_few_elements_refuses_the_others():
    from ase.build import molecule

    atoms = molecule("CH4")
    full = jaxmlip.Calculator("organic").get_potential_energy(atoms)
    atoms.calc = jaxmlip.Calculator("organic", elements=[1, 6])
    assert atoms.get_potential_energy() == pytest.approx(full, abs=1e-9)
    with pytest.raises(ModelError, match="knows H, C"):
        atoms.calc.get_potential_energy(molecule("H2O"))
