"""Second and third derivatives of the architectures that do not fit one padded shape.

test_models.py and test_hessian.py hold the same laws for the others; together they are all that
`jaxmlip.models` exports. One program for each model, tiny, with random weights, in float64.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest
from ase.build import molecule
from numpy.testing import assert_allclose
from structures import KEY, rattled, triclinic
from test_d3 import model as dispersion
from test_models import MODELS

import jaxmlip
from jaxmlip.derivatives.first import forces
from jaxmlip.derivatives.second.hessian import hessian
from jaxmlip.derivatives.second.quality import symmetrised
from jaxmlip.derivatives.third import third_derivative_product
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import DualCutoff, LongRangeMACE, So3krates
from jaxmlip.potential import bind

ELEMENTS, CUTOFF = (1, 6, 8), 3.5
TINY = {"channels": 2, "l_max": 1, "hidden_l": 1, "correlation": 1, "n_layers": 1}
TINY |= {"n_radial": 2, "radial_widths": (2,), "readout_width": 2}
OTHERS = {
    "So3krates": So3krates(
        ELEMENTS, cutoff=5.0, local_cutoff=CUTOFF, channels=4, degrees=(1,), heads=2, n_layers=1,
        n_radial=2, readout_width=2,
    ),
    "LongRangeMACE": LongRangeMACE(
        ELEMENTS, CUTOFF, sources=2, tolerance=1e-6, **TINY | {"n_layers": 2}
    ),
    "DualCutoff": DualCutoff(ELEMENTS, cutoff=5.0, short_cutoff=CUTOFF, short=TINY, long=TINY),
    "D3": dispersion(ELEMENTS, cutoff=5.0, count_cutoff=4.0, smoothness=3),
}  # fmt: skip
STRUCTURES = {"molecule": rattled(molecule("H2CO")), "crystal": triclinic()}  # four atoms each


def system_of(structure, cutoff):
    return from_ase(STRUCTURES[structure], cutoff, capacity=40)


@cache
def programs(name):
    """Forces, Hessian and third derivatives of a model of random weights, compiled once each."""
    model, rng = OTHERS[name], np.random.default_rng(1)
    systems = [system_of(s, model.cutoff) for s in STRUCTURES]
    shapes = jax.eval_shape(model.init, KEY, systems[1])
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    orders = (order(bind(model, systems).apply) for order in ORDERS)
    return [jax.jit(partial(order, params)) for order in orders]


ORDERS = forces, hessian, third_derivative_product


def slope(function, h):
    """Fourth-order central difference at 0."""
    inner, outer = function(h) - function(-h), function(2 * h) - function(-2 * h)
    return (8 * inner - outer) / (12 * h)


def test_every_architecture_is_held_to_these_laws():
    assert set(MODELS) | set(OTHERS) == set(jaxmlip.models.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", OTHERS)
def test_curvatures_and_third_derivatives_are_slopes_and_obey_all_sums(name, structure):
    """Differences are good to 1e-7 of the largest; what is exact holds to rounding."""
    force, hess, third = programs(name)
    system = system_of(structure, OTHERS[name].cutoff)
    u, v = np.random.default_rng(0).normal(size=(2, system.n_atoms, 3))
    moved = lambda step: replace(system, positions=system.positions + step)
    product = lambda step: np.einsum("iajb,jb->ia", hess(moved(step)), u)
    found, curvature = np.asarray(third(system, u, v)), np.asarray(hess(system))
    largest, size = np.abs(curvature).max(), np.abs(found).max()
    assert largest > 1e-4 and np.isfinite(found).all()
    expected = -slope(lambda h: np.asarray(force(moved(h * u))), 1e-3)
    assert_allclose(product(0), expected, atol=1e-6 * largest)
    assert_allclose(found, slope(lambda h: product(h * v), 2e-4), atol=1e-6 * size)
    assert_allclose(third(system, v, u), found, atol=1e-9 * size)
    card = symmetrised(curvature, system, forces=np.asarray(force(system)))[1]
    assert card.relative_asymmetry < 1e-10 and card.relative_translation < 1e-9
    assert card.rotation is None if structure == "crystal" else card.relative_rotation < 1e-9
