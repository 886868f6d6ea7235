"""torch-pme: Ewald, PME and P3M, energies and forces by its potentials and one backward pass.

Settings are scanned as for jax-pme (its own tuning works on absolute errors at a fixed cutoff).
"""

import numpy as np
import torch
import torchpme
from vesin import NeighborList

from benchmarks.charges import cutoffs_of, scanned

METHODS = ("ewald", "pme4", "p3m4", "p3m5")
COULOMB = 14.399645478425667  # eV Å / e²


def facts():
    from importlib.metadata import version

    return {"version": version("torch-pme"), "torch": torch.__version__, "device": "cpu"}


def settings(method, tolerance, cell, cutoffs=None):
    """The settings to try, coarse to fine, one list for each cutoff."""
    return scanned(method, tolerance, cell, cutoffs or cutoffs_of(method))


def prepare(method, given, dtype, positions, charges, cell, numbers):
    """(call -> {"energy" eV, "forces" eV/Å}, facts of the plan)."""
    torch.set_num_threads(1)
    kind = getattr(torch, dtype)
    potential = torchpme.CoulombPotential(smearing=float(given["smearing"]))
    calculator = {
        "ewald": lambda: torchpme.EwaldCalculator(potential, lr_wavelength=given["grid"]),
        "pme4": lambda: torchpme.PMECalculator(potential, given["grid"], 4),
        "p3m4": lambda: torchpme.P3MCalculator(potential, given["grid"], 4),
        "p3m5": lambda: torchpme.P3MCalculator(potential, given["grid"], 5),
    }[method]().to(dtype=kind)
    search = NeighborList(cutoff=given["cutoff"], full_list=False)
    i, j, shifts = search.compute(points=positions, box=cell, periodic=True, quantities="ijS")
    pairs = torch.tensor(np.stack([i, j], 1).astype(np.int64))
    offsets = torch.tensor(shifts @ cell, dtype=kind)
    q, box = torch.tensor(charges, dtype=kind)[:, None], torch.tensor(cell, dtype=kind)

    def call():
        x = torch.tensor(positions, dtype=kind, requires_grad=True)
        distances = torch.linalg.norm(x[pairs[:, 1]] - x[pairs[:, 0]] + offsets, dim=1)
        at_atoms = calculator(
            charges=q, cell=box, positions=x, neighbor_indices=pairs, neighbor_distances=distances
        )
        energy = COULOMB * (at_atoms * q).sum()
        energy.backward()
        return {"energy": energy.detach().numpy(), "forces": -x.grad.numpy()}

    return call, {"n_pairs": len(i)}
