"""What a plan is asked for."""
