"""Files at a URL: look up, fetch, put and verify them, and retry each request."""
