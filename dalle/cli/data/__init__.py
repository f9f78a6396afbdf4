"""Commands that make what stages train on."""
