"""One shard: an Arrow file, written, read and distrusted."""
