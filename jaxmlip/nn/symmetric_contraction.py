"""Many-body features: equivariant polynomials of the atomic basis (MACE's product basis).

A polynomial of degree nu in the components x_a (a runs over l, m with l <= l_max) is a row of
coefficients on monomials. Coupling a complete set of degree nu-1 with x gives all of degree nu;
dependent ones are dropped, so the basis is complete and has no redundant weights.
Definition: Batatia et al. 2022, arXiv:2206.07697, eq. 10-11.
"""

from functools import cache
from itertools import combinations_with_replacement
from math import factorial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.nn.clebsch_gordan import clebsch_gordan
from jaxmlip.nn.linear import of_species
from jaxmlip.nn.polynomials import Polynomials

UNROLLED_TERMS = 1000  # more non-zero coefficients than this would take long to compile


@cache
def monomials(l_max: int, degree: int) -> dict:
    """{sorted tuple of component indices: position} of all monomials of one degree."""
    n = (l_max + 1) ** 2
    return {k: i for i, k in enumerate(combinations_with_replacement(range(n), degree))}


@cache
def equivariant_polynomials(l_max: int, degree: int, limit: int | None = None) -> dict:
    """{(l, p): coefficients [n_basis, 2l+1, n_monomials]}: a basis for every degree l and parity p.

    Orthogonal, each with squared norm 2l+1, as symmetric tensors of rank `degree`. With `limit`
    only l <= limit, which is much faster for high degrees and gives the same polynomials.
    """
    if degree == 1:
        n = (l_max + 1) ** 2
        return {(l, (-1) ** l): np.eye(n)[None, l * l : (l + 1) ** 2] for l in range(l_max + 1)}
    found: dict = {}
    below = None if limit is None else limit + l_max
    for (l1, p1), lower in equivariant_polynomials(l_max, degree - 1, below).items():
        for l2 in range(l_max + 1):
            times = _times_harmonics(lower, l_max, l2, degree)
            highest = l1 + l2 if limit is None else min(l1 + l2, limit)
            for l3 in range(abs(l1 - l2), highest + 1):
                coupled = np.einsum("abm,nabq->nmq", clebsch_gordan(l1, l2, l3), times)
                found.setdefault((l3, p1 * (-1) ** l2), []).extend(coupled)
    weight = tensor_weights(l_max, degree)
    bases = {key: _independent(rows, weight) for key, rows in found.items()}
    return {key: basis for key, basis in bases.items() if len(basis)}


def _times_harmonics(lower, l_max, l2, degree):
    """Each polynomial times each component of degree l2: [n, 2l1+1, 2l2+1, n_monomials]."""
    old, new = monomials(l_max, degree - 1), monomials(l_max, degree)
    out = np.zeros((*lower.shape[:2], 2 * l2 + 1, len(new)))
    for b in range(2 * l2 + 1):
        column = [new[tuple(sorted((*key, l2 * l2 + b)))] for key in old]
        out[:, :, b, column] = lower
    return out


def tensor_weights(l_max, degree):
    """Squared norm, as a symmetric tensor, of each monomial."""

    def permutations(key):
        n = factorial(degree)
        for i in set(key):
            n //= factorial(key.count(i))
        return n

    return np.array([1.0 / permutations(key) for key in monomials(l_max, degree)])


def _independent(rows, weight):
    """Gram-Schmidt in the order found; rows are equivariant, so one component decides for all."""
    basis: list = []
    for row in rows:
        for _ in range(2):  # twice is enough (Kahan)
            for b in basis:
                row = row - b * ((b[0] * row[0]) @ weight) / ((b[0] * b[0]) @ weight)
        norm = np.sqrt((row[0] ** 2) @ weight)
        if norm > 1e-8:
            row = row / norm
            row[np.abs(row) < 1e-13] = 0.0
            basis.append(row)
    return np.array(basis).reshape(-1, *np.shape(rows[0]))


