"""What lies in a folder of token shards, read whole or refused by name (`dalle.data.tokens`)."""
