"""Image-text shards, decoded pairs, token shards, and the drawn data set."""
