"""Names of ensembles and what each is made of."""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from jaxmlip import units
from jaxmlip.errors import DataError


class Ensemble(StrEnum):
    nve = "nve"
    nvt = "nvt"
    nvt_csvr = "nvt-csvr"
    nvt_nh = "nvt-nh"
    npt = "npt"
    npt_flexible = "npt-flexible"


class Recipe(NamedTuple):
    """How an ensemble is made from the options of a command line."""

    make: Callable  # options -> Integrator
    told: str
    bath: bool = True
    cell: bool = False  # whether the cell moves


def _nve(o):
    from jaxmlip.md import nve

    return nve(dt=o["timestep"])


def _langevin(o):
    from jaxmlip.md import langevin

    return langevin(dt=o["timestep"], temperature=o["temp"], friction=o["friction"])


def _csvr(o):
    from jaxmlip.md import csvr

    return csvr(dt=o["timestep"], temperature=o["temp"], tau=o["thermostat_time"])


def _nose_hoover(o):
    from jaxmlip.md import nose_hoover

    return nose_hoover(dt=o["timestep"], temperature=o["temp"], tau=o["thermostat_time"])


def _npt(o, *, flexible=False):
    from jaxmlip.md.barostats import stochastic_cell
    from jaxmlip.md.cell import hydrostatic

    return stochastic_cell(
        _csvr(o),
        pressure=o["pressure"] * units.GPa,
        tau=o["barostat_time"],
        compressibility=1 / (o["bulk_modulus"] * units.GPa),
        free=None if flexible else hydrostatic,
    )


RECIPES = {
    Ensemble.nve: Recipe(_nve, "constant energy: velocity Verlet", bath=False),
    Ensemble.nvt: Recipe(_langevin, "Langevin, BAOAB"),
    Ensemble.nvt_csvr: Recipe(_csvr, "stochastic velocity rescaling"),
    Ensemble.nvt_nh: Recipe(_nose_hoover, "chain of Nosé-Hoover thermostats"),
    Ensemble.npt: Recipe(_npt, "rescaled velocities and volume, both stochastic", cell=True),
    Ensemble.npt_flexible: Recipe(
        lambda o: _npt(o, flexible=True), "the same, lengths and angles of the cell free", cell=True
    ),
}
HELP = "; ".join(f"{name}: {recipe.told}" for name, recipe in RECIPES.items())


def integrator_of(ensemble: Ensemble, options: dict):
    """The integrator of an ensemble. options: of the command line, in its units."""
    return RECIPES[ensemble].make(options)


def check_cell(ensemble: Ensemble, atoms, where: str) -> None:
    """Raises `DataError` where the cell cannot move."""
    if RECIPES[ensemble].cell and not atoms.pbc.all():
        raise DataError(
            f"--ensemble {ensemble} moves the cell, and this structure is periodic along "
            f"{int(atoms.pbc.sum())} of 3 axes",
            where=where,
            code="JM214",
            fix="nvt, nvt-csvr or nvt-nh; or a structure with a cell and pbc along all axes",
        )
