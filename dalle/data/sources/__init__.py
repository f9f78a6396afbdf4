"""A person's own pictures: what kind of source they are, what is in it, what is left out, and shards of the rest."""
