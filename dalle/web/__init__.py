"""A page to draw with, and the JSON endpoint that it stands on: one thread draws, for all who ask, in turns."""
