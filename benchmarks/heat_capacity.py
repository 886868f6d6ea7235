"""How well does a potential give heat capacities of porous crystals, and at what cost?

    python -m benchmarks.heat_capacity --cifs DIR --tables DIR --model nequix-oam-1-pft --out DIR

The smallest labelled frameworks of the heat-capacity set of Moosavi et al. 2022
(`structures_data.csv` of SeyedMohamadMoosavi/tools-cp-porousmat) with the structures and the second
table of MOFSimBench (`hcmof/*.cif` and `collect_cv_300k.csv` of AI4ChemS/mofsim-bench): not part of
this repository. Both tables are of density-functional calculations and they differ: their
difference is the noise of the labels, printed beside our error.

Atoms are relaxed in the cell that is given, vibrations are those at Γ. Two numbers for each
framework: the modes at Γ without the three translations, and with them (and any imaginary mode) at
their classical k, which is what acoustic modes of a crystal come near at 300 K. Resumable: run it
again after any interruption. One line of JSON a framework, then one with the summary.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.timing import rounded

# Their masses in one table are half those of the structures, and the tables differ by 0.20 J/(K g)
DOUBTFUL = ("RSM0210", "RSM0216", "RSM0218")


def main():
    options = arguments()
    from jaxmlip.cli import session
    from jaxmlip.cli.crystal import screen
    from jaxmlip.workflows import heat_capacity, map_resumable, processes

    session.start(x64=True)
    labels = tables(options.tables)
    files = smallest(options.cifs, labels, options.count)
    settings = heat_capacity.Settings(
        fmax=options.fmax, dtype=options.dtype, steps=options.steps, cell=options.cell
    )
    items = heat_capacity.items(
        files, options.model, settings, memory=options.memory * 1e9, workers=options.workers
    )
    done = len(items)
    outcome = map_resumable(
        heat_capacity.heat_capacity,
        items,
        executor=processes(options.workers, begin=screen.begin),
        folder=options.out / "records",
        key=heat_capacity.key,
        in_flight=options.workers,
        report=lambda so_far, name: print(
            f"{len(so_far.results) + len(so_far.failures)}/{done} {name}", file=sys.stderr
        ),
    )
    lines = [row(name, result, *labels[name]) for name, result in outcome.results.items()]
    for line in lines:
        print(json.dumps(rounded(line)))
    for name, failure in outcome.failures.items():
        print(json.dumps({"name": name, "failed": failure.reason}))
    total = {"model": options.model, "dtype": options.dtype, "fmax": options.fmax}
    print(json.dumps(rounded(total | {"n_failed": len(outcome.failures)} | summary(lines))))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifs", type=Path, required=True, help="folder of the structures")
    parser.add_argument("--tables", type=Path, required=True, help="folder of the two tables")
    parser.add_argument("--model", required=True, help="name or path")
    parser.add_argument("--out", type=Path, required=True, help="kept, to resume")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--memory", type=float, default=4.0, help="GB for the Hessians")
    parser.add_argument("--dtype", default="float32", help="of second derivatives")
    parser.add_argument("--fmax", type=float, default=1e-3, help="eV/Å")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cell", action="store_true", help="relax the cell too")
    return parser.parse_args()


def tables(folder) -> dict[str, tuple[float, float]]:
    """{name: (Moosavi et al., MOFSimBench)} Cv(300 K), J/(K g), of what both have."""
    first = read(folder / "structures_data.csv", "", "Cv_gravimetric_300.00")
    second = read(folder / "mofsimbench_collect_cv_300k.csv", "cif_name", "cv_300K_JperKperg")
    return {name: (first[name], second[name]) for name in first if name in second}


def read(path, name, column) -> dict[str, float]:
    with open(path, newline="") as file:
        return {line[name]: float(line[column]) for line in csv.DictReader(file)}


def smallest(folder, labels, count) -> list[Path]:
    """The files of the labelled structures with the fewest atoms."""
    from jaxmlip.interfaces.read import read_structure

    files = [f for f in sorted(folder.glob("*.cif")) if f.stem in labels]
    sizes = {f: len(read_structure(f)) for f in files if f.stem not in DOUBTFUL}
    return sorted(sizes, key=lambda f: (sizes[f], f.stem))[:count]


def row(name, result, first, second) -> dict:
    return {
        "name": name,
        "formula": result["formula"],
        "n_atoms": result["n_atoms"],
        "cv_gamma_J_per_K_g": result["cv_J_per_K_g"][0],
        "cv_J_per_K_g": result["cv_soft_classical_J_per_K_g"][0],
        "dft_moosavi_J_per_K_g": first,
        "dft_mofsimbench_J_per_K_g": second,
        "n_imaginary": result["n_imaginary"],
        "lowest_cm1": result["lowest_cm1"],
        "fmax_eV_per_A": result["fmax_eV_per_A"],
        "relax_steps": result["relax_steps"],
        "relax_s": result["relax_s"],
        "curvature_s": result["curvature_s"],
        "peak_memory_MB": result["peak_memory_MB"],
    }


def summary(lines) -> dict:
    """Errors against both tables, and those of the tables against each other, J/(K g)."""
    if not lines:
        return {"n": 0}
    pick = lambda key: np.array([line[key] for line in lines], float)
    ours, gamma = pick("cv_J_per_K_g"), pick("cv_gamma_J_per_K_g")
    first, second = pick("dft_moosavi_J_per_K_g"), pick("dft_mofsimbench_J_per_K_g")
    return {
        "n": len(lines),
        "n_with_imaginary": int((pick("n_imaginary") > 0).sum()),
        "n_imaginary": pick("n_imaginary").sum(),
        "mean_J_per_K_g": second.mean(),
        **errors("vs_moosavi", ours - first),
        **errors("vs_mofsimbench", ours - second),
        **errors("gamma_vs_mofsimbench", gamma - second),
        **errors("moosavi_vs_mofsimbench", first - second),
        "wall_s": (pick("relax_s") + pick("curvature_s")).sum(),
    }


def errors(name, difference) -> dict:
    return {
        f"mae_{name}": np.abs(difference).mean(),
        f"bias_{name}": difference.mean(),
        f"rmse_{name}": np.sqrt((difference**2).mean()),
    }


if __name__ == "__main__":
    main()
