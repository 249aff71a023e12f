"""What processes that share a run keep beside the cache: claims, the work directory, and writing behind the teacher."""
