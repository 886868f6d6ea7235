"""Readouts of mace-torch models: energies of a head, charges, dipoles, polarisabilities."""

import numpy as np

from jaxmlip import units
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.module_tree import (
    check_activation,
    check_gate,
    linear_map,
    refuse,
    unit,
)
from jaxmlip.nn.clebsch_gordan import clebsch_gordan

SCALARS = {  # class of the model: what its scalar readouts are, column by column
    "AtomicDielectricMACE": ("charge", "isotropic"),
    "AtomicDipolesMACE": (),
}


def readout_params(model, fields, head):
    parts, params = model.part("readouts").parts(), {}
    if model.kind in ("MACE", "ScaleShiftMACE"):
        for i, part in enumerate(parts):
            params[f"energy_{i}"] = _energy_readout(part, fields, head)
        return params
    for i, part in enumerate(parts):
        params |= _dipole_readout(model, part, fields, i)
    return params


def _energy_readout(part, fields, head):
    if part.kind == "LinearReadoutBlock":
        matrix = linear_map(part.part("linear")).blocks[0, 0]
        return {"out": unit(matrix[:, [head if matrix.shape[1] > 1 else 0]])}
    width = fields["readout_width"]
    hidden, out = (linear_map(part.part(f"linear_{j}")) for j in (1, 2))
    outputs = out.blocks[0, 0].shape[1]
    some = slice(None) if outputs == 1 else slice(head * width, (head + 1) * width)
    column = [head if outputs > 1 else 0]
    found = {"hidden": unit(hidden.blocks[0, 0][:, some])}
    found["out"] = unit(out.blocks[0, 0][some][:, column])
    if hidden.blocks[0, 0].shape[1] != outputs * width:
        refuse(part, "heads that share hidden layers")
    acts = part.part("non_linearity", "acts")
    if acts.child("0"):
        check_activation(acts.part("0"), fields["gate"])
    if fields["readout_bias"]:
        middle = part.part("linear_mid")
        found["middle"] = unit(linear_map(middle).blocks[0, 0][some, some])
        found["middle_bias"] = middle.array("bias")[some]
        found["out_bias"] = part.part("linear_2").array("bias")[column]
    return found


def _dipole_readout(model, part, fields, i):
    """Readouts of energies or charges, of dipoles, of polarisabilities, of one layer."""
    factors = {(1, -1): 1.0 if fields.get("polarizability") else units.debye}
    scale = {"energy": 1.0, "charge": 1.0}
    if fields.get("polarizability"):
        if not model.get("use_polarizability", True):
            refuse(model, "a dielectric model without polarisability")
        scale["isotropic"], factors[2, 1] = _cartesian(model.array("change_of_basis").astype(float))
    names = {(1, -1): f"dipole_{i}", (2, 1): f"anisotropic_{i}"}
    scalars = SCALARS.get(model.kind, ("energy",))
    if part.has("linear"):
        blocks = linear_map(part.part("linear")).by_key()
        params = {
            f"{name}_{i}": {"out": scale[name] * unit(blocks[0, 1][:, [j]])}
            for j, name in enumerate(scalars)
        }
        return params | {
            names[k]: {"out": f * unit(blocks[k])[:, 0]} for k, f in factors.items() if k in blocks
        }
    return _gated_readout(part, fields, i, scalars, scale, names, factors)


def _gated_readout(part, fields, i, scalars, scale, names, factors):
    hidden = linear_map(part.part("linear_1")).by_key()
    out = linear_map(part.part("linear_2")).by_key()
    check_gate(part.part("equivariant_nonlin"), fields["gate"], fields["gate"])
    c, width = fields["channels"], fields["readout_width"]
    widths = dict(zip([(1, -1), (2, 1)], fields["tensor_widths"], strict=True))
    n_scalars = width + sum(widths.values())
    mixed = hidden.get((0, 1), np.zeros((c, n_scalars)))  # no scalars came in: gates of zero
    params = {
        f"{name}_{i}": {
            "hidden": unit(mixed[:, :width]),
            "out": scale[name] * unit(out[0, 1][:, [j]]),
        }
        for j, name in enumerate(scalars)
    }
    start = width
    for key, factor in factors.items():
        n, name = widths[key], names[key]
        if n:
            params[name] = {
                "gates": unit(mixed[:, start : start + n]),
                "hidden": unit(hidden.get(key, np.zeros((c, n)))),
                "out": factor * unit(out[key])[:, 0],
            }
        else:
            params[name] = {"out": np.zeros(c)}
        start += n
    return params


def _cartesian(change):
    """Factors from the file's basis of symmetric tensors [6, 3, 3] to `cartesian_tensor`'s."""
    table = clebsch_gordan(1, 1, 2).transpose(2, 0, 1)
    one, two = change[0, 0, 0], (change[1:] * table).sum() / (table * table).sum()
    rebuilt = np.concatenate([one * np.eye(3)[None], two * table])
    if np.abs(rebuilt - change).max() > 1e-6:
        raise ModelError("an unknown basis of polarisabilities", where="mace_torch", code="JM511")
    return one, two
