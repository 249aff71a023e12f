"""The architectures of Llama and Mistral, which llama.cpp calls "llama", and of Qwen2, which it calls "qwen2".

Legend: D width, H heads, G heads of keys and values, K width of a head.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from student.export.gguf.architecture import Architecture, Weights, float32_weights

_ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_HEAD = "lm_head.weight"
_LAYER_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ACTIVATIONS = ("silu", "swish")  # two names of one function
# llama.cpp reads the factors of Llama 3.1, as a tensor, in "llama" alone.
_ROPE_TYPES = {"llama": ("default", "linear", "llama3"), "qwen2": ("default", "linear")}


def attention_window(config: Any) -> int | None:
    """Return how many tokens back attention reaches in the layers that limit it, None where none does."""
    is_limited = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return getattr(config, "sliding_window", None) if is_limited else None


def permuted(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Reorder the K rows of each head so that the two rows which RoPE turns together, i and i + K/2, are neighbours.

    weight: [heads · K, D], or a bias [heads · K]. That is the order of Meta's own files, in which llama.cpp's "llama"
    expects queries and keys.
    """
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _problem(model: Any, name: str) -> str | None:
    """See Architecture. name: llama.cpp's."""
    config = model.config
    rope_type = config.rope_parameters["rope_type"]
    unknown = [key for key in model.state_dict() if key != _HEAD and _gguf_name(key) is None]
    if unknown:
        return f"has weights that llama.cpp's {name} has no place for ({unknown[0]})"
    if config.hidden_act not in _ACTIVATIONS:
        return f"has activation {config.hidden_act!r}, llama.cpp's {name} has {_ACTIVATIONS[0]!r} alone"
    if rope_type not in _ROPE_TYPES[name]:
        known = ", ".join(_ROPE_TYPES[name])
        return f"scales its rotary embedding by {rope_type!r}, expected one of {known} for llama.cpp's {name}"
    attention_width = config.num_attention_heads * _head_width(config)
    if name == "qwen2" and attention_width != config.hidden_size:
        return f"has heads of {attention_width} numbers in all, expected its width {config.hidden_size} for qwen2"
    return None


def _add_shape(writer: Any, config: Any) -> None:
    """Write what llama.cpp's own converter writes.

    Within the window of attention, the context length is that window: llama.cpp's "llama" and "qwen2" have none.
    """
    from gguf import RopeScalingType

    window = attention_window(config)
    context_length = config.max_position_embeddings
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min(context_length, window or context_length))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_width(config))
    writer.add_value_length(_head_width(config))
    writer.add_rope_dimension_count(_head_width(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _weights(model: Any, heads_are_permuted: bool) -> Weights:
    config = model.config
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for ours, weight in float32_weights(model).items():
        name = _gguf_name(ours)
        if name is None:
            continue
        part = name.split(".")[-2]
        is_permuted = heads_are_permuted and part in num_heads
        yield name, permuted(weight, num_heads[part]) if is_permuted else weight
    if not config.tie_word_embeddings:
        yield "output.weight", model.get_output_embeddings().weight.detach().float().cpu().numpy()
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rope_factors(model)


def _rope_factors(model: Any) -> NDArray[np.float32]:
    """Return by how much the model turns each pair of a head more slowly than θ^(−2i/K) a token: [K/2]."""
    inv_freq = model.base_model.rotary_emb.inv_freq.double().cpu().numpy()
    exponents = np.arange(len(inv_freq)) / len(inv_freq)
    factors: NDArray[np.float32] = (model.config.rope_parameters["rope_theta"] ** -exponents / inv_freq).astype("f4")
    return factors


def _gguf_name(name: str) -> str | None:
    """Return llama.cpp's name of a weight, None for one that it does not know, and for the head."""
    found = _LAYER_NAME.fullmatch(name)
    if not found:
        return _ENDS.get(name)
    layer, part, kind = found.groups()
    return f"blk.{layer}.{_LAYER_PARTS[part]}.{kind}" if part in _LAYER_PARTS else None


def _architecture(name: str, *, heads_are_permuted: bool) -> Architecture:
    return Architecture(
        name=name,
        problem=partial(_problem, name=name),
        add_shape=_add_shape,
        weights=partial(_weights, heads_are_permuted=heads_are_permuted),
    )


LLAMA = _architecture("llama", heads_are_permuted=True)
QWEN2 = _architecture("qwen2", heads_are_permuted=False)
