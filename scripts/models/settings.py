"""The tiny sizes, and what single families and variants need beside them."""

from __future__ import annotations

from typing import Any

_WIDTH, _HEADS, _KEY_HEADS, _HEAD_DIM = 32, 4, 2, 8

_NAMES_OF_SIZES: tuple[tuple[Any, str], ...] = (
    (257, "vocab_size vocab_size_per_layer_input"),
    (256, "eos_token_id"),
    (None, "bos_token_id pad_token_id"),
    (0.25, "initializer_range init_std"),
    (64, "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length"),
    (2, "num_hidden_layers n_layer n_layers num_layers"),
    (_WIDTH, "hidden_size n_embd d_model embedding_size word_embed_proj_dim lru_width attention_hidden_size"),
    (_HEADS, "num_attention_heads n_head n_heads num_heads attention_heads"),
    (_KEY_HEADS, "num_key_value_heads"),
    (_HEAD_DIM, "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim d_rel hidden_size_per_layer_input"),
    (16, "q_lora_rank kv_lora_rank o_lora_rank gated_norm_rank rel_extent"),
    # Small enough to matter in a text of a few words.
    (4, "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size local_attention"),
    (48, "intermediate_size ffn_dim ffn_hidden_size dff dim_ff n_inner dense_intermediate_size"),
    (24, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
    (24, "moe_shared_expert_intermediate_size shared_experts_intermediate_size"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k"),
    (1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    (6, "index_topk"),
    # With few heads many scores are exactly 0, and which of them a model keeps hangs on the length of the pass.
    (16, "index_n_heads index_head_dim"),
    (8, "state_size ssm_state_size mamba_d_state chunk_size mamba_chunk_size"),
    (4, "time_step_rank mamba_dt_rank mamba_n_heads mamba_num_heads"),
    (16, "mamba_d_head mamba_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim"),
    (1, "mamba_n_groups n_groups"),
    (2, "linear_num_heads linear_num_key_heads linear_num_value_heads"),
    (0.0, "resid_pdrop embd_pdrop emb_pdrop attn_pdrop dropout activation_dropout layerdrop attention_dropout"),
    (0.0, "hidden_dropout_prob attention_probs_dropout_prob residual_dropout hidden_dropout"),
)
SIZES: dict[str, Any] = {name: size for size, names in _NAMES_OF_SIZES for name in names.split()}
"""Sizes by the name of a field; each config takes those that it has."""

_PARTS_OF_TEXT = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings sliding_window initializer_range bos_token_id eos_token_id pad_token_id"
)
_PLAIN: dict[str, Any] = {name: SIZES[name] for name in _PARTS_OF_TEXT.split()} | {"intermediate_size_mlp": 48}
_BYTES: dict[str, Any] = _PLAIN | {"hidden_size_global": _WIDTH}
_SIGHT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16,
}  # fmt: skip
_CHUNKED: dict[str, Any] = {"no_rope_layers": [1, 0], "attention_chunk_size": 4, "num_local_experts": 4}
_TWO_VIEWS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
_TWO_ROPES: dict[str, Any] = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    }
}
_LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLVED: dict[str, Any] = {"layer_types": ["conv", "full_attention"]}
_ONE_SPARSE: dict[str, Any] = {"mlp_layer_types": ["dense", "sparse"]}
_SHARED: dict[str, Any] = {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4}
_LONG_ROPE: dict[str, Any] = {
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * (_HEAD_DIM // 2),
        "long_factor": [4.0] * (_HEAD_DIM // 2),
    },
}

OF_FAMILY: dict[str, dict[str, Any]] = {
    "afmoe": _TWO_VIEWS,
    "bailing_hybrid": _LINEAR | _ONE_SPARSE,
    "bamba": {"attn_layer_indices": [1]},
    "beam": _ONE_SPARSE,
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4]}
    | dict.fromkeys(("patcher_config", "encoder_config", "decoder_config", "global_config"), _BYTES),
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 4.0},
    "cohere2": _TWO_VIEWS | {"logit_scale": 4.0},
    "cohere2_moe": _TWO_VIEWS | {"logit_scale": 4.0},
    "cohere_compass_text": _TWO_VIEWS | _TWO_ROPES | {"logit_scale": 4.0},
    "cwm": {"bos_token_id": 0},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v3": {"first_k_dense_replace": 1},
    "deepseek_v32": _ONE_SPARSE,
    "deepseek_v4": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "num_key_value_heads": 1,
        "o_groups": 2,
    },
    "exaone4": _TWO_VIEWS,
    "exaone_moe": _TWO_VIEWS,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3": {"text_config": _PLAIN | _TWO_VIEWS, "vision_config": _SIGHT},
    "gemma3_text": _TWO_VIEWS,
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": _TWO_VIEWS["layer_types"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _TWO_VIEWS | {"pad_token_id": 0},
    "gemma4_unified_text": _TWO_VIEWS | {"pad_token_id": 0},
    "glm_moe_dsa": _ONE_SPARSE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 4.0},
    "granitemoehybrid": _LINEAR,
    "inkling_text": {"logits_mup_width_multiplier": 2.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR,
    "kolibri1": _TWO_VIEWS,
    "laguna": _TWO_VIEWS,
    "lfm2": _CONVOLVED,
    "lfm2_moe": _CONVOLVED | {"num_dense_layers": 1},
    "lfm3": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "sliding_attention"]},
    "llama4": {"text_config": _PLAIN | _CHUNKED, "vision_config": _SIGHT},
    "llama4_text": _CHUNKED,
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "mellum": _TWO_VIEWS,
    "minicpm3": {"dim_model_base": 16},
    "minimax": _LINEAR | {"block_size": 8},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 0},
    "olmo3": _TWO_VIEWS,
    "olmo_hybrid": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp_text": _LINEAR
    | {
        "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2, "hc_lowrank": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "smollm3": {"no_rope_layers": [1, 0]},
    "zamba": _SHARED | {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": _SHARED | {"layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a model type needs beside SIZES."""

TEXT_PARTS: dict[str, str] = {
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""The type of the part that reads text, whose tiny config is the text_config of a model type of several parts."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, not parallel": ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True}),
    "gemma2, cap 3": ("gemma2", {"final_logit_softcapping": 3.0}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_bigcode, many keys": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox, not parallel": ("gpt_neox", {"use_parallel_residual": False}),
    "granite, multipliers": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5, "logits_scaling": 8.0},
    ),
    "granitemoehybrid, rotary": ("granitemoehybrid", {"position_embedding_type": "rope"}),
    "inkling_text, padded rows": ("inkling_text", {"vocab_size": 272, "unpadded_vocab_size": 257}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, dynamic rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    "llama, padded rows": ("llama", {"vocab_size": 288}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                             "original_max_position_embeddings": 16}},
    ),
    "mamba2, groups": ("mamba2", {"n_groups": 2}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "opt, norms after": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "phi, norms of keys": ("phi", {"qk_layernorm": True}),
    "phi3, longrope": ("phi3", _LONG_ROPE),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    "starcoder2, no window": ("starcoder2", {"sliding_window": None}),
    "zamba2, adapters": ("zamba2", {"use_shared_attention_adapter": True, "adapter_rank": 4, "use_mem_rope": True}),
}  # fmt: skip
"""Further settings that change what a model computes: variant, model type, settings."""
