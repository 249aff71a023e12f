"""Turn the rows of a cache into losses and gradients."""
