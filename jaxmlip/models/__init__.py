"""Architectures, one a file. Each is a flax linen module that is a `Potential` as it stands."""

from importlib import import_module

_HOME = {
    "MACE": "mace",
    "LongRangeMACE": "long_range",
    "DualCutoff": "dual",
    "D3": "d3",
    "NequIP": "nequip",
    "So3krates": "so3krates",
    "LennardJones": "pair",
    "Morse": "pair",
    "ZBL": "pair",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"jaxmlip.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jaxmlip.models' has no attribute {name!r}")


def architectures() -> dict:
    """{name: module class} of every architecture that a model card may name."""
    return {name: __getattr__(name) for name in _HOME}
