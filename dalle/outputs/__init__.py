"""What a command writes: one writer at a time for each place, and nothing that is not its own."""
