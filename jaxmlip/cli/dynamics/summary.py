"""What a run came to, from its tables: numbers, a picture, pair distributions."""

import numpy as np

from jaxmlip import units
from jaxmlip.cli import plot

WARM_UP = 0.2  # of a run that averages leave out
BLOCKS = 10  # for the errors of quantum averages


def summarize(tables, n_atoms: int) -> dict:
    """Averages over the last four fifths of the tables of all replicas, flat."""
    late = [_late(t) for t in tables]
    mean = lambda name: float(np.mean([t[name].mean() for t in late]))
    spread = lambda name: float(np.sqrt(np.mean([t[name].var() for t in late])))
    out = {
        "time_ps": float(tables[0]["time_fs"][-1]) * 1e-3,
        "temperature_mean_K": mean("temperature_K"),
        "temperature_std_K": spread("temperature_K"),
        "energy_potential_mean_eV": mean("energy_potential_eV"),
        "energy_potential_std_eV": spread("energy_potential_eV"),
        "energy_drift_meV_per_atom_per_ps": float(np.mean([drift(t, n_atoms) for t in tables])),
        "averages_leave_out_ps": WARM_UP * float(tables[0]["time_fs"][-1]) * 1e-3,
    }
    if "pressure_eV_per_A3" in tables[0]:
        out["pressure_mean_GPa"] = mean("pressure_eV_per_A3") / units.GPa
        out["pressure_std_GPa"] = spread("pressure_eV_per_A3") / units.GPa
        out["volume_mean_A3"] = mean("volume_A3")
    if "msd_A2" in tables[0]:
        out["msd_end_A2"] = float(np.mean([t["msd_A2"][-1] for t in tables]))
    if "gyration_A" in tables[0]:
        out |= _quantum(late[0])
    return out


def _quantum(table) -> dict:
    """Averages of a ring of beads, with standard errors of the means of blocks."""
    kinetic, potential = table["energy_kinetic_eV"], table["energy_potential_eV"]
    series = {
        "energy_potential": (potential, "eV"),
        "energy_kinetic_centroid_virial": (kinetic, "eV"),
        "energy_quantum": (kinetic + potential, "eV"),
        "gyration": (table["gyration_A"], "A"),
    }
    out = {}
    for name, (x, unit) in series.items():
        out |= {f"{name}_mean_{unit}": float(x.mean()), f"{name}_error_{unit}": _error(x)}
    return out


def _error(x) -> float:
    """Of the mean of a series, from the means of its blocks; NaN where it is too short for them."""
    from jaxmlip.vibrations.spectra.correlation import blocks, standard_error

    if len(x) < 2 * BLOCKS:
        return float("nan")
    return float(standard_error([part.mean() for part in blocks(x, BLOCKS)]))


def drift(table, n_atoms: int) -> float:
    """Slope of the conserved energy, meV per atom and ps; 0 for less than two rows."""
    time, energy = table["time_fs"] * 1e-3, table["energy_conserved_eV"] * 1e3 / n_atoms
    if len(time) < 2:
        return 0.0
    return float(np.polyfit(time - time.mean(), energy - energy.mean(), 1)[0])


def _late(table):
    start = int(WARM_UP * len(table["step"]))
    return {name: values[start:] for name, values in table.items()}


def draw(path, tables, n_atoms: int, *, title: str, temperature) -> None:
    """Conserved energy, temperature and pressure (or potential energy) against time; PNG.

    temperature: K, of the bath: one number, one a table, or None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    above, middle, below = figure.subplots(3, 1, sharex=True)
    pressure = "pressure_eV_per_A3" in tables[0]
    for table in tables:
        time = table["time_fs"] * 1e-3
        energy = table["energy_conserved_eV"] * 1e3 / n_atoms
        above.plot(time, energy - energy[0], color=plot.CURVE, lw=0.9)
        middle.plot(time, table["temperature_K"], color=plot.STICK, lw=0.7)
        last = (
            table["pressure_eV_per_A3"] / units.GPa
            if pressure
            else table["energy_potential_eV"] / n_atoms
        )
        below.plot(time, last, color=plot.INK, lw=0.7)
    for kelvin in () if temperature is None else np.atleast_1d(temperature):
        middle.axhline(kelvin, color="#888888", lw=0.8, ls="--")
    slope = np.mean([drift(t, n_atoms) for t in tables])
    told = f"drift {slope:+.2g} meV/atom/ps"
    above.set_title(told, loc="right", fontsize=9, color="#666666")
    above.set_title(title, loc="left", fontsize=11, color=plot.INK)
    above.set_ylabel("conserved energy\n(meV/atom, from start)")
    middle.set_ylabel("temperature (K)")
    below.set_ylabel("pressure (GPa)" if pressure else "potential energy\n(eV/atom)")
    below.set_xlabel("time (ps)")
    for axes in (above, middle, below):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, format="png")


def rows(found: dict):
    """Lines of the table on the screen."""
    yield "time", f"{found['time_ps']:.4g} ps"
    yield "averages ± spread", f"without the first {found['averages_leave_out_ps']:.3g} ps"
    yield "drift", f"{found['energy_drift_meV_per_atom_per_ps']:+.3g} meV/atom/ps"
    if "temperature_mean_K" in found:
        mean, spread = found["temperature_mean_K"], found["temperature_std_K"]
        yield "temperature", f"{mean:.1f} ± {spread:.1f} K"
        yield "potential energy", _told(found, "energy_potential", "eV")
    if "gyration_mean_A" in found:
        kinetic = _told(found, "energy_kinetic_centroid_virial", "eV")
        yield "kinetic energy, centroid virial", kinetic
        yield "radius of gyration", _told(found, "gyration", "A").replace("A", "Å")
    if "pressure_mean_GPa" in found:
        yield "pressure", f"{found['pressure_mean_GPa']:.3f} ± {found['pressure_std_GPa']:.3f} GPa"
        yield "volume", f"{found['volume_mean_A3']:.3f} Å³"


def _told(found, name, unit) -> str:
    """A mean, with its standard error where there is one."""
    error = found.get(f"{name}_error_{unit}", float("nan"))
    told = f" (error {error:.2g})" if error == error else ""
    return f"{found[f'{name}_mean_{unit}']:.5f}{told} {unit}"


def pair_distributions(sums, numbers, replicas: int, cutoff: float) -> str:
    """g(r) of every two elements as a table with commas, from summed pair counts of crystals.

    numbers: of one of the replicas.
    """
    from ase.data import chemical_symbols

    counts, records = sums["pairs"], float(sums["count"])
    n_kinds, _, bins = counts.shape
    kinds, amounts = np.unique(numbers, return_counts=True)
    edges = np.linspace(0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    volume = float(sums["cells"]) / records / replicas
    columns = {"r_A": (edges[1:] + edges[:-1]) / 2}
    for i in range(n_kinds):
        for j in range(i, n_kinds):
            name = f"g_{chemical_symbols[kinds[i]]}_{chemical_symbols[kinds[j]]}"
            ideal = records * replicas * amounts[i] * amounts[j] / volume * shells
            columns[name] = counts[i, j] / ideal
    rows = zip(*(c.tolist() for c in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(f"{x:.6g}" for x in row) for row in rows)]
    return "\n".join(lines) + "\n"
