"""Coupling of angular momenta in the real basis of `nn.harmonics`, in float64, made once.

Racah's closed form for the complex coefficients, then a change of basis. Signs and the
normalisation (squares add up to 1) are e3nn's, so weights of codes built on it carry over.
"""

from functools import cache
from math import factorial, sqrt

import numpy as np


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """The equivariant map l1 x l2 -> l3, [2 l1+1, 2 l2+1, 2 l3+1], with unit Frobenius norm.

    Zero unless |l1 - l2| <= l3 <= l1 + l2.
    """
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            if abs(m1 + m2) <= l3:
                table[l1 + m1, l2 + m2, l3 + m1 + m2] = _complex(l1, m1, l2, m2, l3, m1 + m2)
    basis = _real_basis(l1), _real_basis(l2), _real_basis(l3)
    real = np.einsum("ia,jb,kc,ijk->abc", basis[0], basis[1], basis[2].conj(), table)
    norm = np.linalg.norm(real)
    out = real.real / norm if norm else real.real
    out.setflags(write=False)
    return out


def _complex(l1, m1, l2, m2, l3, m3):
    """<l1 m1 l2 m2 | l3 m3>, Racah's formula."""
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return 0.0
    f = factorial
    triangle = f(l1 + l2 - l3) * f(l1 - l2 + l3) * f(-l1 + l2 + l3) / f(l1 + l2 + l3 + 1)
    states = f(l1 + m1) * f(l1 - m1) * f(l2 + m2) * f(l2 - m2) * f(l3 + m3) * f(l3 - m3)
    total = 0.0
    for k in range(l1 + l2 - l3 + 1):
        rest = (l1 + l2 - l3 - k, l1 - m1 - k, l2 + m2 - k, l3 - l2 + m1 + k, l3 - l1 - m2 + k)
        if min(rest) >= 0:
            total += (-1) ** k / (f(k) * np.prod([float(f(r)) for r in rest]))
    return sqrt((2 * l3 + 1) * triangle * states) * total


def _real_basis(l: int) -> np.ndarray:
    """Rows: complex harmonics m = -l..l; columns: real ones; times (-i)^l: maps become real."""
    q = np.zeros((2 * l + 1, 2 * l + 1), complex)
    for m in range(-l, 0):
        q[l + m, l - m], q[l + m, l + m] = 1 / sqrt(2), -1j / sqrt(2)
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l + m, l + m], q[l + m, l - m] = (-1) ** m / sqrt(2), 1j * (-1) ** m / sqrt(2)
    return (-1j) ** l * q
