"""Ladders of temperatures for a command line: replica exchange."""

import numpy as np

from jaxmlip.cli.dynamics.ensembles import RECIPES
from jaxmlip.errors import UsageError

OPTION = "--temperatures"
WHOLE = ("time_ps", "energy_drift_meV_per_atom_per_ps", "averages_leave_out_ps")
LEAST = 0.1  # of the attempts of a pair that succeed; walkers hardly pass below


def with_ladder(o: dict) -> dict:
    """The options of a run: "ladder" has its temperatures (K), one a replica, or None."""
    if o["temperatures"] is None:
        return o | {"ladder": None}
    ladder = _read(o["temperatures"])
    recipe = RECIPES[o["ensemble"]]
    if not recipe.bath or recipe.cell or recipe.ring:
        raise UsageError(
            f"copies exchange temperatures under a heat bath; --ensemble {o['ensemble']} is none "
            "of that kind",
            where=OPTION,
            fix="--ensemble nvt, nvt-csvr or nvt-nh",
        )
    if o["replicas"] > 1:
        raise UsageError(
            f"{OPTION} makes one copy a temperature", where="--replicas", fix="no --replicas"
        )
    for name in ("rdf", "response_every", "heat_flux_every"):
        if o[name]:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} mixes temperatures, or needs a trajectory without jumps",
                where=option,
                fix=f"a run at one temperature, from the frames of one with {OPTION}",
            )
    if o["exchange_every"] > o["steps"]:
        raise UsageError(
            f"--exchange-every {o['exchange_every']} is more than --steps {o['steps']}: nothing "
            "would be exchanged",
            where="--exchange-every",
            fix=f"--exchange-every {max(o['steps'] // 10, 1)}, or more --steps",
        )
    return o | {"ladder": ladder, "replicas": len(ladder)}


def _read(text: str) -> tuple[float, ...]:
    try:
        ladder = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        ladder = ()
    rising = all(0 < a < b < 1e5 for a, b in zip(ladder, ladder[1:], strict=False))
    if len(ladder) < 2 or not rising:
        raise UsageError(
            f"{OPTION} is {text!r}; expected two or more, in K, from cold to hot",
            where=OPTION,
            fix=f'{OPTION} "300 340 385"',
        )
    return ladder


def targets(o: dict):
    """K, [n_replicas] of a ladder, else one number."""
    return o["temp"] if o["ladder"] is None else np.array(o["ladder"])


def results(o: dict, motion, tables) -> dict:
    """What a run over a ladder found, for JSON: averages of each temperature. tables: theirs."""
    from jaxmlip.cli.dynamics.summary import summarize
    from jaxmlip.md.replica_exchange import acceptance

    whole = summarize(tables, len(motion.positions) // len(o["ladder"]))
    passed = [*acceptance(motion).tolist(), None]
    steps = [
        {
            "target_temperature_K": kelvin,
            "temperature_mean_K": found["temperature_mean_K"],
            "energy_potential_mean_eV": found["energy_potential_mean_eV"],
            "energy_potential_std_eV": found["energy_potential_std_eV"],
            "acceptance_to_next": None if rate is None or rate != rate else rate,
        }
        for kelvin, rate, found in zip(
            o["ladder"], passed, (summarize([t], 1) for t in tables), strict=True
        )
    ]
    ends = [set(np.asarray(tables[i]["walker_index"], int).tolist()) for i in (0, -1)]
    return {name: whole[name] for name in WHOLE} | {
        "exchange_every": o["exchange_every"],
        "ladder": steps,
        "walkers_at_both_ends": len(ends[0] & ends[1]),
    }


def warnings_of(found: dict):
    """What keeps a ladder from doing its work, in words. found: of `results`."""
    rungs = found.get("ladder", [])
    for low, high in zip(rungs, rungs[1:], strict=False):
        rate = low["acceptance_to_next"]
        if rate is not None and rate < LEAST:
            yield (
                f"{rate:.0%} of the exchanges between {low['target_temperature_K']:g} and "
                f"{high['target_temperature_K']:g} K were accepted: put temperatures between them"
            )


def rows(found: dict):
    """Lines of the table on the screen, one a temperature."""
    for rung in found.get("ladder", []):
        rate = rung["acceptance_to_next"]
        told = "" if rate is None else f", {rate:.0%} accepted to the next"
        mean, spread = rung["energy_potential_mean_eV"], rung["energy_potential_std_eV"]
        yield (
            f"{rung['target_temperature_K']:g} K",
            f"{rung['temperature_mean_K']:.1f} K, {mean:.5f} ± {spread:.5f} eV{told}",
        )
    if "ladder" in found:
        yield "walkers seen at both ends", str(found["walkers_at_both_ends"])
