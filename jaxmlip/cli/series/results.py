"""Spectra and coefficients with the names they have for people, in JSON and in tables."""

from dataclasses import dataclass, field

import numpy as np

from jaxmlip.vibrations import spectra
from jaxmlip.vibrations.spectra.density import Spectrum
from jaxmlip.vibrations.spectra.transport import Coefficient

PEAKS = 12


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A spectrum with its names for people and for JSON."""

    kind: str
    key: str  # of the JSON: quantity and unit
    label: str  # of the axis: quantity (unit)
    spectrum: Spectrum
    total: str | None = None  # JSON name of the integral
    parts: dict = field(default_factory=dict)  # {label: Spectrum}
    more: dict = field(default_factory=dict)  # for the JSON

    @property
    def title(self) -> str:
        n = len(self.spectrum.blocks)
        return f"{self.kind}: {self.label}, {n} block{'s' if n > 1 else ''}"

    def rows(self):
        """The columns and rows of a table of the peaks."""
        x, y, e = self.spectrum.wavenumbers_cm1, self.spectrum.values, self.spectrum.errors
        found = peaks(y, self.spectrum.width_cm1 / x[1])
        rows = [(f"{x[i]:.1f}", f"{y[i]:.4g}", _error(e[i])) for i in sorted(found)]
        return {"cm⁻¹": "right", "height": "right", "±": "right", "": "left"}, [
            (*row, "") for row in rows
        ]

    def json(self) -> dict:
        out = {
            f"{self.kind}_frequencies_cm1": self.spectrum.wavenumbers_cm1,
            self.key: self.spectrum.values,
            f"{self.key}_error": self.spectrum.errors,
            f"{self.kind}_blocks": len(self.spectrum.blocks),
            **{f"{self.key}_{name}": part.values for name, part in self.parts.items()},
        }
        if self.total:
            value, error = spectra.integral(self.spectrum)
            out |= {self.total: value, f"{self.total}_error": error}
        return out | self.more

    def csv(self) -> str:
        columns = [self.spectrum.wavenumbers_cm1, self.spectrum.values, self.spectrum.errors]
        columns += [part.values for part in self.parts.values()]
        names = [f"{self.kind}_frequency_cm1", self.key, f"{self.key}_error"]
        names += [f"{self.key}_{name}" for name in self.parts]
        rows = (",".join(f"{v:.6g}" for v in row) for row in zip(*columns, strict=True))
        return "\n".join([",".join(names), *rows]) + "\n"


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Transport coefficients {label: Coefficient} with their names."""

    kind: str
    key: str
    label: str
    curve: str  # of the axis of their curves
    found: dict[str, Coefficient]
    factor: float = 1.0  # of values, to the unit of `key`
    more: dict = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.label}"

    def rows(self):
        rows = [
            (name, f"{self.factor * c.value:.4g}", _error(self.factor * c.error), "")
            for name, c in self.found.items()
        ]
        return {"": "left", "value": "right", "±": "right", " ": "left"}, rows

    def json(self) -> dict:
        out = {}
        for name, c in self.found.items():
            key = self.key if name == "all" else f"{self.key}_{name}"
            out |= {key: self.factor * c.value, f"{key}_error": self.factor * c.error}
        return out | self.more


def _error(e) -> str:
    return f"{e:.2g}" if np.isfinite(e) else "-"  # one block tells none


def peaks(y, distance: float) -> list[int]:
    """The highest maxima, not within `distance` points of a higher one."""
    inner = np.flatnonzero((y[1:-1] > y[:-2]) & (y[1:-1] >= y[2:])) + 1
    found = []
    for i in inner[np.argsort(-y[inner])]:
        if len(found) == PEAKS or y[i] < 0.02 * y.max():
            break
        if all(abs(i - j) > distance for j in found):
            found.append(int(i))
    return found
