"""Dynamical matrices at any wavevector, on the primitive cell."""
