"""The parts of `jaxmlip md`: ensembles, where it starts, what it shows."""
