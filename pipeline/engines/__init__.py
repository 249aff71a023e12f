"""Engines that make the shards of a run: this process, or workers that Ray starts."""
