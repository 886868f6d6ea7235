"""The labelled frames of a run: read, checked, completed, their reference energies."""
