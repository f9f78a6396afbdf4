"""What each stage trains on, validates and shows."""
