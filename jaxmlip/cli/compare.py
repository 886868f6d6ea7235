"""A measured or computed spectrum from a table, to be laid over ours."""

import math
from pathlib import Path

from jaxmlip.errors import DataError, UsageError

FEWEST = 2  # points of a curve
HEADER = 3  # lines without numbers that a table may begin with


def read_curve(path: Path):
    """(wavenumbers [n] cm⁻¹ ascending, intensities [n]) of the first two columns of a text table.

    Columns by comma, semicolon, tab or blanks; lines that begin with # or are empty are left out,
    and so are up to three lines of headings. Raises `DataError` JM225 with the line.
    """
    import numpy as np

    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}", where="--compare")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"not a text table ({error})", where=str(path), code="JM225") from error
    rows, headings = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = _row(line)
        if row is None and not rows and headings < HEADER:
            headings += 1
            continue
        if row is None:
            raise DataError(
                f"cannot read a wavenumber and an intensity from '{line.strip()[:60]}'",
                where=f"{path}:{number}",
                code="JM225",
                fix="two columns of numbers: cm⁻¹, intensity",
            )
        rows.append(row)
    if len(rows) < FEWEST:
        raise DataError(
            f"a spectrum of {len(rows)} points", where=str(path), code="JM225", fix="two or more"
        )
    x, y = np.array(sorted(rows)).T
    if not y.max() > 0:
        raise DataError("no intensity is above zero", where=str(path), code="JM225")
    return x, y


def _row(line):
    """Two finite numbers, or None."""
    for mark in (";", "\t", ","):
        if mark in line:
            parts = [p for p in line.split(mark)]
            break
    else:
        parts = line.split()
    try:
        x, y = (float(p) for p in parts[:2])
    except ValueError:
        return None
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def scaled(curve, x, y):
    """The intensities of `curve` (its x, its y) times what gives both one maximum where they meet.

    x, y: our own curve, ascending. Raises `DataError` where they have no wavenumbers in common.
    """
    import numpy as np

    at, values = curve
    inside = (at >= x[0]) & (at <= x[-1])
    if not inside.any() or not values[inside].max() > 0:
        raise DataError(
            f"the spectrum runs from {at[0]:g} to {at[-1]:g} cm⁻¹, ours from {x[0]:g} to {x[-1]:g}",
            where="--compare",
            code="JM225",
            fix="wavenumbers in cm⁻¹",
        )
    ours = np.interp(at[inside], x, y).max()
    return values * (ours / values[inside].max())
