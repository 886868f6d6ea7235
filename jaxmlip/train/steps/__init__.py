"""One training step, and what goes into it: batches, optimiser, learning rate, devices."""
