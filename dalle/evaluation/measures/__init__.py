"""What two sets of images have in common, from sums over batches of their features."""
