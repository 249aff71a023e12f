"""From rows of a cache to losses and gradients."""
