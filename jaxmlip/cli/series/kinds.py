"""What `jaxmlip spectra` computes: each kind takes a trajectory to curves and coefficients."""

from dataclasses import replace
from functools import partial

import numpy as np

from jaxmlip.cli import session
from jaxmlip.cli.series.coefficients import conductivity, diffusion, thermal, viscosity
from jaxmlip.cli.series.results import Curve
from jaxmlip.cli.series.source import How, Source, about_centre, evaluated
from jaxmlip.errors import DataError
from jaxmlip.vibrations import spectra
from jaxmlip.vibrations.spectra import density

HIGHEST = {1: 4000.0, **dict.fromkeys((5, 6, 7, 8, 9), 2400.0)}  # cm⁻¹ of bonds of an element
OTHERS = 1000.0
ALIASED = 0.05  # of the highest value, just below the highest frequency that frames can tell


def possible(source: Source) -> tuple[str, ...]:
    """The spectra that a trajectory, with its potential, has data for."""
    predicts = lambda name: (
        source.model is not None
        and session.predicts(source.model.card, name)
        and source.has("positions")
        and not source.ring
    )
    flow = source.has("currents") or (predicts("dipole") and source.has("velocities"))
    has = {
        "ir": flow or source.has("dipoles") or (predicts("dipole") and not source.periodic),
        "raman": source.has("polarizabilities") or predicts("polarizability"),
        "vdos": source.has("velocities"),
    }
    found = tuple(name for name, there in has.items() if there)
    if not found:
        raise DataError(
            "the trajectory has neither velocities, dipoles, currents nor polarizabilities",
            where=source.name,
            code="JM241",
            fix="`jaxmlip md` records them; --model computes them on the frames; or --kind",
        )
    return found


# --- spectra -------------------------------------------------------------------------------------


def infrared(source: Source, how: How, output) -> list[Curve]:
    how_hot = thermal(source, how)
    values, dt, flow = _dipoles_or_currents(source, how, output)
    route = spectra.infrared_from_current if flow else spectra.infrared_from_dipole
    spectrum = route(values, **_options(source, how, dt), **how_hot)
    more = {"ir_route": "current" if flow else "dipole"}
    if not source.periodic:
        curve = Curve(
            kind="ir",
            key="ir_km_mol_per_cm1",
            label="absorption (km mol⁻¹ per cm⁻¹)",
            total="ir_integrated_km_mol",
            spectrum=spectrum,
            more=more,
        )
    else:
        curve = Curve(
            kind="ir",
            key="ir_absorption_coefficient_per_cm",
            label="n α (cm⁻¹)",
            spectrum=spectra.absorption_coefficient(spectrum, source.volume()),
            more=more,
        )
    return [_finished(curve, source, how, dt)]


def _dipoles_or_currents(source, how, output):
    """(values [n_frames, 3], fs, whether they are currents): of the file, else of the model."""
    fix = "--model NAME computes it on the frames, or record it with `jaxmlip md`"
    if source.has("currents"):
        return *source.take("currents", fix), True
    model = source.model is not None and session.predicts(source.model.card, "dipole")
    if source.periodic and model and source.has("velocities"):
        return *_evaluated(source, how, "current"), True
    if source.has("dipoles"):
        values, dt = source.take("dipoles", fix)
        if source.periodic:
            output.warn(
                "dipoles of a periodic cell are joined branch to branch; a current has no branches"
            )
            cells, _ = source.take("cells", "a cell")
            if len(cells) != len(values):
                raise DataError(
                    "dipoles and cells were recorded at other times", where=source.name, fix=fix
                )
            values = spectra.continuous_dipoles(values, cells, source.data.pbc)
        return about_centre(source, values), dt, False
    if source.periodic and not source.has("velocities"):
        source.take("currents", "a trajectory with velocities, and --model; or recorded currents")
    if source.model is None:
        source.take("dipoles", fix)
    return *_evaluated(source, how, "dipole"), False


def _evaluated(source, how, what):
    """`evaluated`, after what can be seen before: whether the frames suffice."""
    r, dt = source.take("positions", "a trajectory with positions")
    options = _options(source, how, dt)
    density.lags(len(r), dt=dt, width=how.width, window=options["window"])
    return evaluated(source, what)


