"""Sources of every kind as one stream of items: an image and its captions, where they lie."""
