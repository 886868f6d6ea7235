"""What is trained on and judged by, and what others have published for it.

A set is a function of the data folder that gives named parts of frames. Where no official split is
there, frames are ranked by a hash of what they hold, so that the split is the same everywhere
whatever the order of a file.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxmlip.interfaces.extxyz import read_frames

MACE_PAPER = "Batatia et al., NeurIPS 2022"


@dataclass(frozen=True, kw_only=True)
class Set:
    """Parts `train`, `valid` and tests of any name; published figures in meV and meV/Å."""

    parts: Callable[[Path], dict[str, list]]
    config: str
    metrics: tuple[str, ...] = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_A")
    published: dict[str, str] = field(default_factory=dict)  # {part: text}
    note: str = ""


def ranked(frames) -> list:
    """The frames in the order of a hash of elements and positions (to 1e-6 Å)."""
    return sorted(frames, key=identity)


def identity(frame) -> str:
    """SHA-256 of numbers and positions of a frame."""
    rounded = np.round(frame.positions * 1e6).astype(np.int64)
    return hashlib.sha256(frame.numbers.astype(np.int64).tobytes() + rounded.tobytes()).hexdigest()


def held_out(frames, *shares: float) -> list[list]:
    """The ranked frames cut into the first shares and the rest, the rest first."""
    order, out = ranked(frames), []
    for share in shares:
        n = max(round(share * len(frames)), 1)
        out.append(order[:n])
        order = order[n:]
    return [order, *out]


def acetylacetone(data: Path):
    """500 frames at 300 K, a tenth for validation, and the official test trajectories."""
    train, valid = held_out(read_frames(data / "acac/train_300K.extxyz.xz"), 0.1)
    tests = {"test_MD_300K": read_frames(data / "acac/test_MD_300K.extxyz.xz")}
    warm = data / "acac/test_MD_600K.extxyz.xz"
    if warm.is_file():
        tests["test_MD_600K"] = read_frames(warm)
    return {"train": train, "valid": valid} | tests


def aspirin(n_train: int, n_valid: int):
    """Frames of rMD17 aspirin; the split of the data folder is not the official one."""

    def parts(data: Path):
        order = ranked(read_frames(data / "rmd17_aspirin/train.extxyz.xz"))
        return {
            "train": order[:n_train],
            "valid": order[n_train : n_train + n_valid],
            "test": read_frames(data / "rmd17_aspirin/test.extxyz.xz"),
        }

    return parts


def bpa(data: Path):
    """3BPA at 300 K; held out are the frames of the mixed-temperature file that are not in it."""
    cold = read_frames(data / "3bpa/train_300K.extxyz.xz")
    known = {identity(f) for f in cold}
    train, valid = held_out(cold, 0.1)
    mixed = read_frames(data / "3bpa/train_mixedT.extxyz.xz")
    return {
        "train": train,
        "valid": valid,
        "test_mixedT": [f for f in mixed if identity(f) not in known],
    }


def metal(symbol: str):
    """One element of Zuo et al., with its own test file."""

    def parts(data: Path):
        train, valid = held_out(read_frames(data / f"zuo2020/{symbol}_train.extxyz.xz"), 0.1)
        test = read_frames(data / f"zuo2020/{symbol}_test.extxyz.xz")
        return {"train": train, "valid": valid, "test": test}

    return parts


def water(data: Path):
    """64 molecules at PBE0-TS; `valid` of the data folder is the test."""
    folder = data / "water_pbe0ts_deepmd"
    train, valid = held_out(read_frames(folder / "train.extxyz.xz"), 0.1)
    return {"train": train, "valid": valid, "test": read_frames(folder / "valid.extxyz.xz")}


def dipeptides(data: Path):
    """Polar dipeptides of SPICE with dipoles; Born charges stand in the test frames alone."""
    read = lambda name: read_frames(data / f"dipeptides_spice/{name}.extxyz.xz")
    return {"train": read("train"), "valid": read("val"), "test": read("test")}


def polar(name: str):
    """Crystals with their responses to a field."""

    def parts(data: Path):
        frames = read_frames(data / f"allegro_pol/{name}.extxyz.xz")
        train, test, valid = held_out(frames, 0.2, 0.1)
        return {"train": train, "valid": valid, "test": test}

    return parts


def displaced(name: str):
    """Supercells of an ionic crystal with random displacements."""

    def parts(data: Path):
        frames = [
            f
            for path in sorted((data / "phonons" / name).glob("*.extxyz.xz"))
            for f in read_frames(path)
        ]
        small = min(len(f) for f in frames)
        train, test, valid = held_out([f for f in frames if len(f) == small], 0.1, 0.1)
        return {"train": train, "valid": valid, "test": test}

    return parts


STRESS = ("energy_rmse_meV_per_atom", "forces_rmse_meV_per_A", "stress_rmse_meV_per_A3")
ZUO = ("energy_mae_meV_per_atom", "forces_mae_meV_per_A")
CURATED = "GAP and MTP as carried in ACEpotentials.jl"
SETS = {
    "acac": Set(
        parts=acetylacetone,
        config="acac",
        published={
            "test_MD_300K": f"MACE 5.1, NequIP 5.9, BOTNet 6.3 meV/Å RMSE ({MACE_PAPER})",
            "test_MD_600K": f"MACE 22.4, NequIP 27.8, BOTNet 29.8 meV/Å RMSE ({MACE_PAPER})",
        },
    ),
    "aspirin50": Set(
        parts=aspirin(50, 50),
        config="aspirin50",
        metrics=("energy_mae_meV_per_atom", "forces_mae_meV_per_A"),
        published={"test": f"MACE 43.9 meV/Å MAE ({MACE_PAPER})"},
        note="not the official split",
    ),
    "aspirin950": Set(
        parts=aspirin(950, 50),
        config="aspirin950",
        metrics=("energy_mae_meV_per_atom", "forces_mae_meV_per_A"),
        published={"test": f"MACE 6.6 meV/Å MAE ({MACE_PAPER})"},
        note="not the official split",
    ),
    "3bpa": Set(
        parts=bpa,
        config="3bpa",
        published={
            "test_mixedT": f"MACE 8.8 at 300 K, 21.8 at 600 K, 62.0 at 1200 K ({MACE_PAPER})"
        },
        note="no official test file: held-out frames of the mixed-temperature training file, "
        "300 to 1200 K together; the same order at most",
    ),
    **{
        f"zuo_{symbol}": Set(
            parts=metal(symbol),
            config="zuo",
            metrics=ZUO,
            published={"test": f"{gap} ({CURATED})"},
        )
        for symbol, gap in {
            "Li": "GAP 0.49 meV/atom, 10 meV/Å; MTP 0.49, 10",
            "Mo": "GAP 2.24 meV/atom, 90 meV/Å; MTP 2.83, 90",
            "Si": "GAP 2.91 meV/atom, 70 meV/Å; MTP 2.21, 60",
        }.items()
    },
    "water": Set(parts=water, config="water"),
    "dipeptides": Set(
        parts=dipeptides,
        config="dipeptides",
        metrics=(
            *("energy_rmse_meV_per_atom", "forces_rmse_meV_per_A"),
            *("dipole_rmse_eA", "born_charges_rmse_e"),
        ),
        published={"test": "CACE 2.354 meV/atom, 72.4 meV/Å; with latent charges 1.878, 61.1"},
        note="CC BY-NC: a benchmark, no weights are kept",
    ),
    **{
        name: Set(
            parts=polar(name),
            config=name,
            metrics=(*STRESS, "born_charges_rmse_e", "polarizability_rmse_e2A2_per_eV"),
            published={"test": f"{text} (Falletta et al. 2025, all frames)"},
        )
        for name, text in {
            "SiO2": "3.02 meV/atom, 36.0 meV/Å, Born charges 0.0073 e, polarisability 0.017",
            "BaTiO3": "0.53 meV/atom, 21.0 meV/Å, Born charges 0.0194 e, polarisability 0.024",
        }.items()
    },
    **{
        name: Set(parts=displaced(name), config="ionic", published={})
        for name in ("NaCl_rd", "AlN_rd")
    },
}
