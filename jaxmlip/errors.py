"""Every error that a user can cause, with a stable code, what, where, the value, and the fix.

The command line turns `exit_code` into its exit status; in Python these are ordinary exceptions.
Codes: JM1xx usage, JM2xx data, JM3xx numerical, JM4xx resources, JM5xx models.
"""

import difflib


class JaxmlipError(Exception):
    """Base of all errors raised on purpose. `str()` is: code, where, what; then the fix."""

    code = "JM000"
    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "", code: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        self.code = code or type(self).code
        place = f" {where}:" if where else ""
        super().__init__(f"{self.code}{place} {what}" + (f"\n  fix: {fix}" if fix else ""))


class UsageError(JaxmlipError, ValueError):
    """A wrong argument or configuration."""

    code, exit_code = "JM101", 2


class PrecisionError(JaxmlipError, ValueError):
    """float64 was asked for, but JAX would silently truncate it."""

    code, exit_code = "JM102", 2


class DataError(JaxmlipError, ValueError):
    """A structure or data set that cannot be used as it is."""

    code, exit_code = "JM201", 3


class NumericalError(JaxmlipError, ArithmeticError):
    """A result that is not finite, or an iteration that did not converge."""

    code, exit_code = "JM301", 4


class ResourceError(JaxmlipError, OSError):
    """Memory, disk or a file that cannot be written."""

    code, exit_code = "JM401", 5


class ModelError(JaxmlipError, ValueError):
    """A model that cannot be loaded, or that does not know the structure it is given."""

    code, exit_code = "JM501", 6


class Interrupted(JaxmlipError):
    """Stopped by a signal after saving; the same command resumes."""

    code, exit_code = "JM601", 75


def did_you_mean(word: str, known) -> str:
    """' Did you mean ...?' for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_dtype(dtype) -> None:
    """Raises `PrecisionError` where JAX would turn float64 into float32 without a word."""
    import jax
    import numpy as np

    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
        raise PrecisionError(
            "float64 was asked for, but JAX is in 32-bit mode and would truncate silently",
            fix="call jax.config.update('jax_enable_x64', True) before the first array is made",
        )
