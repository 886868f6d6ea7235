"""Doors to spglib, seekpath, phonopy, symfc and phono3py."""
