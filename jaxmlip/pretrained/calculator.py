"""A packaged or saved potential as an ASE calculator."""

from jaxmlip.interfaces.calculator import PotentialCalculator
from jaxmlip.models import checkpoint
from jaxmlip.pretrained import path_of


class Calculator(PotentialCalculator):
    """`atoms.calc = Calculator("organic")`: a packaged name or the path of a .safetensors file.

    dtype: 'float64' for second derivatives and tight relaxations (needs jax_enable_x64).
    Elements that the model card does not list raise `ModelError`.
    """

    def __init__(self, model, *, dtype=None, **kwargs):
        path = path_of(model)
        potential, params, card = checkpoint.load(path)
        super().__init__(potential, params, dtype=dtype, elements=card.get("elements"),
                         name=card.get("name", path.stem), **kwargs)
