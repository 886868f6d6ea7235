"""Derivatives of one energy: each takes `apply` and returns a function of (params, system)."""

from jaxmlip.derivatives.first import forces, predict, stress
from jaxmlip.derivatives.response import born_charges, dipole, polarizability
from jaxmlip.derivatives.second import hessian, hessian_vector_product

__all__ = [
    "born_charges",
    "dipole",
    "forces",
    "hessian",
    "hessian_vector_product",
    "polarizability",
    "predict",
    "stress",
]
