"""Training: losses, one step, the loop around it, and checkpoints that resume exactly."""

from importlib import import_module

_HOME = {
    "train": "loop",
    "evaluate": "accuracy",
    "evaluate_model": "accuracy",
    "read_config": "config",
    "cross_validate": "cross_validation",
    "repeat": "cross_validation",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"jaxmlip.train.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jaxmlip.train' has no attribute {name!r}")
