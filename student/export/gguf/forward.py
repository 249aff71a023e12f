"""The forward passes of llama.cpp's architectures in numpy, from the weights and constants of a GGUF file alone.

Legend: T new tokens, S tokens seen, D width, H heads, G heads of keys and values, K width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from student.export.logits import Logits

Array = NDArray[np.float32]
# Return a constant of the architecture by its name in the file, None for one that the file does not state.
Constants = Callable[[str], Any]


class Forward:
    """What all architectures share: residual layers of attention and feed-forward, with keys and values kept.

    weights: by llama.cpp's names, matrices as [out, in].
    """

    def __init__(self, weights: dict[str, Array], constants: Constants) -> None:
        self._weights = weights
        self._num_layers = int(constants("block_count"))
        self._num_heads = int(constants("attention.head_count"))
        self._num_key_heads = int(constants("attention.head_count_kv") or self._num_heads)
        self._head_width = int(constants("attention.key_length") or self._embedding.shape[1] // self._num_heads)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        nothing = np.zeros((self._num_key_heads, 0, self._head_width), dtype=np.float32)
        self._past: list[tuple[Array, Array]] = [(nothing, nothing)] * self._num_layers

    def read(self, input_ids: Sequence[int]) -> Logits:
        """Read the next T ids; return their logits [T, V]."""
        num_past = self._past[0][0].shape[1]
        places_T = np.arange(num_past, num_past + len(input_ids))
        hidden_TD = self._embed(input_ids, places_T)
        for layer in range(self._num_layers):
            name = f"blk.{layer}"
            hidden_TD = hidden_TD + self._attention(layer, self._norm(hidden_TD, f"{name}.attn_norm"), places_T)
            hidden_TD = hidden_TD + self._feed_forward(self._norm(hidden_TD, f"{name}.ffn_norm"), name)
        head_VD = self._weights.get("output.weight", self._embedding)
        logits_TV: Logits = self._norm(hidden_TD, "output_norm") @ head_VD.T
        return logits_TV

    def _embed(self, input_ids: Sequence[int], places_T: NDArray[np.int64]) -> Array:
        raise NotImplementedError

    def _norm(self, inputs_TD: Array, name: str) -> Array:
        raise NotImplementedError

    def _feed_forward(self, inputs_TD: Array, name: str) -> Array:
        raise NotImplementedError

    def _projections(self, inputs_TD: Array, places_T: NDArray[np.int64], name: str) -> tuple[Array, Array, Array]:
        """Return queries [H, T, K], keys and values [G, T, K]."""
        raise NotImplementedError

    def _attention(self, layer: int, inputs_TD: Array, places_T: NDArray[np.int64]) -> Array:
        query_HTK, key_GTK, value_GTK = self._projections(inputs_TD, places_T, f"blk.{layer}")
        past_key, past_value = self._past[layer]
        key_GSK, value_GSK = (
            np.concatenate([past_key, key_GTK], axis=1),
            np.concatenate([past_value, value_GTK], axis=1),
        )
        self._past[layer] = key_GSK, value_GSK
        heads_each = self._num_heads // self._num_key_heads
        key_HSK, value_HSK = key_GSK.repeat(heads_each, axis=0), value_GSK.repeat(heads_each, axis=0)
        scores_HTS = query_HTK @ key_HSK.swapaxes(1, 2) / np.sqrt(np.float32(self._head_width))
        scores_HTS[:, np.arange(key_HSK.shape[1]) > places_T[:, None]] = -np.inf
        weights_HTS = np.exp(scores_HTS - scores_HTS.max(axis=2, keepdims=True))
        mixed_HTK = weights_HTS / weights_HTS.sum(axis=2, keepdims=True) @ value_HSK
        return self._linear(mixed_HTK.swapaxes(0, 1).reshape(len(inputs_TD), -1), f"blk.{layer}.attn_output")

    def _linear(self, inputs: Array, name: str) -> Array:
        outputs: Array = inputs @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return outputs if bias is None else outputs + bias

    def _heads(self, projected_TD: Array) -> Array:
        """Return [heads, T, K] of [T, heads · K]."""
        return projected_TD.reshape(len(projected_TD), -1, self._head_width).swapaxes(0, 1)

    @property
    def _embedding(self) -> Array:
        return self._weights["token_embd.weight"]


class Gpt2(Forward):
    """GPT-2: learnt positions, layer norms with a bias, one matrix for queries, keys and values."""

    def __init__(self, weights: dict[str, Array], constants: Constants) -> None:
        super().__init__(weights, constants)
        self._epsilon = np.float32(constants("attention.layer_norm_epsilon"))

    def _embed(self, input_ids: Sequence[int], places_T: NDArray[np.int64]) -> Array:
        return self._embedding[list(input_ids)] + self._weights["position_embd.weight"][places_T]

    def _norm(self, inputs_TD: Array, name: str) -> Array:
        centred = inputs_TD - inputs_TD.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + self._epsilon)
        normed: Array = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed

    def _projections(self, inputs_TD: Array, places_T: NDArray[np.int64], name: str) -> tuple[Array, Array, Array]:
        query, key, value = np.split(self._linear(inputs_TD, f"{name}.attn_qkv"), 3, axis=1)
        return self._heads(query), self._heads(key), self._heads(value)

    def _feed_forward(self, inputs_TD: Array, name: str) -> Array:
        return self._linear(gelu(self._linear(inputs_TD, f"{name}.ffn_up")), f"{name}.ffn_down")


class Qwen2(Forward):
    """Qwen2: rotary positions (Su et al. 2021) of the halves of a head, RMS norms, a gated feed-forward layer."""

    def __init__(self, weights: dict[str, Array], constants: Constants) -> None:
        super().__init__(weights, constants)
        self._epsilon = np.float32(constants("attention.layer_norm_rms_epsilon"))
        slowness = constants("rope.scaling.factor") or 1.0
        exponents = np.arange(0, self._head_width, 2) / self._head_width
        factors = weights.get("rope_freqs.weight", np.float32(1))
        self._angle_per_token = float(constants("rope.freq_base")) ** -exponents / factors / slowness

    def _embed(self, input_ids: Sequence[int], places_T: NDArray[np.int64]) -> Array:
        return self._embedding[list(input_ids)]

    def _norm(self, inputs_TD: Array, name: str) -> Array:
        scaled = inputs_TD / np.sqrt(np.square(inputs_TD).mean(axis=1, keepdims=True) + self._epsilon)
        normed: Array = scaled * self._weights[f"{name}.weight"]
        return normed

    def _projections(self, inputs_TD: Array, places_T: NDArray[np.int64], name: str) -> tuple[Array, Array, Array]:
        query, key, value = (self._heads(self._linear(inputs_TD, f"{name}.attn_{part}")) for part in "qkv")
        return self._turn(query, places_T), self._turn(key, places_T), value

    def _feed_forward(self, inputs_TD: Array, name: str) -> Array:
        gate, up = self._linear(inputs_TD, f"{name}.ffn_gate"), self._linear(inputs_TD, f"{name}.ffn_up")
        return self._linear(gate / (1 + np.exp(-gate)) * up, f"{name}.ffn_down")

    def _turn(self, heads_HTK: Array, places_T: NDArray[np.int64]) -> Array:
        """Turn each pair (x, y) of a head by its angle: (x cos − y sin, x sin + y cos)."""
        angles = places_T[:, None] * self._angle_per_token
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        x, y = self._pairs(heads_HTK)
        turned = np.empty_like(heads_HTK)
        turned_x, turned_y = self._pairs(turned)
        turned_x[...], turned_y[...] = x * cos - y * sin, x * sin + y * cos
        return turned

    def _pairs(self, heads_HTK: Array) -> tuple[Array, Array]:
        """Return views of the first and second numbers of all pairs: [H, T, K/2] each."""
        half = self._head_width // 2
        return heads_HTK[..., :half], heads_HTK[..., half:]


class Llama(Qwen2):
    """Llama and Mistral: as Qwen2, but the neighbours in a head are turned together."""

    def _pairs(self, heads_HTK: Array) -> tuple[Array, Array]:
        return heads_HTK[..., ::2], heads_HTK[..., 1::2]


def gelu(x: Array) -> Array:
    """Return 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), GPT-2's approximation (Hendrycks & Gimpel 2016)."""
    tanh = np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))
    activated: Array = 0.5 * x * (1 + tanh)
    return activated
