"""The page docs/api.md, made from the docstrings of the public names."""
