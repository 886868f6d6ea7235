"""What is known of elements, as ASE has it."""

from ase import data


def covalent_radii(numbers) -> dict[int, float]:
    """{atomic number: Å}: the table that mace-torch's distance transforms use (Cordero, 2008)."""
    return {int(z): float(data.covalent_radii[int(z)]) for z in numbers}
