"""`jaxmlip ts`: a transition state near a guess, its modes, and the path of the reaction."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import note, plan, table, task, write_extxyz
from jaxmlip.errors import NumericalError


def ts(
    file: options.File,
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("."),
    overwrite: options.Overwrite = False,
    frame: options.Frame = -1,
    fmax: Annotated[
        float, typer.Option(min=0, help="Search until no atom feels more than this, eV/Å.")
    ] = 1e-4,
    steps: Annotated[int, typer.Option(min=1, help="Most evaluations of energy and forces.")] = 300,
    follow: Annotated[
        int, typer.Option(min=0, help="Which mode of the guess goes uphill; 0 is the lowest.")
    ] = 0,
    hessian_every: Annotated[
        int, typer.Option(min=1, help="Steps between exact Hessians; updated between.")
    ] = 1,
    products: Annotated[
        bool,
        typer.Option(
            "--products",
            help="Only Hessian-vector products: for systems whose Hessian is too large.",
        ),
    ] = False,
    trust: Annotated[float, typer.Option(help="First length of a step, Å.")] = 0.1,
    irc: Annotated[
        bool, typer.Option("--irc", help="Follow the reaction path both ways and relax its ends.")
    ] = False,
    step: Annotated[float, typer.Option(help="Between points of the path, amu^1/2 Å.")] = 0.1,
    points: Annotated[int, typer.Option(min=1, help="Most points of the path each way.")] = 200,
    dtype: options.Precision = Dtype.float64,
):
    """Find the transition state near a structure; writes NAME_ts.xyz and NAME_irc.xyz (eV, Å).

    Atoms held by FixAtoms keep their positions. Exit status 4 unless forces vanish and exactly one
    mode is imaginary; the structure is written all the same. Its thermochemistry:
    `jaxmlip modes NAME_ts.xyz --no-relax --ignore-imaginary-below 5000`.
    """
    from jaxmlip.cli import analysis, selection, session
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.vibrations.reactions import transition_state as search

    files = ["ts.xyz", *(["irc.xyz"] if irc else [])]
    output = plan(file, files, out=out, json_file=json, overwrite=overwrite)
    session.positive(fmax=fmax, trust=trust, step=step)
    session.start(x64=True)
    opened = session.open_model(model, dtype)
    atoms = session.read(file, opened, output, frame=frame)
    opened = session.bound(opened, atoms)
    fixed = selection.held(atoms, file)
    system = from_ase(atoms, opened.potential.cutoff, dtype=opened.dtype)
    session.announce("ts", opened, len(atoms))
    common = {"masses": atoms.get_masses(), "fixed": fixed}
    by_products = search.hessian_products() if products else None
    with task("transition state") as tell:
        system, found = search.transition_state(
            opened.potential,
            opened.params,
            system,
            fmax=fmax,
            steps=steps,
            follow=follow,
            trust=trust,
            curvature=by_products or search.exact_hessian(hessian_every),
            report=lambda i: tell(f"{i.n_steps} steps, fmax {i.fmax:.2e} eV/Å"),
            **common,
        )
    atoms = _placed(atoms, system.positions)
    output.console.print(_table(atoms, found))
    write_extxyz(output.paths["ts.xyz"], analysis.with_results(atoms, energy=found.energy))
    results = _results(found, file, opened, atoms) | session.versions()
    failed = None
    if irc and found.converged:
        try:
            how = {"step": step, "steps": points, "curvature": by_products}
            path = _path(opened, system, found, **how, **common)
        except NumericalError as error:  # the transition state is worth having all the same
            failed = error
        else:
            results |= _told(path, atoms, output)
    elif irc:
        note("no reaction path: there is no transition state to start from")
    output.finish(results)
    if failed is not None:
        raise failed
    if not found.converged:
        raise NumericalError(
            f"no transition state: {found.reason}",
            where=file,
            code="JM304",
            fix="a guess nearer to it, more --steps, or --follow another mode (`jaxmlip modes "
            "--no-relax` shows those of the guess)",
        )


def _path(model, system, found, **how):
    from jaxmlip.vibrations.reactions.reaction_path import reaction_path

    news = "side {:+d}, {} points, {:.4f} eV".format
    with task("reaction path") as tell:
        return reaction_path(
            model.potential,
            model.params,
            system,
            mode=found.mode,
            report=lambda *side: tell(news(*side)),
            **how,
        )


def _told(path, atoms, output) -> dict:
    """Table, frames and warnings of a path; it as JSON."""
    output.console.print(_path_table(path))
    write_extxyz(output.paths["irc.xyz"], _frames(atoms, path))
    for end in path.ends:
        if not end.converged:
            output.warn(f"an end of the path is no minimum: {end.reason}")
    return _path_results(path)


def _placed(atoms, positions):
    import numpy as np

    atoms = atoms.copy()
    atoms.positions = np.asarray(positions, np.float64)[: len(atoms)]
    return atoms


def _table(atoms, found):
    rows = [
        ("energy", f"{found.energy:.6f} eV"),
        ("fmax", f"{found.fmax:.2e} eV/Å"),
        ("imaginary modes", str(found.n_imaginary)),
        ("lowest modes", ", ".join(f"{f:.1f}" for f in found.frequencies_cm1[:3]) + " cm⁻¹"),
        ("evaluations", str(found.n_steps)),
        ("Hessian-vector products", str(found.n_products)),
        ("converged", "yes" if found.converged else "no"),
    ]
    return table(
        {"transition state": "left", "": "right"}, rows, title=atoms.get_chemical_formula()
    )


def _path_table(path):
    rows = [
        (side, f"{barrier:.4f} eV", f"{end.energy:.6f} eV", reason)
        for side, barrier, end, reason in zip(
            ("backward", "forward"), path.barriers, path.ends, path.reasons, strict=True
        )
    ]
    columns = {"reaction path": "left", "barrier": "right", "minimum": "right", "ended": "left"}
    return table(columns, rows)


def _results(found, source, model, atoms) -> dict:
    from jaxmlip.cli.analysis import geometry

    return {
        "command": "ts",
        "structure": source,
        "formula": atoms.get_chemical_formula(),
        **model.summary,
        **geometry(atoms),
        "masses_amu": atoms.get_masses(),
        "energy_eV": found.energy,
        "fmax_eV_per_A": found.fmax,
        "n_steps": found.n_steps,
        "n_hessian_vector_products": found.n_products,
        "converged": found.converged,
        "reason": found.reason,
        "n_imaginary": found.n_imaginary,
        "frequencies_cm1": found.frequencies_cm1,
        "mode_mass_weighted": found.mode,
    }


def _path_results(path) -> dict:
    return {
        "irc_distance_sqrt_amu_A": path.distance,
        "irc_energies_eV": path.energies,
        "irc_fmax_eV_per_A": path.fmax,
        "irc_barriers_eV": path.barriers,
        "irc_end_energies_eV": [e.energy for e in path.ends],
        "irc_ends_converged": [e.converged for e in path.ends],
        "irc_end_positions_A": path.end_positions,
        "irc_reasons": list(path.reasons),
    }


def _frames(atoms, path):
    """The relaxed first end, the path, the relaxed last end."""
    from jaxmlip.cli.analysis import with_results

    places = [path.end_positions[0], *path.positions, path.end_positions[1]]
    energies = [path.ends[0].energy, *path.energies, path.ends[1].energy]
    along = [float("nan"), *path.distance, float("nan")]
    frames = []
    for positions, energy, distance in zip(places, energies, along, strict=True):
        frame = with_results(_placed(atoms, positions), energy=float(energy))
        if distance == distance:
            frame.info["irc_distance_sqrt_amu_A"] = float(distance)
        else:
            frame.info["irc_end"] = True
        frames.append(frame)
    return frames
