"""The parts of `jaxmlip spectra`: what is read of a trajectory, computed and drawn."""
