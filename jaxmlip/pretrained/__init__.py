"""Packaged potentials of this project's own making, each a `.safetensors` with a model card."""

from pathlib import Path

from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.models import checkpoint
from jaxmlip.potential import Potential

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the packaged potentials."""
    return sorted(p.stem for p in FOLDER.glob("*.safetensors"))


def path_of(model) -> Path:
    """The file of a packaged name, or the path itself. Raises `ModelError` for an unknown name."""
    path = Path(model)
    if path.suffix == ".safetensors" or path.is_file():
        return path
    if str(model) not in names():
        raise ModelError(
            f"unknown model '{model}'.{did_you_mean(model, names())}",
            fix=f"a packaged name ({', '.join(names())}) or the path of a .safetensors file",
            code="JM501",
        )
    return FOLDER / f"{model}.safetensors"


def load(model) -> tuple[Potential, dict]:
    """(potential, params) of a packaged name or a path; energies are total energies in eV."""
    potential, params, _ = checkpoint.load(path_of(model))
    return potential, params


def card(model) -> dict:
    """The model card: architecture, elements, cutoff, units, level of theory, accuracy, licence."""
    return checkpoint.read(path_of(model))[0]
