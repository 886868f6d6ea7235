"""What the far terms of a model say to a wave of displacements, told by its card.

An Ewald sum of explicit charges follows it. A mesh does not, and need not: for the small cells that
waves are computed on, an Ewald sum is planned in its place. Charges that are equilibrated and
potentials that feed back into features follow none.
"""

from jaxmlip.cli.output import note
from jaxmlip.errors import ModelError, UsageError

SUPERCELL = (
    "force constants of supercells by phonopy with jaxmlip.Calculator, then `jaxmlip phonons FILE "
    "--force-constants phonopy.yaml`"
)


def reaches_far(card: dict) -> bool:
    """Whether anything electrostatic reaches beyond the cutoff."""
    return bool(card.get("electrostatics")) or _feeds_back(card)


def follows(card: dict) -> bool:
    """Whether D(q) is known."""
    return not (_feeds_back(card) or _equilibrated(card))


def check_matrices(model, *, born=None) -> None:
    """Refuses models without D(q), and a file BORN beside those that have its field already."""
    if not follows(model.card):
        raise ModelError(
            f"model '{model.name}' has no D(q): {_what(model.card)} no wave of displacements",
            where="dynamical matrices",
            code="JM533",
            fix=SUPERCELL,
        )
    if born is not None and reaches_far(model.card):
        raise UsageError(
            f"the charges of model '{model.name}' make the field of longitudinal waves in its "
            "D(q) already: with these Born charges it would be there twice",
            where="--born",
            fix="leave out --born",
        )


def check_born_charges(model) -> None:
    """Refuses models whose crystals have no Born charges, as far as the card tells it."""
    charges = model.card["fields"].get("charges", True)
    if _equilibrated(model.card) or (_feeds_back(model.card) and charges):
        raise ModelError(
            f"crystals of model '{model.name}' have no Born charges: {_what(model.card)} no wave "
            "of displacements, which tells what charge flows where",
            where="infrared spectra",
            code="JM533",
            fix="a model with `charges: false` (dipoles of atoms alone); for frequencies "
            + SUPERCELL,
        )


def meshed(card: dict) -> bool:
    """Whether there is a mesh with explicit charges, which an Ewald sum can replace."""
    from jaxmlip.models.plans import MESHES

    return (card.get("electrostatics") or {}).get("method") in MESHES and follows(card)


def without_mesh(card: dict) -> dict:
    """The card with an Ewald sum of the same tolerance and cutoff in place of the mesh."""
    note("an Ewald sum takes the place of the model's mesh, which waves do not pass")
    entry = {k: v for k, v in card["electrostatics"].items() if k in ("tolerance", "cutoff")}
    return card | {"electrostatics": {"method": "ewald", **entry}}


def _what(card) -> str:
    far = "potentials of far charges that feed back into its features"
    return f"{far if _feeds_back(card) else 'its equilibrated charges'} follow"


def _equilibrated(card) -> bool:
    return (card.get("electrostatics") or {}).get("equilibration") is not None


def _feeds_back(card) -> bool:
    from jaxmlip.models.checkpoint import build

    return hasattr(build(card), "solver")  # of the features of `LongRangeMACE`
