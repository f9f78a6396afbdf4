"""Figures of a pipeline. Each metric has one shape: `run(pipeline, …)` gives (name, value) pairs."""
