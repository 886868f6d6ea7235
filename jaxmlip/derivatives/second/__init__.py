"""Hessians in bounded memory: dense, products, rows, sparse, lowest modes, spectra."""
