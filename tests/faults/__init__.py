"""What breaks while a command writes: kills, and errors of the file system."""
