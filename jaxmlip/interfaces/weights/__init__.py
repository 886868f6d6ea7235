"""Weights that other codes have written, as cards and arrays of ours; no foreign code runs."""
