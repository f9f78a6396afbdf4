"""Drawing with the GAN that the transformer is compared with: the same candidates, ranking and output."""
