"""Infrared spectra of crystals: modes at Gamma, longitudinal ones, the dielectric function."""

import numpy as np

from jaxmlip.cli import analysis
from jaxmlip.cli.crystal import own_field, plot_polar, polar, waves
from jaxmlip.cli.ir import table_of
from jaxmlip.cli.output import Output, table, write, write_extxyz, write_text
from jaxmlip.errors import NumericalError
from jaxmlip.vibrations import dielectric as light


def run(
    file,
    read,
    model,
    output: Output,
    *,
    relax,
    method,
    width,
    compare,
    directions,
    epsilon_infinity,
    limits,
    cell,
) -> None:
    """From the structure of a crystal to the files."""
    from jaxmlip.vibrations import intensities

    n = polar.directions_of(directions)
    polar.check_epsilon(epsilon_infinity)
    polar.check_neutral(read, file)
    waves.check_born_charges(model)
    knows_waves = waves.follows(model.card)
    atoms, model, steps = polar.crystal_at_rest(
        file,
        read,
        model,
        output,
        relax=relax,
        method=method,
        limits=limits,
        in_waves=True,
        **cell,
    )
    crystal = polar.polar_crystal(atoms, model, output, relax_steps=steps)
    found, error = crystal.found, polar.check_born(crystal, output)
    eps = polar.dielectric_of(crystal, epsilon_infinity)
    own = knows_waves and polar.has_own_field(crystal, model, eps)
    if own and eps is None:
        eps = np.eye(3)  # ions alone: nothing in the energy of the model answers to a field faster
    strengths = intensities(found.born_charges, found.modes)
    output.console.print(table_of(found, strengths))
    results = analysis.results_of(found, model, source=file, command="ir") | {
        "space_group": crystal.symmetry,
        "relaxed": relax,
        "stress_eV_per_A3": crystal.stress,
        "volume_A3": crystal.volume,
        "intensities_km_mol": strengths,
        "charges_e": found.charges,
        "born_charges_e": found.born_charges,
        "born_charge_sum_error_e": error,
        "width_cm1": width,
        "epsilon_infinity": eps,
        "lo_directions": n,
        "lo_frequencies_cm1": None,
        "nonanalytic": None,
        "epsilon_static": None,
    }
    split = None
    if eps is None:
        output.warn(
            "the model predicts no polarizability: without --epsilon-infinity there are transverse "
            "modes and intensities alone"
        )
    else:
        if knows_waves:
            results["nonanalytic"] = own_field.IN_MODEL if own else "model"
            split = longitudinal(crystal, _screening(own, eps, output), n)
        else:
            output.warn(
                "transverse modes alone: potentials of far charges that feed back into features "
                "follow no wave, so the longitudinal modes of this model are not known"
            )
        oscillators = light.oscillators(found.born_charges, found.modes, eps, crystal.volume)
        results |= polar_results(oscillators, split, output)
        if split is not None:
            output.console.print(_split_table(found.modes.frequencies_cm1, split, n))
        output.console.print(_tensors(results))
    _write(crystal, strengths, eps, n, split, output, model, width=width, compare=compare)
    output.finish(results)


def _screening(own, eps, output) -> np.ndarray:
    """What the field of longitudinal waves is divided by, [3, 3].

    Charges of the model itself make that field in its energy, where no eps_inf screens it; so the
    modes are those of its dynamical matrices at q -> 0, as `jaxmlip phonons` has them.
    """
    if not own:
        return eps
    if not np.allclose(eps, np.eye(3)):
        output.warn(
            "the electrostatics of the model is not screened by epsilon infinity: longitudinal "
            "modes are those of its own energy, and not the zeros of the dielectric function"
        )
    return np.eye(3)


def longitudinal(crystal, eps, directions) -> np.ndarray:
    """Frequencies of waves along each direction at q -> 0, [n_directions, n_modes] cm⁻¹."""
    found = crystal.found
    return np.array(
        [
            light.longitudinal_modes(
                crystal.hessian,
                found.born_charges,
                eps,
                crystal.volume,
                n,
                masses=found.atoms.get_masses(),
                positions=found.atoms.positions,
            ).frequencies_cm1
            for n in directions
        ]
    )


def polar_results(oscillators, split, output) -> dict:
    """The part of the JSON that eps_inf is needed for."""
    try:
        static = light.static_dielectric(oscillators)
    except NumericalError as error:
        static = None
        output.warn(f"no static dielectric tensor: {error.what}")
    return {
        "lo_frequencies_cm1": split,
        "epsilon_static": static,
        "oscillator_strengths_per_cm2": oscillators.strengths,
    }


def _split_table(frequencies, split, directions):
    names = [" ".join(f"{x:g}" for x in n.round(3) + 0.0) for n in directions]
    columns = {"mode": "right", "transverse": "right"}
    columns |= {f"along {name}": "right" for name in names}
    rows = [
        (str(i), f"{f:.1f}", *(f"{x:.1f}" for x in of_mode))
        for i, (f, of_mode) in enumerate(zip(frequencies, split.T, strict=True))
    ]
    return table(columns, rows, title="with the field of waves, q → 0 (cm⁻¹)")


def _tensors(results):
    rows = []
    for name, key in (("ε∞", "epsilon_infinity"), ("ε(0)", "epsilon_static")):
        if results[key] is not None:
            rounded = np.round(results[key], 4) + 0.0  # no -0
            rows += [(name, *(f"{x:.4f}" for x in row)) for row in rounded]
    return table({"": "left"} | dict.fromkeys("xyz", "right"), rows)


def _write(crystal, strengths, eps, directions, split, output, model, *, width, compare):
    found, paths = crystal.found, output.paths
    oscillators = None
    if eps is not None:
        oscillators = light.oscillators(found.born_charges, found.modes, eps, crystal.volume)
    title = f"{found.atoms.get_chemical_formula()}   {model.card.get('name') or model.name}"
    write(
        paths["ir.png"],
        lambda partial: plot_polar.infrared(
            partial,
            found.modes.frequencies_cm1,
            strengths,
            oscillators,
            directions,
            split,
            width=width,
            title=title,
            compare=compare,
        ),
    )
    write_extxyz(paths["relaxed.xyz"], analysis.with_energies(found))
    if "ir.csv" in paths:
        rows = plot_polar.curves(
            found.modes.frequencies_cm1, strengths, oscillators, directions, split, width=width
        )
        write_text(paths["ir.csv"], _as_csv(rows))


def _as_csv(columns: dict) -> str:
    rows = (",".join(f"{x:.6g}" for x in row) for row in zip(*columns.values(), strict=True))
    return "\n".join([",".join(columns), *rows]) + "\n"
