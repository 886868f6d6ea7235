"""Faults that labels show by their statistics: a flipped sign, another unit, forces set to zero.

Units are told by three independent rulers: forces against energies (`pair_fit`), total energies
against those of free atoms (all electrons), and the stiffness of bonds, which chemistry bounds.
Each pair of units that fits all rulers is a hypothesis; the plainest one is reported, and nothing
is said where the rulers do not decide.
"""

from dataclasses import dataclass, replace
from math import isfinite, log

from jaxmlip import units as u
from jaxmlip.data.rulers import ENERGY, Evidence, gather, off_chemistry

FORCE = {"eV/A": 1.0, "Ha/bohr": u.hartree / u.bohr, "Ry/bohr": u.hartree / u.bohr / 2}
FORCE |= {"kcal/mol/A": u.kcal_mol, "kJ/mol/A": u.kJ_mol, "eV/bohr": 1 / u.bohr}
RARE = {"Ry", "Ry/bohr", "kJ/mol", "kJ/mol/A", "eV/bohr"}  # named where they fit clearly better
NATURAL = {("eV", "eV/A"), ("Ha", "Ha/bohr"), ("Ry", "Ry/bohr")}
NATURAL |= {("kcal/mol", "kcal/mol/A"), ("kJ/mol", "kJ/mol/A")}
STRESS = {"eV/A3": 1.0, "GPa": u.GPa, "kbar": u.GPa / 10, "Ha/bohr3": u.hartree / u.bohr**3}
PRECISE, ROUGH = log(1.45), log(4.5)  # how far a slope may be from a hypothesis
SURE = log(2.5)  # trapezoids over steep walls, as in relaxations, are off by less than this factor


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong (fault) or worth knowing (note) about a data set."""

    name: str  # snake_case, for programs
    text: str
    fault: bool = False
    label: str | None = None
    factor: float | None = None  # the label times this is in our unit and sign
    unit: str | None = None  # what to write into data: units: {label: ...}


def find_faults(frames, *, cutoff: float) -> list[Finding]:
    """Wrong signs and units of [(System, labels)], by their statistics.

    cutoff: of the pair potential, Å. Labels as they are read: a unit that the
    configuration names has been converted.
    """
    return judge(gather(frames, cutoff=cutoff))


def mending_units(findings, units: dict) -> dict[str, str]:
    """{label: unit in the file} that mends the faults; units: those that are converted already, of
    which only the sign can be told to be wrong.
    """
    out = {}
    for f in findings:
        if f.fault and f.unit and f.label:
            known = units.get(f.label)
            flipped = known and (known[1:] if known.startswith("-") else f"-{known}")
            if known is None or f.factor == -1:
                out[f.label] = flipped or f.unit
    return out


def judge(evidence: Evidence) -> list[Finding]:
    """The plainest units and signs that fit all rulers, told where they are not ours."""
    believed = next((e for e in _less_and_less(evidence) if any(_hypotheses(e))), None)
    if believed is None:
        return [_no_relation(evidence.slope), *_stress_findings(evidence, 1.0)]
    energy, force, sign = min(_hypotheses(believed))[2:]
    minus = "-" if sign < 0 else ""
    chemical, out = believed.stiffness_counts, []
    if not chemical:
        out.append(_strange_bonds(evidence.fit))
    if energy != "eV":
        factor = ENERGY[energy]
        out.append(_unit_finding("energy", energy, factor, evidence.slope, chemical=chemical))
    if force != "eV/A" and evidence.fit is not None:
        unit, factor = minus + force, FORCE[force] * sign
        out.append(_unit_finding("forces", unit, factor, evidence.slope, chemical=chemical))
    if sign < 0:
        out.append(_sign_finding(evidence.slope, minus + force))
    return out + _stress_findings(evidence, FORCE[force] * sign)


def _less_and_less(evidence):
    """The evidence without rulers that unusual sets escape: energies of valence electrons can by
    chance be those of all electrons in another unit, and bonds can be springs of any strength.
    """
    yield evidence
    yield replace(evidence, energy_unit=None)
    yield replace(evidence, stiffness_counts=False)
    yield replace(evidence, energy_unit=None, stiffness_counts=False)


def _hypotheses(evidence):
    """(complexity, distance, energy unit, force unit, sign) of all that fit the rulers."""
    s = evidence.slope
    sign = -1 if s is not None and s.value < 0 else 1
    for energy, a in ENERGY.items():
        for force, b in FORCE.items():
            stiff = off_chemistry(evidence.fit, sign * b) if evidence.stiffness_counts else 0.0
            off = 0.0 if s is None else abs(log(abs(s.value) * a / b))
            pair = energy == "eV" or force == "eV/A" or (energy, force) in NATURAL
            sound = pair and evidence.energy_unit in (None, energy) and isfinite(stiff)
            if sound and off < (PRECISE if evidence.precise else ROUGH):
                plain = int((energy, force) != ("eV", "eV/A"))
                plain += _stress_unit(evidence, sign * b)[0] not in (None, "eV/A3")
                rare = (0.2 if evidence.precise else 1.0) * bool({energy, force} & RARE)
                yield plain, off + 0.3 * stiff + rare, energy, force, sign


def _strange_bonds(fit):
    values = ", ".join(f"{z}: {_number(k)}" for z, k in sorted(fit.stiffness.items()))
    return Finding(
        name="stiffness",
        label="forces",
        text="bonds are far stiffer or softer than in chemistry; Laplacian of the energy by atomic "
        f"number, eV/Å²: {values}",
    )


def _no_relation(s):
    return Finding(
        name="energy_and_forces_disagree",
        fault=_surely_off(s),
        label="forces",
        text=f"energies change {_number(s.value)} times as much as the forces say "
        f"(+- {_number(s.error)}, correlation {s.correlation:.2f}), and no pair of units gives "
        "that factor",
    )


def _surely_off(s):
    return s.value < 0 or abs(log(s.value)) > SURE


def _unit_finding(label, unit, factor, s, *, chemical):
    """A fault only if energies and forces contradict each other, surely or as bonds say, too."""
    ours = {"energy": "eV", "forces": "eV/Å"}[label]
    why = (
        f"energies change {_number(s.value)} times as much as the forces say "
        f"(correlation {s.correlation:.2f})"
        if s is not None
        else {
            "energy": "that would make them those of atoms with all electrons",
            "forces": "bonds would be as stiff as in chemistry",
        }[label]
    )
    return Finding(
        name=f"{label}_unit",
        fault=s is not None and (chemical or _surely_off(s)),
        label=label,
        factor=factor,
        unit=unit,
        text=f"{label} look like {unit}, expected {ours}: {why}; factor {factor:.6g}",
    )


def _sign_finding(s, unit):
    return Finding(
        name="forces_sign",
        fault=True,
        label="forces",
        factor=-1.0,
        unit=unit,
        text="forces have the flipped sign (they are gradients): energies rise along them "
        f"(slope {_number(s.value)} +- {_number(s.error)}, correlation {s.correlation:.2f}, "
        f"{s.n} observations); factor -1",
    )


def _stress_unit(evidence, force_factor):
    """(unit with its sign, factor to ours) that brings stresses to the forces; or (None, 1)."""
    s, v = evidence.stress, evidence.virial
    if s is None:
        return None, 1.0
    value = s.value / force_factor
    off = {name: abs(log(abs(value) * factor)) for name, factor in STRESS.items()}
    unit = "eV/A3" if off["eV/A3"] < ROUGH else min(off, key=off.get)
    if unit != "eV/A3" and v is not None and v.value / force_factor < 0:
        if abs(log(-v.value / force_factor)) < off[unit]:
            return "eV virial", None
    return ("-" if value < 0 else "") + unit, STRESS[unit] * (1 if value > 0 else -1)


def _stress_findings(evidence, force_factor):
    unit, factor = _stress_unit(evidence, force_factor)
    if unit in (None, "eV/A3"):
        return []
    why = {"eV virial": "they look like virials in eV, -V times the stress"}
    why["-eV/A3"] = "the sign is flipped, ours is positive under tension"
    s = evidence.stress
    return [
        Finding(
            name="stress_sign" if unit == "-eV/A3" else "stress_unit",
            fault=True,
            label="stress",
            factor=factor,
            unit=unit,
            text=f"stresses are {_number(s.value / force_factor)} times what the forces say "
            f"(correlation {s.correlation:.2f}): {why.get(unit, f'they look like {unit}')}"
            + ("" if factor is None else f"; factor {factor:.6g}")
            + ("" if evidence.slope else " (or the forces are wrong: energies do not decide)"),
        )
    ]


def _number(x):
    return f"{x:.3g}"
