"""A web page in which an exported student completes text. Everything is served from this machine."""
