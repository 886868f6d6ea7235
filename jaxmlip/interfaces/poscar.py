"""A POSCAR checked before ASE reads it, whose errors name neither line nor atom."""

import math
from itertools import takewhile

from ase.data import atomic_numbers

from jaxmlip.errors import DataError, did_you_mean


def check_poscar(text: str, where: str) -> None:
    """Raises `DataError` for a short file, a bad number or an unknown element, with its line."""
    lines = text.splitlines()
    if len(lines) < 7:
        raise DataError(
            f"a POSCAR has at least 8 lines, this file has {len(lines)}",
            code="JM206",
            where=where,
            fix="copy the file again",
        )
    for n, axis in ((3, "first"), (4, "second"), (5, "third")):
        _numbers(lines, n, f"the {axis} cell vector", where)
    after, n_atoms = _counts(lines, where)
    first = after + (2 if _initial(lines, after + 1) == "s" else 1) + 1
    for atom in range(n_atoms):
        if first + atom > len(lines) or not lines[first + atom - 1].strip():
            raise DataError(
                f"file has {atom} coordinate line(s), {n_atoms} expected (line {first + atom})",
                where=where,
                code="JM206",
                fix="the file was cut, or its numbers of atoms are wrong",
            )
        _numbers(lines, first + atom, f"the position of atom {atom}", where)


def _initial(lines, n):
    return lines[n - 1].strip()[:1].lower() if n <= len(lines) else ""


def _numbers(lines, n, what, where):
    tokens = lines[n - 1].split()[:3]
    for token in tokens:
        try:
            finite = math.isfinite(float(token))
        except ValueError:
            raise DataError(
                f"'{token}' in {what} is not a number", where=f"{where}:{n}", code="JM204"
            ) from None
        if not finite:
            raise DataError(
                f"'{token}' in {what} is not finite", where=f"{where}:{n}", code="JM203"
            )
    if len(tokens) < 3:
        raise DataError(
            f"{what} has {len(tokens)} numbers, expected 3", where=f"{where}:{n}", code="JM204"
        )


def _counts(lines, where):
    """(number of the line with the counts, number of atoms); symbols are one line before it."""
    symbols, n = None, 6
    if not lines[5].split()[:1] or not lines[5].split()[0].isdigit():
        symbols, n = [s.split("/")[0].split("_")[0] for s in lines[5].split()], 7
        for symbol in symbols:
            if not atomic_numbers.get(symbol, 0):
                raise DataError(
                    f"element '{symbol}' is not a chemical symbol."
                    f"{did_you_mean(symbol, atomic_numbers)}",
                    where=f"{where}:6",
                    code="JM201",
                )
    counts = list(takewhile(lambda t: not t.startswith("!"), lines[n - 1].split()))
    if not counts or not all(c.isdigit() for c in counts):
        raise DataError(
            f"expected the numbers of atoms, found '{lines[n - 1].strip()}'",
            where=f"{where}:{n}",
            code="JM205",
        )
    if symbols is not None and len(symbols) != len(counts):
        raise DataError(
            f"{len(symbols)} elements but {len(counts)} numbers of atoms",
            where=f"{where}:{n}",
            code="JM205",
        )
    return n, sum(map(int, counts))
