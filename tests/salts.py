"""Salt whose ions feel one another at any distance."""

import jax
import numpy as np
from ase.build import bulk

from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import checkpoint

CUTOFF = 5.0  # Å, of the sum in real space
FIELDS = {
    "elements": [11, 17],
    "cutoff": 4.0,
    "channels": 4,
    "hidden_l": 0,
    "l_max": 1,
    "correlation": 1,
    "n_layers": 1,
    "n_radial": 3,
    "radial_widths": [4],
    "dipole": True,
    "atomic_dipoles": False,
    "charges": True,
    "formal_charges": [0.7, -0.7],
}


def rocksalt(a=5.64, **options):
    return bulk("NaCl", "rocksalt", a=a, **options)


def save_salt(path, *, tolerance=1e-4):
    """A model file of a MACE of random weights with charges and their Ewald sum."""
    card = {
        "architecture": "MACE",
        "fields": FIELDS,
        "elements": FIELDS["elements"],
        "cutoff": CUTOFF,
        "electrostatics": {"method": "ewald", "tolerance": tolerance, "cutoff": CUTOFF},
        "name": "salt",
        "level_of_theory": "none",
    }
    system = from_ase(rocksalt(), CUTOFF)
    params = jax.jit(checkpoint.build(card).init)(jax.random.key(0), system)
    checkpoint.save(path, card, jax.tree.map(lambda x: np.asarray(x, np.float32), params))
    return str(path)
