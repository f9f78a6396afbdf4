"""Key-value caches of the token loop.

A layer's cache has the places that its mask can see (`masks.cache_places`), and the caption's keys and values once for all
of its candidates. Axes: C captions, N candidates of each, R = C·N rows, H heads, K head width, T text slots, G given image
slots, P places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dalle.masks import CachePlaces


@dataclass
class LayerCache:
    """Of one layer."""

    places: CachePlaces
    text_k_CHKT: torch.Tensor
    text_v_CHTK: torch.Tensor
    k_RHPK: torch.Tensor
    v_RHPK: torch.Tensor

    def write(self, slot_1: torch.Tensor, k_RHK: torch.Tensor, v_RHK: torch.Tensor) -> None:
        """Keep the keys and values of one image slot."""
        place_1 = self.places.place_I[slot_1]
        self.k_RHPK.index_copy_(2, place_1, k_RHK[:, :, None])
        self.v_RHPK.index_copy_(2, place_1, v_RHK[:, :, None])

    def write_given(self, k_CHSK: torch.Tensor, v_CHSK: torch.Tensor) -> None:
        """Keep those of all text slots and of the first image slots, the same for all candidates of a caption, and forget the
        others."""
        captions, _, text_slots, _ = self.text_v_CHTK.shape
        self.text_k_CHKT.copy_(k_CHSK[:, :, :text_slots].mT)
        self.text_v_CHTK.copy_(v_CHSK[:, :, :text_slots])
        given = k_CHSK.shape[2] - text_slots
        first = max(0, given - self.places.size)  # the slots before it would be written over
        place_G = self.places.place_I[first:given]
        for whole_CHSK, kept_RHPK in ((k_CHSK, self.k_RHPK), (v_CHSK, self.v_RHPK)):
            given_CHGK = whole_CHSK[:, :, text_slots + first :].to(kept_RHPK.dtype)
            kept_RHPK.zero_()  # a masked place adds −∞ to its score and 0 times its value: after a NaN both would stay NaN
            kept_RHPK.index_copy_(2, place_G, given_CHGK.repeat_interleave(len(kept_RHPK) // captions, dim=0))
