"""Figures of a pipeline: (name, value) pairs."""
