"""`--minimize`: the relaxed structure from which a run begins, computed once and kept beside it."""

import numpy as np

from jaxmlip.cli.options import Method

DEPENDS = ("structure", "model_sha256", "fmax", "dtype")  # names of the settings of a run


def minimized(atoms, opened, o, output, *, folder, settings):
    """The structure relaxed, its velocities kept; on --resume the same one that was kept.

    folder: of the restart points of the run. What is measured from the start, such as the mean
    square displacement, goes on from the same start.
    """
    from jaxmlip.restart import newest_state, save_state

    folder, wanted = folder / "minimum", {name: settings[name] for name in DEPENDS}
    warn = lambda error: output.warn(str(error))
    found = newest_state(folder, warn=warn) if o["resume"] else None
    if found is None or found[1]["settings"] != wanted:
        positions, reason = _relaxed(atoms, opened, o)
        folder.mkdir(parents=True, exist_ok=True)
        position = {"settings": wanted, "not_converged": reason}
        save_state(folder, {"positions": positions}, position, step=0)
    else:
        (positions,), reason = found[0].values(), found[1]["not_converged"]
    if reason:
        output.warn(f"--minimize: {reason}")
    moved = atoms.copy()
    moved.set_positions(positions, apply_constraint=False)
    return moved


def _relaxed(atoms, opened, o):
    """(positions, why they are not a minimum or None)."""
    from jaxmlip.cli import analysis, selection
    from jaxmlip.interfaces.ase import from_ase

    system = from_ase(atoms, opened.potential.cutoff + analysis.SKIN, dtype=opened.dtype)
    fixed = selection.held(atoms, "--minimize")
    system, info = analysis.relaxed(
        system, opened, fmax=o["fmax"], steps=2000, method=Method.lbfgs, fixed=fixed
    )
    return np.asarray(system.positions, float), None if info.converged else info.reason
