"""The only doors to foreign code."""
