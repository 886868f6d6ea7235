"""Training: losses, one step, the loop around it, and checkpoints that resume exactly.

The run itself is here (`setup`, `loop`, `saving`); its parts are rooms that never import it:
`config`, `objective`, `frames`, `steps`, `evaluation`, `start`, each only those before it.
"""

from importlib import import_module

_HOME = {
    "train": "loop",
    "evaluate": "evaluation.accuracy",
    "evaluate_model": "evaluation.accuracy",
    "read_config": "config.read",
    "cross_validate": "cross_validation",
    "repeat": "cross_validation",
    "calibration": "evaluation.calibration",
    "reliability": "evaluation.calibration",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"jaxmlip.train.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jaxmlip.train' has no attribute {name!r}")
