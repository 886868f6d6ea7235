"""Whether frames are a motion whose correlations mean something; those of `jaxmlip md` say so."""

import re

import numpy as np

from jaxmlip.errors import DataError, UsageError


def implied(observables: dict) -> dict:
    """What an H5MD file is of, by what is recorded in it: of files that do not say it in words."""
    walker = observables["walker"].value if "walker" in observables else [0]
    found = {"ladder": True} if np.ptp(walker) else {}
    return found | ({"bead": 0} if "gyration" in observables and not found else {})


def check(role: dict, where: str) -> None:
    """Refuses frames that jump between temperatures, of a lone bead, and of a ring that is only
    sampled. role: of a `TimeSeries`.
    """
    if role.get("ladder"):
        raise DataError(
            "these are frames of one temperature of a ladder, to which other copies come: they "
            "jump, and correlations in time mean nothing",
            where=where,
            code="JM244",
            fix="a run of its own at each temperature, from these frames",
        )
    if role.get("ensemble") == "pimd":
        raise DataError(
            "rings under the bath of pimd tell averages; their motion is not that of nuclei",
            where=where,
            code="JM244",
            fix="jaxmlip md --ensemble trpmd",
        )
    if "bead" in role:
        raise DataError(
            "this is one bead of a ring, which moves as something far hotter and with the modes of "
            "the ring; spectra are made of the means over beads",
            where=where,
            code="JM244",
            fix=f"jaxmlip spectra {_centroid(where)}",
        )


def check_quantum(role: dict, factor: str) -> None:
    """Refuses quantum corrections of classical motion for that of rings, which is Kubo-transformed.

    Detailed balance takes a Kubo-transformed correlation to a quantum one with the factor
    x / (1 - exp(-x)), the one that is called harmonic, exactly.
    """
    if "beads" in role and factor != "harmonic":
        raise UsageError(
            f"correlations of rings of beads are Kubo-transformed: '{factor}' is not for them",
            where="--quantum",
            fix="harmonic, which is exact for them",
        )


def _centroid(name: str) -> str:
    return re.sub(r"_\d+(\.\w+)$", r"_centroid\1", name)
