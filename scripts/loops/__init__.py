"""Training loops of others over a cache, each a recipe of its own: docs/loops.md shows them."""
