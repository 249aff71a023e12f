"""Write a cache, in a directory or at a URL, with any number of processes."""
