"""`dalle-train`: somebody's own pictures on the whole road."""
