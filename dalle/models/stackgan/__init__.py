"""The StackGAN that the autoregressive model is compared with: generators of both stages, and their discriminators."""
