"""float64 unless precision is the subject of the test."""

import jax

jax.config.update("jax_enable_x64", True)
