"""`dalle-doctor`, and the self-test that it starts."""
