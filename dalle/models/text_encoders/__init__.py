"""Captions as vectors: what the GAN of the second document is conditioned on. Each encoder is known by a name and by the hash of
its weights and vocabulary, so that embeddings that were made once are never taken for those of another."""

from dalle.models.text_encoders.cache import EmbeddingCache
from dalle.models.text_encoders.contract import TextEncoder
from dalle.models.text_encoders.names import open_text_encoder

__all__ = ["EmbeddingCache", "TextEncoder", "open_text_encoder"]
