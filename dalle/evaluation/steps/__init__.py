"""What `dalle-evaluate` does, in its order: draw, measure, rank, report, remember."""
