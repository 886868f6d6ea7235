"""Equivariant layers: pure functions and flax linen modules on plain dicts of arrays.

Features are {(l, p): [n_atoms, 2l+1, channels]}, with l the degree and p = +1 (even) or -1 (odd)
the parity under inversion. Components follow the real spherical harmonics of `nn.harmonics`: those
of l = 1 are x, y, z.
"""
