"""Extended XYZ, read strictly: a mistake is named by its file, line, column, frame and atom.

ASE's parser knows no line numbers, stops in silence at a blank line, drops columns that are not
declared and takes NaN for a position. So each frame is checked here as text, at little cost, and
only then parsed by ASE. Frames are read one at a time, compressed files too.

Lines and columns count from 1, as in editors; frames and atoms from 0, as in ASE.
"""

import bz2
import gzip
import io
import lzma
import math
import re
import zlib
from collections import deque
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path

from ase import Atoms
from ase.data import atomic_numbers
from ase.io.extxyz import read_xyz

from jaxmlip.errors import DataError, ResourceError, did_you_mean

MOST_ATOMS = 10**8  # in one frame; a larger count is a mistake
LONGEST_LINE = 10**7  # characters; a file without line ends must not fill the memory
PLAIN = "species:S:1:pos:R:3"
FLAGS = {"T", "F", "True", "False"}
PROPERTIES = re.compile(r'(?:^|\s)(properties)\s*=\s*"?([^\s"]+)', re.IGNORECASE)
LATTICE = re.compile(r"(?:^|\s)(lattice)\s*=", re.IGNORECASE)
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|\{[^}]*\}|\[[^\]]*\]")
KEY = re.compile(r"(?:^|\s)([^\s=]+)\s*=")
OPENERS = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, UnicodeError, OSError)


def read_frames(path, *, on_bad=None) -> list[Atoms]:
    """All frames of an (extended) XYZ file; .gz, .xz and .bz2 too. Raises `DataError`.

    on_bad: called with the `DataError` of each frame that cannot be read, which is then left out.
    """
    errors = []
    keep = None if on_bad is None else lambda error: (errors.append(error), on_bad(error))
    frames = list(iter_frames(path, on_bad=keep))
    if not frames and not errors:
        raise DataError("the file has no frames, only blank lines", where=str(path), code="JM202")
    return frames


def iter_frames(path, *, on_bad=None):
    """The frames of `read_frames` one after another, for files larger than the memory."""
    with open_text(path) as stream:
        lines = _Lines(stream, path)
        for frame in count():
            try:
                atoms = _next_frame(lines, path, frame)
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(error)
                continue
            if atoms is None:
                return
            yield atoms


