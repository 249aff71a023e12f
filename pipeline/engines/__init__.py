"""Who makes the shards of a run: this process, or workers that Ray places and starts."""
