"""Copy caches to and from URLs, pack them into archives, merge and compact them."""
