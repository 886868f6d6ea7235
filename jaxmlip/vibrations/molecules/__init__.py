"""Symmetry numbers, internal rotations and isotopes of molecules."""
