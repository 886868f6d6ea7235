"""Keys of labels in files that do not call them REF_<label>; proposed, never read unasked."""

from itertools import islice

import numpy as np

from jaxmlip.interfaces.datasets import iter_atoms
from jaxmlip.interfaces.label_values import raw_label, results_of, shape_of, shaped_label
from jaxmlip.interfaces.labels import KEYS, VIRIALS

OTHER_NAMES = {  # how labels are called elsewhere
    "energy": ("energy", "dft_energy", "total_energy", "energy_dft", "e_dft", "u0"),
    "forces": ("forces", "force", "dft_forces", "dft_force", "forces_dft", "ref_force"),
    "stress": ("stress", "dft_stress", "virial", "virials", "dft_virial", "dft_virials"),
    "dipole": ("dipole", "dft_dipole", "dipole_moment", "dipoles", "mu"),
    "polarizability": ("polarizability", "polarisability", "alpha", "dft_polarizability"),
    "charges": ("charges", "dft_charges", "ref_charge", "partial_charges"),
    "born_charges": ("born_charges", "ref_bec", "bec", "born_effective_charges"),
}


def guess_keys(path, *, n: int = 100) -> tuple[dict, dict]:
    """({label: key}, {label: unit}) to propose, by names and shapes in the first n frames.

    Labels that stand there as REF_<label> are left out: they are found without a word.
    """
    keys, units = {}, {}
    for frame in islice(iter_atoms(path, on_bad=lambda error: None), n):  # told when read
        present = {k.lower(): k for k in (*frame.info, *frame.arrays, *results_of(frame))}
        for label, names in OTHER_NAMES.items():
            own = [KEYS[label], *(VIRIALS if label == "stress" else ())]
            if any(raw_label(frame, k) is not None for k in own):
                keys[label] = None
            key = next((present[k] for k in names if k in present), None)
            if label not in keys and key is not None and _fits(frame, label, key):
                keys[label] = key
                units |= {label: "eV virial"} if "virial" in key.lower() else {}
    keys = {label: key for label, key in keys.items() if key is not None}
    return keys, {label: unit for label, unit in units.items() if label in keys}


def _fits(frame, label, key):
    """Whether the value has the shape of the label and means something for this structure."""
    try:
        shaped_label(
            np.asarray(raw_label(frame, key), np.float64),
            shape_of(label, len(frame)),
            label,
            key,
            "",
        )
    except (TypeError, ValueError):
        return False
    return label != "stress" or bool(frame.pbc.any())
