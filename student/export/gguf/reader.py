"""A GGUF file read by gguf's own reader and run in numpy: GPT-2's forward pass written once more, for comparison.

transformers reads GGUF only where accelerate is installed, which is no dependency.

Legend: T new tokens, S tokens seen, D width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, quants
from numpy.typing import NDArray

from student.export.logits import Logits

Array = NDArray[np.float32]


class GgufReader:
    """Weights unpacked to float32; matrices are stored [out, in]."""

    def __init__(self, path: Path) -> None:
        file = GGUFReader(path)
        self._weights: dict[str, Array] = {
            t.name: quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in file.tensors
        }
        self._num_layers = int(_field(file, "gpt2.block_count"))
        self._num_heads = int(_field(file, "gpt2.attention.head_count"))
        self._epsilon = np.float32(_field(file, "gpt2.attention.layer_norm_epsilon"))
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        width = self._weights["token_embd.weight"].shape[1] // self._num_heads
        nothing = np.zeros((self._num_heads, 0, width), dtype=np.float32)
        self._past: list[tuple[Array, Array]] = [(nothing, nothing)] * self._num_layers

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read on; logits [T, V]."""
        num_past = self._past[0][0].shape[1]
        places = slice(num_past, num_past + len(input_ids))
        hidden_TD = self._weights["token_embd.weight"][list(input_ids)] + self._weights["position_embd.weight"][places]
        for layer in range(self._num_layers):
            name = f"blk.{layer}"
            hidden_TD = hidden_TD + self._attention(layer, self._norm(hidden_TD, f"{name}.attn_norm"))
            inner = gelu(self._linear(self._norm(hidden_TD, f"{name}.ffn_norm"), f"{name}.ffn_up"))
            hidden_TD = hidden_TD + self._linear(inner, f"{name}.ffn_down")
        head_VD = self._weights.get("output.weight", self._weights["token_embd.weight"])
        return self._norm(hidden_TD, "output_norm") @ head_VD.T

    def _attention(self, layer: int, hidden_TD: Array) -> Array:
        query, key, value = (
            part.reshape(len(part), self._num_heads, -1).swapaxes(0, 1)
            for part in np.split(self._linear(hidden_TD, f"blk.{layer}.attn_qkv"), 3, axis=1)
        )
        past_key, past_value = self._past[layer]
        key_HSK, value_HSK = np.concatenate([past_key, key], axis=1), np.concatenate([past_value, value], axis=1)
        self._past[layer] = key_HSK, value_HSK
        scores_HTS = query @ key_HSK.swapaxes(1, 2) / np.sqrt(np.float32(query.shape[2]))
        num_new, num_seen = scores_HTS.shape[1:]
        is_ahead_TS = np.arange(num_seen) > np.arange(num_seen - num_new, num_seen)[:, None]
        scores_HTS[:, is_ahead_TS] = -np.inf
        weights_HTS = np.exp(scores_HTS - scores_HTS.max(axis=2, keepdims=True))
        mixed_HTK = weights_HTS / weights_HTS.sum(axis=2, keepdims=True) @ value_HSK
        return self._linear(mixed_HTK.swapaxes(0, 1).reshape(hidden_TD.shape), f"blk.{layer}.attn_output")

    def _linear(self, inputs: Array, name: str) -> Array:
        outputs: Array = inputs @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return outputs

    def _norm(self, inputs: Array, name: str) -> Array:
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + self._epsilon)
        normed: Array = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed


def gelu(x: Array) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): GPT-2's approximation (Hendrycks & Gimpel 2016)."""
    tanh = np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))
    activated: Array = 0.5 * x * (1 + tanh)
    return activated


def _field(file: GGUFReader, key: str) -> Any:
    field = file.get_field(key)
    assert field is not None, key
    return field.contents()
