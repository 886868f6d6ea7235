"""jaxmlip: differentiable atomistic modelling in JAX.

Everything is a derivative, a sum or a trajectory of one pure function,
`apply(params, system) -> {"energy": ...}`, with the energy a function of positions, strain and
electric field. Names below are loaded when first used, so `import jaxmlip` stays cheap.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "System": "system",
    "Edges": "system",
    "cast": "system",
    "concatenate": "system",
    "pad": "system",
    "supercell": "system",
    "Potential": "potential",
    "add": "potential",
    "add_electrostatics": "potential",
    "add_equilibration": "potential",
    "add_dispersion": "potential",
    "add_field": "potential",
    "add_reference_energies": "potential",
    "bind": "potential",
    "scale": "potential",
    "forces": "derivatives",
    "stress": "derivatives",
    "predict": "derivatives",
    "hessian": "derivatives",
    "hessian_vector_product": "derivatives",
    "dipole": "derivatives",
    "polarizability": "derivatives",
    "born_charges": "derivatives",
    "periodic_born_charges": "derivatives",
    "raman_tensors": "derivatives",
    "dielectric": "derivatives",
    "crystal_response": "derivatives",
    "dynamical_matrix": "derivatives",
    "sparse_hessian": "derivatives",
    "plan_hessian": "derivatives",
    "elastic_constants": "derivatives",
    "from_ase": "interfaces.ase",
    "to_ase": "interfaces.ase",
    "Calculator": "pretrained.calculator",
    "load": "pretrained",
}
_ROOMS = (
    "units",
    "errors",
    "neighbors",
    "models",
    "nn",
    "derivatives",
    "electrostatics",
    "data",
    "interfaces",
    "train",
    "md",
    "vibrations",
    "workflows",
    "pretrained",
)
__all__ = [*_HOME, "units"]


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"jaxmlip.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"jaxmlip.{name}")
    raise AttributeError(f"module 'jaxmlip' has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, *_ROOMS])
