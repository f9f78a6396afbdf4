"""Training: one loop for every stage, on one DeepSpeed engine from one CPU process to a cluster."""
