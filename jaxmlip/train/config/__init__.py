"""A training run as data: what its YAML file may say, read, checked and completed."""
