"""The audit of a potential: is it a smooth, conservative, symmetric function of structures?

Everything is measured through `evaluate(system)` (`interfaces.evaluate`), numbers in and numbers
out, so that models with built-in symmetry, unconstrained ones, ones that predict forces directly
and the calculators of other codes are judged by the same numbers. Each check gives `Finding`s: a
value that is zero for a sound potential, and a limit that says how near to zero arithmetic comes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from jaxmlip.errors import DataError, NumericalError
from jaxmlip.system import System
from jaxmlip.workflows import audit_checks as checks

# by precision of the potential; forces of a float32 model carry errors of some 1e-5 eV/Å
LIMITS = {
    "float64": {
        "energy": 1e-8,  # eV per atom
        "forces": 1e-7,  # eV/Å
        "stress": 1e-8,  # eV/Å³
        "dipole": 1e-7,  # e Å
        "difference": 1e-4,  # eV/Å, differences of energies with steps of 1e-3 Å
        "asymmetry": 1e-4,  # of the Jacobian, differences of forces with the same steps
        "jump": 1e-5,  # eV/Å, and eV where an energy jumps
        "drift": 1.0,  # meV per atom and ps
        "float32": 1e-3,  # eV/Å, and eV per atom
    }
}
LIMITS["float32"] = LIMITS["float64"] | {
    "energy": 2e-5,
    "forces": 1e-3,
    "stress": 1e-4,
    "dipole": 1e-3,
    "difference": 5e-2,
    "asymmetry": 2e-2,
    "jump": 5e-3,
    "drift": 3.0,
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measured number."""

    check: str  # which law
    quantity: str
    value: float
    limit: float | None  # None: told, not judged
    unit: str
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the value is within its limit; None for what is not judged."""
        return None if self.limit is None else bool(self.value <= self.limit)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is audited: a potential at a structure."""

    evaluate: Callable  # System -> {"energy", "forces", ...}
    system: System  # one structure, float64, without edges
    limits: dict = field(default_factory=lambda: LIMITS["float64"])
    step: float = 1e-3  # Å, of differences
    cutoff: float | None = None  # Å; None: looked for
    other: Callable | None = None  # evaluate in float32, to be compared
    masses: np.ndarray | None = None  # [n_atoms] amu; None: there is no dynamics
    seed: int = 0

    def rng(self):
        return np.random.default_rng(self.seed)


CHECKS = {
    "rotation": checks.rotation,
    "translation": checks.translation,
    "permutation": checks.permutation,
    "derivative": checks.derivative,
    "loop": checks.loop,
    "jacobian": checks.jacobian,
    "cutoff": checks.smooth_cutoff,
    "extensivity": checks.extensivity,
    "free atoms": checks.free_atoms,
    "dimers": checks.dimers,
    "dynamics": checks.dynamics,
    "precision": checks.precision,
}


def audit(
    evaluate: Callable,
    system: System,
    *,
    precision: str = "float64",
    cutoff: float | None = None,
    in_float32: Callable | None = None,
    masses=None,
    only=None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> list[Finding]:
    """The findings of all checks (or of those named in `only`) at one structure without edges.

    evaluate: see `interfaces.evaluate`; precision: what it computes in, which decides the limits.
    cutoff: of the potential, Å (None: found from pairs of atoms). in_float32: the same potential
    in float32, if that is to be compared. masses [n_atoms] amu: asks for a short run of dynamics.
    A check whose numbers are not finite becomes a finding that fails. tell: called with the name
    of each check before it runs. Raises `DataError` for a batch, or for checks that do not exist.
    """
    subject = _subject(
        evaluate,
        system,
        limits=LIMITS[precision],
        step=1e-3 if precision == "float64" else 2e-2,
        cutoff=cutoff,
        other=in_float32,
        masses=None if masses is None else np.asarray(masses, float),
        seed=seed,
    )
    wanted = list(CHECKS) if only is None else list(only)
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown:
        raise DataError(f"unknown checks {unknown}", where="audit", fix=f"some of {[*CHECKS]}")
    room = getattr(evaluate, "room", None)
    if room is not None:
        room(2 * system.n_atoms)
    found = []
    for name in wanted:
        if tell is not None:
            tell(name)
        found += _tried(name, subject)
    return found


def passed(findings) -> bool:
    """Whether nothing that is judged failed."""
    return all(f.passed is not False for f in findings)


def _tried(name, subject):
    try:
        return [Finding(check=name, **values) for values in CHECKS[name](subject)]
    except NumericalError as error:
        values = {"quantity": "finite numbers", "value": np.inf, "limit": 0.0, "unit": ""}
        return [Finding(check=name, **values, note=error.what)]


def _subject(evaluate, system, **options):
    if system.n_graphs != 1 or not np.asarray(system.atom_mask).all():
        raise DataError(
            f"an audit is of one structure without padding, got {system.n_graphs} structures",
            where="audit",
        )
    floats = ("positions", "cell", "charge", "spin", "field")
    host = {name: np.asarray(getattr(system, name), np.float64) for name in floats}
    rest = {name: np.asarray(getattr(system, name)) for name in ("numbers", "graph", "pbc")}
    return Subject(evaluate=evaluate, system=replace(system, edges=None, **host, **rest), **options)