@cache
def plan(l_max: int, correlation: int, targets: tuple):
    """What `SymmetricContraction` evaluates: the monomials used, how each is made, coefficients.

    Returns (factors, tables): factors[nu] = (parent, component) indices of the monomials of degree
    nu >= 2 in terms of those of degree nu - 1; tables[nu][key] = [n_basis, 2l+1, n_used].
    """
    limit = max(l for l, _ in targets)
    bases = {nu: equivariant_polynomials(l_max, nu, limit) for nu in range(1, correlation + 1)}
    used: dict = {nu: set() for nu in range(1, correlation + 1)}
    for nu in range(correlation, 0, -1):
        keys = list(monomials(l_max, nu))
        for target in targets:
            if target in bases[nu]:
                nonzero = np.abs(bases[nu][target]).max((0, 1)) > 0
                used[nu] |= {keys[i] for i in np.flatnonzero(nonzero)}
        if nu > 1:
            used[nu - 1] |= {k[:-1] for k in used[nu]}
    used[1] = set(monomials(l_max, 1))
    place = {nu: {k: i for i, k in enumerate(sorted(used[nu]))} for nu in used}
    factors = {
        nu: np.array([(place[nu - 1][k[:-1]], k[-1]) for k in place[nu]], np.int32)
        for nu in range(2, correlation + 1)
    }
    tables = {
        nu: {
            t: bases[nu][t][:, :, [monomials(l_max, nu)[k] for k in place[nu]]]
            for t in targets
            if t in bases[nu]
        }
        for nu in place
    }
    return factors, tables


@cache
def written_out(l_max: int, correlation: int, targets: tuple) -> Polynomials:
    """The same for `nn.polynomials`: components of the targets, one after the other.

    Operand 0 are the components, operand 1 the weights, by degree, target and polynomial as in the
    params.
    """
    factors, tables = plan(l_max, correlation, targets)
    keys = {1: [((0, a),) for a in range((l_max + 1) ** 2)]}
    for nu, steps in factors.items():
        keys[nu] = [keys[nu - 1][parent] + ((0, int(a)),) for parent, a in steps]
    out = {(t, m): {} for t in targets for m in range(2 * t[0] + 1)}
    start = 0
    for nu in tables:
        for target, table in tables[nu].items():
            for k, m, q in np.argwhere(table):
                out[target, m][*keys[nu][q], (1, int(start + k))] = float(table[k, m, q])
            start += len(table)
    return Polynomials(tuple(out.values()), ((l_max + 1) ** 2, start))


class SymmetricContraction(nn.Module):
    """{key: [n_atoms, 2l+1, c]} for l <= l_max -> the same for `targets`, weights by species.

    sum over nu <= correlation and basis polynomials of weight[species, polynomial, channel] x
    polynomial(x of that channel).
    """

    l_max: int
    correlation: int
    targets: tuple
    n_species: int

    @nn.compact
    def function(self, channels: int, scale: float = 1.0):
        """The map itself times a number, (features, species) -> features, for so many channels."""
        _, tables = plan(self.l_max, self.correlation, self.targets)
        weights = [
            self._weight(nu, key, len(table), channels).reshape(self.n_species, -1)
            for nu in tables
            for key, table in tables[nu].items()
        ]
        weights = jnp.concatenate(weights, 1).reshape(self.n_species, -1, channels)
        terms = sum(int(np.count_nonzero(t)) for d in tables.values() for t in d.values())
        evaluate = (_term_by_term if terms <= UNROLLED_TERMS else _matrix_product)(self)

        def contract(features, species):
            x = jnp.concatenate([features[l, (-1) ** l] for l in range(self.l_max + 1)], 1)
            return evaluate(x, of_species(weights.astype(x.dtype), species, scale))

        return contract

    def __call__(self, features, species):
        return self.function(features[0, 1].shape[-1])(features, species)

    def _weight(self, nu, key, n, channels):
        init = nn.initializers.normal(1.0 / n)
        return self.param(f"l{key[0]}_degree{nu}", init, (self.n_species, n, channels))


def _term_by_term(settings):
    """(x [n_atoms, components, c], weights [n_atoms, polynomials, c]) -> {target: [n, 2l+1, c]}.

    The coefficients are sparse (2 % for l_max 2).
    """
    polynomials = written_out(settings.l_max, settings.correlation, settings.targets)

    def evaluate(x, weights):
        values = jax.lax.split(polynomials(x, weights), [2 * l + 1 for l, _ in settings.targets], 1)
        return dict(zip(settings.targets, values, strict=True))

    return evaluate


def _matrix_product(settings):
    """The same by forming all monomials and one matrix product a degree: small to compile."""
    factors, tables = plan(settings.l_max, settings.correlation, settings.targets)

    def evaluate(x, weights):
        x, weights = x.swapaxes(0, 1), weights.swapaxes(0, 1)  # products are then of whole slabs
        power, start = x, 0
        out = dict.fromkeys(settings.targets, 0.0)
        for nu in tables:
            if nu > 1:
                parent, component = factors[nu].T
                power = power[parent] * x[component]
            for key, table in tables[nu].items():
                basis = jnp.einsum("kmq,qnc->kmnc", jnp.asarray(table, x.dtype), power)
                out[key] += jnp.einsum("knc,kmnc->nmc", weights[start : start + len(table)], basis)
                start += len(table)
        return out

    return evaluate
