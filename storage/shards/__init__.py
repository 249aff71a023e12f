"""One shard, an Arrow file: write it, and check and read it as untrusted input."""
