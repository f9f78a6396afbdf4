"""The optimiser, its averages and its plateau rule (appendix B.2)."""
