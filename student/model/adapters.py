"""Train adapters of low rank beside a checkpoint's linear layers (LoRA, Hu et al. 2021, equation 3), by peft."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from storage.errors import ConfigError, first_line
from storage.tensors.checkpoints.adapters import require_peft
from storage.tensors.model_facts import body_of, context_length_of
from storage.tensors.output_head import same_logits
from student.config import LoraConfig
from student.errors import ArchitectureError
from student.model.architecture import num_vocabulary_rows
from student.model.presets import PRESETS

# Largest difference of hidden states that is rounding, relative to the largest entry of a position.
_TOLERANCE = 1e-3


def require_adaptable(lora: LoraConfig, preset: str) -> None:
    """Raise MissingExtraError without peft, and ConfigError unless `preset` is a checkpoint; lora.rank is not None."""
    require_peft("--lora.rank")
    if preset in PRESETS or not Path(preset).is_dir():
        raise ConfigError(
            f"--lora.rank {lora.rank} with --preset {preset}: adapters leave weights as they are, and these are new; "
            "expected a checkpoint directory, or --lora.rank None"
        )


def add_adapters(model: Any, lora: LoraConfig, preset: str, seed: int) -> None:
    """Let a model's linear layers compute W x + (alpha / rank) B A x, where only A and B are trained, in place.

    A is random, decided by `seed`, and B is 0: the model computes what it computed. Embeddings and output head stay as
    they are, or are trained in full if `lora` says so; all else stays as it is. preset: the student's name in messages.
    Raise ArchitectureError for a model without linear layers, and one that adapters do not suit.
    """
    peft = require_peft("--lora.rank")
    layers = _linear_layers(model)
    if not layers:
        raise ArchitectureError(preset, "has no linear layer for --lora.rank to adapt")
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it as each layer needs it
            peft.LoraModel(model, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers), "default")
    except ValueError as error:
        raise ArchitectureError(preset, f"cannot be trained with --lora.rank ({first_line(error)})") from error
    if not _is_same_when_merged(model, lora):
        raise ArchitectureError(preset, "would compute something else once its adapters of --lora.rank are merged")
    if lora.train_embeddings:
        for module in model.modules():
            if isinstance(module, nn.Embedding) or module is model.get_output_embeddings():
                module.requires_grad_(True)


def _linear_layers(model: Any) -> list[str]:
    """Return the names of all layers but the head that compute W x + b."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if _is_linear(module) and module is not head]


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    """Try subclasses: some return a router's choice, or cut W into groups."""
    if type(module) in (nn.Linear, Conv1D):
        return True
    if not isinstance(module, nn.Linear):
        return False
    trial_CD = torch.ones(2, module.in_features)
    try:
        return torch.allclose(module(trial_CD), nn.functional.linear(trial_CD, module.weight, module.bias))
    except (TypeError, RuntimeError, ValueError, IndexError):  # another number of outputs, or another shape
        return False


@torch.no_grad()
def _is_same_when_merged(model: Any, lora: LoraConfig) -> bool:
    """Try a copy with random B: some architectures read the weights of layers that they do not call, or share them."""
    body = copy.deepcopy(body_of(model)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in body.named_parameters():
        if "lora_B" in name:  # B A x becomes about as large as x
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (math.sqrt(lora.rank or 1) / lora.alpha))
    ids = (torch.arange(min(12, context_length_of(model)))[None] * 7 + 1) % num_vocabulary_rows(model)
    adapted = body(input_ids=ids, use_cache=False).last_hidden_state
    merge_adapters(body)
    return same_logits(body(input_ids=ids, use_cache=False).last_hidden_state[0], adapted[0], _TOLERANCE)


def merge_adapters(model: Any) -> None:
    """Put W + (alpha / rank) B A in the place of every adapted layer's W, and remove the adapters."""
    adapted = require_peft("--lora.rank").tuners.tuners_utils.BaseTunerLayer
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, adapted):
                module.merge()
                setattr(parent, name, module.get_base_layer())
