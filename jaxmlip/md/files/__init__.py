"""Trajectories on disk: extended XYZ and H5MD, written as they come and whole after any crash."""

from jaxmlip.md.files.extxyz import append_extxyz, append_table, read_table
from jaxmlip.md.files.h5md import append_h5md, read_h5md
from jaxmlip.md.files.scene import Scene, Series, Trajectory
from jaxmlip.md.files.sets import Files, append, cut_back, lengths

__all__ = [
    "Files",
    "Scene",
    "Series",
    "Trajectory",
    "append",
    "append_extxyz",
    "append_h5md",
    "append_table",
    "cut_back",
    "lengths",
    "read_h5md",
    "read_table",
]
