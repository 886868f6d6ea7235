"""A packaged or saved potential as an ASE calculator."""

from jaxmlip.errors import ModelError
from jaxmlip.interfaces.calculator import PotentialCalculator
from jaxmlip.models import checkpoint
from jaxmlip.pretrained import path_of


class Calculator(PotentialCalculator):
    """`atoms.calc = Calculator("organic")`: a packaged name or the path of a .safetensors file.

    dtype: 'float64' for second derivatives and tight relaxations (needs jax_enable_x64).
    elements: atomic numbers of the structures to come, if not all that the model knows: fewer
    make a universal MACE faster. Others raise `ModelError`. head: name of the one that is
    wanted, of a potential with several. Raises `ModelError` for a model without an energy.
    """

    def __init__(self, model, *, dtype=None, elements=None, head=None, **kwargs):
        path = path_of(model, head=head)
        potential, params, card = checkpoint.load(
            path, elements=elements, head=head, needs_energy=True
        )
        super().__init__(
            potential,
            params,
            dtype=dtype,
            elements=card.get("elements"),
            name=card.get("name", path.stem),
            **kwargs,
        )
        self._neutral_only = not checkpoint.sees_charge(card)

    def system(self, atoms):
        """The `System` that is computed; a charge or spin that the model cannot see is refused."""
        other = atoms.info.get("charge", 0) != 0 or atoms.info.get("spin", 1) != 1
        if self._neutral_only and other:
            raise ModelError(
                f"model '{self.name}' knows neutral singlets only; the structure has charge "
                f"{atoms.info.get('charge', 0)} and multiplicity {atoms.info.get('spin', 1)}",
                code="JM509",
                fix="a model with an embedding of charge and spin",
            )
        return super().system(atoms)
