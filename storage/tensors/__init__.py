"""PyTorch code that teacher and student share. No other wing of storage imports torch or this wing."""
