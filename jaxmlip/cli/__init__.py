"""The command line: every public function a person would call from a shell, and no physics.

Nothing here computes what a script could not: commands read, call, show and write. JAX and
matplotlib are imported inside the functions that need them, so that `jaxmlip --help` is quick.
"""
