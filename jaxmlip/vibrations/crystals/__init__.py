"""What phonons and strain say of a crystal: expansion, heat capacity, elastic constants."""
