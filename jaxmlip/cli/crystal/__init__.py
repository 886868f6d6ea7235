"""Commands about crystals: phonons, elastic, qha, screen."""
