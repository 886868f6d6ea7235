"""The results of a folder as one Markdown table."""

import json
from pathlib import Path

from benchmarks.accuracy.sets import SETS

UNITS = {
    "energy": "meV/atom",
    "forces": "meV/Å",
    "stress": "meV/Å³",
    "dipole": "e Å",
    "born_charges": "e",
    "polarizability": "e²Å²/eV",
}
WORDS = {"born_charges": "Born charges", "polarizability": "polarisability"}


def table(work: Path) -> str:
    """One row a test: the set, the model, the cost, our errors, what is published."""
    rows = ["| set | model | training | ours | published |", "|---|---|---|---|---|"]
    for name in SETS:
        path = Path(work) / name / "result.json"
        if path.is_file():
            rows += lines(name, json.loads(path.read_text()))
    return "\n".join(rows)


def lines(name: str, found: dict) -> list[str]:
    """The rows of one set."""
    fields = found["config"]["fields"]
    model = f"{fields['channels']} channels, l {fields['l_max']}, {fields['cutoff']:g} Å"
    cost = f"{found['n_train']} frames, {found['steps']} steps, {found['hours']:.2f} h"
    out = []
    for part, errors in found["tests"].items():
        chosen = SETS[name]
        ours = ", ".join(text(key, errors[key]) for key in chosen.metrics if key in errors)
        title = f"{name} {part} ({errors['n_frames']} frames)" + (
            f"; {chosen.note}" if chosen.note else ""
        )
        out.append(f"| {title} | {model} | {cost} | {ours} | {chosen.published.get(part, '-')} |")
    return out


def text(key: str, value: float) -> str:
    """'forces 7.123 meV/Å RMSE' of 'forces_rmse_meV_per_A'."""
    label = next(name for name in UNITS if key.startswith(name))
    kind = "MAE" if "_mae_" in key else "RMSE"
    return f"{WORDS.get(label, label)} {value:.4g} {UNITS[label]} {kind}"
