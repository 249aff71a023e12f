"""Count the arithmetic of a model.

Legend: L layers of width D, V vocabulary, T targets per block.
"""

from __future__ import annotations


def forward_flops_per_token(layers: int, width: int, vocab_size: int, block_size: int) -> float:
    """Return 2 (12 L D² + D V) for products with weights, head included, plus 4 L D T/2 for causal attention.

    A multiplication and an addition count as two operations. This is section 2.1 of Kaplan et al. 2020, with attention
    to T/2 tokens on average, and with the head.
    """
    return 2 * (12 * layers * width**2 + width * vocab_size) + 4 * layers * width * block_size / 2
