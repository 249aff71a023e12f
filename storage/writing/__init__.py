"""How a cache comes to be, in a directory or at a URL, by any number of processes."""
