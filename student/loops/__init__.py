"""A cache in anyone's training loop: batches as tensors, losses as functions, and a Trainer of transformers."""
