"""What people watch: figures as they come, curves, pages, Weights & Biases."""
