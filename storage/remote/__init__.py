"""Files at a URL: looked up, fetched, put and proved, each request retried."""
