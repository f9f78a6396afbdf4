"""From captions' tokens to codes, slot by slot: the heart of sampling."""
