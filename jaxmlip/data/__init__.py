"""From labelled frames to batches: reference energies and scales, splits, padded buckets."""
