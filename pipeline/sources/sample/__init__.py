"""Read a small sample of a large data source: windows at random places, spread over all its bytes."""
