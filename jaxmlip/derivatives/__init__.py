"""Derivatives of one energy: each takes `apply` and returns a function of (params, system)."""

from jaxmlip.derivatives.bloch.matrix import (
    dynamical_matrix,
    dynamical_matrix_slopes,
    dynamical_matrix_strains,
)
from jaxmlip.derivatives.bloch.modes import group_velocities, mode_gruneisen, phonon_frequencies
from jaxmlip.derivatives.bloch.supercell import (
    door_error,
    dynamical_matrix_supercell,
    dynamical_matrix_unrolled,
)
from jaxmlip.derivatives.elastic import ElasticConstants, elastic_constants
from jaxmlip.derivatives.first import forces, predict, stress
from jaxmlip.derivatives.heat_flux import heat_flux
from jaxmlip.derivatives.response import (
    CrystalResponse,
    born_charges,
    check_field,
    crystal_response,
    current,
    dielectric,
    dipole,
    image_dependence,
    periodic_born_charges,
    piezoelectric,
    polarizability,
    raman_tensors,
    same_branch,
)
from jaxmlip.derivatives.second.hessian import hessian, hessian_vector_product
from jaxmlip.derivatives.second.lanczos import spectral_density
from jaxmlip.derivatives.second.lowest import lowest_modes
from jaxmlip.derivatives.second.plan import plan_hessian
from jaxmlip.derivatives.second.quality import symmetrised
from jaxmlip.derivatives.second.sparse import sparse_hessian
from jaxmlip.derivatives.third import cubic_force_constants

__all__ = [
    "CrystalResponse",
    "ElasticConstants",
    "born_charges",
    "check_field",
    "crystal_response",
    "cubic_force_constants",
    "current",
    "dielectric",
    "dipole",
    "door_error",
    "dynamical_matrix",
    "dynamical_matrix_slopes",
    "dynamical_matrix_strains",
    "dynamical_matrix_supercell",
    "dynamical_matrix_unrolled",
    "elastic_constants",
    "forces",
    "group_velocities",
    "heat_flux",
    "hessian",
    "hessian_vector_product",
    "image_dependence",
    "lowest_modes",
    "mode_gruneisen",
    "periodic_born_charges",
    "phonon_frequencies",
    "piezoelectric",
    "plan_hessian",
    "polarizability",
    "predict",
    "raman_tensors",
    "same_branch",
    "sparse_hessian",
    "spectral_density",
    "stress",
    "symmetrised",
]
