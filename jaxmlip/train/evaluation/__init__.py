"""How good a model is on labelled data, and how well it knows its own errors."""
