"""The frame of all trials: what is tried, how, and what becomes of it."""
