"""Students for other runtimes: what all formats share, and how an export is tried before it appears."""
