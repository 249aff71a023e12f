"""GPT-2's architecture as llama.cpp's "gpt2"."""

from __future__ import annotations

from typing import Any

from student.export.gguf.architecture import Architecture, Weights, float32_weights

# llama.cpp has one GELU, which is GPT-2's approximation. transformers has these names for it.
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_LAYER_PARTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _problem(model: Any) -> str | None:
    config = model.config
    if config.activation_function not in _ACTIVATIONS:
        return f"has activation {config.activation_function!r}, llama.cpp's gpt2 has {_ACTIVATIONS[0]!r} alone"
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        return "scales attention in another way than llama.cpp's gpt2"
    return None


def _add_shape(writer: Any, config: Any) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _weights(model: Any) -> Weights:
    weights = float32_weights(model)
    yield "token_embd.weight", weights["transformer.wte.weight"]
    yield "position_embd.weight", weights["transformer.wpe.weight"]
    for layer in range(model.config.n_layer):
        for part, theirs in _LAYER_PARTS.items():
            weight = weights[f"transformer.h.{layer}.{part}.weight"]
            yield f"blk.{layer}.{theirs}.weight", weight.T  # Conv1D stores [in, out]; .T leaves vectors as they are
            yield f"blk.{layer}.{theirs}.bias", weights[f"transformer.h.{layer}.{part}.bias"]
    yield "output_norm.weight", weights["transformer.ln_f.weight"]
    yield "output_norm.bias", weights["transformer.ln_f.bias"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", weights["lm_head.weight"]


GPT2 = Architecture(name="gpt2", problem=_problem, add_shape=_add_shape, weights=_weights)
