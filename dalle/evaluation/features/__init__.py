"""Images as numbers that measures compare."""
