"""A training state on disk, read by any number of processes."""
