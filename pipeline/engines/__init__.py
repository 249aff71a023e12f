"""Where the shards of a run are made: in this process, or by workers that Ray places and starts."""
