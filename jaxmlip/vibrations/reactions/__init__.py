"""Minima, transition states and the paths between them."""