def raman(source: Source, how: How, output) -> list[Curve]:
    how_hot = thermal(source, how)
    if source.has("polarizabilities") or source.model is None:
        values, dt = source.take("polarizabilities", "--model NAME computes them on the frames")
    else:
        values, dt = _evaluated(source, how, "polarizability")
    found = spectra.raman_scattering(values, **_options(source, how, dt), **how_hot)
    light = {"temperature": how_hot["temperature"], "laser": how.laser}
    section = spectra.cross_section(found.activity, **light)
    finish = partial(_cut, how=how, source=source)
    curve = Curve(
        kind="raman",
        key="raman_cross_section_1e30_cm2_per_sr_per_cm1",
        label="dσ/dΩ (10⁻³⁰ cm² sr⁻¹ per cm⁻¹)",
        spectrum=section,
        parts={
            "parallel": spectra.cross_section(found.parallel, **light),
            "perpendicular": spectra.cross_section(found.perpendicular, **light),
        },
        more={
            "laser_nm": 1e7 / how.laser,
            "raman_activity_A4_per_amu_per_cm1": finish(found.activity).values,
            "raman_isotropic_A4_per_amu_per_cm1": finish(found.isotropic).values,
            "raman_anisotropic_A4_per_amu_per_cm1": finish(found.anisotropic).values,
        },
    )
    return [_finished(curve, source, how, dt)]


def states(source: Source, how: How, output) -> list[Curve]:
    v, dt = source.take("velocities", "a trajectory with velocities or momenta")
    dof = source.freedom()
    options = _options(source, how, dt)
    whole, parts = spectra.density_of_states(
        v, source.data.masses, dof=dof, labels=source.symbols, **options
    )
    curve = Curve(
        kind="vdos",
        key="vdos_per_cm1",
        label="density of states (1 per cm⁻¹)",
        total="vdos_integral",
        spectrum=whole,
        parts=parts if len(parts) > 1 else {},
        more={"degrees_of_freedom": dof},
    )
    return [_finished(curve, source, how, dt)]


def _options(source, how, dt):
    """Options of spectra; refuses frames that are too far apart."""
    highest = _highest(source, how)
    most = 1 / (2 * density.LIGHT * dt)
    if most < highest:
        raise DataError(
            f"frames {dt:g} fs apart tell frequencies up to {most:.0f} cm⁻¹; this structure has "
            f"some up to {highest:.0f} cm⁻¹, which would appear where they are not",
            where=source.name,
            code="JM243",
            fix=f"record every {1 / (2 * density.LIGHT * highest):.1f} fs or more often; --highest "
            "CM1 if nothing is so fast (held bonds)",
        )
    windows = {f.__name__: f for f in (density.gaussian, density.hann, density.blackman)}
    return {"dt": dt, "width": how.width, "window": windows[how.window], "n_blocks": how.blocks}


def _highest(source, how):
    if how.highest is not None:
        return how.highest
    return max(HIGHEST.get(int(n), OTHERS) for n in source.data.numbers)


def _finished(curve, source, how, dt):
    """The curve as it is shown; refuses one that goes on beyond what frames can tell."""
    y = curve.spectrum.values
    top = np.abs(y[-max(len(y) // 20, 1) :]).max()
    if top > ALIASED * np.abs(y).max():
        raise DataError(
            f"the spectrum does not end below {curve.spectrum.wavenumbers_cm1[-1]:.0f} cm⁻¹, the "
            f"most that frames {dt:g} fs apart can tell: faster motion appears where it is not",
            where=source.name,
            code="JM243",
            fix="record more often",
        )
    cut = partial(_cut, source=source, how=how)
    parts = {name: cut(part) for name, part in curve.parts.items()}
    return replace(curve, spectrum=cut(curve.spectrum), parts=parts)


def _cut(spectrum, *, source, how):
    if how.md_step is not None:
        spectrum = spectra.without_verlet_shift(spectrum, how.md_step)
    n = int(np.searchsorted(spectrum.wavenumbers_cm1, 1.1 * _highest(source, how))) + 1
    return replace(
        spectrum,
        wavenumbers_cm1=spectrum.wavenumbers_cm1[:n],
        values=spectrum.values[:n],
        blocks=spectrum.blocks[:, :n],
    )


COMPUTE = {
    "ir": infrared,
    "raman": raman,
    "vdos": states,
    "diffusion": diffusion,
    "viscosity": viscosity,
    "conductivity": conductivity,
}
