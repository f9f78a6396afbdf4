"""Sampling: the token loop, candidates over many devices, reranking, and the gallery."""
