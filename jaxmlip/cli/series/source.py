"""A trajectory as a command sees it: what its file tells, and what a potential adds to that."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from jaxmlip import units
from jaxmlip.cli import session
from jaxmlip.cli.output import note, task
from jaxmlip.cli.series import dynamics
from jaxmlip.cli.series.time_series import TimeSeries, interval, read_time_series
from jaxmlip.errors import DataError, ModelError

RESTS = 1e-6  # part of the kinetic energy that rounding may leave in a motion that is held
FRAMES = 500  # that tell whether a molecule turns


@dataclass(frozen=True, kw_only=True)
class How:
    """The options of one command."""

    width: float
    window: str
    quantum: str
    temperature: float | None
    highest: float | None
    md_step: float | None
    laser: float  # cm⁻¹
    upto: float
    between: tuple[float, float]
    blocks: int | None


@dataclass(frozen=True)
class Source:
    """A trajectory, and the potential that says what it lacks."""

    name: str
    data: TimeSeries
    model: session.Opened | None
    timestep: float | None
    skip: float

    @cached_property
    def formula(self) -> str:
        return Atoms(numbers=self.data.numbers).get_chemical_formula()

    @property
    def symbols(self) -> list[str]:
        return [chemical_symbols[n] for n in self.data.numbers]

    @property
    def periodic(self) -> bool:
        return bool(np.any(self.data.pbc))

    @property
    def ring(self) -> bool:
        """Whether it is of the centroid of a ring of beads."""
        return "beads" in self.data.role

    def has(self, name: str) -> bool:
        return name in self.data.series

    def take(self, name: str, fix: str) -> tuple[np.ndarray, float]:
        """(values [n_frames, ...] after `skip`, fs between them); `DataError` where they lack."""
        if not self.has(name):
            raise DataError(f"the trajectory has no {name}", where=self.name, code="JM241", fix=fix)
        series = self.data.series[name]
        dt = interval(series, where=self.name, timestep=self.timestep)
        first = int(np.ceil(self.skip / dt - 1e-9))
        if len(series.values) - first < 3:
            raise DataError(
                f"{self.skip:g} fs are skipped of {len(series.values) * dt:g} fs of {name}",
                where="--skip",
                code="JM240",
                fix="skip less",
            )
        return series.values[first:], dt

    def volume(self) -> float:
        """Å³, the mean of the frames."""
        cells, _ = self.take("cells", "periodic boundary conditions")
        return float(np.abs(np.linalg.det(cells)).mean())

    def temperature(self, how: How) -> float | None:
        """K: told on the command line, by the file, or by velocities."""
        if how.temperature is not None:
            return how.temperature
        if self.has("temperatures"):
            return float(self.take("temperatures", "")[0].mean())
        if self.has("velocities"):
            v, _ = self.take("velocities", "")
            kinetic = np.einsum("i,tia,tia->", self.data.masses, v, v) / len(v)
            return float(kinetic / (self.freedom() * units.kB))
        return None

    def freedom(self) -> int:
        """Degrees of freedom that share the energy, as the velocities tell."""
        v, _ = self.take("velocities", "a trajectory with velocities or momenta")
        r = None if self.periodic or not self.has("positions") else self.take("positions", "")[0]
        return freedom(v, self.data.masses, r)


def opened(file, model, *, timestep, skip) -> Source:
    """The trajectory of a file."""
    with task(f"reading {file}") as tell:
        data = read_time_series(file)
        dynamics.check(data.role, file)
        longest = max(data.series.values(), key=lambda s: len(s.values))
        times = longest.times
        span = (
            "no times"
            if times is None or not len(times)
            else f"{(times[-1] - times[0]) / 1000:.4g} ps"
        )
        told = f"{len(longest.values)} frames, {span}, {len(data.numbers)} atoms"
        tell(f"{told}: {', '.join(data.series)}")
    if model is not None:
        from jaxmlip.interfaces.check import check_elements

        check_elements(data.numbers, model.card["elements"], model=model.name, where=file)
    return Source(file, data, model, timestep, skip)


def freedom(velocities, masses, positions=None) -> int:
    """Degrees of freedom: of the atoms that move, less three if their centre rests, less those of
    rotation if a free molecule at these positions does not turn.
    """
    moving = np.abs(velocities).max((0, 2)) > 0
    n = int(moving.sum())
    if n == 0:
        raise DataError("no atom moves: all velocities are zero", code="JM241")
    momenta = np.einsum("i,tia->ta", masses, velocities)
    kinetic = np.einsum("i,tia,tia->", masses, velocities, velocities)
    centre = (momenta**2).sum() / masses[moving].sum()
    if not (n > 1 and centre < RESTS * kinetic):
        return 3 * n
    if positions is None or n < len(masses):
        return 3 * n - 3
    rotation, turns = _rotation(positions, velocities, masses)
    return 3 * n - 3 - turns * int(rotation < RESTS * kinetic / len(velocities))


def _rotation(positions, velocities, masses):
    """(twice the mean kinetic energy of rotation, the number of axes about which there is any)."""
    few = slice(None, None, max(len(positions) // FRAMES, 1))
    r, v = np.asarray(positions[few], float), np.asarray(velocities[few], float)
    r = r - (np.einsum("i,tia->ta", masses, r) / masses.sum())[:, None]
    momentum = np.einsum("i,tia->ta", masses, np.cross(r, v))
    whole = np.einsum("i,tia,tia->t", masses, r, r)[:, None, None] * np.eye(3)
    moments, axes = np.linalg.eigh(whole - np.einsum("i,tia,tib->tab", masses, r, r))
    turns = moments > 1e-3 * moments[:, -1:]
    about = np.einsum("tab,ta->tb", axes, momentum)
    energy = np.where(turns, about**2 / np.where(turns, moments, 1), 0).sum(1)
    return energy.mean(), int(turns.sum(1).max())


def evaluated(source: Source, what: str) -> tuple[np.ndarray, float]:
    """dipole, current or polarizability of every frame, by the potential of the command."""
    from jaxmlip.derivatives import response
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.vibrations.spectra.along import along

    if source.ring:
        raise DataError(
            f"the {what} of a ring is the mean over its beads, not that of the centroid",
            where=source.name,
            code="JM244",
            fix="jaxmlip md --response-every N --format h5md records it",
        )
    needed = "polarizability" if what == "polarizability" else "dipole"
    if not session.predicts(source.model.card, needed):
        raise ModelError(
            f"model '{source.model.name}' predicts no {needed}",
            code="JM508",
            fix="another --model, or a trajectory in which it is recorded",
        )
    r, dt = source.take("positions", "a trajectory with positions")
    atoms = Atoms(numbers=source.data.numbers, positions=r[0], pbc=source.data.pbc)
    atoms.info |= source.data.info
    cells = None
    if source.periodic:
        cells, _ = source.take("cells", "a cell")
        atoms.cell = cells[0]
    model = session.bound(source.model, atoms)
    system = from_ase(atoms, None, dtype=model.dtype)
    moving = _inner(source) if what == "current" else None
    function = getattr(response, what)(model.potential.apply)
    with task(f"{what} of {len(r)} frames"):
        values = along(
            function,
            model.params,
            system,
            r,
            cutoff=model.potential.cutoff,
            cells=cells,
            moving=moving,
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"the {what} of '{model.name}' is not defined for this structure (its charges are not "
            "conserved where they move)",
            where=source.name,
            code="JM110",
            fix="a model whose dipole is a sum over atoms or bonds",
        )
    if what == "dipole":
        values = about_centre(source, np.asarray(values, np.float64))
    return values, dt


def _inner(source):
    """Velocities about the centre of mass: a net charge that it carries is no spectrum."""
    v, masses = source.take("velocities", "velocities")[0], source.data.masses
    if (np.abs(v).max((0, 2)) == 0).any():  # held atoms: all motion counts
        return v
    return v - np.einsum("i,tia->ta", masses / masses.sum(), v)[:, None]


def about_centre(source, dipoles):
    """Dipoles of a charged structure about its centre of mass."""
    if not source.data.charge or not source.has("positions"):
        return dipoles
    r, _ = source.take("positions", "")
    if len(r) != len(dipoles):
        note(
            f"{source.name}: dipoles of a charged structure, and positions at other times: what "
            "its centre of mass carries along is in the spectrum at low frequencies"
        )
        return dipoles
    masses = source.data.masses
    return dipoles - source.data.charge * np.einsum("i,tia->ta", masses / masses.sum(), r)
