"""What the commands that measure are asked for."""
