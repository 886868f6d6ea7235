"""Transport coefficients of a trajectory: diffusion, viscosity, thermal conductivity."""

import numpy as np

from jaxmlip.cli.series.results import Coefficients
from jaxmlip.cli.series.source import How, Source
from jaxmlip.errors import UsageError
from jaxmlip.vibrations import spectra
from jaxmlip.vibrations.spectra import quantum, transport

PARTS = 5  # of a trajectory, for the errors of coefficients


def thermal(source: Source, how: How) -> dict:
    """Temperature and quantum correction; refuses a trajectory that tells no temperature."""
    temperature = source.temperature(how)
    if temperature is None:
        raise UsageError(
            "the trajectory does not tell its temperature", where=source.name, fix="--temperature K"
        )
    factors = {
        f.__name__: f
        for f in (quantum.harmonic, quantum.standard, quantum.schofield, quantum.mixed)
    }
    return {"temperature": temperature, "quantum": factors[how.quantum]}


def diffusion(source: Source, how: How, output) -> list[Coefficients]:
    r, dt = source.take("positions", "a trajectory with positions")
    if source.periodic:
        cells, _ = source.take("cells", "a cell")
        r = r if source.data.ours else spectra.unwrapped(r, cells, source.data.pbc)
        if np.all(source.data.pbc) and np.ptp(cells, axis=0).any():
            r = spectra.in_mean_cell(r, cells)
    masses, symbols = source.data.masses, np.array(source.symbols)
    if not (np.ptp(r, axis=0) == 0).all(-1).any():  # against held atoms all motion counts
        r = transport.without_drift(r, masses)
    options = {"dt": dt, "between": how.between, "n_blocks": how.blocks or PARTS}
    of = lambda chosen: spectra.diffusion_from_displacements(r[:, chosen], **options)
    found = {name: of(symbols == name) for name in dict.fromkeys(symbols.tolist())}
    return [
        Coefficients(
            kind="diffusion",
            key="diffusion_cm2_per_s",
            label="D (cm² s⁻¹), of this cell",
            curve="<|r(t) - r(0)|²> (Å²)",
            found=found,
            more={"diffusion_between_fs": list(how.between)},
        )
    ]


def green_kubo(coefficient, series: str, needs: str, **names):
    """(source, how, output) -> [Coefficients]: the running integral of a series of the trajectory.

    coefficient: of `spectra`, of the series; needs: what a trajectory must have; names: of
    `Coefficients`.
    """

    def found(source: Source, how: How, output) -> list[Coefficients]:
        values, dt = source.take(series, needs)
        one = coefficient(
            values,
            dt=dt,
            temperature=thermal(source, how)["temperature"],
            volume=source.volume(),
            upto=how.upto,
            n_blocks=how.blocks or PARTS,
        )
        more = {f"{names['kind']}_upto_fs": how.upto}
        return [Coefficients(found={"all": one}, more=more, **names)]

    return found


viscosity = green_kubo(
    spectra.viscosity,
    "stresses",
    "stresses of a periodic cell, in .traj and .xyz with momenta",
    kind="viscosity",
    key="viscosity_mPa_s",
    label="shear viscosity (mPa s)",
    curve="running integral (mPa s)",
    factor=1e3,
)
conductivity = green_kubo(
    spectra.thermal_conductivity,
    "heat_fluxes",
    "`jaxmlip md --heat-flux-every 5 --format h5md`",
    kind="conductivity",
    key="thermal_conductivity_W_per_m_K",
    label="thermal conductivity (W/(m K))",
    curve="running integral (W/(m K))",
)


def without_images(found: list, source: Source, how: How) -> dict:
    """D of an infinite liquid where both D and the viscosity were computed; for the JSON."""
    kinds = {f.kind: f for f in found if isinstance(f, Coefficients)}
    if not {"diffusion", "viscosity"} <= set(kinds):
        return {}
    eta = kinds["viscosity"].found["all"].value
    more = {"temperature": source.temperature(how), "viscosity": eta, "volume": source.volume()}
    return {
        f"diffusion_infinite_cell_cm2_per_s_{name}": spectra.infinite_cell_diffusion(
            c.value, **more
        )
        for name, c in kinds["diffusion"].found.items()
    }
