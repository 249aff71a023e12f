"""Walks over logits [C, V], block by block, that hold no second copy of them."""
