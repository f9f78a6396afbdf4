"""From the backward pass to the optimiser (appendices D and E)."""
