"""A cache of 10^12 tokens without its shards: made-up records, time and memory of real code on them, a cost model."""
