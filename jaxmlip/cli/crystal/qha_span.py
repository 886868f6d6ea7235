"""Whether the volumes of `jaxmlip qha` hold what is asked of them, and what to do where not."""

import numpy as np

from jaxmlip import units
from jaxmlip.errors import NumericalError, UsageError
from jaxmlip.vibrations.crystals.equation_of_state import fit, volume_at
from jaxmlip.vibrations.phonons.dispersion import imaginary

SMALLER, LARGER = "a smaller first number of --span", "a larger second number of --span"


def check_pressure(volumes, energies, pressure: float, equation) -> None:
    """`UsageError` where the volume without vibrations at a pressure (eV/Å³) is not among these."""
    parameters = fit(volumes, energies, equation)
    at = float(volume_at(pressure, parameters, equation))
    if np.min(volumes) <= at <= np.max(volumes):
        return
    told = f"{at:.3f} Å³, {at / parameters[3]:.3f} of the static minimum," if at == at else "one"
    raise UsageError(
        f"at {pressure / units.GPa:g} GPa the crystal has {told} outside of the volumes computed, "
        f"{np.min(volumes):.3f} to {np.max(volumes):.3f} Å³",
        where="--pressure, --span",
        fix=SMALLER if pressure > 0 else LARGER,
    )


def check_real(found, static_volume: float) -> None:
    """`NumericalError` JM306 for imaginary modes, with the volumes that have them."""
    each = [imaginary(f, found.mesh.q) for f in found.frequencies_THz]
    bad = [i for i, (count, *_) in enumerate(each) if count]
    if not bad:
        return
    worst = min(bad, key=lambda i: each[i][1])
    count, lowest, q = each[worst]
    shares = found.volumes / static_volume
    above = all(shares[i] > 1 for i in bad)
    raise NumericalError(
        f"{count} modes are imaginary at {found.volumes[worst]:.3f} Å³ ({shares[worst]:.3f} of the "
        f"static minimum), lowest {lowest:.3f} THz at q = {np.round(q, 4).tolist()}; at "
        f"{len(bad)} of {len(each)} volumes there are some",
        where="qha",
        code="JM306",
        fix=f"a smaller second number of --span, below {shares[bad].min():.3f}"
        if above
        else "another cell or model: the crystal is unstable at or below its own volume, too",
    )


def wider(found, pressure: float, at: int) -> str:
    """Which end of the span is too near for temperature number `at`."""
    gibbs = found.energies + found.free_energies[:, at] + pressure * found.volumes
    return LARGER if gibbs[np.argmax(found.volumes)] < gibbs[np.argmin(found.volumes)] else SMALLER
