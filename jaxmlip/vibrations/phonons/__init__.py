"""Phonons of crystals: frequencies at any q, certified bands, force constants, LO-TO splitting."""
