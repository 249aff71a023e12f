"""One file a kind: rows of the cache from the teacher."""
