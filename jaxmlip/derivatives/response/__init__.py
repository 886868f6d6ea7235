"""Responses to an electric field: derivatives of the same energy with respect to `system.field`."""

from jaxmlip.derivatives.response.charges import born_charges, current, periodic_born_charges
from jaxmlip.derivatives.response.field import (
    depends_on_field,
    dipole,
    polarizability,
    raman_tensors,
    same_branch,
)
from jaxmlip.derivatives.response.images import check_field, image_dependence
from jaxmlip.derivatives.response.tensors import (
    CrystalResponse,
    crystal_response,
    dielectric,
    piezoelectric,
)

__all__ = [
    "CrystalResponse",
    "born_charges",
    "check_field",
    "crystal_response",
    "current",
    "depends_on_field",
    "dielectric",
    "dipole",
    "image_dependence",
    "periodic_born_charges",
    "piezoelectric",
    "polarizability",
    "raman_tensors",
    "same_branch",
]