def open_text(path):
    """A text stream of a file, decompressed; byte order marks and CR LF are taken off.

    Raises `DataError` for what is not there, not a file, or empty.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            "this is a folder, expected a file",
            where=str(path),
            code="JM202",
            fix="name a file in it",
        )
    if not path.exists():
        raise DataError("no such file", where=str(path), fix="check the path", code="JM202")
    try:
        with path.open("rb") as f:
            head = f.read(6)
        opener = next((o for magic, o in OPENERS.items() if head.startswith(magic)), open)
        with opener(path, "rb") as f:
            head = f.read(2)
        # PowerShell writes UTF-16 when the output of a program is redirected
        encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        if head:
            return opener(path, "rt", encoding=encoding, errors="replace")
    except PermissionError as error:
        raise ResourceError(
            f"cannot open: {error.strerror}",
            where=str(path),
            fix="check the permissions of the file",
        ) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error
    raise DataError(
        "the file is empty",
        where=str(path),
        code="JM202",
        fix="write it again: the program that made it may have stopped",
    )


def _damaged(where, error):
    return DataError(
        f"damaged or cut off: {error}",
        where=str(where),
        code="JM207",
        fix="copy or compress the file again",
    )


class _Lines:
    """The lines of a stream, counted; lines can be put back."""

    def __init__(self, stream, path):
        self.source = iter(partial(stream.readline, LONGEST_LINE), "")
        self.back = deque()  # a chain of iterators would grow by one link a frame
        self.path, self.number = path, 0  # number of lines taken

    def take(self, n: int) -> list[str]:
        taken = [self.back.popleft() for _ in range(min(n, len(self.back)))]
        try:
            taken.extend(islice(self.source, n - len(taken)))
        except DAMAGED as error:
            raise _damaged(f"{self.path}:{self.number}", self.stop(error)) from error
        self.number += len(taken)
        return taken

    def put_back(self, lines):
        self.back.extendleft(reversed(lines))
        self.number -= len(lines)

    def stop(self, error):
        """After an error that leaves no way to tell where the next frame starts."""
        self.source = iter(())
        self.back.clear()
        return error


# --- one frame -----------------------------------------------------------------------------------


def _next_frame(lines, path, frame):
    """The next `Atoms`, or None at the end of the file."""
    header = _header(lines)
    if header is None:
        return None
    start = lines.number
    place = partial(_place, path, frame)
    try:
        n_atoms = _n_atoms(header, place(start), first=frame == 0)
    except DataError as error:
        raise lines.stop(error) from None
    comment, rows = "".join(lines.take(1)), lines.take(n_atoms)
    columns = _columns_of(comment, place(start + 1))
    if not _is_sound(rows, columns, n_atoms):
        _cut_at_next_header(rows, n_atoms, lines, place)
        _explain(rows, columns, n_atoms, lines.number, place)
    return _parse(
        [f"{n_atoms}\n", comment.rstrip("\n") + "\n", *rows, *_vectors(lines)], place(start + 1)
    )


def _place(path, frame, line, column=None, atom=None):
    position = f"{line}" if column is None else f"{line}:{column}"
    return f"{path}:{position} frame {frame}" + ("" if atom is None else f" atom {atom}")


def _header(lines):
    """The line that should hold the number of atoms; blank lines between frames are passed over."""
    while line := lines.take(1):
        if line[0].strip():
            return line[0].strip()
    return None


def _n_atoms(header, where, first):
    fix = (
        "the first line of an xyz file is the number of atoms"
        if first
        else "the frame before may have more lines than its number of atoms says"
    )
    if not re.fullmatch("[0-9]+", header):
        raise DataError(
            f"expected the number of atoms, found {_short(header)}",
            where=where,
            fix=fix,
            code="JM205",
        )
    n_atoms = int(header[:20])
    if not 0 < n_atoms <= MOST_ATOMS:
        raise DataError(
            f"the number of atoms is {_short(header)}, expected 1 to {MOST_ATOMS:,}",
            where=where,
            fix=fix,
            code="JM205",
        )
    return n_atoms


def _short(text):
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _columns_of(comment, where):
    """(names, kinds, are more columns allowed) of the columns that the comment line declares."""
    _check_repeated(comment, where)
    lattice, properties = LATTICE.search(comment), PROPERTIES.search(comment)
    for match, name in ((lattice, "Lattice"), (properties, "Properties")):
        if match and match[1] != name:  # ASE would take the frame for a plain molecule
            raise DataError(f"'{match[1]}' must be written '{name}'", where=where, code="JM205")
    try:
        names, kinds = _columns(properties[2] if properties else PLAIN)
    except ValueError as error:
        raise DataError(
            f"Properties={properties[2]}: {error}",
            where=where,
            code="JM205",
            fix=f"for example Properties={PLAIN}:forces:R:3",
        ) from None
    return names, kinds, properties is None


def _check_repeated(comment, where):
    """ASE keeps the last of two values of one key."""
    keys = KEY.findall(QUOTED.sub("", comment)) if len(comment) < LONGEST_LINE // 100 else []
    if len(keys) != len(set(keys)):
        twice = next(k for i, k in enumerate(keys) if k in keys[:i])
        raise DataError(
            f"'{twice}' stands twice in the comment line",
            where=where,
            code="JM205",
            fix="leave one of them",
        )


@lru_cache
def _columns(properties):
    fields = properties.split(":")
    if len(fields) % 3:
        raise ValueError("expected triples name:type:number")
    names, kinds = [], []
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if kind not in "RISL" or not width.isdigit() or not 0 < int(width) <= 1000:
            raise ValueError(f"'{name}:{kind}:{width}' is not name:R, I, S or L:number")
        names += [name] * int(width)
        kinds += [kind] * int(width)
    if len(set(fields[::3])) < len(fields) // 3:
        raise ValueError("a name is declared twice")
    if names.count("pos") != 3 or not {"species", "Z"} & set(names):
        raise ValueError("expected a column 'species' (or 'Z') and three columns 'pos'")
    return names, kinds


def _is_sound(rows, columns, n_atoms) -> bool:
    """Whether ASE can be trusted with these rows. The fast way: whole columns at a time."""
    names, kinds, more = columns
    tokens = [row.split() for row in rows]
    widths = set(map(len, tokens))
    if len(rows) != n_atoms or min(widths) < len(names) or (max(widths) > len(names) and not more):
        return False
    in_columns = zip(names, kinds, zip(*tokens, strict=not more), strict=False)
    return all(
        not any(_wrong(name, kind, t) for t in set(column)) if kind != "R" else _are_finite(column)
        for name, kind, column in in_columns
    )


def _are_finite(column) -> bool:
    try:
        return all(map(math.isfinite, map(float, column)))
    except ValueError:
        return False


def _parse(text, where):
    try:
        return next(iter(read_xyz(io.StringIO("".join(text)), 0)))
    except Exception as error:  # whatever a parser may raise
        raise DataError(
            f"ASE cannot parse the frame ({type(error).__name__}: {error})",
            where=where,
            code="JM207",
            fix="compare the comment line with the extended XYZ format",
        ) from error


def _vectors(lines):
    """The lines VEC1 to VEC3 that some programs write after the atoms."""
    following = lines.take(3)
    n = next(
        (i for i, line in enumerate(following) if not line.lstrip().startswith("VEC")),
        len(following),
    )
    lines.put_back(following[n:])
    return following[:n]


# --- what is wrong with it -----------------------------------------------------------------------


def _cut_at_next_header(rows, n_atoms, lines, place):
    """A number alone on a line cannot be an atom: the frame is short and the next one starts."""
    for i, row in enumerate(rows):
        if re.fullmatch(r"\s*[0-9]+\s*", row):
            lines.put_back(rows[i:])
            raise DataError(
                f"expected {n_atoms} atoms, found {i}; line {lines.number + 1} starts "
                "the next frame",
                where=place(lines.number),
                code="JM206",
                fix="remove this frame or mend its number of atoms",
            )


def _explain(rows, columns, n_atoms, last, place):
    """Raises the `DataError` of rows that are not sound: the first mistake, read line by line."""
    for i, row in enumerate(rows):
        _check_row(row, columns, partial(place, last - len(rows) + 1 + i), i)
    raise DataError(
        f"expected {n_atoms} atoms, found {len(rows)}; file ends at line {last} "
        "(interrupted write?)",
        where=place(last),
        code="JM206",
        fix="remove this frame or write the file again",
    )


def _check_row(row, columns, place, atom):
    names, kinds, more = columns
    tokens = [(match[0], match.start() + 1) for match in re.finditer(r"\S+", row)]
    if len(tokens) < len(names) or (len(tokens) > len(names) and not more):
        cut = "" if row.endswith("\n") else " and the file ends here (interrupted write?)"
        raise DataError(
            f"{len(tokens)} columns, expected {len(names)}{cut}",
            code="JM204",
            where=place(atom=atom),
            fix=f"the columns are {', '.join(names)}",
        )
    for name, kind, (token, column) in zip(names, kinds, tokens, strict=False):
        if wrong := _wrong(name, kind, token):
            what, code = wrong
            raise DataError(what, where=place(column, atom), code=code)


def _wrong(name, kind, token):
    """(what is wrong with the token, its code), or None."""
    if name == "species":
        return None if atomic_numbers.get(token.capitalize(), 0) else _unknown(token)
    if kind == "L":
        return None if token in FLAGS else (f"{_short(token)} ({name}) is not T or F", "JM204")
    if kind == "S":
        return None
    try:
        value = float(token) if kind == "R" else int(token)
    except ValueError:
        kind = "a number" if kind == "R" else "a whole number"
        return f"{_short(token)} ({name}) is not {kind}", "JM204"
    if not math.isfinite(value):
        return f"{_short(token)} ({name}) is not finite", "JM203"
    if name == "Z" and not 1 <= value <= 118:
        return f"atomic number {_short(token)}, expected 1 to 118", "JM201"
    return None


def _unknown(token):
    if token.isdigit():
        hint = " Write the symbol instead of the atomic number."
    elif token == "D":
        hint = " Deuterium: write H and set its mass."
    else:
        hint = did_you_mean(token.capitalize(), [s for s in atomic_numbers if s != "X"])
    return f"element {_short(token)} is not a chemical symbol.{hint}", "JM201"
