"""A cache of 10^12 tokens without its shards: made-up records, what real code takes over them, and a cost model."""
