"""What the program says when it refuses or warns, read from its code."""
