"""The page to draw with."""
