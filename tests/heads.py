"""Small models of the families whose heads are more than a matrix, and of some whose heads are not."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.25, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GPT: dict[str, Any] = {
    "n_positions": 64, "n_ctx": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8,
    "initializer_range": 0.25, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
# Settings, then the head's scale, its cap, and whether it has a bias. minicpm3 divides by hidden_size / dim_model_base.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[float, float | None, bool]]] = {
    "gpt2": (GPT, (1.0, None, False)),
    "llama": (SIZES, (1.0, None, False)),
    "phi": (SIZES, (1.0, None, True)),
    "gptj": (GPT, (1.0, None, True)),
    "codegen": (GPT, (1.0, None, True)),
    "cohere": (SIZES | {"logit_scale": 0.0625}, (0.0625, None, False)),
    "cohere2": (SIZES | {"logit_scale": 0.0625}, (0.0625, None, False)),
    "granite": (SIZES | {"logits_scaling": 4.0}, (0.25, None, False)),
    "hyperclovax": (SIZES | {"logits_scaling": 4.0}, (4.0, None, False)),
    "gemma2": (SIZES | {"head_dim": 16, "final_logit_softcapping": 30.0}, (1.0, 30.0, False)),
    "vaultgemma": (SIZES | {"head_dim": 16, "final_logit_softcapping": 3.0}, (1.0, 3.0, False)),
    "nanochat": (SIZES, (1.0, 15.0, False)),
    "minicpm3": (SIZES | LATENT | {"dim_model_base": 8}, (0.25, None, False)),
    "gemma3n_text": (
        SIZES
        | {"head_dim": 16, "num_hidden_layers": 4, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8}
        | {"vocab_size_per_layer_input": 97, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 5.0},
        (1.0, 5.0, False),
    ),
}


def make_model(model_type: str, vocab_size: int = 97, *, head_size: float | None = None) -> Any:
    """A random model; head_size: spread of new weights for its head, so that its logits reach the cap."""
    torch.manual_seed(0)
    settings = FAMILIES[model_type][0] | {"vocab_size": vocab_size}
    if "vocab_size_per_layer_input" in settings:
        settings["vocab_size_per_layer_input"] = vocab_size
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    if head_size is not None:
        with torch.no_grad():
            for parameter in model.get_output_embeddings().parameters():
                parameter.normal_(std=head_size, generator=torch.Generator().manual_seed(2))
    return model
