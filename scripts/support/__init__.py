"""Code that several programs share: made-up caches, measurement of time and memory, other libraries' formats."""
