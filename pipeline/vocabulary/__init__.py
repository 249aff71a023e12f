"""Passes over logits [C, V], block by block, that make no second copy of them."""
