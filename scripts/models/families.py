"""Tiny models of every causal family of transformers, with weights so large that every part of them matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scripts.models.left_out import LEFT_OUT
from scripts.models.settings import OF_FAMILY, SIZES, TEXT_PARTS, VARIANTS

VOCAB_SIZE, EOS_TOKEN_ID = 257, 256
_WEIGHT_STD = 0.25


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type, or a variant of one: what config it is made with beside the tiny sizes."""

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)


def families() -> dict[str, Family]:
    """Return every family that is tried, by name: the causal model types of transformers, then the variants."""
    types = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(LEFT_OUT))
    found = {name: Family(name=name, model_type=name, settings=OF_FAMILY.get(name, {})) for name in types}
    for name, (model_type, settings) in VARIANTS.items():
        of_family = OF_FAMILY.get(model_type, {})
        found[name] = Family(name=name, model_type=model_type, settings=of_family | settings)
    return found


def tiny_config(family: Family) -> Any:
    """Return the family's config with tiny sizes: those of SIZES that it has a field for, and its own settings."""
    known = CONFIG_MAPPING[family.model_type]
    fields = {*known.__dataclass_fields__, *known.attribute_map}
    sizes = {name: value for name, value in SIZES.items() if name in fields}
    if "kv_lora_rank" in fields:  # latent attention has as many key heads as heads
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    text = TEXT_PARTS.get(family.model_type)
    if text:
        sizes["text_config"] = tiny_config(families()[text]).to_dict()
    return transformers.AutoConfig.for_model(family.model_type, **(sizes | family.settings))


def tiny_model(family: Family) -> Any:
    """Return a model in evaluation mode with seeded weights: matrices, embeddings and biases of deviation 0.25."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(std=_WEIGHT_STD)
    return model.eval()
