"""Potentials by name: packaged ones of this project's own making, and pulled ones of others."""

from pathlib import Path

from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.potential import Potential

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the packaged potentials."""
    return sorted(p.stem for p in FOLDER.glob("*.safetensors"))


def path_of(model, *, head: str | None = None) -> Path:
    """The model file of a packaged or pulled name, or of a path.

    A path of foreign weights (mace-torch, Nequix ...) is imported when it is first used, and the
    result is kept in the user's cache. head: which one of foreign weights with several. Raises
    `ModelError` for an unknown name or kind of file, and for several heads of which none is chosen.
    """
    from jaxmlip.pretrained.published import PUBLISHED
    from jaxmlip.pretrained.pull import on_the_fly, pulled

    path = Path(model)
    if path.suffix == ".safetensors":
        return path
    if path.is_file():
        return path if _is_safetensors(path) else on_the_fly(path, head=head)
    known = {name: FOLDER / f"{name}.safetensors" for name in names()}
    known = {**pulled(), **known}
    if str(model) in known:
        return known[str(model)]
    if str(model) in PUBLISHED:
        raise ModelError(
            f"'{model}' is a published potential that has not been pulled",
            fix=f"jaxmlip models pull {model}",
            code="JM501",
        )
    raise ModelError(
        f"unknown model '{model}'.{did_you_mean(model, [*known, *PUBLISHED])}",
        fix=f"a name ({', '.join(known)}; `jaxmlip models list`) or the path of a model file",
        code="JM501",
    )


def _is_safetensors(path) -> bool:
    """A header's length in eight bytes, then JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and start[:1] != b"{"


def load(
    model, *, elements=None, head: str | None = None, needs_energy: bool = False
) -> tuple[Potential, dict]:
    """(potential, params) of a name or a path, of ours or of another code; total energies in eV.

    elements: atomic numbers of the structures to come: fewer make a universal MACE faster,
    and it is the same function of such structures. Others then give NaN. head: name of the one
    that is wanted, of a potential with several (levels of theory). needs_energy: refuse a model of
    dipoles or polarisabilities alone; the energy of such a one is that of its dipole in a field.
    """
    from jaxmlip.models import checkpoint

    options = {"elements": elements, "head": head, "needs_energy": needs_energy}
    potential, params, _ = checkpoint.load(path_of(model, head=head), **options)
    return potential, params


def card(model) -> dict:
    """The model card: architecture, elements, cutoff, units, level of theory, accuracy, licence."""
    from jaxmlip.models import checkpoint

    return checkpoint.read(path_of(model))[0]
