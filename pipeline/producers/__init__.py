"""Producers make the rows of the cache from the teacher, one file for each kind."""
