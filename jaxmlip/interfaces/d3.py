"""The tables of D3 dispersion, from libraries that keep them: nothing of theirs is executed.

`d3_tables` reads the reference coefficients that the wheel of torch-dftd holds (MIT; original data
of Grimme's program; `pip install --no-deps torch-dftd`, PyTorch is not needed), `d3_damping` the
parameters of a functional in the wheel of dftd3 (LGPL).
"""

import tomllib
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError, did_you_mean

TABLES = ("torch-dftd", "torch_dftd/nn/params/dftd3_params.npz")
DAMPING = ("dftd3", "dftd3/parameters.toml")
BOHR = 0.52917726  # Å, of the file; its radii are two digits in Å, times 4/3


def d3_tables(elements, path=None) -> dict:
    """The tables of `models.D3` for these atomic numbers, in eV and Å.

    From francium on they are the older ones, which newer programs have replaced. path: of
    `dftd3_params.npz`, if torch-dftd is not installed. `DataError` where there is none,
    or an element (1 to 94) is not in it; `UsageError` for what are no different atomic numbers.
    """
    z = _checked(elements)
    path = _installed(*TABLES) if path is None else Path(path)
    with np.load(path, allow_pickle=False) as found:
        c6, radii, moments = (found[k] for k in ("c6ab", "rcov", "r2r4"))
    bad = [int(x) for x in z if not (0 < x < len(radii)) or radii[x] <= 0]
    if bad:
        raise DataError(f"D3 has no references for the elements {bad}", where=str(path))
    table, own = c6[np.ix_(z, z)], c6[z, z]
    count = int((np.einsum("iaa->ia", own[..., 0]) > 0).sum(1).max())
    table, own = table[:, :, :count, :count], own[:, :count, :count]
    nested = lambda x: tuple(map(nested, x)) if np.ndim(x) else float(x)
    return {
        "elements": tuple(z.tolist()),
        "references": nested(table[..., 0] * units.hartree * units.bohr**6),
        "coordination": nested(np.maximum(np.einsum("iaa->ia", own[..., 1]), 0)),
        "radii": nested(np.round(0.75 * BOHR * radii[z], 2) * 4 / 3),
        "moments": nested(moments[z] * units.bohr),
    }


def d3_damping(functional: str, path=None) -> dict:
    """{"s6", "s8", "a1", "a2"} of a functional, of Becke and Johnson's damping; a2 in Å.

    path: of `parameters.toml`, if dftd3 is not installed. `DataError` for a name that is not there.
    """
    if not isinstance(functional, str):
        raise UsageError(
            f"the functional is {functional!r}, must be a name", where="d3_damping", fix='"pbe"'
        )
    path = _installed(*DAMPING) if path is None else Path(path)
    known = tomllib.loads(path.read_text())["parameter"]
    name = functional.lower()
    if "bj" not in known.get(name, {}).get("d3", {}):
        names = [k for k, v in known.items() if "bj" in v.get("d3", {})]
        raise DataError(
            f"no parameters of D3(BJ) for '{functional}'.{did_you_mean(name, names)}",
            where=str(path),
        )
    found = known[name]["d3"]["bj"]
    values = {"s6": found.get("s6", 1.0)} | {k: found[k] for k in ("s8", "a1", "a2")}
    return values | {"a2": values["a2"] * units.bohr}


def _checked(elements) -> np.ndarray:
    """Atomic numbers [n >= 1], none of them twice."""
    try:
        z = np.asarray(elements)
    except ValueError:  # rows of unlike length
        z = np.zeros((0, 0))
    if z.ndim != 1 or not z.size or z.dtype.kind not in "iu" or len(np.unique(z)) < len(z):
        raise UsageError(
            f"elements are {elements!r}, must be atomic numbers, each once",
            where="d3_tables",
            fix="(1, 6, 8)",
        )
    return z


def _installed(package: str, name: str) -> Path:
    """A file of an installed package, without importing it."""
    try:
        found = [f for f in files(package) or () if f.as_posix() == name]
    except PackageNotFoundError:
        found = []
    if not found or not Path(found[0].locate()).is_file():
        raise DataError(
            f"the package {package} is not installed, or does not hold {name}",
            where="D3",
            fix=f"pip install --no-deps {package}, or give the path of the file",
        )
    return Path(found[0].locate())
