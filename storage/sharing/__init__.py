"""Caches that travel: copies to and from URLs, archives, merged and compacted caches."""
