"""Tiny models beside GPT-2: some read packed documents apart by position ids, some only a document a row."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON: dict[str, Any] = {"vocab_size": 257, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
_SMALL = _COMMON | {"hidden_size": 32, "initializer_range": 0.25}
_SIZES = _SMALL | {
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}  # fmt: skip
_GPT = _COMMON | {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.25}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 16,
}  # fmt: skip
# By name: the settings, how documents are isolated in blocks of 32 tokens, and whether texts are read whole.
MODELS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "gpt2": (_GPT, "packed", False),
    "llama": (_SIZES, "packed", False),
    "qwen2": (_SIZES, "packed", False),
    "mixtral": (_SIZES | {"num_local_experts": 4}, "packed", False),
    "bloom": (_SMALL | {"n_layer": 2, "n_head": 2}, "rows", False),
    "opt": (
        _SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.25, "pad_token_id": 1},
        "rows",
        False,
    ),
    "mpt": (_COMMON | {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}, "rows", False),
    "falcon": (_SMALL | {"num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True}, "rows", False),
    "gpt_oss": (_SIZES | {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}, "rows", False),
    "openai-gpt": (_GPT, "rows", True),
    "mamba": (_SMALL | {"num_hidden_layers": 2}, "rows", True),
    "mamba2": (
        _SMALL | {"num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}
        | {"chunk_size": 8},
        "rows",
        True,
    ),
    "rwkv": (
        _COMMON | {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 64},
        "rows",
        True,
    ),
    "recurrent_gemma": (
        _COMMON | {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
        | {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 3.0},
        "rows",
        True,
    ),
    "jamba": (
        _SIZES | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        "rows",
        True,
    ),
    "lfm2": (_SIZES | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}, "rows", True),
    # The rows of its cache can be selected, but not the state of its convolutions.
    "zaya": (
        _SIZES | {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 8, "num_experts": 2}
        | {"moe_intermediate_size": 24, "num_experts_per_tok": 1},
        "rows",
        True,
    ),
    "phi3": (
        _SIZES | {"pad_token_id": 0, "original_max_position_embeddings": 16, "rope_parameters": _LONGROPE},
        "equal_rows",
        True,
    ),
}  # fmt: skip


def make_model(name: str, **changes: object) -> Any:
    """A random model of about 30,000 parameters in float32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(MODELS[name][0] | changes))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def in_float64(model: Any) -> Any:
    """The same model in float64, its experts one by one: PyTorch's grouped products know no float64."""
    if model.config.to_dict().get("num_local_experts") or model.config.to_dict().get("num_experts"):
        model.set_experts_implementation("eager")
    return model.double()
