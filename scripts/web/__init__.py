"""A page in which an exported student completes text, served from this machine alone."""
