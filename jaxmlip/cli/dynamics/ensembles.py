"""Names of ensembles and what each is made of."""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from jaxmlip import units
from jaxmlip.errors import DataError, UsageError


class Ensemble(StrEnum):
    nve = "nve"
    nvt = "nvt"
    nvt_csvr = "nvt-csvr"
    nvt_nh = "nvt-nh"
    npt = "npt"
    npt_flexible = "npt-flexible"
    pimd = "pimd"
    trpmd = "trpmd"
    rpmd = "rpmd"


class Recipe(NamedTuple):
    """How an ensemble is made from the options of a command line."""

    make: Callable  # options -> Integrator
    told: str
    bath: bool = True
    cell: bool = False  # whether the cell moves
    ring: bool = False  # whether nuclei are rings of beads
    settles: bool = False  # whether rings first settle under the bath of pimd


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


def _ring(o, *, damping, sampled=False):
    from jaxmlip.md import ring_polymer

    return ring_polymer(
        dt=o["timestep"],
        temperature=o["temp"],
        n_beads=o["beads"],
        tau=o["thermostat_time"] if sampled else None,
        damping=damping,
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
    Ensemble.pimd: Recipe(
        lambda o: _ring(o, damping=1.0, sampled=True),
        "quantum nuclei, rings of --beads: averages",
        ring=True,
    ),
    Ensemble.trpmd: Recipe(
        lambda o: _ring(o, damping=0.5), "their dynamics, rings damped", ring=True, settles=True
    ),
    Ensemble.rpmd: Recipe(
        lambda o: _ring(o, damping=0.0),
        "the same, undamped",
        bath=False,
        ring=True,
        settles=True,
    ),
}
HELP = "; ".join(f"{name}: {recipe.told}" for name, recipe in RECIPES.items())


def with_beads(o: dict) -> dict:
    """The options of a run: beads are replicas, of which nobody else may ask for any."""
    if not RECIPES[o["ensemble"]].ring:
        return o | {"beads": 1}
    for name, there in (("replicas", o["replicas"] > 1), ("remove-rot", o["remove_rot"])):
        if there:
            raise UsageError(
                f"--{name} is not for rings of beads", where=f"--{name}", fix="another --ensemble"
            )
    return o | {"replicas": o["beads"], "stress": False}


def integrator_of(ensemble: Ensemble, options: dict):
    """The integrator of an ensemble. options: of the command line, in its units."""
    if options["ladder"] is None:
        return RECIPES[ensemble].make(options)
    from jaxmlip.md import replica_exchange

    bath = RECIPES[ensemble].make(options | {"temp": list(options["ladder"])})
    return replica_exchange(bath, every=options["exchange_every"])


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
